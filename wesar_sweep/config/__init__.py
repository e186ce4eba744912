"""The words: YAML in, frozen validated models out. The only reader of YAML; no torch, no Optuna."""

from wesar_sweep.config.knobs import Knob, Model, Precision, Training, knob_table
from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.load import (
    anchored,
    dump_study,
    load_study,
    load_sweep,
    parse_study,
    portable,
    resolved,
    study_hash,
)
from wesar_sweep.config.methods import BUILT_IN_METHODS, Method
from wesar_sweep.config.precision import resolved_precision
from wesar_sweep.config.run import Architecture, Hyperparameters, Run, make_run
from wesar_sweep.config.schema import json_schema
from wesar_sweep.config.space import Choices, Parameter, Range, Scalar, active, grid_cells, values
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep

__all__ = [
    "BUILT_IN_METHODS",
    "Architecture",
    "Choices",
    "Hyperparameters",
    "Knob",
    "Method",
    "Model",
    "Parameter",
    "Precision",
    "Range",
    "Run",
    "Scalar",
    "Study",
    "Sweep",
    "Training",
    "active",
    "anchored",
    "dump_study",
    "grid_cells",
    "json_schema",
    "knob_table",
    "listed_cells",
    "load_study",
    "load_sweep",
    "make_run",
    "parse_study",
    "portable",
    "resolved",
    "resolved_precision",
    "study_hash",
    "values",
]
