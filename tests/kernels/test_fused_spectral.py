"""Power iteration of the optimizer pass against the plain one, for matrices held and not held."""

# O and I are axes.
# ruff: noqa: E741

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels import reparametrization as plain
from wesar_sweep.kernels.fused import spectral

# The interpreter cuts a float32 to bfloat16 where a GPU rounds: a whole unit, not half of one.
BF16 = 2**-8 if torch.cuda.is_available() else 2**-7
# Held: up to 128 by 128. Streamed: up to 65,536 values, by one program. Else in row blocks (of 4
# and more rows), rows in pieces of 1,024.
HELD = [(1, 1), (3, 5), (7, 33), (128, 128), (64, 200)]
STREAMED = [(130, 100), (37, 520), (200, 129), (2, 16000)]
LARGE = [(37, 1100), (300, 129), (9, 5000), (5, 16000)]
START, GATE, AFTER = 5, 3, 2
"""Where the group's matrices and its first gate stand in a row of other things."""


def case(K, O, I, device, *, dtype=torch.float32, spectral_runs=True, parts=3, M=2):
    generator = torch.Generator().manual_seed(O)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    row_KP = random(K, START + M * O * I + GATE + M + AFTER)
    left, right = (F.normalize(random(K, M, n), dim=2) for n in (O, I))
    form = torch.full((K, M + 1), 2 if spectral_runs else 0, device=device)
    norm = torch.full((K, M + 1), 7.0, device=device)
    out = torch.full((K, START + M * O * I), 7.0, device=device, dtype=dtype)
    partial = None
    if not spectral.is_whole(O, I):
        w_KMOI = view(row_KP, M, O, I)
        noise = random(K, M, parts, I)
        # Parts of any size, whose sum is Wᵀu.
        whole = (w_KMOI * left.unsqueeze(3)).sum(dim=2)
        partial = noise - noise.mean(dim=2, keepdim=True) + whole.unsqueeze(2) / parts
    return row_KP, left, right, partial, form, norm, out


def view(row_KP, M, O, I):
    return row_KP[:, START : START + M * O * I].unflatten(1, (M, O, I))


def refresh(row_KP, left, right, partial, form, norm, out):
    _, M, O = left.shape
    spectral.refresh(
        row_KP,
        left,
        right,
        partial,
        form,
        norm,
        start=START,
        first_matrix=1,
        gates_start=START + M * O * right.shape[2] + GATE - 1,
        out=out,
    )


