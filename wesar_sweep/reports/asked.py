"""What was asked, where it comes from, and how it is judged: the words around the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import format_value, searched_knobs
from wesar_sweep.analysis.basin import TOLERANCE
from wesar_sweep.analysis.choice import choice
from wesar_sweep.analysis.lr_sensitivity import CAVEATS
from wesar_sweep.analysis.paired import MIN_MARKED_SEEDS
from wesar_sweep.config.check_space import settings
from wesar_sweep.config.data import (
    BpeTokenizer,
    BytesTokenizer,
    Data,
    FileTokenizer,
    HuggingFaceData,
    StdlibData,
    SyntheticData,
    TextData,
)
from wesar_sweep.config.epochs import epochs_of_runs
from wesar_sweep.config.evaluation import LambadaSet, TextSet, WikitextSet
from wesar_sweep.config.space import Choices, Parameter, values
from wesar_sweep.config.study import Study
from wesar_sweep.reports import boundary, effective_lr, replicates, stability_map
from wesar_sweep.reports.figure import bootstrap_words, divergence_words
from wesar_sweep.stability.spikes import MIN_PAIRED_RUNS
from wesar_sweep.store.beat import Beat
from wesar_sweep.store.drive import Drive

_NOTHING = object()

Fact = tuple[str, str]
"""(what, its value in words)."""


_SETS = (
    "Texts are split, cut into windows and counted as EleutherAI's lm-evaluation-harness 0.4.13 "
    "does. Running text is scored token by token, each document after the token that ends "
    "documents; a stride below the context gives each token more to go by, and a lower "
    "perplexity. WikiText is detokenised, and its words and bytes are those of the text before "
    "that. Of LAMBADA the last word is scored, given the rest of the passage (cut on the left to "
    "the context): its perplexity is a word. A run's loss counts at most the loss of a uniform "
    "guess on the set; a loss that is not finite, or missing because the run diverged, counts as "
    "that."
)


def question(study: Study, *, provenance: Mapping[str, Any] | None = None) -> list[Fact]:
    """The space, the replicates, the budget and the rules, by name with their parameters.

    Args:
        study: The study.
        provenance: For the size of its corpus and of evaluation sets; without it nothing is said
            of epochs.
    """
    training, model, data = study.training, study.model, study.data
    searched = searched_knobs(study)
    facts: list[Fact] = [("searched", _space(study))]
    fixed = [
        f"{name} {format_value(value, knob=name)}"
        for section in (model, training)
        for name, value in section
        if name not in searched and not (name in ("ffn_width", "precision") and value is None)
    ]
    if "method" not in searched:
        fixed.insert(0, f"method {_fixed_method(study)}")
    facts.append(("fixed", ", ".join(fixed)))
    seeds = study.seeds
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    each = f"{study.least_replicates} a cell, seeds {span}"
    if choice(study) == "boundary":
        each += " for the first value of a series, the next ones for each further value"
    facts.append(("replicates", each))
    if study.adaptive is not None:
        facts.append(("further replicates", replicates.rule_words(study.adaptive)))
    if not {"steps", "batch", "context"} & set(searched):
        tokens = training.steps * training.batch * model.context
        facts.append(
            (
                "budget of a run",
                f"{training.steps:,} steps × {training.batch} sequences × {model.context} tokens "
                f"= {tokens:,} tokens",
            )
        )
    cells = f", {study.sampler.cells} cells" if study.sampler.cells else ""
    if study.sampler.listed is not None:
        cells = f", {len(study.sampler.listed)} cells"
    if study.finishes is not None:
        cells += (
            f" drawn (seed {study.finishes.seed}) from the {study.finishes.pruned} that the pruner "
            f"of {study.finishes.study} ended"
        )
    if study.sampler.along is not None:
        cells = f" along {study.sampler.along}{cells and f'{cells} a series at most'}"
    facts.append(("sampler", f"{study.sampler.name}{cells}{_options(study.sampler.options)}"))
    pruner = study.pruner
    facts.append(("pruner", f"{pruner.name}{_options(pruner.options)}" if pruner else "none"))
    facts.append(("objectives", ", ".join(study.objectives)))
    facts.append(("data", _data(data)))
    train_tokens = (provenance or {}).get("corpus", {}).get("train_tokens")
    if train_tokens is not None:
        facts.append(("epochs", _epochs(study, train_tokens=train_tokens)))
    moments = [f"every {study.evaluation.every} steps"] if study.evaluation.every else []
    moments += [f"after {step} steps" for step in study.evaluation.at]
    when = ", ".join(["at step 0", *moments, "at the end"])
    held = (provenance or {}).get("corpus", {}).get("validation_tokens")
    facts.append(("evaluation", f"{_sequences(study, held)} of held-out text, {when}"))
    spikes = study.spikes
    facts.append(("divergence", divergence_words(study.divergence)))
    facts.append(
        (
            "spikes",
            f"Spike rule {spikes.rule} (window {spikes.window} steps, z {spikes.z:g}, least jump "
            f"{spikes.min_jump:g} nats).",
        )
    )
    return [*facts, *evaluation_sets(study, provenance=provenance or {})]


def evaluation_sets(study: Study, *, provenance: Mapping[str, Any]) -> list[Fact]:
    """Each further text that the runs are judged on: what it is, how much, and per what.

    Args:
        study: Names the sets.
        provenance: What `wesar_sweep.store.provenance` knows; may be empty.
    """
    known = provenance.get("evaluation_sets", {})
    return [
        (f"evaluation set {name}", _set_words(one, known.get(name, {})))
        for name, one in study.evaluation.sets.items()
    ]


def _set_words(one: WikitextSet | TextSet | LambadaSet, facts: Mapping[str, Any]) -> str:
    words = [f"{one.kind} ({', '.join(one.paths)})"]
    if facts:
        words.append(f"{facts['documents']:,} documents, {facts['tokens']:,} tokens scored")
    if not isinstance(one, LambadaSet):
        words.append(f"stride {one.stride or 'of the context'}")
    moments = [f"every {one.every} steps"] if one.every else []
    moments += [f"after {step} steps" for step in one.at]
    words.append(", ".join(["judged at the end of completed runs", *moments]))
    if facts:
        unit = facts["normalisation"]
        words.append(
            f"perplexity a {unit}; a uniform guess has {facts['chance']:.4g} nats a {unit}; sha256 "
            f"{facts['sha256'][:12]}"
        )
    return "; ".join(words)


def _data(data: Data) -> str:
    """Where the text comes from, what is held out of it, and how it becomes tokens."""
    held_out = f"{data.held_out:.0%} held out for validation"
    match data:
        case StdlibData():
            source = "Python's standard library"
        case TextData():
            source = f"text files ({', '.join(data.paths)})"
            if data.validation:
                held_out = f"validation on {', '.join(data.validation)}"
        case HuggingFaceData():
            parts = [data.name, data.subset, data.split, data.revision]
            named = ", ".join(part for part in parts if part)
            source = f"Hugging Face data set ({named}), up to {data.tokens:,} tokens of it"
        case SyntheticData():
            return f"synthetic (Markov chain of {data.symbols} symbols); {held_out}"
    match data.tokenizer:
        case BytesTokenizer():
            tokens = "bytes"
        case BpeTokenizer(vocabulary=vocabulary):
            tokens = f"BPE of {vocabulary:,}, trained on the training documents"
        case FileTokenizer(path=path, vocabulary=vocabulary):
            tokens = f"{path}, vocabulary {vocabulary:,}"
    masked = "; attention kept within documents" if data.mask_documents else ""
    return f"{source}; {held_out}; tokens: {tokens}{masked}"


def _sequences(study: Study, validation_tokens: int | None) -> str:
    """How many sequences a run is judged on: no more than there are."""
    asked = study.evaluation.sequences
    if validation_tokens is None:
        return f"{asked:,} sequences"
    contexts = [int(str(setting["context"])) for setting in settings(study, "context")]
    counts = [min(asked, (validation_tokens - c - 1) // c + 1) for c in contexts]
    low, high = min(counts), max(counts)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{each} sequences" + (f" (all there are, of {asked:,})" if low < asked else "")


def _epochs(study: Study, *, train_tokens: int) -> str:
    """How often runs see their text, and that they see it again where they do."""
    low, high = epochs_of_runs(study, train_tokens=train_tokens)
    each = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    words = f"A run sees its {train_tokens:,} training tokens {each} times over"
    if high <= 1:
        return f"{words}: none twice."
    return (
        f"{words}. Beyond the first the data repeat, so that runs memorise too: such losses do not "
        "stand for training on as many fresh tokens."
    )


def provenance(facts: Mapping[str, Any], *, beats: Sequence[Beat] = ()) -> list[Fact]:
    """Commit, versions, device, corpus and command, as far as they are known.

    Args:
        facts: As `wesar_sweep.store.provenance` keeps them.
        beats: The last sign of life of every worker, for how it spent its time.
    """
    if not facts:
        return [("provenance", "not recorded")]
    found: list[Fact] = []
    project = facts.get("project", {})
    found.append(
        ("wesar-sweep", f"{project.get('version') or 'unknown version'}{_commit(project)}")
    )
    where = facts.get("working_directory", {})
    if where.get("commit") and where.get("commit") != project.get("commit"):
        found.append(("working directory", _commit(where).strip(" ,")))
    corpus = facts.get("corpus", {})
    known = {"corpus_hash": corpus.get("sha256"), "commit": project.get("commit")}
    found += _workers(facts.get("workers", {}), known=known)
    found += [(f"time of worker {beat.worker}", _time(beat)) for beat in beats if beat.runs_done]
    host = [str(facts[key]) for key in ("cpu", "platform") if facts.get(key)]
    if facts.get("cores"):
        host.insert(1, f"{facts['cores']} cores")
    found.append(("started on", ", ".join(host) or "unknown"))
    versions = {"Python": facts.get("python"), **facts.get("libraries", {})}
    found.append(("versions", _pairs(versions) or "unknown"))
    if corpus:
        found.append(("corpus", _corpus(corpus)))
    found.append(("study hash", str(facts.get("study_hash", "unknown"))))
    command = facts.get("command", ())
    found.append(("command", command if isinstance(command, str) else " ".join(map(str, command))))
    found.append(("started at", str(facts.get("started_at", "unknown"))))
    for when, again in sorted(facts.get("resumed", {}).items()):
        found.append((f"resumed at {when}", " ".join(map(str, again))))
    return [(name, value) for name, value in found if value]


def stopped(drive: Drive | None) -> str:
    """How an unfinished study came to stop, as a sentence after a space; empty while it may run."""
    # Without an ending the process runs or was killed: the lock would tell, and is not ours to ask.
    words = "" if drive is None or drive.ended_at is None else drive.ended
    return f" {words[0].upper()}{words[1:]}." if words else ""


def methods_and_limits(analysis: Analysis) -> list[Fact]:
    """How every figure is computed, and what it cannot say."""
    study = analysis.study
    counts = [n for n in analysis.cells["n"].to_list() if n > 0]
    bootstrap = bootstrap_words(min(counts)) if counts else ""
    effective = f"{effective_lr.DEFINITION} {effective_lr.READING} {effective_lr.LIMITS}"
    at_equal = (
        " At equal effective lr: the same mean over the range of effective lr that every series "
        "covers, of the loss interpolated between grid points, which a shift does not change."
        if analysis.shows_effective_lr
        else ""
    )
    mapped = analysis.layout.axis == "lr" and stability_map.maps(analysis)
    return [
        (
            "Cell and n",
            "A cell is one setting; n counts its completed and diverged runs. A diverged run is a "
            "result and is never left out of a mean. Pruned runs (ended early for being bad) and "
            "failed runs (the machine's fault) are counted beside n and enter no figure.",
        ),
        (
            "Loss",
            "Mean over seeds of min(validation loss, initial loss), each run capped first; a loss "
            "that is not finite, or missing because the run diverged, counts as the initial loss. "
            "So the loss of a cell that diverges says how often it does, more than how well it "
            "trains. Perplexity is exp(mean nats a token); bits a byte are nats/(ln 2 · bytes).",
        ),
        *([("Evaluation sets", _SETS)] if study.evaluation.sets else []),
        (
            "95 % interval of a loss",
            "Student's t over seeds, cut at 0 and at the initial loss, which no capped loss "
            "passes; none for one seed. On invented studies it holds 95 % of the means of normal "
            "losses at any n, and 87 to 92 % of lognormal ones (skewness 3.7). "
            "Where a setting diverges now and then, few seeds often show no diverged run, and then "
            "the interval misses the true mean: at a rate of 1 in 10 and 3 seeds in 71 % of cases. "
            "Read the interval of the divergence rate beside it. "
            "It covers the choice of seeds alone: not other data, sizes or budgets.",
        ),
        (
            "Divergence k/n",
            f"{divergence_words(study.divergence)} Diverged are: a loss or gradient that is not "
            "finite; a smoothed loss more than the margin above the initial one for the patience "
            "after warm-up; or an "
            "end more than delta above the run's own best. The interval is Wilson's: 0 of 3 still "
            "allows a true rate of 56 %, 0 of 5 43 %, 0 of 10 28 %.",
        ),
        *replicates.method(analysis),
        *boundary.method(analysis),
        (
            "Best and tied",
            "Best is the lowest mean. A cell is tied with it where no larger share of its runs "
            "diverged and the 95 % Student interval of the paired difference, seed by seed, "
            "contains 0. Below 2 seeds in common nothing is compared, and the word is written only "
            f"from {MIN_MARKED_SEEDS} on: with 2 hardly any two cells can be told apart. Cells "
            "that the pruner ended early rank behind all others. The best of many cells looks "
            "better than it is; no correction is made for the number of cells.",
        ),
        (
            "Basin width",
            f"Decades of lr around a series' own best over which the cell mean stays within "
            f"{TOLERANCE:g} nats of it, log-linear between grid points; its interval is a "
            f"bootstrap over seeds, resampled together at every lr. {bootstrap} Multiplying lr by "
            "a constant does not change it. Where the grid ends inside the basin it is a lower "
            "bound (≥). It says nothing of how good the best is, and no more than the grid's "
            "spacing allows.",
        ),
        *([("Effective lr", effective)] if analysis.shows_effective_lr else []),
        (
            "Largest stable lr",
            "The highest lr at and below which no run diverged, with the upper end of Wilson's "
            "interval there. It says that no run was seen to diverge, not that none would: with "
            "few seeds an lr that diverges now and then is often named, so the true limit may be "
            "lower.",
        ),
        *([("Boundary of stability", stability_map.limits(study))] if mapped else []),
        (
            "LR sensitivity",
            "Wortsman et al. 2023 (arXiv 2309.14322): mean over the lr grid of the capped loss "
            "minus its least value; interval as of the basin. " + " ".join(CAVEATS) + at_equal,
        ),
        (
            "Spikes",
            f"Spike rule {study.spikes.rule}: a step whose loss is above the trailing median of "
            f"{study.spikes.window} steps by more than max({study.spikes.min_jump:g} nats, "
            f"{study.spikes.z:g} · 1.4826 · MAD). Raw spikes count hard batches too. Paired spikes "
            "are counted on the loss minus the median over all runs that saw the same batch at "
            f"the same step, and need at least {MIN_PAIRED_RUNS} such runs; a dash says that "
            "there were fewer.",
        ),
    ]


def _space(study: Study) -> str:
    parts = [_parameter(knob, study.space[knob]) for knob in searched_knobs(study)]
    return "; ".join(parts) or "nothing: one cell"


def _parameter(knob: str, parameter: Parameter) -> str:
    listed = values(parameter, knob)
    if isinstance(parameter, Choices) or (listed is not None and len(listed) <= 12):
        words = ", ".join(format_value(value, knob=knob) for value in listed or ())
    else:
        low, high = (format_value(v, knob=knob) for v in (parameter.low, parameter.high))
        words = f"from {low} to {high}{', log scale' if parameter.log else ''}"
        if listed is not None:
            words += f", {len(listed)} values"
    when = " and ".join(
        f"{name} is {' or '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in parameter.when.items()
    )
    return f"{knob}: {words}{f' (where {when})' if when else ''}"


def _fixed_method(study: Study) -> str:
    parameter = study.space.get("method")
    listed: Sequence[Any] = (values(parameter, "method") or ()) if parameter else ()
    return str(listed[0]) if listed else study.method


def _options(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else ""


def _commit(place: Mapping[str, Any]) -> str:
    commit = place.get("commit")
    if not commit:
        return ", commit unknown"
    return f", commit {commit[:12]}{' with uncommitted changes' if place.get('dirty') else ''}"


def _workers(workers: Mapping[str, Any], *, known: Mapping[str, Any]) -> Iterator[Fact]:
    """One row for all workers of which the same is known, but for what is said elsewhere."""
    alike: dict[str, list[str]] = {}
    for name, machine in sorted(workers.items()):
        words = machine if isinstance(machine, str) else _machine(machine, known=known)
        alike.setdefault(words, []).append(name)
    for words, names in alike.items():
        yield f"worker{'s' if len(names) > 1 else ''} {', '.join(names)}", words


def _machine(machine: Mapping[str, Any], *, known: Mapping[str, Any]) -> str:
    # The corpus and the commit have rows of their own; here they are news only where they differ.
    rest = {key: one for key, one in machine.items() if known.get(key, _NOTHING) != one}
    if rest.get("commit"):
        rest["commit"] = str(rest["commit"])[:12]
    device, name = rest.pop("device", None), rest.pop("device_name", None)
    versions = rest.pop("versions", None) or {}
    first = {"host": rest.pop("host", None), "device": device and _named(device, name)}
    return _pairs({**first, **versions, **rest})


def _named(device: object, name: object) -> str:
    return f"{device} ({name})" if name else str(device)


def _time(beat: Beat) -> str:
    """Where the wall time of a worker went, since it last started."""
    words = (
        f"{_duration(beat.training_seconds)} in training steps, "
        f"{_duration(beat.evaluation_seconds)} in evaluations; "
        f"{beat.runs_done} run{'' if beat.runs_done == 1 else 's'}, {beat.tokens:,} tokens"
    )
    return f"{words} (since it last started)"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _corpus(corpus: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in corpus.items() if name != "prepared_as"}
    words = [str(rest.pop("description"))] if rest.get("description") else []
    for key, what in (("train_tokens", "to train on"), ("validation_tokens", "held out")):
        if (tokens := rest.pop(key, None)) is not None:
            words.append(f"{tokens:,} tokens {what}")
    if (entropy := rest.pop("entropy_rate", None)) is not None:
        words.append(f"entropy rate {entropy:.4g} nats a token")
    return ", ".join(filter(None, [*words, _pairs(rest)]))


def _pairs(facts: Mapping[str, Any], *, prefix: str = "") -> str:
    """``name value, name value`` of what is known; a mapping inside is laid out flat."""
    words = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            words.append(_pairs(value, prefix=f"{key} "))
        elif isinstance(value, list | tuple):
            words.append(f"{name} {', '.join(map(str, value))}")
        elif value is not None:
            words.append(f"{name} {value}")
    return ", ".join(filter(None, words))
