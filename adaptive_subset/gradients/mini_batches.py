"""The mean gradients of mini-batches, made of the gradients of their members."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adaptive_subset.gradients.protocol import Gradients, Index

_TILE = 1024  # rows of the Gram matrix that are computed at once


class BatchGradients(Gradients):
    """The mean gradients of m mini-batches, ``D_a = Σ_{i in a} gᵢ / B``.

    Held are their inner products, all m² of them; whatever else is asked of a batch is asked of its
    members, so that the means themselves, of size m × d, never exist.

    Args:
        gradients: of n samples.
        members: (m, B) int64, the samples of each batch.
        gram: (m, m) float64, their inner products, where they are known already.
    """

    def __init__(self, gradients: Gradients, members: Tensor, gram: Tensor | None = None) -> None:
        self._gradients, self._members = gradients, members
        self._gram = _gram(gradients, members) if gram is None else gram
        self.is_estimate = gradients.is_estimate

    def __len__(self) -> int:
        return len(self._members)

    @property
    def dim(self) -> int:
        return self._gradients.dim

    @property
    def device(self) -> torch.device:
        return self._gradients.device

    @property
    def dtype(self) -> torch.dtype:
        return self._gradients.dtype

    @property
    def gram(self) -> Tensor:
        return self._gram

    def take(self, index: Index) -> BatchGradients:
        """See `Gradients.take`."""
        gram = self.gram[index][:, index]
        return BatchGradients(self._gradients, self._members[index], gram)

    def double(self) -> BatchGradients:
        """See `Gradients.double`."""
        return BatchGradients(self._gradients.double(), self._members)

    def sum(self, weights: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """See `Gradients.sum`."""
        members = self._members if index is None else self._members[index]
        size = members.shape[1]
        if weights is not None:
            weights = weights.repeat_interleave(size)
        return self._gradients.sum(weights, members.flatten()) / size

    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """See `Gradients.correlate`."""
        return self._gradients.correlate(vector)[self._members[:first]].mean(1)

    def dense(self, index: int) -> Tensor:
        """See `Gradients.dense`."""
        return self._gradients.sum(index=self._members[index]) / self._members.shape[1]

    def gram_column(self, index: int) -> Tensor:
        """See `Gradients.gram_column`."""
        return self.gram[:, index]

    def pairwise(
        self, other: Gradients, rows: Index, columns: Index, dtype: torch.dtype | None = None
    ) -> Tensor:
        """See `Gradients.pairwise`, also for what it raises; in float64 where `other` is this."""
        if other is not self:
            return super().pairwise(other, rows, columns, dtype)
        return self.gram[rows][:, columns].clone()

    def squared_norms(self) -> Tensor:
        """See `Gradients.squared_norms`."""
        return self.gram.diagonal()

    def means(self, members: Tensor) -> Iterator[Tensor]:
        """See `Gradients.means`; the mean of batches is that of their members."""
        return self._gradients.means(self._members[members].flatten(1))

    def is_finite(self) -> bool:
        """See `Gradients.is_finite`."""
        # An inner product that overflowed is no news of its members, which can tell.
        return bool(torch.isfinite(self.squared_norms()).all()) or (
            self._gradients.take(self._members.flatten()).is_finite()
        )


def _gram(gradients: Gradients, members: Tensor) -> Tensor:
    """The inner products of the batches' means, (m, m) in float64."""
    batches = len(members)
    gram = torch.zeros(batches, batches, dtype=torch.float64, device=gradients.device)
    for means in gradients.means(members):
        for i in range(0, batches, _TILE):  # the upper triangle only
            gram[i : i + _TILE, i:] += means[i : i + _TILE] @ means[i:].T
    return gram.triu() + gram.triu(1).T
