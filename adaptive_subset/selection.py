"""The result of one selection.

Symbols used throughout the package: ``n`` candidates, ``k`` budget, ``C`` classes,
``p`` last-layer features (the bias is a constant feature), ``d`` gradient length,
``g_i = δ_i ⊗ h_i`` the last-layer gradient of candidate ``i`` with ``δ_i = ∂ℓ_i/∂z_i``,
``b`` the gradient to match, ``w`` weights, ``R`` epochs between selections, ``T`` epochs in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.checks import check_state


@dataclass(frozen=True, eq=False)
class Selection:
    """A weighted subset, and how well it stands for the whole.

    Args:
        indices: (k,) int64 on the CPU, indices into the dataset. Where `batch_size` is set they
            come in groups of that size, each group one chosen mini-batch.
        weights: (k,) float32 on the CPU, in units of samples: ``Σ wᵢ gᵢ ≈ b``; ``≥ 0`` unless a
            strategy allows signed ones, as ``GradMatch(nonnegative=False)`` does. ``Σ w`` is n for
            strategies that count samples; matching gradients needs less where the chosen ones are
            larger. Training uses `loss_weights`.
        epoch: the epoch for which the selection was made.
        batch_size: size of the chosen mini-batches, None where single samples were chosen.
        objective: the strategy's own objective at the solution, None where it has none.
        relative_error: ``‖Σ wᵢgᵢ − b‖ / ‖b‖`` over the whole last layer, None where no
            gradients were computed.
        trained_error: the same of the weights that are trained with: those of mean one keep the
            direction of the match and change its length.
        is_estimate: whether both errors are estimates, by sketches of the gradients. They are too
            low where nearly as many samples were weighted as a sketch has numbers.
        filled: how many of the k were filled in at random because the strategy stopped early.
        forward_seconds: seconds spent in the pass over the candidates.
        solver_seconds: seconds spent in the strategy.
        unit: the weight that counts as one in the loss: ``n / k`` keeps the length of the match,
            None, the mean of the weights, the size of the loss.
    """

    indices: Tensor
    weights: Tensor
    epoch: int
    batch_size: int | None = None
    objective: float | None = None
    relative_error: float | None = None
    trained_error: float | None = None
    is_estimate: bool = False
    filled: int = 0
    forward_seconds: float = 0.0
    solver_seconds: float = 0.0
    unit: float | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def loss_weights(self) -> Tensor:
        """(k,) float32, what the loss is multiplied by: the weights over `unit`."""
        return self.weights / (self.weights.mean() if self.unit is None else self.unit)

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size ``(Σw)² / Σw²``: k for equal weights, 1 for a lone one."""
        weights = self.weights.double()
        return float(weights.sum() ** 2 / weights.square().sum())

    @property
    def seconds(self) -> float:
        """Seconds that the selection took in all."""
        return self.forward_seconds + self.solver_seconds

    def state_dict(self) -> dict[str, Any]:
        """All fields by name, tensors copied."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(self).items()}

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], n: int, size_at: Callable[[int], int | None]
    ) -> Selection:
        """The selection that `state_dict` was taken from, of `n` samples.

        `size_at` says how many a selection for an epoch has, None where that is not known.

        Raises:
            ValueError: indices out of range, or weights that do not fit them, are not finite or of
                no positive sum; or not the fields of a selection.
        """
        check_state("Selection", state, {"indices": Tensor, "weights": Tensor, "epoch": int})
        if unknown := set(state) - {f.name for f in fields(cls)}:
            raise ValueError(f"`state` must be that of a Selection, got it with {sorted(unknown)}.")
        indices, weights = state["indices"].detach().cpu(), state["weights"].detach().cpu()
        problem = None
        if indices.ndim != 1 or weights.shape != indices.shape or not len(indices):
            problem = f"indices {tuple(indices.shape)} and weights {tuple(weights.shape)}"
        elif (k := size_at(state["epoch"])) not in (None, len(indices)):
            problem = f"{len(indices)} where {k} were selected"
        elif indices.dtype != torch.int64 or not weights.is_floating_point():
            problem = f"indices of {indices.dtype} and weights of {weights.dtype}"
        elif int(indices.min()) < 0 or int(indices.max()) >= n:
            problem = f"indices from {int(indices.min())} to {int(indices.max())}"
        elif not bool(torch.isfinite(weights).all()) or not float(weights.sum()) > 0:
            problem = "weights that are not finite or have no positive sum"
        if problem is not None:
            raise ValueError(
                f"`state` must hold indices in [0, {n - 1}] with one finite weight each, got "
                f"{problem}. The checkpoint is damaged, or that of another dataset."
            )
        copies = {"indices": indices.clone(), "weights": weights.to(torch.float32, copy=True)}
        return cls(**{**state, **copies})

    def fingerprint(self) -> str:
        """The same for two selections exactly where they deliver the same, for the same epoch."""
        parts = (self.indices.numpy().tobytes(), self.loss_weights.numpy().tobytes())
        return hashlib.sha256(b"".join((*parts, str(self.epoch).encode()))).hexdigest()[:16]

    def __str__(self) -> str:
        errors = (self.relative_error, self.trained_error)
        error, trained = ("unknown" if e is None else f"{e:.4f}" for e in errors)
        return (
            f"relative gradient error {error}, {trained} as trained with"
            f"{' (estimates)' if self.is_estimate else ''}, "
            f"effective size {self.effective_size:.0f}, "
            f"{self.filled} filled at random, "
            f"{self.forward_seconds:.2f} s forward, {self.solver_seconds:.2f} s solver"
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the indices and weights, as plain numbers, for logs and plots."""
        figures = {f.name: getattr(self, f.name) for f in fields(self)}
        del figures["indices"], figures["weights"]
        return {"size": len(self), "effective_size": self.effective_size, **figures}
