"""The last layer as a model of its own: what its gradient would be after a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses

_ROWS = 2**16  # samples whose outputs are held at once


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Features, targets and loss of n samples, for a model that ends in its last layer.

    Args:
        features: (n, p) what enters the layer, with a constant 1 for the bias.
        weight: (C, p) the layer's weight, with its bias as the last column.
        targets: (n, …).
        criterion: see `per_sample_losses`.
        rows: (m,) those of the n that are meant, None for all.
    """

    features: Tensor
    weight: Tensor
    targets: Tensor
    criterion: Criterion
    rows: Tensor | None = None

    def __getitem__(self, index: Tensor) -> LastLayer:
        return replace(self, rows=index if self.rows is None else self.rows[index])

    @cached_property
    def _meant(self) -> tuple[Tensor, Tensor]:
        """Features and targets; copied here, since most strategies look no step ahead."""
        rows = self.rows
        if rows is None:
            return self.features, self.targets
        return self.features[rows], self.targets[rows]

    def gradient_after(self, step: Tensor) -> Tensor:
        """``Σ ∂ℓ/∂W`` at ``W − step``, (d,) for a `step` of shape (d,), d = C · p."""
        # Features may be in a file; the criterion, which may hold tensors, is where the weight is.
        # Gradients may be stored in float64, which the criterion need not take either.
        moved = self.weight - step.to(self.weight).view_as(self.weight)
        total = torch.zeros_like(moved)
        features, targets = self._meant
        for start in range(0, len(features), _ROWS):
            f = features[start : start + _ROWS].to(moved)
            y = targets[start : start + _ROWS].to(moved.device)
            z = (f @ moved.T).requires_grad_()
            with torch.enable_grad():
                loss = per_sample_losses(self.criterion, z, y).sum()
            (delta,) = torch.autograd.grad(loss, z)
            total += delta.T @ f
        return total.flatten().to(step.device)
