"""Importance sampling: what has more to teach is drawn more often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_subset.randomness import Purpose, resample, seeded
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy


@dataclass(frozen=True)
class _ImportanceSampling(Strategy):
    """A systematic draw without replacement, of chances that are proportional to something."""

    uniform: float
    unbiased: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.uniform <= 1:
            raise ValueError(f"`uniform` must be in (0, 1], got {self.uniform}.")

    def _draw(self, importance: Tensor, budget: int, generator: torch.Generator) -> Choice:
        """`budget` positions; `importance` (n,) is at least 0, all zero for a uniform draw."""
        n, importance = len(importance), importance.double()
        total = float(importance.sum())
        shares = importance / total if total else torch.full_like(importance, 1 / n)
        chances = _inclusion((1 - self.uniform) * shares + self.uniform / n, budget)
        certain = (chances >= 1).nonzero()[:, 0]
        others = (chances < 1).nonzero()[:, 0]
        size = budget - len(certain)
        drawn = others[:0]
        if size:
            drawn = others[resample(chances[others], size, generator)]
        positions = torch.cat([certain, drawn])
        equal = torch.full((budget,), n / budget, dtype=torch.float64)
        return Choice(positions, 1 / chances[positions] if self.unbiased else equal)


@dataclass(frozen=True)
class GradientNorm(_ImportanceSampling):
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

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        norms = candidates.atoms.squared_norms().clamp_min(0).sqrt()
        return self._draw(norms.cpu(), budget, seeded(seed, epoch, Purpose.SELECTION))


@dataclass(frozen=True)
class LossSampling(_ImportanceSampling):
    """A fresh random subset in which a sample is the more likely the larger its last loss was.

    The losses are those that training computes anyway, each as old as the
    last time its sample was trained on, so a selection makes no pass over the data (Loshchilov and
    Hutter 2016, "Online Batch Selection for Faster Training of Neural Networks", §3, draws by the
    latest known loss as well). Chances are ``qᵢ = (1 − u)ℓᵢ / Σℓⱼ + u/n``, drawn as by
    `GradientNorm`; a sample that was not trained on yet counts with the mean of those that were.

    Weights are equal by default: training then minimises a loss that leans towards what is not
    learned yet (Katharopoulos and Fleuret 2017, "Biased Importance Sampling for Deep Neural Network
    Training"). Samples with wrong labels lean that way too: use another strategy, or
    ``unbiased=True``, where there are many.

    Args:
        uniform: u in (0, 1], the share that is drawn uniformly: on average, every sample comes at
            least once in n/(u·k) epochs.
        unbiased: weights 1/πᵢ, with which the subset's gradient is that of all data on average.
    """

    uniform: float = 0.5
    unbiased: bool = False

    every = 1
    needs_losses = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        losses = candidates.losses
        assert losses is not None
        if bool(losses.isinf().any()):
            raise ValueError("`losses` must be finite, got infinity: training has diverged.")
        losses = losses.nan_to_num(float(losses.nanmean().nan_to_num(1.0)))
        # A loss that can be negative, such as a log density, counts from its smallest value.
        return self._draw(
            losses - losses.min().clamp_max(0), budget, seeded(seed, epoch, Purpose.SELECTION)
        )


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
