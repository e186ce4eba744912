"""A study: the question, in frozen validated models. One class a section of the YAML file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.data import Data as Data
from wesar_sweep.config.data import StdlibData
from wesar_sweep.config.evaluation import Evaluation as Evaluation
from wesar_sweep.config.finishes import Finishes
from wesar_sweep.config.knobs import (
    DEFAULT_METHOD,
    METHOD_DESCRIPTION,
    Count,
    NonNegative,
    Positive,
    canonical,
)
from wesar_sweep.config.knobs import Model as Model
from wesar_sweep.config.knobs import Precision as Precision
from wesar_sweep.config.knobs import Schedule as Schedule
from wesar_sweep.config.knobs import Training as Training
from wesar_sweep.config.methods import BUILT_IN_METHODS, Method
from wesar_sweep.config.replicates import AdaptiveReplicates, Replicates
from wesar_sweep.config.space import Parameter, ParameterField, Scalar, canonical_parameter
from wesar_sweep.config.words import NAME_PATTERN

Objective = Literal["val_loss", "divergence_rate", "spikes"]
SamplerName = Literal["grid", "listed", "boundary", "random", "tpe", "qmc", "cmaes", "gp", "nsga2"]
PrunerName = Literal["median", "percentile", "sha", "hyperband", "threshold", "wilcoxon"]


class Divergence(Frozen):
    """Rule ``v1`` of divergence; see `wesar_sweep.stability`."""

    rule: Literal["v1"] = Field(default="v1", description="Version of the rule.")
    window: Count = Field(
        default=20, description="Steps of the trailing mean that smooths the loss."
    )
    patience: Count = Field(
        default=50, description="Steps the smoothed loss may stay above the initial loss."
    )
    margin: NonNegative = Field(
        default=0.05,
        description="Nats above the initial loss from which on the smoothed loss counts as above.",
    )
    delta: Positive = Field(
        default=0.5, description="Nats that the end may lie above the run's own best."
    )


class Spikes(Frozen):
    """The rule of a loss spike; see `wesar_sweep.stability`."""

    rule: Literal["v1"] = Field(default="v1", description="Version of the rule.")
    window: Annotated[int, Field(ge=8)] = Field(
        default=64, description="Steps of the trailing median."
    )
    z: Positive = Field(
        default=6.0, description="Robust standard deviations (1.4826·MAD) above the median."
    )
    min_jump: Positive = Field(default=0.3, description="Nats above the median, at the least.")


class Probes(Frozen):
    """How often norms, gates, update ratios and logits are recorded."""

    every: Count | None = Field(default=20, description="Steps between probes; null means off.")


class Sampler(Frozen):
    """Which cells are trained: all of a grid or a list, or what a search asks for."""

    name: SamplerName = Field(
        default="grid",
        description="grid trains every cell; listed those under listed; boundary searches where "
        "runs begin to diverge along one knob, for each setting of the others; the rest choose.",
    )
    listed: Annotated[tuple[dict[str, Scalar], ...], Field(strict=False, min_length=1)] | None = (
        Field(
            default=None,
            description="The cells of the sampler listed: of each the value of every knob that "
            "space varies and whose condition holds.",
        )
    )
    along: str | None = Field(
        default=None, description="The knob, such as lr, that the boundary search goes along."
    )
    cells: Count | None = Field(
        default=None,
        description="Cells to train; the grid needs none. Of a boundary search the most for each "
        "setting of the other knobs, by default 12.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of the choice of cells.")
    options: dict[str, Scalar] = Field(
        default_factory=dict,
        description="Options of Optuna's class. Of a boundary search resolution: the width of the "
        "boundary's interval at which it ends, in decades where the knob is logarithmic.",
    )

    @property
    def draws(self) -> bool:
        """Whether Optuna draws the cells: they neither stand in the file nor are searched for."""
        return self.name not in ("grid", "listed", "boundary")

    @field_validator("listed", mode="after")
    @classmethod
    def _canonical_cells(
        cls, cells: tuple[dict[str, Scalar], ...] | None
    ) -> tuple[dict[str, Scalar], ...] | None:
        if cells is None:
            return None
        return tuple({knob: canonical(knob, cell[knob]) for knob in cell} for cell in cells)


class Pruner(Frozen):
    """Which cells are ended early, judged at each intermediate evaluation."""

    name: PrunerName = Field(description="Optuna's pruner by its short name.")
    options: dict[str, Scalar] = Field(
        default_factory=dict, description="Options of Optuna's class."
    )


class Study(Frozen):
    """A search-space file, validated: everything that decides what is trained and how it is judged.

    Equal studies give equal outcomes: nothing outside this model (machine, slots, workers, order)
    changes a run.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)] = Field(
        description="Names the results folder; default: the file's name."
    )
    title: str = Field(default="", description="Heading of the report.")
    question: str = Field(
        default="", description="What the study is to answer, in a sentence or two."
    )
    space: dict[str, ParameterField] = Field(description="Knob -> value, choices or range.")
    replicates: Replicates = Field(
        default=3, description="Runs of a cell, one a seed; a number, or {min, max, until}."
    )
    first_seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Seed of the first replicate."
    )
    sampler: Sampler = Field(default=Sampler(), description="Which cells are trained.")
    pruner: Pruner | None = Field(
        default=None, description="Which cells are ended early; null means none."
    )
    finishes: Finishes | None = Field(
        default=None,
        description="Written by `wesar-sweep finish`: whose pruned cells these are, trained to "
        "the end; null means none.",
    )
    objectives: Annotated[tuple[Objective, ...], Field(strict=False, min_length=1)] = Field(
        default=("val_loss",), description="What is minimised; several only without a pruner."
    )
    method: str = Field(default=DEFAULT_METHOD, description=METHOD_DESCRIPTION)
    methods: dict[str, Method] = Field(
        default_factory=dict, description="Methods of your own, by parts."
    )
    model: Model = Field(
        default=Model(), description="The decoder's shape where `space` does not vary it."
    )
    training: Training = Field(
        default=Training(), description="The recipe where `space` does not vary it."
    )
    data: Data = Field(default=StdlibData(), description="The text that is trained and judged on.")
    evaluation: Evaluation = Field(
        default=Evaluation(), description="When and on how much a run is judged."
    )
    divergence: Divergence = Field(
        default=Divergence(), description="When a run counts as diverged."
    )
    spikes: Spikes = Field(default=Spikes(), description="What counts as a loss spike.")
    probes: Probes = Field(default=Probes(), description="How often norms and gates are recorded.")
    keep_weights: bool = Field(
        default=False,
        description="Keep the weights of each completed run, for `wesar-sweep fold`.",
    )
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2, description="How often a run that failed (the machine's fault) is tried again."
    )

    @property
    def adaptive(self) -> AdaptiveReplicates | None:
        """How seeds are added where a cell needs more than the least; None for a fixed number."""
        return self.replicates if isinstance(self.replicates, AdaptiveReplicates) else None

    @property
    def least_replicates(self) -> int:
        """Seeds that every cell gets."""
        found = self.replicates
        return found.min if isinstance(found, AdaptiveReplicates) else found

    @property
    def most_replicates(self) -> int:
        """Seeds that no cell goes beyond."""
        found = self.replicates
        return found.max if isinstance(found, AdaptiveReplicates) else found

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that every cell gets, in the order in which they are started."""
        return tuple(range(self.first_seed, self.first_seed + self.least_replicates))

    @field_validator("space", mode="after")
    @classmethod
    def _canonical_space(cls, space: dict[str, Parameter]) -> dict[str, Parameter]:
        return {knob: canonical_parameter(knob, parameter) for knob, parameter in space.items()}

    @property
    def method_names(self) -> tuple[str, ...]:
        """Every method that the study may name, built in ones first."""
        return (*BUILT_IN_METHODS, *(name for name in self.methods if name not in BUILT_IN_METHODS))

    def method_parts(self, name: str) -> Method:
        """The parts of a method by its name, built in or the study's own."""
        return self.methods[name] if name in self.methods else BUILT_IN_METHODS[name]
