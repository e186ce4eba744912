"""With which numbers a study is trained: what it asks for, on the device that it is given."""

from __future__ import annotations

from wesar_sweep.config.study import Precision, Study
from wesar_sweep.errors import ConfigError, Problem


def resolved_precision(study: Study, *, on_gpu: bool) -> Precision:
    """The precision of activations and matrix products; parameters are kept in float32 always.

    Args:
        study: What is trained.
        on_gpu: Whether its workers train on a GPU.

    Returns:
        What ``training.precision`` says; where it says nothing, bf16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: bf16 or tf32 is asked for on a CPU.
    """
    asked = study.training.precision
    if asked is None:
        return "bf16" if on_gpu else "fp32"
    if not on_gpu and asked != "fp32":
        raise ConfigError(
            Problem(
                f"precision {asked} needs a GPU, and the study would be trained on a CPU",
                path="training.precision",
                value=asked,
                allowed="fp32, or null",
                hint="use --set training.precision=fp32, or leave it out",
            )
        )
    return asked
