"""Random subsets: the baselines that a strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaptive_subset.randomness import Purpose, seeded, shard
from adaptive_subset.strategies.candidates import Candidates, Choice
from adaptive_subset.strategies.strategy import Strategy


@dataclass(frozen=True)
class Random(Strategy):
    """A uniform random subset with equal weights, the same at every selection.

    The baseline RANDOM of GRAD-MATCH (Killamsetty et al. 2021, §5).
    """

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `epoch` has no influence."""
        order = torch.randperm(candidates.n, generator=seeded(seed, 0, Purpose.SELECTION))
        return Choice.even(order[:budget], candidates.n)


@dataclass(frozen=True)
class FreshRandom(Strategy):
    """A new random subset in every epoch, without replacement from one epoch to the next.

    Each epoch trains on the next k samples of endlessly reshuffled passes over the data, so that
    every sample is seen equally often, and never twice in an epoch; what comes in the epochs
    between two selections, where ``every`` is more than one, is left out. This is RS2 (Okanovic et
    al. 2024, "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning"), the
    baseline that costs nothing and that many methods fail to beat.
    """

    every = 1

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; a pure function of `seed` and `epoch`."""
        return Choice.even(shard(candidates.n, budget, epoch, seed), candidates.n)
