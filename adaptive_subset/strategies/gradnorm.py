"""Sampling by the gradient norm: what has more to teach is drawn more often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_subset.randomness import resample, seeded
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy


@dataclass(frozen=True)
class GradientNorm(Strategy):
    """A random subset in which a sample is the more likely the larger its last-layer gradient is.

    Importance sampling of the gradient sum (Katharopoulos and Fleuret, ICML 2018, "Not All Samples
    Are Created Equal", §3; the last layer's norm bounds that of the whole). Of probabilities
    ``qᵢ = (1 − u)‖gᵢ‖ / Σ‖gⱼ‖ + u/n`` a subset is drawn systematically without replacement, so that
    sample i is in it with probability ``πᵢ = min(1, c·qᵢ)``, ``Σ π = k``. With weights ``1/πᵢ`` the
    weighted sum of the gradients is that of all on average, exactly. Each selection is a fresh
    draw; gradients are as fresh as the selection, so ``every=1`` makes a pass over the data in
    each epoch (``pool_fraction`` makes it shorter).

    Args:
        uniform: u in (0, 1], the share that is drawn uniformly; it bounds the weights by n/(u·k).
        unbiased: weights 1/πᵢ; False gives equal weights, which favour what is hard.
    """

    uniform: float = 0.1
    unbiased: bool = True

    needs_gradients = True

    def __post_init__(self) -> None:
        if not 0 < self.uniform <= 1:
            raise ValueError(f"`uniform` must be in (0, 1], got {self.uniform}.")

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        norms = candidates.atoms.squared_norms().clamp_min(0).sqrt().double().cpu()
        total = float(norms.sum())
        shares = norms / total if total else torch.full_like(norms, 1 / candidates.n)
        chances = _inclusion((1 - self.uniform) * shares + self.uniform / candidates.n, budget)
        certain = (chances >= 1).nonzero()[:, 0]
        others = (chances < 1).nonzero()[:, 0]
        size = budget - len(certain)
        drawn = others[:0]
        if size:
            drawn = others[resample(chances[others], size, seeded(seed, epoch))]
        positions = torch.cat([certain, drawn])
        equal = torch.full((budget,), candidates.n / budget, dtype=torch.float64)
        return Choice(positions, 1 / chances[positions] if self.unbiased else equal)


def _inclusion(shares: Tensor, budget: int) -> Tensor:
    """π = min(1, c · shares) of shape (n,), with c such that Σ π is the budget."""
    chances = shares * budget
    certain = torch.zeros(len(shares), dtype=torch.bool)
    # Those above one are certain, and leave more to the others; a few rounds settle who they are.
    while bool((chances[~certain] >= 1 - 1e-9).any()):
        certain |= chances >= 1 - 1e-9
        rest = shares.masked_fill(certain, 0)
        left = budget - int(certain.sum())
        chances = rest * (left / rest.sum().clamp_min(torch.finfo(rest.dtype).tiny))
    return chances.masked_fill(certain, 1)
