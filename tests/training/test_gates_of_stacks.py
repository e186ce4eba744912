"""α₀ of `config.initial_gates` against the weights that a run begins with, and their derivative."""

import pytest
import torch

from wesar_sweep.config.initial_gates import initial_gate, median_initial_gate
from wesar_sweep.config.matrices import role_of
from wesar_sweep.config.methods import Method
from wesar_sweep.config.parametrization import parametrize
from wesar_sweep.kernels import reparametrization as rp

WIDTH = 96
OWN = {
    "gpt2_wesar": Method(init="gpt2", reparametrization="wesar"),
    "by_width": Method(reparametrization="wesar", sigma2_at_width=24),
    "small_spectral": Method(init="small", reparametrization="sigma_reparam"),
}
NAMES = ("he", "wesar", "weight_norm", "sigma_reparam", "residual_scaling", *OWN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [{}, {"ffn": "swiglu", "tied": True}])
def test_effective_weights_begin_and_move_by_it(study_of, runs_of, stack_of, name, shape):
    study = study_of(model={"width": WIDTH, "depth": 3, **shape}, methods=OWN)
    (run,) = runs_of(study, {"method": name})
    sigma2 = run.hyperparameters.sigma2
    rows = stack_of(study, [run], methods=[name]).rows
    seen = []
    for group in rows.layout.groups:
        w_KMOI, effective_KMOI = group.view(rows.parameter_KP), group.view(rows.effective_KP)
        step_KMOI = 1e-3 * w_KMOI.std() * torch.randn_like(w_KMOI)
        gate_KM = rows.parameter_KP[:, rows.layout.gates][:, group.matrices]
        for place, label in enumerate(group.labels):
            rule = parametrize(
                role_of(label), method=run.parts, sigma2=sigma2, architecture=run.architecture
            )
            expected = initial_gate(rule, outputs=group.outputs, inputs=group.inputs)
            one = slice(place, place + 1)
            w, effective, step = (x[:, one] for x in (w_KMOI, effective_KMOI, step_KMOI))
            match rule.form:
                case "scalar":
                    moved = rp.scalar_effective(w + step, gate_KM[:, one])
                case "row":
                    gain = rows.parameter_KP[:, rows.layout.row_gains(group)]
                    gain = gain.unflatten(1, (group.count, group.outputs))[:, one]
                    moved = rp.row_effective(w + step, gain)
                case "spectral":
                    vectors = rows.left[group.name][:, one], rows.right[group.name][:, one]
                    moved = rp.spectral_effective(w + step, gate_KM[:, one], *vectors)
            # Finite matrices: a row of I entries has I - 1 ways to turn, σ₁ is below its limit, and
            # 30 steps of power iteration below σ₁.
            near = 0.1 if rule.form == "spectral" else 0.01
            ratio = effective.norm() / w.norm()
            assert ratio.item() == pytest.approx(expected, rel=near), label
            slope = (moved - effective).norm() / step.norm()
            assert slope.item() == pytest.approx(expected, rel=near), label
            if group.name != "embed":
                seen.append(ratio.item())
    found = median_initial_gate(run.parts, sigma2=sigma2, architecture=run.architecture)
    assert found == pytest.approx(torch.tensor(seen).quantile(0.5).item(), rel=0.1)
