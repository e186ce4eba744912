"""Programs counted from either end: each kernel gives equal bits, and really turns round."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels import fused
from wesar_sweep.kernels import rope as rope_reference
from wesar_sweep.kernels.fused import (
    attention,
    cross_entropy,
    feed_forward,
    gelu_gradients,
    linear,
    prediction,
    rms_norm,
    rope,
)
from wesar_sweep.kernels.fused.tiles import last_first, program

pytestmark = pytest.mark.usefixtures("poisoned_empty")

K, M, D, F, V = 2, 140, 32, 96, 50
"""So many rows that every kernel has several programs, the last of a run not whole."""
HEADS = {"heads": 2, "head_width": 16, "context": 20}

Call = Callable[..., tuple[Tensor | None, ...]]


@pytest.fixture
def make(device):
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(K, *shape, generator=generator).to(device)


def nothing(like: Tensor, *shape: int) -> Tensor:
    """What an op is to write: a program left out leaves it."""
    return torch.full((K, *shape), torch.nan, device=like.device)


@triton.jit(do_not_specialize=("flip",))
def _numbers(launched, flip):
    tl.store(launched + program(flip), tl.program_id(0))


@pytest.mark.parametrize("programs", [1, 2, 7])
def test_a_program_is_counted_from_the_end_that_is_asked_for(device, programs):
    """Place n holds which launch was program n."""
    for reverse in (False, True):
        launched = torch.empty(programs, dtype=torch.int32, device=device)
        _numbers[(programs,)](launched, last_first(programs, reverse))
        want = list(range(programs))
        assert launched.tolist() == (want[::-1] if reverse else want)


def norm_linear(make) -> Call:
    x, gain, w = make(M, D), make(D), make(F, D)
    return lambda **options: linear.norm_linear(x, gain, w, **options)


def norm_linear_rotated(make) -> Call:
    x, gain, w = make(M, D), make(D), make(3 * D, D)
    rotation = rope_reference.tables(HEADS["context"], HEADS["head_width"], device=x.device)
    return lambda **options: linear.norm_linear(x, gain, w, rotation=rotation, **options)


def predicted(make) -> Call:
    x, gain, w = make(M, D), make(D), make(V, D)
    target = torch.arange(K * M, device=x.device, dtype=torch.int32).view(K, M) % V
    return lambda **options: prediction.loss(x, gain, w, target, None, scale=0.1, **options)


def linear_add(make) -> Call:
    x, w, residual = make(M, F), make(D, F), make(M, D)
    return lambda **options: (linear.linear_add(x, w, residual, **options),)


def gelu_linear_add(make) -> Call:
    x, w, residual = make(M, F), make(D, F), make(M, D)
    return lambda **options: (linear.gelu_linear_add(x, w, residual, **options),)


def gelu_linear_backward(make) -> Call:
    dy, w, u = make(M, D), make(D, F), make(M, F)
    return lambda **options: linear.gelu_linear_backward(dy, w, u, **options)


def gelu_gradients_backward(make) -> Call:
    dy, w, u, h = make(M, D), make(D, F), make(M, F), make(M, D)

    def call(**options):
        dw_down, dw_up = nothing(u, D, F), nothing(u, F, D)
        into = dict(dw_down_KDF=dw_down, dw_up_KFD=dw_up)
        return gelu_gradients.backward(dy, w, u, h, **into, **options), dw_down, dw_up

    return call


def linear_norm_backward(make) -> Call:
    dy, w, x, gain, dresidual = make(M, F), make(F, D), make(M, D), make(D), make(M, D)
    rstd = (x.square().mean(-1) + 1e-6).rsqrt()

    def call(**options):
        parts = nothing(x, linear.partial_sums(M), D)
        dx = linear.linear_norm_backward(
            dy, w, x, rstd, gain, dresidual, partial_KBI=parts, **options
        )
        return dx, parts

    return call


def attention_forward(make) -> Call:
    q, k, v = make(M, 3 * D).chunk(3, dim=2)

    def call(**options):
        peaks: list[Tensor] = []
        return *attention.forward(q, k, v, peaks=peaks, **HEADS, **options), *peaks

    return call


def attention_backward(make) -> Call:
    q, k, v = make(M, 3 * D).chunk(3, dim=2)
    y, kept = attention.forward(q, k, v, **HEADS)
    dy = make(M, D)
    rotation = rope_reference.tables(HEADS["context"], HEADS["head_width"], device=y.device)

    def call(**options):
        out = nothing(y, M, 3 * D)
        attention.backward(dy, q, k, v, y, kept, out=out, rotation=rotation, **HEADS, **options)
        return (out,)

    return call


def rms_norm_forward(make) -> Call:
    x, gain, delta = make(M, D), make(D), make(M, D)
    return lambda **options: rms_norm.forward(x, gain, delta, **options)


def rms_norm_backward(make) -> Call:
    dy, gain, dsum = make(M, D), make(D), make(M, D)
    x, _, rstd = rms_norm.forward(make(M, D), gain)

    def call(**options):
        parts = nothing(x, rms_norm.partial_sums(K, M, D), D)
        return rms_norm.backward(dy, x, rstd, gain, dsum, partial_KBD=parts, **options), parts

    return call


def gelu_forward(make) -> Call:
    u = make(M, F)
    return lambda **options: (feed_forward.gelu_forward(u, **options),)


def gelu_backward(make) -> Call:
    da, u = make(M, F), make(M, F)
    return lambda **options: (feed_forward.gelu_backward(da, u, **options),)


def swiglu_forward(make) -> Call:
    u = make(M, 2 * F)
    return lambda **options: (feed_forward.swiglu_forward(u, **options),)


def swiglu_backward(make) -> Call:
    da, u = make(M, F), make(M, 2 * F)
    return lambda **options: (feed_forward.swiglu_backward(da, u, **options),)


def rope_forward(make) -> Call:
    qkv, gain = make(M, 3 * D), make(2, HEADS["head_width"])
    rotation = rope_reference.tables(HEADS["context"], HEADS["head_width"], device=qkv.device)
    return lambda **options: rope.forward(qkv, *rotation, gain_K2E=gain, **HEADS, **options)


def rope_backward(make) -> Call:
    qkv, gain = make(M, 3 * D), make(2, HEADS["head_width"])
    dq, dk = make(M, 2 * D).chunk(2, dim=2)
    rotation = rope_reference.tables(HEADS["context"], HEADS["head_width"], device=qkv.device)
    _, rstd = rope.forward(qkv, *rotation, gain_K2E=gain, **HEADS)

    def call(**options):
        out = nothing(qkv, M, 3 * D)
        dgain = rope.backward(dq, dk, qkv, *rotation, rstd, gain, out=out, **HEADS, **options)
        return out[..., : 2 * D], dgain

    return call


def loss(make) -> Call:
    logit = make(M, V)
    target = logit.argsort(dim=2)[..., 0]
    return lambda **options: (cross_entropy.loss(logit, target, **options),)


def loss_and_gradient(make) -> Call:
    logit, z_loss = make(M, V), make().abs()
    target = logit.argsort(dim=2)[..., 0]
    return lambda **options: cross_entropy.forward_backward(
        logit, target, z_loss, scale=1 / M, **options
    )


def loss_and_gradient_of_long_rows(make) -> Call:
    logit = make(3, 4100)
    target = logit.argsort(dim=2)[..., 0]
    return lambda **options: cross_entropy.forward_backward(
        logit, target, None, scale=1 / 3, **options
    )


OPS: list[tuple[ModuleType, Callable[..., Call]]] = [
    (linear, norm_linear),
    (linear, norm_linear_rotated),
    (linear, linear_add),
    (linear, gelu_linear_add),
    (linear, gelu_linear_backward),
    (gelu_gradients, gelu_gradients_backward),
    (linear, linear_norm_backward),
    (attention, attention_forward),
    (attention, attention_backward),
    (rms_norm, rms_norm_forward),
    (rms_norm, rms_norm_backward),
    (feed_forward, gelu_forward),
    (feed_forward, gelu_backward),
    (feed_forward, swiglu_forward),
    (feed_forward, swiglu_backward),
    (rope, rope_forward),
    (rope, rope_backward),
    (prediction, predicted),
    (cross_entropy, loss),
    (cross_entropy, loss_and_gradient),
    (cross_entropy, loss_and_gradient_of_long_rows),
]


def equal(one: tuple[Tensor | None, ...], other: tuple[Tensor | None, ...]) -> bool:
    """In every bit; NaN, which is what nothing was written to, equals nothing."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("module", "op"), OPS, ids=[op.__name__ for _, op in OPS])
