"""Random subsets: the baselines that a strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaptive_subset.randomness import seeded, shard
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy


@dataclass(frozen=True)
class Random(Strategy):
    """A uniform random subset with equal weights, the same at every selection.

    The baseline RANDOM of GRAD-MATCH (Killamsetty et al. 2021, §5).
    """

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `epoch` has no influence."""
        positions = torch.randperm(candidates.n, generator=seeded(seed))[:budget]
        return Choice(positions, torch.full((budget,), candidates.n / budget))


@dataclass(frozen=True)
class FreshRandom(Strategy):
    """A new random subset at every selection, without replacement across selections.

    Meant for ``every=1``: each epoch trains on the next k samples of endlessly reshuffled passes
    over the data, so that every sample is seen equally often. This is RS2 (Okanovic et al. 2024,
    "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning"), the baseline that
    costs nothing and that many methods fail to beat. A budget that does not divide n makes an
    epoch hold up to two passes, in which a sample can occur twice; it is then drawn from the second
    pass without those of the first.
    """

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; a pure function of `seed` and `epoch`."""
        positions = shard(candidates.n, budget, epoch, seed)
        return Choice(positions, torch.full((budget,), candidates.n / budget))