def gates(row_KP, M):
    return row_KP[:, -AFTER - M : -AFTER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize(("O", "I"), HELD + STREAMED + LARGE)
def test_equals_the_plain_one(K, O, I, dtype, device, poisoned_empty):
    assert spectral.is_whole(O, I) == ((O, I) not in LARGE)
    row_KP, left, right, partial, form, norm, out = case(K, O, I, device, dtype=dtype)
    w_KMOI, gate_KM = view(row_KP, 2, O, I).double(), gates(row_KP, 2).double()
    want_left, want_right = plain.power_iteration(w_KMOI, left.double())
    want = plain.spectral_effective(w_KMOI, gate_KM, want_left, want_right)
    before = row_KP.clone()
    refresh(row_KP, left, right, partial, form, norm, out)
    # Sums of up to 16,000 float32 terms in another order, of vectors of length one.
    tolerance = dict(rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(right.double(), want_right, **tolerance)
    torch.testing.assert_close(left.double(), want_left, **tolerance)
    bar = dict(tolerance, rtol=BF16 if dtype == torch.bfloat16 else 2e-5)
    torch.testing.assert_close(view(out, 2, O, I).double(), want, **bar)
    want_norm = plain.spectral_norm(w_KMOI, want_left, want_right)
    torch.testing.assert_close(norm[:, 1:].double(), want_norm, **tolerance)
    assert torch.equal(row_KP, before) and (out[:, :START] == 7).all() and (norm[:, 0] == 7).all()


@pytest.mark.parametrize(("O", "I"), [(7, 33), (130, 100), (300, 129)])
def test_only_spectral_matrices_change_and_a_dead_run_stays_alone(O, I, device, poisoned_empty):
    kept = case(4, O, I, device)
    row_KP, left, right, partial, form, norm, out = (None if x is None else x.clone() for x in kept)
    form[3] = 1
    row_KP[1], left[1] = torch.nan, torch.nan
    if partial is not None:
        partial[1] = torch.nan
    refresh(row_KP, left, right, partial, form, norm, out)
    # The control: what nothing was done to.
    refresh(*kept)
    for got, alone in (
        (left, kept[1]),
        (right, kept[2]),
        (norm[:, 1:], kept[5][:, 1:]),
        (out[:, START:], kept[6][:, START:]),
    ):
        assert torch.equal(got[[0, 2]], alone[[0, 2]])
        assert got[1].isnan().all() and not torch.equal(got[3], alone[3])
    assert (out[3] == 7).all() and (norm[3] == 7).all()


def test_a_matrix_of_zeros_is_divided_by_nothing_smaller_than_the_plain_ones(device):
    row_KP, left, right, partial, form, norm, out = case(1, 7, 33, device)
    row_KP.zero_()
    refresh(row_KP, left, right, partial, form, norm, out)
    assert not left.any() and not right.any() and not out[:, START:].any()


def test_compiles_for_hopper_without_spills_and_reads_a_held_matrix_once():
    calls = """
        from wesar_sweep.kernels.fused import spectral
        def refresh(K, M, O, I, parts):
            P, half = 4 * M * O * I, 2 * M * O * I
            spectral.refresh(
                meta(K, P, dtype=f32), meta(K, M, O, dtype=f32), meta(K, M, I, dtype=f32),
                meta(K, M, parts, I, dtype=f32) if parts else None,
                meta(K, 2 * M, dtype=torch.int64), meta(K, 2 * M, dtype=f32),
                start=half, first_matrix=1, gates_start=P - M, out=meta(K, P),
            )
    """
    (held,) = compile_calls(calls + "    refresh(256, 16, 128, 128, 0)")
    assert held.stack_bytes == 0
    # 16,384 values, 256 threads, 4 values a load; W̄ goes out by 8.
    assert held.ptx.count("ld.global.v4.b32") == 16 and held.ptx.count("st.global.v4.b32") == 8
    by_shape = compile_calls(
        calls
        + """
        refresh(256, 4, 512, 128, 0)
        refresh(256, 4, 128, 512, 0)
        refresh(16, 32, 512, 512, 128)
        refresh(16, 8, 2048, 512, 128)
        refresh(16, 8, 512, 2048, 32)
        refresh(1, 12, 3072, 768, 192)
        refresh(1, 12, 768, 3072, 48)
    """
    )
    assert {kernel.name for kernel in by_shape} == {"_streamed", "_right", "_left", "_effective"}
    for kernel in by_shape:
        assert kernel.stack_bytes == 0, kernel.name
        assert "ld.global.v4.b32" in kernel.ptx, kernel.name
    for kernel in by_shape:
        if kernel.name == "_streamed":
            # What the first-level cache keeps of a matrix, 256 KB with shared memory.
            assert kernel.shared_bytes <= 16 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("K", "M", "O", "I"),
    [(256, 16, 128, 128), (256, 4, 512, 128), (16, 8, 512, 2048), (1, 12, 768, 3072)],
)
def test_real_shapes(K, M, O, I, gpu, poisoned_empty):
    row_KP, left, right, partial, form, norm, out = case(K, O, I, gpu, dtype=torch.bfloat16, M=M)
    run = slice(K // 2, K // 2 + 1)
    w, gate = view(row_KP[run], M, O, I).double(), gates(row_KP[run], M).double()
    want_left, want_right = plain.power_iteration(w, left[run].double())
    want = plain.spectral_effective(w, gate, want_left, want_right)
    refresh(row_KP, left, right, partial, form, norm, out)
    torch.testing.assert_close(right[run].double(), want_right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left[run].double(), want_left, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(view(out[run], M, O, I).double(), want, rtol=BF16, atol=1e-6)
