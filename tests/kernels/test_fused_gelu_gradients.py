"""The one kernel of a feed-forward layer's backward pass against autograd."""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels.fused import gelu_gradients

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = [(1, 5, 8, 24), (3, 33, 12, 48), (3, 130, 32, 96), (1, 64, 40, 17), (2, 96, 16, 128)]
"""Runs, rows, D, F; of the last every tile is whole, so none is masked."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Float32: sums in another order, GELU to 5e-7. bfloat16: operands and results of 8 bits."""


def case(K, M, D, F_, dtype, device, *, scale=1.0):
    """Inputs, and rows of other things in which the weight and its gradients lie."""
    generator = torch.Generator().manual_seed(M)

    def random(*shape):
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

    dy, u, h = random(K, M, D), random(K, M, F_), random(K, M, D)
    weights, gradients = random(K, 2 * D * F_ + 9), torch.full((K, 2 * D * F_ + 9), 7.0)
    gradients = gradients.to(device, dtype)
    down = slice(4, 4 + D * F_)
    up = slice(down.stop, down.stop + D * F_)
    w = weights[:, down].unflatten(1, (D, F_))
    return dy, w, u, h, gradients, down, up


def backward(dy, w, u, h, gradients, down, up, **options):
    D, F_ = w.shape[1:]
    return gelu_gradients.backward(
        dy, w, u, h,
        dw_down_KDF=gradients[:, down].unflatten(1, (D, F_)),
        dw_up_KFD=gradients[:, up].unflatten(1, (F_, D)),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("K", "M", "D", "F_"), SHAPES)
def test_equals_autograd(K, M, D, F_, reverse, dtype, device):
    given = case(K, M, D, F_, dtype, device)
    dy, w, u, h, gradients, down, up = given
    du = backward(*given, reverse=reverse)
    u_leaf, w_leaf = (x.double().detach().requires_grad_() for x in (u, w))
    y = F.gelu(u_leaf) @ w_leaf.mT
    want_du, want_down = torch.autograd.grad(y, (u_leaf, w_leaf), dy.double())
    want_up = want_du.mT @ h.double()
    for got, want in (
        (du, want_du),
        (gradients[:, down], want_down.flatten(1)),
        (gradients[:, up], want_up.flatten(1)),
    ):
        error = (got.double() - want).norm() / want.norm()
        assert error < TOLERANCE[dtype], error
    # It writes nowhere else.
    rest = [gradients[:, : down.start], gradients[:, up.stop :]]
    assert all((part == 7).all() for part in rest)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_nan_stays_in_its_run(dtype, device):
    given = case(3, 40, 16, 24, dtype, device)
    dy, w, u, h, gradients, down, up = given
    clean = backward(*given), gradients.clone()
    gradients.fill_(7)
    poisoned = u.clone()
    poisoned[1] = torch.nan
    du = backward(dy, w, poisoned, h, gradients, down, up)
    for got, want in ((du, clean[0]), (gradients, clean[1])):
        assert torch.equal(got[[0, 2]], want[[0, 2]])
    assert du[1].isnan().all() and gradients[1, down].isnan().all()


@pytest.mark.parametrize(
    ("runs", "ffn_width", "preferred"),
    [(256, 512, True), (16, 512, True), (15, 512, False), (1, 512, False), (128, 17, True)],
)
def test_it_is_for_stacks_that_fill_a_gpu(runs, ffn_width, preferred):
    assert gelu_gradients.preferred(runs, ffn_width) is preferred


def test_compiles_for_hopper_with_room_for_two_programs_and_no_spills():
    (kernel,) = compile_calls(
        """
        from wesar_sweep.kernels.fused import gelu_gradients
        row = 800_000
        gelu_gradients.backward(
            meta(256, 2048, 128), meta(256, 128, 512, stride=(row, 512, 1)),
            meta(256, 2048, 512), meta(256, 2048, 128),
            dw_down_KDF=meta(256, 128, 512, stride=(row, 512, 1)),
            dw_up_KFD=meta(256, 512, 128, stride=(row, 128, 1)),
        )
        """
    )
    assert kernel.stack_bytes == 0
    # Of 65,536 registers and 227 KB a multiprocessor.
    assert kernel.registers * 32 * kernel.num_warps * 2 <= 65_536
    assert 2 * kernel.shared_bytes <= 227 * 1024
    # wgmma's left operand from registers: no tile of weights' gradients passes shared memory.
    assert "wgmma.mma_async" in kernel.ptx


@pytest.mark.gpu
@pytest.mark.parametrize(("K", "M", "D", "F_"), [(64, 2048, 128, 512), (16, 2048, 64, 256)])
def test_real_shapes(K, M, D, F_, gpu):
    given = case(K, M, D, F_, torch.bfloat16, gpu, scale=0.5)
    dy, w, u, h, gradients, down, up = given
    du = backward(*given)
    run = slice(K // 2, K // 2 + 1)
    u_leaf, w_leaf = (x[run].float().detach().requires_grad_() for x in (u, w))
    y = F.gelu(u_leaf) @ w_leaf.mT
    want_du, want_down = torch.autograd.grad(y, (u_leaf, w_leaf), dy[run].float())
    want_up = want_du.mT @ h[run].float()
    for got, want in (
        (du[run], want_du),
        (gradients[run, down], want_down.flatten(1)),
        (gradients[run, up], want_up.flatten(1)),
    ):
        error = (got.float() - want).norm() / want.norm()
        assert error < TOLERANCE[torch.bfloat16], error
