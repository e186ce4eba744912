"""`wesar-sweep fold`: a completed run as a folder that Hugging Face's transformers loads.

Which stock model it becomes, and what cannot be folded, is in `wesar_sweep.model.hugging_face`; the
weights are those that `keep_weights: true` kept (`wesar_sweep.training.kept_weights`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from wesar_sweep.config import load_study
from wesar_sweep.config.run import Architecture
from wesar_sweep.errors import ConfigError, Problem, StoreError
from wesar_sweep.model.hugging_face import hugging_face_config, hugging_face_weights
from wesar_sweep.store.atomic import (
    store_error,
    write_atomically,
    write_folder_atomically,
    write_json,
)
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.store.provenance import read_provenance
from wesar_sweep.store.rows import Outcome
from wesar_sweep.training.kept_weights import KeptRun, read_weights
from wesar_sweep.training.tensor_files import write_tensors


def fold_run(run: Path, *, to: Path, trial: int | None = None, seed: int | None = None) -> KeptRun:
    """Write the model of a run into a folder, for ``AutoModelForCausalLM.from_pretrained``.

    Args:
        run: A file of kept weights, or the results directory of a study: then the best of its
            completed runs, by validation loss.
        to: The folder; made, and refused where there is something in it.
        trial: In a study, only runs of this cell.
        seed: In a study, only runs of this seed.

    Returns:
        Whose weights they are.

    Raises:
        ConfigError: No stock model computes what the run's does, or no such run has weights.
        StoreError: Something cannot be read or written.
    """
    if run.is_dir():
        file = best_weights(StudyDirectory(run), trial=trial, seed=seed)
    elif trial is not None or seed is not None:
        raise ConfigError(
            Problem(
                "--trial and --seed choose among the runs of a study, and this is one run",
                path="RUN",
                value=str(run),
                hint="leave them away, or give the study's directory",
            )
        )
    else:
        file = run
    # Kept weights lie in a folder of the study's directory, unless somebody has moved them.
    study = StudyDirectory(file.resolve().parent.parent)
    tokenizer_json, end_of_document = _tokenizer(study)
    return write_model(file, to=to, tokenizer_json=tokenizer_json, end_of_document=end_of_document)


def _tokenizer(directory: StudyDirectory) -> tuple[str | None, int | None]:
    """The tokenizer of a study and the token that ends a document, where they are known."""
    try:
        text = directory.tokenizer_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise store_error(error, path=directory.tokenizer_file, action="read") from error
    end = read_provenance(directory).get("corpus", {}).get("end_of_document")
    return text, end


def best_weights(directory: StudyDirectory, *, trial: int | None, seed: int | None) -> Path:
    """The kept weights of the completed run with the least validation loss.

    Args:
        directory: The study's.
        trial: Only runs of this cell; None: of any.
        seed: Only runs of this seed; None: of any.

    Raises:
        ConfigError: None of them has weights; says why and what to do.
        StoreError: There is no study, or its outcomes cannot be read.
    """
    if not directory.study_file.exists():
        raise StoreError(
            f"no study in {directory.root}: expected {directory.study_file}. Give the directory "
            "that `wesar-sweep run` printed, such as results/lr_sigma, or a file of its weights"
        )
    if directory.published:
        raise StoreError(
            f"{directory.root} is a published study, and weights are not published: train it anew, "
            "with keep_weights: true"
        )
    ended = read_outcomes(directory)
    chosen = [
        row
        for row in ended
        if (trial is None or row.trial == trial) and (seed is None or row.seed == seed)
    ]
    completed = [row for row in chosen if row.status == "completed"]
    kept = [row for row in completed if directory.weights_file(row.trial, row.seed).exists()]
    if not kept:
        raise ConfigError(_why_none(directory, ended, chosen, completed, trial=trial, seed=seed))
    best = min(kept, key=_val_loss)
    return directory.weights_file(best.trial, best.seed)


def _val_loss(row: Outcome) -> tuple[float, int, int]:
    """By what the best run is found; of equals the first."""
    assert row.val_loss is not None, "a run completes with an evaluation"
    return row.val_loss, row.trial, row.seed


def _why_none(
    directory: StudyDirectory,
    ended: list[Outcome],
    chosen: list[Outcome],
    completed: list[Outcome],
    *,
    trial: int | None,
    seed: int | None,
) -> Problem:
    """Why no weights were found, and what to do about it."""
    asked = {"--trial": trial, "--seed": seed}
    words = " ".join(f"{name} {number}" for name, number in asked.items() if number is not None)
    if not chosen and words:
        trials = sorted({row.trial for row in ended})
        seeds = sorted({row.seed for row in ended})
        ends = "none yet"
        if ended:
            ends = f"trials {trials[0]} to {trials[-1]} and seeds {seeds[0]} to {seeds[-1]}"
        return Problem("no such run has ended", path=words, allowed=ends)
    runs = f"runs of {words}" if words else "runs"
    if not completed:
        hint = "only runs that completed have weights: see `wesar-sweep status`"
        return Problem(f"none of the {len(chosen)} {runs} that ended has completed", hint=hint)
    root = directory.root
    if load_study(directory.study_file).keep_weights:
        message = (
            f"the weights of none of the {len(completed)} completed {runs} are in "
            f"{directory.weights_folder}"
        )
        hint = (
            "they completed before keep_weights was set, the disk was full (then the log in "
            f"{directory.workers_folder} says so), or somebody removed the files; train them anew: "
            f"wesar-sweep run {directory.study_file} --out {root}_again"
        )
        return Problem(message, hint=hint)
    hint = (
        "run it with keep_weights: true; to repeat this study: "
        f"wesar-sweep run {directory.study_file} --set keep_weights=true --out {root}_weights"
    )
    return Problem(f"the study in {root} kept no weights", path="keep_weights", hint=hint)


def write_model(
    weights: Path,
    *,
    to: Path,
    tokenizer_json: str | None,
    end_of_document: int | None,
) -> KeptRun:
    """Write one run's kept weights as a model of transformers, all files or none.

    Args:
        weights: The file of kept weights.
        to: The folder; made, and refused where there is something in it.
        tokenizer_json: A `tokenizer.json` of Hugging Face's `tokenizers`; None: there is none.
        end_of_document: Id of the token at which generation stops; None: at none.

    Returns:
        Whose weights they are.

    Raises:
        ConfigError: No stock model computes the same, or the folder is not empty.
        StoreError: Something cannot be read or written.
    """
    _require_empty(to)
    kept, folded = read_weights(weights)
    config = hugging_face_config(kept.architecture, end_of_document=end_of_document)
    tensors = hugging_face_weights(
        folded,
        architecture=kept.architecture,
        embed_scale=kept.embed_scale,
        embed_norm=kept.parts.embed_norm,
    )

    def fill(folder: Path) -> None:
        write_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", _generation(end_of_document))
        if tokenizer_json is not None:
            write_atomically(folder / "tokenizer.json", tokenizer_json.encode())
            facts = _tokenizer_config(tokenizer_json, end_of_document, kept.architecture)
            write_json(folder / "tokenizer_config.json", facts)

    write_folder_atomically(to, fill)
    return kept


def _require_empty(folder: Path) -> None:
    """Refuse to mix a model with what is there.

    Raises:
        ConfigError: There is something in the folder, or a file in its place.
        StoreError: It cannot be looked into.
    """
    problem = partial(Problem, path="--to", value=str(folder), hint="choose another folder")
    try:
        if any(folder.iterdir()):
            raise ConfigError(problem("the folder is not empty"))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(problem("this is a file, not a folder")) from None
    except OSError as error:
        raise store_error(error, path=folder, action="read") from error


def _generation(end_of_document: int | None) -> dict[str, Any]:
    """What generation_config.json says: where to stop, and what to fill shorter texts up with."""
    if end_of_document is None:
        return {}
    return {"eos_token_id": end_of_document, "pad_token_id": end_of_document}


def _tokenizer_config(
    tokenizer_json: str, end_of_document: int | None, architecture: Architecture
) -> dict[str, Any]:
    """What tokenizer_config.json says, so that AutoTokenizer takes tokenizer.json as it is."""
    facts: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": architecture.context,
        "clean_up_tokenization_spaces": False,
        # Else version 4 of transformers hands `token_type_ids` to models that know none.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if end_of_document is not None:
        words = json.loads(tokenizer_json)
        added, vocab = words.get("added_tokens") or (), words["model"]["vocab"]
        found = [word["content"] for word in added if word["id"] == end_of_document]
        if isinstance(vocab, dict):
            found += [word for word, number in vocab.items() if number == end_of_document]
        facts |= {"eos_token": found[0], "pad_token": found[0]} if found else {}
    return facts
