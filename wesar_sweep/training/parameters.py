"""The actual parameters of K runs: their draw, their effective weights, their gradients.

One flat row a run (`model.layout`). Methods are mixed freely: each matrix group of each run has a
form (`config.parametrization.Form`), and where a stack holds several, each is computed and the
run's own is picked. Nothing reduces over K.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from wesar_sweep.config.matrices import role_of
from wesar_sweep.config.parametrization import Form, MatrixParametrization, parametrize
from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.kernels import reparametrization as rp
from wesar_sweep.model.initialisation import standard_normal
from wesar_sweep.model.layout import Layout, MatrixGroup
from wesar_sweep.training.draws import Draws, drawing_threads

_FORMS: tuple[Form, ...] = ("scalar", "row", "spectral")
_PIECE_BYTES = 2**27
"""Parameters of the slots that are loaded together: some of a GPU's memory is needed for it."""
_POWER_STEPS_AT_START = 30
"""Enough that s is within a few per cent of the largest singular value of a Gaussian matrix."""


def forms_of(reparametrizations: Sequence[str]) -> frozenset[Form]:
    """Forms that the named reparametrizations can bring into a stack."""
    by_name: dict[str, Form] = {"weight_norm": "row", "sigma_reparam": "spectral"}
    forms: set[Form] = {"scalar"}
    return frozenset(forms | {by_name[name] for name in reparametrizations if name in by_name})


