"""A strategy that costs nothing, as a combination: score × draw × size."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaptive_subset.checks import shape_or_kind, whole
from adaptive_subset.loss_record import Memory
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies.candidates import Candidates, Choice
from adaptive_subset.strategies.division import Shares, check_shares, shared
from adaptive_subset.strategies.draws import Draw, Proportional, uniform
from adaptive_subset.strategies.scores import LastLoss, Score
from adaptive_subset.strategies.sizes import Constant, Size
from adaptive_subset.strategies.strategy import Strategy


class Combination(Strategy):
    """A strategy that is made of parts; what they need, it needs."""

    every = 1
    divides = True

    @abstractmethod
    def parts(self) -> PerEpoch:
        """Score, draw and size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # checks the arguments as well

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        return self.parts().score.spreads

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]  # read-only: it follows
        return self.parts().score.needs_gradients

    @property
    def needs_losses(self) -> bool:  # type: ignore[override]
        score = self.parts().score
        return score.needs_losses or isinstance(score, Memory)

    @property
    def keeps(self) -> Memory | None:  # type: ignore[override]
        score = self.parts().score
        return score if isinstance(score, Memory) else None

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        return self.parts().shares == "equal"

    @property
    def sizes_itself(self) -> bool:  # type: ignore[override]
        return self.parts().draw.sizes_itself

    @property
    def size_varies(self) -> bool:  # type: ignore[override]
        return self.parts().size.varies

    def check_every(self, every: int) -> None:
        """See `Strategy.check_every`.

        Raises:
            ValueError: the draw or the size would miss something.
        """
        self.parts().draw.check_every(every)
        self.parts().size.check_every(every)

    def size_at(self, n: int, budget: int, epoch: int) -> int:
        """See `Strategy.size_at`.

        Raises:
            TypeError, ValueError: the schedule plans no number of samples.
        """
        size = self.parts().size
        return _checked_size(size, size.at(n, budget, epoch), n, epoch)

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`.

        Raises:
            TypeError, ValueError: a part gives something else than its class promises.
            ValueError: a loss or a score is infinite.
        """
        parts, n = self.parts(), candidates.n
        # Of infinite losses some scores are finite, and some NaN, which stands for unknown ones.
        told = (candidates.losses, candidates.kept) if self.needs_losses else ()
        if any(bool(each.isinf().any()) for each in told if each is not None):
            raise ValueError("`losses` must be finite, got infinity: training has diverged.")
        scores = _checked_scores(parts.score, parts.score.of(candidates), n)
        generator = seeded(seed, epoch, Purpose.SELECTION)
        if parts.draw.sizes_itself and (size := parts.size.at(n, None, epoch)) is not None:
            return uniform(n, _checked_size(parts.size, size, n, epoch), generator)
        if candidates.groups is None:
            return parts.draw.draw(scores, budget, epoch=epoch, generator=generator)
        groups = candidates.by_group()
        sizes = [len(members) for members in groups]
        itself = parts.draw.sizes_itself
        # The weights of these stand for the whole group already, however its share was rounded.
        whole = itself or (parts.draw.unbiased and parts.shares == "proportional")
        budgets = sizes if itself else shared(sizes, budget, parts.shares)
        positions, weights = [], []
        for members, size in zip(groups, budgets, strict=True):
            if size:
                own = parts.draw.draw(scores[members], size, epoch=epoch, generator=generator)
                own = self.checked(own, len(members), size)
                counts = 1.0 if whole else (size / len(members)) * (n / budget)
                positions.append(members[own.positions])
                weights.append(own.weights * counts)
        return Choice(torch.cat(positions), torch.cat(weights))


@dataclass(frozen=True)
class PerEpoch(Combination):
    """A fresh subset in every epoch: samples are scored, drawn by their scores, so many at a time.

    The named methods of `adaptive_subset.strategies.methods` are such combinations.

    Args:
        score: what a sample has to teach, see `adaptive_subset.strategies.scores`.
        draw: who is chosen, with what weight, see `adaptive_subset.strategies.draws`.
        size: how many there are in an epoch, see `adaptive_subset.strategies.sizes`.
        shares: of the groups that the Selector was given, in each of which is drawn by itself:
            "proportional" to their sizes, or "equal", with which rare groups count in training as
            much as frequent ones. A draw that sizes itself takes what it finds in each. Unbiased
            weights stay so in proportional shares, as long as the budget has one for each group.

    Raises:
        TypeError: a part that is none, such as a class in place of an instance.
        ValueError: a size that needs a budget, or equal shares, with a draw that takes no budget.

    Examples:
        >>> from adaptive_subset.strategies import draws, scores, sizes
        >>> strategy = PerEpoch(
        ...     scores.MovingAverage(0.7), draws.LargestOfPool(0.6), sizes.FullAtEnd(epochs=30)
        ... )
    """

    score: Score = field(default_factory=LastLoss)
    draw: Draw = field(default_factory=Proportional)
    size: Size = field(default_factory=Constant)
    shares: Shares = "proportional"

    def __post_init__(self) -> None:
        for name, kind in (("score", Score), ("draw", Draw), ("size", Size)):
            if not isinstance(part := getattr(self, name), kind):
                raise TypeError(
                    f"`{name}` must be one of adaptive_subset.strategies.{name}s, or of your own "
                    f"class derived from {kind.__name__}, got {part!r}. Pass an instance."
                )
        if self.draw.sizes_itself and self.size.needs_budget:
            raise ValueError(
                f"`size` must leave the size to a draw that sizes itself, got {self.size!r} for "
                f"{self.draw!r}. Use Constant() or FullAtEnd(...)."
            )
        check_shares(self.shares)
        if self.draw.sizes_itself and self.shares == "equal":
            raise ValueError(
                '`shares` must be "proportional" for a draw that sizes itself, got "equal" for '
                f"{self.draw!r}. Use a draw that takes a budget."
            )

    def parts(self) -> PerEpoch:
        """Itself."""
        return self


def _checked_scores(score: Score, scores: Tensor, n: int) -> Tensor:
    """A copy, (n,) floating point on the CPU, which a draw may write to.

    Others than one a candidate would be those of others.
    """
    if not isinstance(scores, Tensor) or scores.shape != (n,):
        raise ValueError(
            f"`score` must give a tensor of one number for each of the {n} candidates, got "
            f"{shape_or_kind(scores)} from {score!r}. NaN stands for one of which nothing is known."
        )
    dtype = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.detach().to("cpu", dtype, copy=True)
    if bool(scores.isinf().any()):
        raise ValueError(
            f"`score` must be finite, or NaN for what is not known, got infinity from {score!r}. "
            "Bound it, as the logarithm of a loss that may be zero."
        )
    return scores


def _checked_size(size: Size, planned: int | None, n: int, epoch: int) -> int:
    """`planned`, if so many of n samples can be chosen."""
    if not 1 <= (k := whole("size", planned)) <= n:
        raise ValueError(
            f"`size` must plan at least 1 and at most {n} samples, which there are, got {k} for "
            f"epoch {epoch} from {size!r}."
        )
    return k
