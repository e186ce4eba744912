"""α₀ of the median matrix, worked by hand. Against the real model: tests/training."""

import math

import pytest

from wesar_sweep.config import BUILT_IN_METHODS, Architecture, Method
from wesar_sweep.config.initial_gates import median_initial_gate


def architecture(**changes: object) -> Architecture:
    shape: dict[str, object] = {
        "width": 128, "depth": 6, "heads": 2, "context": 64, "ffn": "gelu", "ffn_width": 512,
        "position": "rope", "tied": False, "qk_norm": False, "batch": 1, "vocabulary": 256,
    }  # fmt: skip
    return Architecture(**{**shape, **changes})  # type: ignore[arg-type]


def gate(method: Method | str, sigma2: float | None = None, **changes: object) -> float:
    parts = BUILT_IN_METHODS[method] if isinstance(method, str) else method
    return median_initial_gate(parts, sigma2=sigma2, architecture=architecture(**changes))


def test_wesar_begins_at_the_std_of_its_role_over_sigma() -> None:
    """SCIENCE §1: 14 at width 128 with σ² 4e-5."""
    assert gate("wesar", 4e-5) == pytest.approx(math.sqrt(1 / 128 / 4e-5))
    assert round(gate("wesar", 4e-5)) == 14
    assert gate("wesar", 1e-3) == pytest.approx(2.795, abs=1e-3)
    assert gate("wesar", 4e-5, width=512, ffn_width=2048) == pytest.approx(6.988, abs=1e-3)
    assert gate("wesar", 4e-5, tied=True) == gate("wesar", 4e-5)


@pytest.mark.parametrize(
    "method",
    ["he", "small", "xavier", "gpt2", "weight_norm", "residual_scaling", "scaled_embed"],
)
def test_methods_whose_median_matrix_moves_as_its_parameter_does(method: str) -> None:
    assert gate(method) == 1.0


def test_sigma_reparam_divides_by_the_largest_singular_value() -> None:
    # q, k, v, the median: 1 / (√(1/d) · 2√d).
    assert gate("sigma_reparam") == pytest.approx(0.5)


def test_methods_of_your_own_by_their_parts() -> None:
    own = Method(init="gpt2", reparametrization="wesar")
    assert gate(own, 4e-5) == pytest.approx(0.02 / math.sqrt(4e-5))
    scaled = Method(init="small", reparametrization="sigma_reparam")
    assert gate(scaled, depth=1) == pytest.approx(1 / (2 * math.sqrt(2 / 5)))


def test_sigma2_that_falls_with_the_width_leaves_the_gates_alone() -> None:
    by_width = Method(reparametrization="wesar", sigma2_at_width=128)
    at_128 = gate("wesar", 4e-5)
    assert gate(by_width, 4e-5) == at_128
    for width in (64, 512):
        shape = {"width": width, "ffn_width": 4 * width}
        assert gate(by_width, 4e-5, **shape) == pytest.approx(at_128)
        # Control: with one σ² at every width they fall as the root of the width.
        assert gate("wesar", 4e-5, **shape) == pytest.approx(at_128 * math.sqrt(128 / width))
