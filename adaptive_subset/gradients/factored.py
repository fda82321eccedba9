"""Last-layer gradients, kept factored: ``g = δ ⊗ h`` is held as C + p numbers, not C · p."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.protocol import BLOCK, Gradients, Index

_NUMBERS = 1 << 24  # of the factors that are computed with at once


class FactoredGradients(Gradients):
    """The last-layer gradients of n samples, ``g_i = ⊕ δ_i ⊗ h_i`` over the heads of the model.

    ``⟨g_i, g_j⟩ = (δ_i·δ_j)(h_i·h_j)``, ``⟨g_i, R⟩ = δ_iᵀ R h_i`` and ``Σ w_i g_i = Δᵀ diag(w) H``
    are all that a solver needs, so nothing of size n × C · p is ever built. They are computed with
    a slice at a time, in float32 where they are stored in half precision.

    Args:
        blocks: one pair (δ, h) a head: δ of shape (n, C), h of shape (n, p), the same floating
            dtype and device. Most models have one head.

    Examples:
        >>> delta, features = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 3.0]])
        >>> FactoredGradients([(delta, features)]).dense(0)
        tensor([ 2.,  3., -2., -3.])
    """

    def __init__(self, blocks: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.blocks = tuple(blocks)
        for delta, features in self.blocks:
            if delta.ndim != 2 or features.ndim != 2 or len(delta) != len(self):
                shapes = [(tuple(d.shape), tuple(h.shape)) for d, h in self.blocks]
                raise ValueError(
                    f"`blocks` must hold pairs of shapes (n, C) and (n, p), got {shapes}"
                )

    def __len__(self) -> int:
        return len(self.blocks[0][1])

    def take(self, index: Index) -> FactoredGradients:
        """See `Gradients.take`."""
        return FactoredGradients(self._at(index))

    def compact(self) -> Gradients:
        """A matrix where a gradient is no longer than its factors, as one row of a layer is."""
        if self.dim > sum(delta.shape[1] + h.shape[1] for delta, h in self.blocks):
            return self
        parts = [
            (d.to(self.dtype)[:, :, None] * h.to(self.dtype)[:, None]).flatten(1)
            for d, h in self.blocks
        ]
        return DenseGradients(torch.cat(parts, 1) if len(parts) > 1 else parts[0])

    def _at(self, index: Index | int) -> list[tuple[Tensor, Tensor]]:
        """The factors at `index`, in the dtype to compute in."""
        return [(d[index].to(self.dtype), h[index].to(self.dtype)) for d, h in self.blocks]

    def _slices(self, index: Tensor | None = None) -> Iterator[FactoredGradients]:
        """All of it, or those at `index`, in the dtype to compute in."""
        count = len(self) if index is None else len(index)
        size = max(1, _NUMBERS // max(1, sum(factor.shape[1] for factor in self.rows())))
        for start in range(0, max(1, count), size):  # of none, one slice of none
            rows = slice(start, start + size)
            yield self.take(rows if index is None else index[rows])

    def _by_slice(self, compute: Callable[[FactoredGradients], Tensor]) -> Tensor:
        parts = [compute(part) for part in self._slices()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def dim(self) -> int:
        return sum(delta.shape[1] * h.shape[1] for delta, h in self.blocks)

    @property
    def device(self) -> torch.device:
        return self.blocks[0][0].device

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.stored, torch.float32)

    @property
    def stored(self) -> torch.dtype:
        """What it is kept in."""
        return self.blocks[0][0].dtype

    def sum(self, weights: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """See `Gradients.sum`."""
        total, start = torch.zeros(self.dim, dtype=self.dtype, device=self.device), 0
        for part in self._slices(index):
            own = None if weights is None else weights[start : start + len(part), None].to(total)
            start += len(part)
            scaled = [(d if own is None else d * own, h) for d, h in part.blocks]
            total += torch.cat([(d.T @ h).flatten() for d, h in scaled])
        return total

    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """See `Gradients.correlate`."""
        some = self.with_rows([factor[:first] for factor in self.rows()])
        return some._by_slice(lambda part: part._correlate(vector))

    def _correlate(self, vector: Tensor) -> Tensor:
        start, parts = 0, []
        for delta, h in self.blocks:
            rows, columns = delta.shape[1], h.shape[1]
            matrix = vector[start : start + rows * columns].to(h.dtype).view(rows, columns)
            start += rows * columns
            if rows == 1:
                parts.append(torch.mv(h, matrix[0]).mul_(delta[:, 0]))
            elif rows <= columns:
                parts.append(torch.linalg.vecdot(h @ matrix.T, delta))
            else:
                parts.append(torch.linalg.vecdot(delta @ matrix, h))
        return _added(parts)

    def dense(self, index: int) -> Tensor:
        """See `Gradients.dense`."""
        parts = [torch.outer(d, h).flatten() for d, h in self._at(index)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def gram_column(self, index: int) -> Tensor:
        """See `Gradients.gram_column`."""
        own = self._at(index)

        def column(part: FactoredGradients) -> Tensor:
            pairs = zip(part.blocks, own, strict=True)
            columns = (torch.mv(d, e) * torch.mv(h, f) for (d, h), (e, f) in pairs)
            return _added(columns)

        return self._by_slice(column)

    def pairwise(
        self, other: Gradients, rows: Index, columns: Index, dtype: torch.dtype | None = None
    ) -> Tensor:
        """See `Gradients.pairwise`, also for what it raises."""
        if not isinstance(other, FactoredGradients):
            return super().pairwise(other, rows, columns, dtype)
        dtype = dtype or self.dtype
        tiles = (
            (h[rows].to(dtype) @ f[columns].to(dtype).T).mul_(
                d[rows].to(dtype) @ e[columns].to(dtype).T
            )
            for (d, h), (e, f) in zip(self.blocks, other.blocks, strict=True)
        )
        return _added(tiles)

    def squared_norms(self) -> Tensor:
        """See `Gradients.squared_norms`."""

        def norms(part: FactoredGradients) -> Tensor:
            blocks = part.blocks
            each = (torch.linalg.vecdot(d, d) * torch.linalg.vecdot(h, h) for d, h in blocks)
            return _added(each)

        return self._by_slice(norms)

    def means(self, members: Tensor) -> Iterator[Tensor]:
        """See `Gradients.means`: ``Δ_aᵀ H_a / B``, for a few rows of the layer after another."""
        for delta, h in self.blocks:
            step = max(1, BLOCK // max(1, len(members) * h.shape[1]))
            for start in range(0, delta.shape[1], step):
                yield self._means(members, delta[:, start : start + step], h)

    def _means(self, members: Tensor, delta: Tensor, h: Tensor) -> Tensor:
        """(m, C · p), gathered a few batches at a time."""
        (batches, size), columns = members.shape, delta.shape[1] * h.shape[1]
        means = torch.empty(batches, columns, dtype=self.dtype, device=self.device)
        step = max(1, BLOCK // (4 * size * h.shape[1]))
        for start in range(0, batches, step):
            index = members[start : start + step].flatten()
            rows, features = (
                factor.index_select(0, index).to(self.dtype).view(-1, size, factor.shape[1])
                for factor in (delta, h)
            )
            means[start : start + step] = torch.bmm(rows.mT, features).flatten(1)
        return means.div_(size)

    def is_finite(self) -> bool:
        """See `Gradients.is_finite`."""
        # A sum is NaN or infinite as soon as one term is, and is fast to find; if it is because it
        # overflowed, the terms themselves will tell.
        return all(
            bool(torch.isfinite(factor.sum())) or bool(torch.isfinite(factor).all())
            for part in self._slices()
            for block in part.blocks
            for factor in block
        )

    def own_rows(self, classes: Tensor) -> FactoredGradients:
        """Only the row of the last layer that belongs to a sample's class: p numbers a sample.

        The per-gradient approximation of GRAD-MATCH (§4): ``δ[i, classes[i]] · h_i``. The only row
        of a layer, as of a single logit, belongs to every class.

        Raises:
            ValueError: where a class has no row in the head, or heads differ in their rows.
        """
        widths = [delta.shape[1] for delta, _ in self.blocks]
        outputs = min(widths)
        if outputs == max(widths) == 1:
            return self
        if len(classes) and not (int(classes.min()) >= 0 and int(classes.max()) < outputs):
            raise ValueError(
                f"`classes` must be in [0, {outputs - 1}] to name a row of the head, got "
                f"{int(classes.min())} to {int(classes.max())}. Match the whole last layer "
                'instead: scope="per-class".'
            )
        if outputs != max(widths):  # row c of an adapter's inner layer is not that of class c
            raise ValueError(
                "`classes` must name the same row of each head, got heads of "
                f"{' and '.join(map(str, widths))} outputs, as an adapter has. Match the whole "
                'last layer instead: scope="per-class".'
            )
        return FactoredGradients([(d.gather(1, classes[:, None]), h) for d, h in self.blocks])

    def rows(self) -> list[Tensor]:
        """See `Gradients.rows`: δ and h of one head after the other."""
        return [factor for block in self.blocks for factor in block]

    def with_rows(self, rows: list[Tensor]) -> FactoredGradients:
        """See `Gradients.with_rows`."""
        return FactoredGradients(list(zip(rows[::2], rows[1::2], strict=True)))


def _added(parts: Iterable[Tensor]) -> Tensor:
    """The sum of what each head adds, in the memory of the first."""
    return reduce(Tensor.add_, parts)
