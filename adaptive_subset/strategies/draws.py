"""Draws: which samples an epoch trains on, and with what weight, given a score for each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from adaptive_subset.checks import Described, check_fields, check_rest, check_share, natural
from adaptive_subset.randomness import resample
from adaptive_subset.strategies.candidates import Choice
from adaptive_subset.strategies.sizes import check_epochs
from adaptive_subset.strategies.solvers.k_means import group_edges


class Draw(Described, ABC):
    """From scores to a weighted choice.

    Attributes:
        sizes_itself: the size of its choice follows from the scores.
        unbiased: its weights make up for the chances, so that on average they add up to n.
    """

    sizes_itself: ClassVar[bool] = False
    unbiased: bool = False

    @abstractmethod
    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """Choose exactly `budget` of n samples, or at least one for a draw that sizes itself.

        Args:
            scores: (n,) finite, NaN where nothing is known yet.
            budget: k, or n for a draw that sizes itself.
            epoch: counted from 0.
            generator: of all that is random.
        """

    def check_every(self, every: int) -> None:
        """See `Strategy.check_every`."""


@dataclass(frozen=True)
class Proportional(Draw):
    """A systematic draw without replacement, with chances in proportion to the score.

    With ``qᵢ = (1 − u)sᵢ / Σsⱼ + u/n`` sample i is drawn with probability ``πᵢ = min(1, c·qᵢ)``,
    where ``Σ π = k``. Unknown scores count as the mean of the known; scores of both signs count
    from the smallest.

    Args:
        uniform: u in (0, 1], the share that is drawn uniformly: on average every sample comes at
            least once in n/(u·k) epochs.
        unbiased: weights 1/πᵢ, at most n/(u·k), with which the subset's gradient is that of all
            data on average. Equal weights otherwise, which favour what scores high.
    """

    uniform: float = 0.5
    unbiased: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_share("uniform", self.uniform)

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        n = len(scores)
        scores = scores.nan_to_num(float(scores.nanmean().nan_to_num(1.0)))
        scores = (scores - scores.min().clamp_max(0)).double()
        total = float(scores.sum())
        shares = scores / total if total else torch.full_like(scores, 1 / n)
        chances = inclusion((1 - self.uniform) * shares + self.uniform / n, budget)
        positions = (chances >= 1).nonzero()[:, 0]  # certain
        if size := budget - len(positions):
            others = (chances < 1).nonzero()[:, 0]
            drawn = others[resample(chances[others], size, generator)]
            positions = torch.cat([positions, drawn])
        equal = torch.full((budget,), n / budget, dtype=torch.float64)
        return Choice(positions, 1 / chances[positions] if self.unbiased else equal)


@dataclass(frozen=True)
class LargestOfPool(Draw):
    """Of a fresh uniform pool of ``k / share`` samples the k that score highest, equal weights.

    Unknown scores count as the highest. In a pool the size of the data the same few samples would
    come in every epoch; the smaller the pool, the more uniform the draw.

    Args:
        share: in (0, 1], the share of the pool that is taken; 1 is a uniform draw.
        trim: in [0, 1 − share], the share of the pool with the highest known scores that is left
            out before: what scores highest of all may be what cannot be learned.
    """

    share: float = 0.6
    trim: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_share("share", self.share)
        if not 0 <= self.trim <= 1 - self.share + 1e-9:
            raise ValueError(
                f"`trim` must be in [0, 1 − share], which ends at {1 - self.share:g} with a share "
                f"of {self.share:g}, got {self.trim:g}. Take a smaller share of the pool."
            )

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        n = len(scores)
        pool = torch.randperm(n, generator=generator)[: min(n, round(budget / self.share))]
        # The data may hold fewer than k / share samples, and must leave k of them.
        known = int((~scores[pool].isnan()).sum())
        spare = min(part(self.trim, len(pool)), known, len(pool) - budget)
        highest = scores[pool].nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        pool = pool[highest[spare:]]
        ranked = scores[pool].nan_to_num(torch.inf).argsort(descending=True, stable=True)
        return Choice.even(pool[ranked[:budget]], n)


@dataclass(frozen=True)
class BelowMeanDropped(Draw):
    """All that score at least the mean, and of the others a fresh 1 − r, with weight 1 / (1 − r).

    The weights add up to n: the sum of the gradients is that of all data on average. Unknown scores
    are never below the mean.

    Args:
        ratio: r in [0, 1), the share of those below the mean that is left out.
    """

    ratio: float = 0.5

    sizes_itself = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_rest("ratio", self.ratio)

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        weights = torch.ones(len(scores), dtype=torch.float32)
        scores = scores.double()  # in which the mean of equal ones is no other number
        below = (scores < scores.nanmean()).nonzero()[:, 0]  # NaN is not below
        order = below[torch.randperm(len(below), generator=generator)]
        out = part(self.ratio, len(below))
        weights[order[:out]] = 0
        weights[order[out:]] = len(below) / max(1, len(below) - out)
        positions = weights.nonzero()[:, 0]
        return Choice(positions, weights[positions])


@dataclass(frozen=True)
class Window(Draw):
    """A window over groups of similar score, which moves from easy to hard, and round again.

    A random share r is left out; k-means of the scores puts the others into K groups, and epoch t
    takes ``w = round(αK)`` groups in a row, from group ``t mod (K − w + 1)`` on, group 0 the
    lowest. Weights are equal. Unknown scores count as the largest known one; all samples are one
    group while none is known. k-means starts at quantiles.

    Args:
        ratio: r in [0, 1), left out at random.
        groups: K, at least 1.
        window: α in (0, 1], the share of the groups that are taken.
    """

    ratio: float = 0.1
    groups: int = 5
    window: float = 0.9

    sizes_itself = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_rest("ratio", self.ratio)
        natural("groups", self.groups, 1)
        check_share("window", self.window)

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        n, known = len(scores), scores[~scores.isnan()]
        kept = uniform(n, max(1, round((1 - self.ratio) * n)), generator).positions
        values = scores[kept].nan_to_num(float(known.max()) if len(known) else 0.0).double()
        ordered, order = values.sort(stable=True)
        edges = group_edges(ordered, self.groups)
        groups = len(edges) - 1
        width = max(1, round(self.window * groups))
        first = epoch % (groups - width + 1)
        positions = kept[order[edges[first] : edges[first + width]]]
        return Choice.even(positions, n)

    def check_every(self, every: int) -> None:
        """See `Strategy.check_every`: of epochs that far apart all must see each place.

        Raises:
            ValueError: the window would stand still, or go to some of its places only.
        """
        places = self.groups - max(1, round(self.window * self.groups)) + 1
        if math.gcd(every, places) > 1:
            raise ValueError(
                f"`every` must have no divisor in common with the {places} places of the window, "
                f"which moves on in each epoch, got {every} for {self!r}: it would never come to "
                "some of them. Leave `every` out."
            )


@dataclass(frozen=True)
class LowestHidden(Draw):
    """All but the lowest scores, as far as the model is sure of them; equal weights.

    Hidden are those of the ``⌊F·n⌋`` lowest scores for which ``exp(−sᵢ) ≥ c``. For a cross-entropy
    that is the probability of the label; above ½ the label is what the model predicts. Over the run
    F falls to 0.8, 0.6 and 0.4 of itself, at each quarter.

    Args:
        share: F in [0, 1), the largest share that is hidden.
        confidence: c in (0, 1].
        epochs: T, epochs of the whole run; None where it is not known, then F does not fall.
    """

    share: float = 0.3
    confidence: float = 0.7
    epochs: int | None = None

    sizes_itself = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_rest("share", self.share)
        check_share("confidence", self.confidence)
        check_epochs(self.epochs)

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        n = len(scores)
        quarter = 0 if self.epochs is None else min(3, 4 * epoch // self.epochs)
        most = part(self.share * (1.0, 0.8, 0.6, 0.4)[quarter], n)
        lowest = scores.nan_to_num(torch.inf).argsort(stable=True)[:most]
        shown = torch.ones(n, dtype=torch.bool)
        shown[lowest] = ~(scores[lowest] <= -math.log(self.confidence))
        positions = shown.nonzero()[:, 0]
        return Choice.even(positions, n)


def uniform(n: int, size: int, generator: Generator) -> Choice:
    """`size` of n samples at random, with equal weights."""
    positions = torch.randperm(n, generator=generator)[:size].sort().values
    return Choice.even(positions, n)


def part(share: float, n: int) -> int:
    """``⌊share · n⌋``, and 29 for 0.29 · 100, which is less in floating point."""
    return math.floor(share * n * (1 + 1e-12))


def inclusion(shares: Tensor, budget: int) -> Tensor:
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
