"""Gradients that are the rows of a matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adaptive_subset.gradients.protocol import BLOCK, Gradients, Index


class DenseGradients(Gradients):
    """n gradients as a matrix (n, d): where that is smaller than any other form of them.

    Args:
        matrix: (n, d), floating; half precision is held in float32.

    Examples:
        >>> DenseGradients(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).squared_norms()
        tensor([25.,  4.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"`matrix` must be of shape (n, d), got {tuple(matrix.shape)}.")
        self.matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def dim(self) -> int:
        return self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def take(self, index: Index) -> DenseGradients:
        """See `Gradients.take`."""
        return type(self)(self.matrix[index])

    def sum(self, weights: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """See `Gradients.sum`."""
        rows = self.matrix if index is None else self.matrix[index]
        return rows.sum(0) if weights is None else weights.to(rows) @ rows

    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """See `Gradients.correlate`."""
        return self.matrix[:first] @ vector.to(self.dtype)

    def dense(self, index: int) -> Tensor:
        """See `Gradients.dense`."""
        return self.matrix[index]

    def gram_column(self, index: int) -> Tensor:
        """See `Gradients.gram_column`."""
        return self.matrix @ self.matrix[index]

    def pairwise(
        self, other: Gradients, rows: Index, columns: Index, dtype: torch.dtype | None = None
    ) -> Tensor:
        """See `Gradients.pairwise`, also for what it raises."""
        if not isinstance(other, DenseGradients):
            return super().pairwise(other, rows, columns, dtype)
        dtype = dtype or self.dtype
        return self.matrix[rows].to(dtype) @ other.matrix[columns].to(dtype).T

    def squared_norms(self) -> Tensor:
        """See `Gradients.squared_norms`."""
        norms: Tensor = torch.linalg.vecdot(self.matrix, self.matrix)
        return norms

    def means(self, members: Tensor) -> Iterator[Tensor]:
        """See `Gradients.means`."""
        step = max(1, BLOCK // max(1, members.numel()))
        for start in range(0, self.dim, step):
            yield self.matrix[:, start : start + step][members].mean(1)

    def is_finite(self) -> bool:
        """See `Gradients.is_finite`."""
        return bool(torch.isfinite(self.matrix).all())

    def rows(self) -> list[Tensor]:
        """See `Gradients.rows`."""
        return [self.matrix]

    def with_rows(self, rows: list[Tensor]) -> DenseGradients:
        """See `Gradients.with_rows`."""
        return type(self)(rows[0])
