"""The last layer as a model of its own: what its gradient would be after a step."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    features: Tensor
    weight: Tensor
    targets: Tensor
    criterion: Criterion

    def __getitem__(self, index: Tensor) -> LastLayer:
        return LastLayer(self.features[index], self.weight, self.targets[index], self.criterion)

    def gradient_after(self, step: Tensor) -> Tensor:
        """``Σ ∂ℓ/∂W`` at ``W − step``, (d,) for a `step` of shape (d,), d = C · p."""
        moved = self.weight - step.view_as(self.weight)
        total = torch.zeros_like(moved)
        for start in range(0, len(self.features), _ROWS):
            f = self.features[start : start + _ROWS].to(moved.dtype)
            y = self.targets[start : start + _ROWS]
            z = (f @ moved.T).requires_grad_()
            with torch.enable_grad():
                losses = per_sample_losses(self.criterion, z, y)
            (delta,) = torch.autograd.grad(losses.sum(), z)
            total += delta.T @ f
        return total.flatten()
