"""The folded weights of completed runs on disk (`keep_weights: true`), for `wesar-sweep fold`.

One safetensors file a run: the effective weights in float32 by the labels of `model.fold`, made of
the parameters and gates themselves, and in its header all that is needed to compute with them. A
file is written before its run's outcome, so that no outcome promises weights that are not there.
Where the disk refuses, the outcome is written all the same and the weights are missing: what was
measured must not be lost for what was only to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wesar_sweep.config.methods import Method
from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.errors import StoreError
from wesar_sweep.model.fold import fold
from wesar_sweep.store.atomic import store_error
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import project_version
from wesar_sweep.training.stack import Stack
from wesar_sweep.training.tensor_files import write_tensors

_FORMAT = 1
_INDEX = "wesar_sweep_run"
"""The entry of a file's metadata that says what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRun:
    """What a file of weights says of the run that they are of."""

    study: str
    trial: int
    seed: int
    method: str
    parts: Method
    """What the method's name stood for; of it only the embedding's switches are not folded in."""
    steps: int
    """Updates that made these weights."""
    val_loss: float
    """Validation loss with them, nats a token."""
    architecture: Architecture
    mask_documents: bool
    """Whether it attended only within documents: what else computes with the weights should too."""

    @property
    def embed_scale(self) -> float:
        """Factor on the embedding output, before `embed_norm`: √width under scaled_embed."""
        return self.architecture.width**0.5 if self.parts.scaled_embed else 1.0


class WeightKeeper:
    """Writes the weights of a study's completed runs. Used by one thread.

    Args:
        directory: The study's directory.
        mask_documents: As the study's data say.
    """

    def __init__(self, directory: StudyDirectory, *, mask_documents: bool = False) -> None:
        self._directory, self._mask_documents = directory, mask_documents

    def keep(self, stack: Stack, slot: int, run: Run, *, val_loss: float) -> Path:
        """Write the weights of a run that has done all its steps.

        Args:
            stack: Its state on the device; no step may be under way.
            slot: Where it is.
            run: Which it is.
            val_loss: Its validation loss.

        Raises:
            StoreError: The disk is full or refuses; an older file of the run is as it was.
        """
        kept = KeptRun(
            study=run.study,
            trial=run.trial,
            seed=run.seed,
            method=run.hyperparameters.method,
            parts=run.parts,
            steps=run.hyperparameters.steps,
            val_loss=val_loss,
            architecture=run.architecture,
            mask_documents=self._mask_documents,
        )
        path = self._directory.weights_file(run.trial, run.seed)
        # What an earlier try left half written is as large as this.
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink(missing_ok=True)
        folded = fold(stack.rows.folded(slot), stack.rows.layout)
        write_tensors(path, folded, metadata={_INDEX: _encode(kept)})
        return path


def read_weights(path: Path) -> tuple[KeptRun, dict[str, Tensor]]:
    """A file of weights: whose they are, and the weights by label, float32 on the CPU.

    Raises:
        StoreError: It cannot be read, or is no such file.
    """
    try:
        # Opened first: of a file that is missing the library does not say so in one way.
        path.open("rb").close()
        with safe_open(path, framework="pt", device="cpu") as file:
            kept = _decode((file.metadata() or {})[_INDEX])
            return kept, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} holds no weights of a run, or is damaged ({type(error).__name__}: {error}): "
            "expected one of the files that `keep_weights: true` puts into results/NAME/weights"
        ) from error


def _encode(kept: KeptRun) -> str:
    plain = {**asdict(kept), "parts": kept.parts.model_dump()}
    return json.dumps({"format": _FORMAT, "version": project_version(), **plain}, sort_keys=True)


def _decode(text: str) -> KeptRun:
    """What `_encode` has made.

    Raises:
        ValueError, KeyError, TypeError: It is of another format, or lacks something.
    """
    plain: Mapping[str, object] = json.loads(text)
    if plain["format"] != _FORMAT:
        raise ValueError(f"format {plain['format']}, and this version reads {_FORMAT}")
    fields = {name: plain[name] for name in KeptRun.__dataclass_fields__ if name in plain}
    fields.setdefault("mask_documents", False)
    fields["parts"] = Method.model_validate(fields["parts"])
    fields["architecture"] = Architecture(**fields["architecture"])  # type: ignore[arg-type]
    return KeptRun(**fields)  # type: ignore[arg-type]
