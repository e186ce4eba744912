"""Where each parameter of a run lies in its one flat row, and what role each matrix plays.

All parameters of a run are one row of a [K, P] tensor: matrices first (they decay), then the gains
of the norms, then the gates, then, where the stack has a run that needs them, the row gains. One
row makes the optimizer one pass, a slot's refill one copy and a checkpoint one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from wesar_sweep.config.matrices import matrix_shapes
from wesar_sweep.config.run import Architecture


@dataclass(frozen=True)
class MatrixGroup:
    """M matrices of one shape that the model uses together, such as queries, keys and values."""

    name: str
    labels: tuple[str, ...]
    """One a matrix, such as ``layers.0.q``; what stands after the last dot is its role."""
    outputs: int
    inputs: int
    start: int
    """First parameter of the group in the row."""
    first_matrix: int
    """Number of the group's first matrix among all matrices: where its gates lie."""

    @property
    def count(self) -> int:
        """M."""
        return len(self.labels)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.count * self.outputs * self.inputs

    @property
    def matrices(self) -> slice:
        """The group's places among all matrices."""
        return slice(self.first_matrix, self.first_matrix + self.count)

    def view(self, row_KP: Tensor) -> Tensor:
        """The group as [K, M, O, I], a view of the flat rows."""
        part_KS = row_KP[:, self.start : self.start + self.size]
        return part_KS.unflatten(1, (self.count, self.outputs, self.inputs))


@dataclass(frozen=True)
class Layout:
    """The flat row of one architecture."""

    architecture: Architecture
    with_row_gains: bool
    """Whether rows end with one gain an output row (weight_norm)."""

    @cached_property
    def groups(self) -> tuple[MatrixGroup, ...]:
        """All matrix groups, in the order of the row."""
        groups: list[MatrixGroup] = []
        start = matrix = 0
        for shape in matrix_shapes(self.architecture):
            group = MatrixGroup(
                shape.name, shape.labels, shape.outputs, shape.inputs, start, matrix
            )
            groups.append(group)
            start, matrix = start + group.size, matrix + group.count
        return tuple(groups)

    @cached_property
    def matrix_labels(self) -> tuple[str, ...]:
        """Label of every matrix, in the order of the gates."""
        return tuple(label for group in self.groups for label in group.labels)

    @cached_property
    def matrix_parameters(self) -> int:
        """Number of parameters in matrices, which are what decays."""
        return sum(group.size for group in self.groups)

    @property
    def norms(self) -> int:
        """RMSNorms of width D: two a layer and the last."""
        return 2 * self.architecture.depth + 1

    @property
    def norm_gains(self) -> slice:
        """Gains of the norms, [norms · D]."""
        return slice(
            self.matrix_parameters, self.matrix_parameters + self.norms * self.architecture.width
        )

    @property
    def qk_gains(self) -> slice:
        """Gains of the query and key norms, [N · 2 · E]; empty without qk_norm."""
        a = self.architecture
        size = 2 * a.depth * a.head_width if a.qk_norm else 0
        return slice(self.norm_gains.stop, self.norm_gains.stop + size)

    @property
    def effective_size(self) -> int:
        """Length of the row that the forward pass sees: matrices and gains of norms."""
        return self.qk_gains.stop

    @property
    def gates(self) -> slice:
        """One gate a matrix."""
        return slice(self.effective_size, self.effective_size + len(self.matrix_labels))

    def row_gains(self, group: MatrixGroup) -> slice:
        """One gain an output row of the group's matrices; only where `with_row_gains`."""
        assert self.with_row_gains
        before = sum(
            other.count * other.outputs for other in self.groups if other.start < group.start
        )
        return slice(
            self.gates.stop + before, self.gates.stop + before + group.count * group.outputs
        )

    @cached_property
    def size(self) -> int:
        """P: all parameters of a run, gates and gains included."""
        if not self.with_row_gains:
            return self.gates.stop
        return self.row_gains(self.groups[-1]).stop
