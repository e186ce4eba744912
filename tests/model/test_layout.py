"""The flat row: every parameter once, and as many as an ordinary module has."""

import pytest
import torch

from wesar_sweep.config.matrices import role_of
from wesar_sweep.config.run import Architecture
from wesar_sweep.model.layout import Layout
from wesar_sweep.model.plain import PlainDecoder


def architecture(**changes):
    shape = {
        "width": 12, "depth": 3, "heads": 2, "context": 8, "ffn": "gelu", "ffn_width": 48,
        "position": "rope", "tied": False, "qk_norm": False, "batch": 2, "vocabulary": 31,
    }  # fmt: skip
    return Architecture(**{**shape, **changes})


CASES = [{}, {"ffn": "swiglu", "ffn_width": 32}, {"tied": True}, {"qk_norm": True, "depth": 1}]


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("with_row_gains", [False, True])
def test_the_parts_cover_the_row_once(changes, with_row_gains):
    layout = Layout(architecture(**changes), with_row_gains=with_row_gains)
    row = torch.zeros(1, layout.size)
    for group in layout.groups:
        group.view(row).add_(1)
        if with_row_gains:
            row[:, layout.row_gains(group)] += 1
    for part in (layout.norm_gains, layout.qk_gains, layout.gates):
        row[:, part] += 1
    assert (row == 1).all()
    assert layout.gates.stop - layout.gates.start == len(layout.matrix_labels)


@pytest.mark.parametrize("changes", CASES)
def test_effective_parameters_are_those_of_the_module(changes):
    a = architecture(**changes)
    module = PlainDecoder(a)
    layout = Layout(a, with_row_gains=True)
    assert layout.effective_size == sum(p.numel() for p in module.parameters())
    names = {name.removesuffix(".weight") for name, p in module.named_parameters() if p.ndim == 2}
    assert names == set(layout.matrix_labels)


def test_roles():
    layout = Layout(architecture(ffn="swiglu"), with_row_gains=False)
    assert {role_of(label) for label in layout.matrix_labels} == set("eqkvougwp")