def zero_rows(
    slots: int, size: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[slots, size] zeros; on a GPU each row begins at a multiple of 256 bytes."""
    if device.type == "cpu":
        return torch.zeros(slots, size, device=device, dtype=dtype)
    padded = -(-size // 128) * 128
    return torch.zeros(slots, padded, device=device, dtype=dtype)[:, :size]


def _neighbours(
    slots: Sequence[int], runs: Sequence[Run], *, most: int
) -> list[tuple[int, list[Run]]]:
    """Runs of slots that follow one another, at most so many together, with the first slot."""
    pieces: list[tuple[int, list[Run]]] = []
    for slot, run in zip(slots, runs, strict=True):
        if pieces and slot == pieces[-1][0] + len(pieces[-1][1]) and len(pieces[-1][1]) < most:
            pieces[-1][1].append(run)
        else:
            pieces.append((slot, [run]))
    return pieces


class ParameterRows:
    """Parameters, their effective weights and the buffers of one gradient, for K runs of one shape.

    Args:
        architecture: The shape.
        slots: K.
        forms: Forms that may ever enter; a run with another is refused.
        device: Where the rows live.
        dtype: Of the effective weights; the actual parameters are float32.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        slots: int,
        forms: frozenset[Form],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.layout = Layout(architecture, with_row_gains="row" in forms)
        self.forms = forms
        matrices = len(self.layout.matrix_labels)
        self.parameter_KP = zero_rows(slots, self.layout.size, device=device)
        self.effective_KP = zero_rows(slots, self.layout.effective_size, device=device, dtype=dtype)
        self._grad_KP: Tensor | None = None
        self._draws = Draws(self.layout)
        self.gate_trains_KM = torch.zeros(slots, matrices, device=device, dtype=torch.bool)
        self.form_KM = torch.zeros(slots, matrices, device=device, dtype=torch.int64)
        self.spectral_norm_KM = torch.ones(slots, matrices, device=device)
        self.left: dict[str, Tensor] = {}
        self.right: dict[str, Tensor] = {}
        if "spectral" in forms:
            for g in self._spectral_groups():
                self.left[g.name] = torch.zeros(slots, g.count, g.outputs, device=device)
                self.right[g.name] = torch.zeros(slots, g.count, g.inputs, device=device)

    @property
    def grad_KP(self) -> Tensor:
        """Gradients of the parameters, where `pull_back` is in use; made when first asked for."""
        if self._grad_KP is None:
            self._grad_KP = torch.zeros_like(self.parameter_KP)
        return self._grad_KP

    def _spectral_groups(self) -> list[MatrixGroup]:
        return [group for group in self.layout.groups if group.name != "embed"]

    def _group_forms(self, group: MatrixGroup) -> frozenset[Form]:
        """Forms a group can have: the embedding is only ever scaled."""
        return frozenset({"scalar"}) if group.name == "embed" else self.forms

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone, in this order (int64 indices)."""
        for name in ("parameter_KP", "effective_KP"):
            value = getattr(self, name)
            kept = zero_rows(len(slots), value.shape[1], device=value.device, dtype=value.dtype)
            setattr(self, name, kept.copy_(value[slots]))
        self._grad_KP = None
        for name in ("gate_trains_KM", "form_KM", "spectral_norm_KM"):
            setattr(self, name, getattr(self, name)[slots])
        for vectors in (self.left, self.right):
            for name, value in vectors.items():
                vectors[name] = value[slots].contiguous()

    def load(self, slots: Sequence[int], runs: Sequence[Run]) -> None:
        """Draw the initial parameters of runs into slots, by (seed, parameter name) alone.

        On a GPU neighbouring slots are loaded together, while the draws of the next are made.
        """
        device = self.parameter_KP.device
        # On a CPU each alone: its bits must not depend on how many enter with it.
        most = 1 if device.type == "cpu" else max(1, _PIECE_BYTES // (4 * self.layout.size))
        pieces = _neighbours(slots, runs, most=most)
        threads = drawing_threads(device)
        with ThreadPoolExecutor(threads, "draw") if threads > 1 else nullcontext() as pool:
            for number, (first, some) in enumerate(pieces):
                self._draws.begin((run.seed for run in some), pool)
                drawn = [self._draws.row(run.seed) for run in some]
                if pool is not None and number + 1 < len(pieces):
                    self._draws.begin((run.seed for run in pieces[number + 1][1]), pool)
                self._load_piece(first, some, drawn)

    def _load_piece(self, first: int, runs: Sequence[Run], drawn: Sequence[Tensor]) -> None:
        """Start runs in the slots from `first` on, from their draws."""
        layout, device = self.layout, self.parameter_KP.device
        slots = slice(first, first + len(runs))
        row_KP = torch.ones(len(runs), layout.size, device=device)
        for row_P, drawn_P in zip(row_KP, drawn, strict=True):
            row_P[: layout.matrix_parameters].copy_(drawn_P)
        rules = [[self._rule(run, label) for label in layout.matrix_labels] for run in runs]

        # By way of float64: an absurd gate becomes infinite in float32, which is a divergence, not
        # an error.
        std_KM, gate_KM = (
            torch.tensor(values, dtype=torch.float64).float().to(device)
            for values in (
                [[rule.std for rule in own] for own in rules],
                [[rule.gate for rule in own] for own in rules],
            )
        )
        for group in layout.groups:
            w_KMOI = group.view(row_KP)
            w_KMOI.mul_(std_KM[:, group.matrices, None, None])
            if layout.with_row_gains:
                row_KP[:, layout.row_gains(group)] = rp.row_norm(w_KMOI).flatten(1)
            if group.name in self.left:
                self._start_power_iteration(slots, group, w_KMOI, runs)
        row_KP[:, layout.gates] = gate_KM
        self.parameter_KP[slots] = row_KP
        trains = [[rule.gate_trains for rule in own] for own in rules]
        self.gate_trains_KM[slots] = torch.tensor(trains).to(device)
        forms = [[_FORMS.index(rule.form) for rule in own] for own in rules]
        self.form_KM[slots] = torch.tensor(forms).to(device)
        self.refresh_effective(slots, power_step=False)

    def _rule(self, run: Run, label: str) -> MatrixParametrization:
        """How a matrix of a run starts."""
        rule = parametrize(
            role_of(label),
            method=run.parts,
            sigma2=run.hyperparameters.sigma2,
            architecture=run.architecture,
        )
        assert rule.form in self.forms, (rule.form, self.forms)
        return rule

    def _start_power_iteration(
        self, slots: slice, group: MatrixGroup, w_KMOI: Tensor, runs: Sequence[Run]
    ) -> None:
        shape, name = (1, group.count, group.outputs), f"{group.name}.left"
        starts = [standard_normal(shape, seed=run.seed, name=name) for run in runs]
        left_KMO = torch.cat(starts).to(w_KMOI.device)
        for _ in range(_POWER_STEPS_AT_START):
            left_KMO, right_KMI = rp.power_iteration(w_KMOI, left_KMO)
        self.left[group.name][slots], self.right[group.name][slots] = left_KMO, right_KMI

    def refresh_effective(self, slots: slice = slice(None), *, power_step: bool = True) -> None:
        """Make the effective weights from the parameters, after one step of power iteration."""
        layout, row_KP = self.layout, self.parameter_KP[slots]
        effective_KP = self.effective_KP[slots]
        gate_KM = row_KP[:, layout.gates]
        for group in layout.groups:
            w_KMOI, forms = group.view(row_KP), self._group_forms(group)
            gate = gate_KM[:, group.matrices]
            w_bar = rp.scalar_effective(w_KMOI, gate)
            if "row" in forms:
                gain_KMO = row_KP[:, layout.row_gains(group)].unflatten(1, (group.count, -1))
                w_bar = self._pick("row", group, slots, rp.row_effective(w_KMOI, gain_KMO), w_bar)
            if "spectral" in forms:
                left, right = self.left[group.name][slots], self.right[group.name][slots]
                if power_step:
                    new_left, new_right = rp.power_iteration(w_KMOI, left)
                    left.copy_(new_left)
                    right.copy_(new_right)
                norm_KM = rp.spectral_norm(w_KMOI, left, right)
                self.spectral_norm_KM[slots, group.matrices] = norm_KM
                # `spectral_effective`, by the norm that is at hand.
                spectral = rp.scalar_effective(w_KMOI, gate / norm_KM)
                w_bar = self._pick("spectral", group, slots, spectral, w_bar)
            group.view(effective_KP).copy_(w_bar)
        gains = slice(layout.norm_gains.start, layout.effective_size)
        effective_KP[:, gains] = row_KP[:, gains].to(effective_KP.dtype)

    @torch.no_grad()
    def folded(self, slot: int) -> Tensor:
        """The effective row of one run in float32 on the CPU, [`Layout.effective_size`].

        Of the parameters and gates themselves: `effective_KP` may be rounded to bfloat16. The
        vectors of power iteration are taken as they are.
        """
        layout, one = self.layout, slice(slot, slot + 1)
        row_KP = self.parameter_KP[one]
        folded_KP = torch.empty(1, layout.effective_size)
        gains = slice(layout.norm_gains.start, layout.effective_size)
        folded_KP[:, gains] = row_KP[:, gains].cpu()
        gate_KM, form_M = row_KP[:, layout.gates], self.form_KM[slot].tolist()
        for group in layout.groups:
            w_KMOI, folded_KMOI = group.view(row_KP), group.view(folded_KP)
            for n in range(group.count):
                # A matrix at a time: the device may have no room for a copy of them all.
                own, matrix = slice(n, n + 1), group.first_matrix + n
                w, gate = w_KMOI[:, own], gate_KM[:, matrix : matrix + 1]
                match _FORMS[form_M[matrix]]:
                    case "scalar":
                        w_bar = rp.scalar_effective(w, gate)
                    case "row":
                        part = row_KP[:, layout.row_gains(group)].unflatten(1, (group.count, -1))
                        w_bar = rp.row_effective(w, part[:, own])
                    case "spectral":
                        left, right = self.left[group.name], self.right[group.name]
                        w_bar = rp.spectral_effective(w, gate, left[one, own], right[one, own])
                folded_KMOI[:, own].copy_(w_bar)
        return folded_KP[0]

    def _pick(
        self, form: Form, group: MatrixGroup, slots: slice, own: Tensor, other: Tensor
    ) -> Tensor:
        """`own` where a matrix has the form, else `other`; by where, so that NaN stays at home."""
        mask_KM = self.form_KM[slots, group.matrices] == _FORMS.index(form)
        return torch.where(mask_KM.view(*mask_KM.shape, *(1,) * (own.ndim - 2)), own, other)

    def pull_back(self, leaf_grads: Sequence[Tensor]) -> Tensor:
        """Gradients of the effective weights to gradients of the parameters, in `grad_KP`.

        Args:
            leaf_grads: In the order of `EffectiveWeights.leaves`.

        Returns:
            Norm of each run's gradient, float32 [K].
        """
        layout, all_slots = self.layout, slice(None)
        gate_KM = self.parameter_KP[:, layout.gates]
        dgate_KM = self.grad_KP[:, layout.gates]
        for group, leaf_grad in zip(layout.groups, leaf_grads, strict=False):
            w_KMOI, forms = group.view(self.parameter_KP), self._group_forms(group)
            g_KMOI = leaf_grad.float().reshape_as(w_KMOI)
            gate = gate_KM[:, group.matrices]
            dw, dgate = rp.scalar_pullback(g_KMOI, w_KMOI, gate)
            if "row" in forms:
                part = layout.row_gains(group)
                gain_KMO = self.parameter_KP[:, part].unflatten(1, (group.count, -1))
                dw_row, dgain_KMO = rp.row_pullback(g_KMOI, w_KMOI, gain_KMO)
                dw = self._pick("row", group, all_slots, dw_row, dw)
                zero = torch.zeros_like(dgain_KMO)
                self.grad_KP[:, part] = self._pick(
                    "row", group, all_slots, dgain_KMO, zero
                ).flatten(1)
            elif layout.with_row_gains:
                self.grad_KP[:, layout.row_gains(group)] = 0
            if "spectral" in forms:
                dw_spectral, dgate_spectral = rp.spectral_pullback(
                    g_KMOI, w_KMOI, gate, self.left[group.name], self.right[group.name]
                )
                dw = self._pick("spectral", group, all_slots, dw_spectral, dw)
                dgate = self._pick("spectral", group, all_slots, dgate_spectral, dgate)
            group.view(self.grad_KP).copy_(dw)
            dgate_KM[:, group.matrices] = dgate
        dgate_KM.copy_(torch.where(self.gate_trains_KM, dgate_KM, 0.0))
        norm_grads = leaf_grads[len(layout.groups) :]
        for part, grad in zip((layout.norm_gains, layout.qk_gains), norm_grads, strict=False):
            self.grad_KP[:, part] = grad.float().flatten(1)
        return torch.linalg.vector_norm(self.grad_KP, dim=1)

    def matrix_norms(self, row_KP: Tensor) -> Tensor:
        """Frobenius norm of every matrix of flat rows, float32 [K, matrices]."""
        norms = [
            torch.linalg.vector_norm(group.view(row_KP).float().flatten(2), dim=2)
            for group in self.layout.groups
        ]
        return torch.cat(norms, dim=1)

    def gates_KM(self) -> Tensor:
        """α or γ of every matrix, and the mean row gain where the form is `row`; [K, matrices]."""
        gate_KM = self.parameter_KP[:, self.layout.gates].clone()
        if self.layout.with_row_gains:
            for group in self.layout.groups:
                gain_KMO = self.parameter_KP[:, self.layout.row_gains(group)].unflatten(
                    1, (group.count, -1)
                )
                own = gate_KM[:, group.matrices]
                own.copy_(self._pick("row", group, slice(None), gain_KMO.mean(dim=2), own))
        return gate_KM
