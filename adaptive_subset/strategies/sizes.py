"""Size schedules: how large the subset of each epoch is, known before training starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from adaptive_subset.checks import Described, check_fields, check_share, natural


class Size(Described, ABC):
    """How many of n samples an epoch trains on.

    It counts where an epoch selects: with ``every=R`` the size of a selection is that of R epochs.

    Attributes:
        varies: not always the same.
        needs_budget: it means nothing for a draw that sizes itself.
    """

    varies: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = False

    @abstractmethod
    def at(self, n: int, budget: int | None, epoch: int) -> int | None:
        """k of `epoch`, in [1, n]; None to leave it to a draw that sizes itself.

        Args:
            n: samples in all.
            budget: what the Selector was given, None for a draw that sizes itself.
            epoch: counted from 0.
        """

    def check_every(self, every: int) -> None:
        """See `Strategy.check_every`."""


@dataclass(frozen=True)
class Constant(Size):
    """The budget, in every epoch."""

    varies = False

    def at(self, n: int, budget: int | None, epoch: int) -> int | None:
        """See `Size.at`."""
        return budget


@dataclass(frozen=True)
class Falling(Size):
    """``γᵗ·n`` samples in epoch t, from all of them to few, with the budget as the mean.

    γ is the number for which ``Σ γᵗ·n = T·k``; epochs after T are as long as the last one. The mean
    is above the budget where not every epoch selects.

    Args:
        epochs: T, epochs of the whole run.

    Examples:
        >>> [Falling(epochs=4).at(100, 40, epoch) for epoch in range(4)]
        [100, 39, 15, 6]
    """

    epochs: int | None = None

    needs_budget = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_epochs(self.epochs)

    def at(self, n: int, budget: int | None, epoch: int) -> int:
        """See `Size.at`.

        Raises:
            ValueError: `epochs` is not known, or too few for the first one, which takes all n.
        """
        assert budget is not None
        if self.epochs is None:
            raise ValueError(
                "`epochs` must be the number of epochs of the whole run for sizes that fall, got "
                "None."
            )
        if self.epochs * budget < n:
            raise ValueError(
                f"`epochs` must be at least {-(-n // budget)} for a mean of {budget} of {n} "
                f"samples, of which the first epoch takes all, got {self.epochs}. Train for longer "
                "or on more."
            )
        factor = falling_factor(self.epochs, budget / n)
        return max(1, round(factor ** min(epoch, self.epochs - 1) * n))


@dataclass(frozen=True)
class FullAtEnd(Size):
    """The budget, or what the draw leaves, and a fixed share of the samples in the last epochs.

    Where a draw sizes itself the samples of the last epochs are drawn uniformly. There are none
    where ``full·T`` is less than one, as in a run of seven epochs with an eighth.

    Args:
        epochs: T, epochs of the whole run; None where it is not known, and has no last ones.
        full: the share of the epochs, at the end, in [0, 1]: those from ``(1 − full)·T`` on.
        fraction: in (0, 1], the share of the samples that they take.

    Examples:
        >>> [FullAtEnd(epochs=8).at(100, 40, epoch) for epoch in (0, 6, 7)]
        [40, 40, 100]
    """

    epochs: int | None = None
    full: float = 0.125
    fraction: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_epochs(self.epochs)
        if not 0 <= self.full <= 1:
            raise ValueError(f"`full` must be in [0, 1], got {self.full}.")
        check_share("fraction", self.fraction)

    def at(self, n: int, budget: int | None, epoch: int) -> int | None:
        """See `Size.at`."""
        return budget if not self._is_full(epoch) else max(1, round(self.fraction * n))

    def _is_full(self, epoch: int) -> bool:
        # A hair less, since (1 − 0.7) · 10 is more than 3 in floating point.
        return self.epochs is not None and epoch >= (1 - self.full - 1e-9) * self.epochs

    def check_every(self, every: int) -> None:
        """See `Strategy.check_every`: one of the last epochs must select.

        Raises:
            ValueError: none does.
        """
        if self.epochs is None or not self._is_full(last := self.epochs - 1):
            return
        if not self._is_full(last - last % every):
            raise ValueError(
                f"`every` must leave a selection in the last epochs, which take another size, got "
                f"{every} for {self!r}: the last one is that of epoch {last - last % every}. Leave "
                "`every` out, or make it smaller."
            )


def check_epochs(epochs: int | None) -> None:
    """Raise a ValueError where a run cannot have so many epochs."""
    if epochs is not None:
        natural("epochs", epochs, 1)


def falling_factor(epochs: int, mean: float) -> float:
    """γ in [0, 1] for which 1, γ, γ², … have this mean, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = (1 - middle**epochs) / (1 - middle)
        low, high = (middle, high) if total < epochs * mean else (low, middle)
    return high
