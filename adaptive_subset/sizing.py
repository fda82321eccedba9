"""How large a subset is to be: a number, a share, an error, or up to the strategy."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive_subset.checks import flag, number, whole
from adaptive_subset.strategies import Candidates, Choice, Strategy
from adaptive_subset.strategies.smallest import smallest_choice


@dataclass(frozen=True)
class Sizing:
    """What decides the size k of a selection.

    Args:
        n: samples in all.
        strategy: which may plan sizes that vary.
        budget: k where it is given, None where it is up to the tolerance or the strategy.
        tolerance: the relative gradient error for which the smallest subset is sought, or None.
        varies: whether each selection finds its own size; otherwise the first one sets it.
    """

    n: int
    strategy: Strategy
    budget: int | None
    tolerance: float | None
    varies: bool

    @property
    def is_found(self) -> bool:
        """Whether the first selection finds the size of all."""
        return self.budget is None and not self.varies

    def __str__(self) -> str:
        size = "some" if self.budget is None else self.budget
        error = "" if self.tolerance is None else f" with a tolerance of {self.tolerance:g}"
        return f"{size} of {self.n} samples{error}"

    def at(self, epoch: int, current: int | None = None) -> int | None:
        """k for `epoch`, None where only the selection will tell; `current` is that of the last."""
        if self.budget is not None:
            return self.strategy.size_at(self.n, self.budget, epoch)
        return None if self.varies else current

    def choice(self, candidates: Candidates, size: int | None, *, seed: int, epoch: int) -> Choice:
        """What the strategy chooses of the `candidates`: `size` of them, as `at` says."""
        if size is None and self.tolerance is not None:
            return smallest_choice(
                self.strategy, candidates, self.tolerance, seed=seed, epoch=epoch
            )
        budget = candidates.n if size is None else size
        return self.strategy.choose(candidates, budget, seed=seed, epoch=epoch)


def sizing(
    n: int,
    strategy: Strategy,
    *,
    fraction: float | None,
    budget: int | None,
    tolerance: float | None,
    size_varies: bool,
) -> Sizing:
    """What the arguments of `Selector` say.

    Raises:
        TypeError: one of them is no number, or a budget is no whole one.
        ValueError: not exactly one of the three for a strategy that takes a size, or one that is
            not in range or does not suit the strategy.
    """
    given = [size for size in (fraction, budget, tolerance) if size is not None]
    if len(given) != (0 if strategy.sizes_itself else 1):
        raise ValueError(
            f"{'none' if strategy.sizes_itself else 'exactly one'} of `fraction`, `budget` and "
            f"`tolerance` must be given, got fraction={fraction}, budget={budget} and "
            f"tolerance={tolerance} for {strategy!r}. "
            f"{'It sizes itself: leave them out.' if strategy.sizes_itself else 'Give one.'}"
        )
    if flag("size_varies", size_varies) and (fraction is not None or budget is not None):
        raise ValueError(
            "`size_varies` must be False for a fixed `fraction` or `budget`, got True. Give a "
            "`tolerance` instead."
        )
    if tolerance is not None:
        tolerance = number("tolerance", tolerance)
        if not 0 < tolerance < 1:
            raise ValueError(f"`tolerance` must be in (0, 1), got {tolerance}.")
        if not strategy.needs_gradients:
            raise ValueError(
                f"`tolerance` must come with a strategy that computes gradients, got {strategy!r}."
            )
        if strategy.unit > n:
            raise ValueError(
                f"`batch_size` must be at most {n}, the samples of the dataset, for a strategy "
                f"that chooses mini-batches of it, got {strategy.unit}. Choose a smaller one."
            )
        if strategy.size_varies:
            raise ValueError(
                "`tolerance` must come with a strategy of one size, since it sets the size in the "
                f"place of a schedule, got {strategy!r}. Give a `fraction` or `budget`."
            )
    if not given or tolerance is not None:
        return Sizing(n, strategy, None, tolerance, size_varies or strategy.sizes_itself)
    if fraction is not None:
        fraction = number("fraction", fraction)
        if not 0 < fraction <= 1:
            raise ValueError(
                f"`fraction` must be in (0, 1], got {fraction}. Pass `budget=` for a number of "
                "samples."
            )
        budget = max(1, round(fraction * n))
    budget = whole("budget", budget)
    if not 1 <= budget <= n:
        raise ValueError(
            f"`budget` must be in [1, {n}], got {budget}. Pass `fraction=` to size it relative to "
            "the dataset."
        )
    budget = in_whole_batches(budget, strategy)
    strategy.size_at(n, budget, 0)  # raises where a schedule does not fit
    return Sizing(n, strategy, budget, None, strategy.size_varies)


def in_whole_batches(budget: int, strategy: Strategy) -> int:
    """`budget`, or the most below it that is whole mini-batches for a strategy that chooses them.

    Raises:
        ValueError: it is less than one of them.
    """
    size = strategy.unit
    if budget < size:
        raise ValueError(
            f"`budget` must hold at least one mini-batch of {size}, got {budget}. Choose a larger "
            "budget or a strategy with a smaller batch_size."
        )
    return budget - budget % size
