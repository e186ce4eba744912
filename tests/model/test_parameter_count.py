"""Parameters by architecture alone, against the row that is trained."""

from dataclasses import replace
from typing import Any

import pytest

from wesar_sweep.config.methods import BUILT_IN_METHODS
from wesar_sweep.config.parameter_count import model_parameters, trained_parameters
from wesar_sweep.config.run import Architecture
from wesar_sweep.model.layout import Layout

PLAIN = Architecture(
    width=12, depth=3, heads=2, context=8, ffn="gelu", ffn_width=40, position="rope", tied=False,
    qk_norm=False, batch=2, vocabulary=50,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": True}, {"ffn": "swiglu", "ffn_width": 28}, {"qk_norm": True}, {"depth": 1}],
)
def test_the_model_has_what_its_layout_has(changes: dict[str, Any]) -> None:
    architecture = replace(PLAIN, **changes)
    layout = Layout(architecture, with_row_gains=True)
    assert model_parameters(architecture) == layout.effective_size
    gates = len(layout.matrix_labels)
    assert trained_parameters(architecture, BUILT_IN_METHODS["he"]) == layout.effective_size
    extra = {
        name: trained_parameters(architecture, method) - layout.effective_size
        for name, method in BUILT_IN_METHODS.items()
    }
    assert extra["wesar"] == gates == layout.gates.stop - layout.gates.start
    assert extra["sigma_reparam"] == gates - 1
    assert extra["residual_scaling"] == 2 * architecture.depth
    # Row gains of every matrix, less those of the embedding, which has none.
    assert extra["weight_norm"] == layout.size - layout.gates.stop - architecture.vocabulary
    assert extra["small"] == extra["scaled_embed"] == extra["embed_norm"] == 0
