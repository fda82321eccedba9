"""The result of one selection.

Symbols used throughout the package: ``n`` candidates, ``k`` budget, ``C`` classes,
``p`` last-layer features (the bias is a constant feature), ``d`` gradient length,
``g_i = δ_i ⊗ h_i`` the last-layer gradient of candidate ``i`` with ``δ_i = ∂ℓ_i/∂z_i``,
``b`` the gradient to match, ``w`` weights, ``R`` epochs between selections, ``T`` epochs in all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """A weighted subset, and how well it stands for the whole.

    Args:
        indices: (k,) int64 on the CPU, indices into the dataset. Where `batch_size` is set they
            come in groups of that size, each group one chosen mini-batch.
        weights: (k,) float32 on the CPU, ``≥ 0``, in units of samples: ``Σ wᵢ gᵢ ≈ b``. ``Σ w`` is
            n for strategies that count samples; matching gradients needs less where the chosen
            ones are larger. Training uses `loss_weights`, which have mean one.
        epoch: the epoch for which the selection was made.
        batch_size: size of the chosen mini-batches, None where single samples were chosen.
        objective: the strategy's own objective at the solution, None where it has none.
        relative_error: ``‖Σ wᵢgᵢ − b‖ / ‖b‖`` over the whole last layer, None where no
            gradients were computed.
        filled: how many of the k were filled in at random because the strategy stopped early.
        forward_seconds: seconds spent in the pass over the candidates.
        solver_seconds: seconds spent in the strategy.
    """

    indices: Tensor
    weights: Tensor
    epoch: int
    batch_size: int | None = None
    objective: float | None = None
    relative_error: float | None = None
    filled: int = 0
    forward_seconds: float = 0.0
    solver_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def loss_weights(self) -> Tensor:
        """(k,) float32 weights with mean one over the subset: what the loss is multiplied by."""
        return self.weights / self.weights.mean()

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size ``(Σw)² / Σw²``: k for equal weights, 1 for a lone one."""
        weights = self.weights.double()
        return float(weights.sum() ** 2 / weights.square().sum())

    @property
    def seconds(self) -> float:
        """Seconds that the selection took in all."""
        return self.forward_seconds + self.solver_seconds

    def summary(self) -> dict[str, Any]:
        """The figures without the indices and weights, as plain numbers, for logs and plots."""
        figures = {f.name: getattr(self, f.name) for f in fields(self)}
        del figures["indices"], figures["weights"]
        return {"size": len(self), "effective_size": self.effective_size, **figures}
