"""A run: one cell with one seed, all that training needs to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from wesar_sweep.config.methods import Method
from wesar_sweep.config.space import Scalar
from wesar_sweep.config.study import Study


@dataclass(frozen=True, slots=True)
class Architecture:
    """What fixes the shape of every tensor: runs of one architecture share a stack."""

    width: int
    depth: int
    heads: int
    context: int
    ffn: str
    ffn_width: int
    position: str
    tied: bool
    qk_norm: bool
    batch: int
    vocabulary: int

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one run sees in one step."""
        return self.batch * self.context


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What may differ between slots of a stack; `sigma2` is None where the method ignores it."""

    method: str
    sigma2: float | None
    lr: float
    steps: int
    schedule: str
    warmup: int
    final_lr_ratio: float
    decay_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip: float | None
    z_loss: float


@dataclass(frozen=True, slots=True)
class Run:
    """The thing that trains. (study, trial, seed) is its key everywhere."""

    study: str
    trial: int
    seed: int
    parts: Method
    hyperparameters: Hyperparameters
    architecture: Architecture

    @property
    def key(self) -> tuple[int, int]:
        """(trial, seed): unique inside a study."""
        return (self.trial, self.seed)

    def columns(self) -> dict[str, Scalar]:
        """Every knob under its YAML name, as it stands in the outcomes table."""
        shape = asdict(self.architecture)
        del shape["vocabulary"]
        return {**asdict(self.hyperparameters), **shape}


def default_ffn_width(ffn: str, width: int) -> int:
    """4·width for gelu; for swiglu 8/3·width rounded up to a multiple of 8: as many parameters."""
    return 4 * width if ffn == "gelu" else 8 * -(-width // 3)


def make_run(study: Study, trial: int, seed: int, params: Mapping[str, Scalar]) -> Run:
    """The run of one cell and seed: the study's fixed knobs under the cell's parameters."""
    knobs: dict[str, Scalar] = {
        **study.model.model_dump(),
        **study.training.model_dump(),
        "method": study.method,
        **params,
    }
    parts = study.method_parts(str(knobs["method"]))
    if not parts.uses_sigma2:
        knobs["sigma2"] = None
    if knobs["ffn_width"] is None:
        knobs["ffn_width"] = default_ffn_width(str(knobs["ffn"]), int(knobs["width"]))  # type: ignore[arg-type]
    shape = {
        name: knobs[name] for name in Architecture.__dataclass_fields__ if name != "vocabulary"
    }
    recipe = {name: knobs[name] for name in Hyperparameters.__dataclass_fields__}
    return Run(
        study=study.name,
        trial=trial,
        seed=seed,
        parts=parts,
        hyperparameters=Hyperparameters(**recipe),  # type: ignore[arg-type]
        architecture=Architecture(vocabulary=study.data.vocabulary, **shape),  # type: ignore[arg-type]
    )
