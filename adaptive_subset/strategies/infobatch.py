"""InfoBatch: leave out samples that are learned already, by the losses that training computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy


@dataclass(frozen=True)
class InfoBatch(Strategy):
    """Unbiased soft pruning (Qin et al., ICLR 2024, "InfoBatch: Lossless Training Speed Up by
    Unbiased Dynamic Data Pruning", §2).

    Of the samples whose last loss was below the mean a share r is left out,
    drawn anew in each epoch; the others stand for them with weight 1 / (1 − r), so that the sum of
    the weights is n. Samples above the mean, or not seen yet, are all kept with weight one, and
    nothing is left out in the last epochs. It takes no budget and makes no pass over the data: the
    size of an epoch follows from the losses, 1 − r times the share below the mean.

    Deviation: weights have mean one in training, as for every strategy; the paper's have mean n/k,
    which is the same as a learning rate larger by that factor.

    Args:
        ratio: r in [0, 1), the share of well-learned samples that is left out.
        epochs: T, epochs of the whole run; None where it is not known, and has no last ones.
        full: share of the epochs, at the end, in which nothing is left out (the paper's 1 − δ).
    """

    ratio: float = 0.5
    epochs: int | None = None
    full: float = 0.125

    every = 1
    needs_losses = True
    sizes_itself = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {self.epochs}.")
        if not 0 <= self.ratio < 1:
            raise ValueError(f"`ratio` must be in [0, 1), got {self.ratio}.")
        if not 0 <= self.full <= 1:
            raise ValueError(f"`full` must be in [0, 1], got {self.full}.")

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        losses, weights = candidates.losses, torch.ones(candidates.n)
        assert losses is not None
        if self.epochs is None or epoch < (1 - self.full) * self.epochs:
            learned = (losses < losses.nanmean()).nonzero()[:, 0]  # NaN is not below
            order = learned[
                torch.randperm(len(learned), generator=seeded(seed, epoch, Purpose.SELECTION))
            ]
            out = int(self.ratio * len(learned))
            weights[order[:out]] = 0
            weights[order[out:]] = len(learned) / max(1, len(learned) - out)
        positions = weights.nonzero()[:, 0]
        return Choice(positions, weights[positions])
