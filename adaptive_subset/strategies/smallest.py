"""The search for a budget: the smallest with which a strategy meets an error (`tolerance=`)."""

from __future__ import annotations

import math
from typing import NamedTuple

from adaptive_subset.strategies import Candidates, Choice, Strategy
from adaptive_subset.strategies.solvers.greedy_path import PATHS, GreedyPath, Paths


def smallest_choice(
    strategy: Strategy, candidates: Candidates, tolerance: float, *, seed: int, epoch: int
) -> Choice:
    """The smallest choice with ``‖Σ wᵢgᵢ − b‖ ≤ tolerance · ‖b‖`` (GRAD-MATCH, Theorem 3).

    The budget grows until the error is small enough and is then narrowed down, always on the same
    gradients, by the power law that the error was seen to follow. Of GRAD-MATCH on the CPU the
    narrowing runs no solver: a run has the choices of all smaller budgets (`GreedyPath`). Where
    some were filled in, which moves the match away, the budget is first reduced to what the
    strategy chose itself. The next smaller budget misses the tolerance; where the error does not
    fall steadily, an even smaller one may meet it by chance.

    Args:
        strategy: any that needs gradients.
        candidates: with their gradients.
        tolerance: in (0, 1), a share of ‖b‖ over the whole last layer.
        seed, epoch: see `Strategy.select`.

    Raises:
        ValueError: all budgets tried miss the tolerance, that of all candidates among them.
    """
    candidates.derived[PATHS] = Paths(GreedyPath)
    try:
        return _smallest(strategy, candidates, tolerance, seed, epoch)
    finally:
        del candidates.derived[PATHS]


class _Tried(NamedTuple):
    units: int
    error: float


def _smallest(
    strategy: Strategy, candidates: Candidates, tolerance: float, seed: int, epoch: int
) -> Choice:
    unit = strategy.unit
    most = candidates.n // unit
    least = math.inf  # the smallest error of all

    def chosen(units: int, missed: int) -> tuple[Choice, _Tried]:
        """The choice of so many, or one of more than `missed` without what was filled in."""
        nonlocal least
        first = None
        while True:
            choice = strategy.choose(candidates, units * unit, seed=seed, epoch=epoch)
            tried = _Tried(units, candidates.relative_error(choice) or 0.0)
            first, least = first or (choice, tried), min(least, tried.error)
            units -= choice.filled // unit
            if tried.error <= tolerance:
                return choice, tried
            if not choice.filled or units <= missed:
                return first

    missed = _Tried(0, math.inf)
    choice, met = chosen(max(1, most // 256), 0)
    while met.error > tolerance:
        if met.units == most:
            raise ValueError(
                f"`tolerance` must be within reach, got {tolerance}: all {candidates.n} candidates "
                f"together have an error of {met.error:.3g} under {strategy!r}, and no smaller "
                f"budget tried one below {least:.3g}. A larger tolerance helps, and where "
                "gradients are matched a smaller `lam` or `epsilon`."
            )
        larger = _larger(missed, met, tolerance)
        missed = met
        choice, met = chosen(min(larger, most), missed.units)
    halve = False
    while met.units - missed.units > 1:
        between = _between(missed, met, tolerance, halve)
        candidate, tried = chosen(between, missed.units)
        if tried.error <= tolerance:
            choice, met = candidate, tried
        else:
            missed = tried
        halve = not halve
    return choice


def _larger(before: _Tried, last: _Tried, tolerance: float) -> int:
    """A little more than where the power law through the last two misses meets the tolerance."""
    slope = 0.5
    if before.units:
        slope = math.log(before.error / last.error) / math.log(last.units / before.units)
    growth = math.log(last.error / tolerance) / max(slope, 0.25)
    return math.ceil(last.units * max(1.1 * math.exp(min(growth, 2)), 1.5))


def _between(missed: _Tried, met: _Tried, tolerance: float, halve: bool) -> int:
    """Where the power law through both meets the tolerance; or halfway, lest it be no power law."""
    low, high = missed.units, met.units
    if halve or not low or not met.error:
        return (low + high) // 2
    share = math.log(missed.error / tolerance) / math.log(missed.error / met.error)
    middle = round(low * math.pow(high / low, share))
    return min(max(middle, low + 1), high - 1)
