"""Last-layer gradients, kept factored: ``g = δ ⊗ h`` is held as C + p numbers, not C · p."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 1 << 25  # numbers in the largest temporary of `BatchGradients`


class FactoredGradients:
    """The last-layer gradients of n samples, ``g_i = ⊕ δ_i ⊗ h_i`` over the heads of the model.

    ``⟨g_i, g_j⟩ = (δ_i·δ_j)(h_i·h_j)``, ``⟨g_i, R⟩ = δ_iᵀ R h_i`` and ``Σ w_i g_i = Δᵀ diag(w) H``
    are all that a solver needs, so nothing of size n × C · p is ever built.

    Args:
        blocks: one pair (δ, h) a head: δ of shape (n, C), h of shape (n, p), the same floating
            dtype and device. Most models have one head.

    Example:
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

    def __getitem__(self, index: Tensor) -> FactoredGradients:
        return FactoredGradients([(delta[index], h[index]) for delta, h in self.blocks])

    @property
    def dim(self) -> int:
        """d, the length of one gradient."""
        return sum(delta.shape[1] * h.shape[1] for delta, h in self.blocks)

    @property
    def device(self) -> torch.device:
        return self.blocks[0][0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0][0].dtype

    @property
    def row_cost(self) -> int:
        """Multiplications for one column of the Gram matrix, a candidate: Σ (C + p)."""
        return sum(delta.shape[1] + h.shape[1] for delta, h in self.blocks)

    def is_finite(self) -> bool:
        """Whether no gradient holds a NaN or an infinity."""
        # A sum is NaN or infinite as soon as one term is; it reads the data once, without a copy.
        return all(bool(torch.isfinite(t.sum(dtype=torch.float64))) for b in self.blocks for t in b)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """``Σ wᵢ gᵢ`` of shape (d,); all weights one when `weights` (n,) is None."""
        parts = []
        for delta, h in self.blocks:
            scaled = delta if weights is None else delta * weights.to(delta)[:, None]
            parts.append((scaled.T @ h).flatten())
        return torch.cat(parts)

    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """``⟨gᵢ, vector⟩`` of the `first` ones, or all (n,), for a `vector` of shape (d,)."""
        start, total = 0, None
        for delta, h in self.blocks:
            delta, h = delta[:first], h[:first]
            rows, columns = delta.shape[1], h.shape[1]
            matrix = vector[start : start + rows * columns].to(h.dtype).view(rows, columns)
            start += rows * columns
            if rows == 1:
                part = torch.mv(h, matrix[0]).mul_(delta[:, 0])
            elif rows <= columns:
                part = torch.linalg.vecdot(h @ matrix.T, delta)
            else:
                part = torch.linalg.vecdot(delta @ matrix, h)
            total = part if total is None else total + part
        assert total is not None
        return total

    def dense(self, index: int | Tensor) -> Tensor:
        """The gradient of one sample, of shape (d,)."""
        parts = [torch.outer(d[index], h[index]).flatten() for d, h in self.blocks]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def gram_column(self, index: int | Tensor) -> Tensor:
        """``⟨gⱼ, gᵢ⟩`` for all j, of shape (n,)."""
        columns = [torch.mv(d, d[index]) * torch.mv(h, h[index]) for d, h in self.blocks]
        return torch.stack(columns).sum(0) if len(columns) > 1 else columns[0]

    def squared_norms(self) -> Tensor:
        """``‖gᵢ‖²`` of shape (n,)."""
        norms = [torch.linalg.vecdot(d, d) * torch.linalg.vecdot(h, h) for d, h in self.blocks]
        return torch.stack(norms).sum(0)

    def own_rows(self, classes: Tensor) -> FactoredGradients:
        """Only the row of the last layer that belongs to a sample's class: p numbers a sample.

        The per-gradient approximation of GRAD-MATCH (§4): ``δ[i, classes[i]] · h_i``.

        Raises:
            ValueError: where a class has no row in the head.
        """
        outputs = min(delta.shape[1] for delta, _ in self.blocks)
        if len(classes) and not (int(classes.min()) >= 0 and int(classes.max()) < outputs):
            raise ValueError(
                f"`classes` must be in [0, {outputs - 1}] to name a row of the head, got "
                f"{int(classes.min())} to {int(classes.max())}. Match the whole last layer "
                'instead: rows="all".'
            )
        column = classes[:, None]
        return FactoredGradients(
            [(torch.ones_like(d[:, :1]), d.gather(1, column) * h) for d, h in self.blocks]
        )


class BatchGradients:
    """The mean last-layer gradients of m mini-batches, ``D_a = Δ_aᵀ H_a / B``.

    Solvers see only their Gram matrix (m, m) and inner products; the matrix itself is formed from
    slices of the last layer, so that no temporary exceeds a fixed size whatever C · p is.

    Args:
        gradients: of n samples.
        members: (m, B) int64, the samples of each batch.
        gram: (m, m) float64, their inner products, where they are known already.
    """

    def __init__(
        self, gradients: FactoredGradients, members: Tensor, gram: Tensor | None = None
    ) -> None:
        self._gradients, self._members = gradients, members
        self.gram = self._gram() if gram is None else gram

    def _gram(self) -> Tensor:
        gradients, members, batches = self._gradients, self._members, len(self._members)
        gram = torch.zeros(batches, batches, dtype=torch.float64, device=gradients.device)
        for delta, h in gradients.blocks:
            features = h[members]
            step = max(1, _BLOCK // max(1, batches * h.shape[1]))
            for start in range(0, delta.shape[1], step):
                rows = delta[:, start : start + step][members]
                dense = torch.bmm(rows.mT, features).flatten(1) / members.shape[1]
                gram += dense @ dense.T
        return gram

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: Tensor) -> BatchGradients:
        gram = self.gram[index][:, index]
        return BatchGradients(self._gradients, self._members[index], gram)

    @property
    def dim(self) -> int:
        return self._gradients.dim

    @property
    def device(self) -> torch.device:
        return self._gradients.device

    @property
    def dtype(self) -> torch.dtype:
        return self._gradients.dtype

    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """``⟨D_a, vector⟩`` of the `first` ones, or all (m,), for a `vector` of shape (d,)."""
        return self._gradients.correlate(vector)[self._members[:first]].mean(1)

    def dense(self, index: int | Tensor) -> Tensor:
        """The gradient of one mini-batch, of shape (d,)."""
        return self._gradients[self._members[index]].sum() / self._members.shape[1]

    def gram_column(self, index: int | Tensor) -> Tensor:
        """``⟨D_b, D_a⟩`` for all b, of shape (m,)."""
        return self.gram[:, index]

    def squared_norms(self) -> Tensor:
        """``‖D_a‖²`` of shape (m,)."""
        return self.gram.diagonal()
