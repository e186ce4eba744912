"""The checks of `doctor` pass where the kernels are right, and each fails where one is not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wesar_sweep.kernels import check, fused
from wesar_sweep.kernels.fused import (
    adamw,
    attention,
    cross_entropy,
    data_order,
    embedding,
    feed_forward,
    gelu_gradients,
    library_attention,
    linear,
    optimizer,
    prediction,
    rms_norm,
    rope,
    spectral,
)

CHECKS = {one.op: one for one in check.checks()}

BREAKABLE = [
    ("attention", attention, "forward"),
    ("attention", attention, "backward"),
    ("attention (documents)", attention, "forward"),
    ("attention (documents)", attention, "backward"),
    ("attention (library)", library_attention, "forward"),
    ("attention (library)", library_attention, "backward"),
    ("attention (library, documents)", library_attention, "bias"),
    ("attention (library, documents)", library_attention, "backward"),
    ("cross_entropy", cross_entropy, "forward_backward"),
    ("cross_entropy", cross_entropy, "loss"),
    ("cross_entropy", cross_entropy, "run_mean"),
    ("cross_entropy (long rows)", cross_entropy, "forward_backward"),
    ("cross_entropy (in chunks)", cross_entropy, "linear_cross_entropy"),
    ("data_order", data_order, "gather"),
    ("embedding", embedding, "forward"),
    ("embedding", embedding, "backward"),
    ("embedding (large)", embedding, "backward"),
    ("gelu", feed_forward, "gelu_forward"),
    ("gelu", feed_forward, "gelu_backward"),
    ("linear (forward)", linear, "norm_linear"),
    ("linear (forward)", linear, "linear_add"),
    ("linear (forward)", linear, "gelu_linear_add"),
    ("linear (backward)", linear, "gelu_linear_backward"),
    ("linear (backward)", gelu_gradients, "backward"),
    ("linear (backward)", linear, "linear_norm_backward"),
    ("optimizer", adamw, "scalars"),
    ("optimizer", optimizer, "update"),
    ("optimizer", spectral, "refresh"),
    ("prediction", prediction, "loss"),
    ("rms_norm", rms_norm, "forward"),
    ("rms_norm", rms_norm, "backward"),
    ("rope", rope, "forward"),
    ("rope", rope, "backward"),
    ("swiglu", feed_forward, "swiglu_forward"),
    ("swiglu", feed_forward, "swiglu_backward"),
]
OUT = ("out", "out_KVD", "dw_out_KVD", "dw_down_KDF", "dw_up_KFD")


def damage(x):
    """One value in thirty of the last run is off by a tenth and more."""
    part = x[-1:].flatten().clone()
    part[::30] += part[::30].abs() // 10 + 1
    x[-1:] = part.view_as(x[-1:])
    return x


def damaged(result, number):
    """A result whose output of this number is damaged; None where it has fewer."""
    if isinstance(result, optimizer.Update):
        norm = damaged(result.grad_norm_K, number)
        return None if norm is None else replace(result, grad_norm_K=norm)
    parts = result if isinstance(result, tuple) else (result,)
    places = [place for place, part in enumerate(parts) if isinstance(part, torch.Tensor)]
    if number >= len(places):
        return None
    parts = [*parts]
    parts[places[number]] = damage(parts[places[number]].clone())
    return tuple(parts) if isinstance(result, tuple) else parts[0]


@pytest.mark.parametrize("op", CHECKS)
def test_kernels_pass(op, device):
    for dtype in CHECKS[op].dtypes(device):
        assert CHECKS[op].worst_error(device, dtype) <= CHECKS[op].tolerances[dtype], dtype


@pytest.mark.parametrize(("op", "module", "function"), BREAKABLE)
def test_control_a_broken_kernel_fails(op, module, function, device, monkeypatch):
    """Each output of each kernel in turn, returned or written in place."""
    right = getattr(module, function)
    dtype = CHECKS[op].dtypes(device)[-1]
    broken_outputs = 0
    for number in range(9):
        was_broken = False

        def broken(*args, number=number, **options):
            nonlocal was_broken
            result = right(*args, **options)
            written = [value for name, value in options.items() if name in OUT]
            if function == "update":
                parameter, first, second, _, effective = args
                written = [parameter, first, second, effective]
            if number < len(written):
                damage(written[number])
                was_broken = True
                return result
            other = damaged(result, number - len(written))
            was_broken = other is not None
            return result if other is None else other

        monkeypatch.setattr(module, function, broken)
        error = CHECKS[op].worst_error(device, dtype)
        assert (error > CHECKS[op].tolerances[dtype]) == was_broken, number
        broken_outputs += was_broken
        if not was_broken:
            break
    assert broken_outputs


def test_every_fused_op_has_a_check_that_can_fail():
    names = {module.__name__.rpartition(".")[2] for _, module, _ in BREAKABLE}
    files = {path.stem for place in fused.__path__ for path in Path(place).glob("*.py")}
    assert names == files - {"__init__", "compiling", "tiles"}
    assert {op for op, _, _ in BREAKABLE} == set(CHECKS)


def test_relative_error():
    want = torch.tensor([1.0, -4.0])
    assert check.relative_error(want + torch.tensor([0.0, 0.4]), want) == pytest.approx(0.1)
    assert check.relative_error(want.bfloat16(), want) == 0
    assert check.relative_error(torch.tensor([1.0, torch.nan]), want) == math.inf
    assert check.relative_error(want[:1], want) == math.inf


@pytest.mark.parametrize(
    ("device", "interpret", "why"),
    [
        ("cpu", None, "a CPU trains by the references"),
        ("cpu", "1", None),
        ("cuda", None, None),
    ],
)
def test_where_they_are_used(device, interpret, why, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if interpret is not None:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    said = check.why_unused(torch.device(device))
    assert said is None if why is None else why in said
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    if why is None:
        assert check.why_unused(torch.device(device)) == "triton is not installed"