def test_a_kernel_gives_equal_bits_from_either_end(module, op, make, monkeypatch):
    call = op(make)
    usual = call()
    assert equal(usual, call(reverse=False))
    asked: list[tuple[int, bool]] = []

    def seen(programs: int, reverse: bool) -> int:
        asked.append((programs, reverse))
        return last_first(programs, reverse)

    monkeypatch.setattr(module, "last_first", seen)
    assert equal(usual, call(reverse=True))
    ((programs, reverse),) = asked
    assert programs > 2 and reverse, "the kernel was told"
    # The control: one program twice, and another not at all.
    monkeypatch.setattr(module, "last_first", lambda programs, reverse: programs - 2)
    assert not equal(usual, call(reverse=True))


def test_every_kernel_that_turns_round_is_tested():
    turning = set()
    for found in pkgutil.iter_modules(fused.__path__, f"{fused.__name__}."):
        module = importlib.import_module(found.name)
        turning |= {
            (module, name)
            for name, op in inspect.getmembers(module, inspect.isfunction)
            if op.__module__ == module.__name__ and "reverse" in inspect.signature(op).parameters
            if not name.startswith("_") and op is not last_first
        }
    assert {module for module, _ in turning} == {module for module, _ in OPS}
    assert len(turning) == len(OPS) - 2, "two are tested in two ways each"
