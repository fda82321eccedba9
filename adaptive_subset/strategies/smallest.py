"""The search for a budget: the smallest with which a strategy meets an error (`tolerance=`)."""

from __future__ import annotations

from adaptive_subset.strategies import Candidates, Choice, Strategy
from adaptive_subset.strategies.solvers.greedy_path import PATHS, GreedyPath, Paths


def smallest_choice(
    strategy: Strategy, candidates: Candidates, tolerance: float, *, seed: int, epoch: int
) -> Choice:
    """The smallest choice with ``‖Σ wᵢgᵢ − b‖ ≤ tolerance · ‖b‖`` (GRAD-MATCH, Theorem 3).

    The budget is doubled until the error is small enough and then bisected, always on the same
    gradients. Of GRAD-MATCH on the CPU the bisection runs nothing: a run has the choices of all
    smaller budgets (`GreedyPath`), so that runs take as long as one of at most 4k samples. Other
    strategies run about 2 log₂ k times. The next smaller budget misses the tolerance; where the
    error does not fall steadily, an even smaller one may meet it by chance.

    Args:
        strategy: any that needs gradients.
        candidates: with their gradients.
        tolerance: in (0, 1), a share of ‖b‖ over the whole last layer.
        seed, epoch: see `Strategy.select`.

    Raises:
        ValueError: even all candidates miss the tolerance.
    """
    candidates.derived[PATHS] = Paths(GreedyPath)
    try:
        return _smallest(strategy, candidates, tolerance, seed, epoch)
    finally:
        del candidates.derived[PATHS]


def _smallest(
    strategy: Strategy, candidates: Candidates, tolerance: float, seed: int, epoch: int
) -> Choice:
    unit = strategy.batch_size or 1
    most = candidates.n // unit

    def chosen(units: int) -> tuple[Choice, float]:
        choice = strategy.choose(candidates, units * unit, seed=seed, epoch=epoch)
        return choice, candidates.relative_error(choice) or 0.0

    missed, units = 0, max(1, most // 256)
    choice, error = chosen(units)
    while error > tolerance:
        if units == most:
            raise ValueError(
                f"`tolerance` must be within reach, got {tolerance}: all {candidates.n} candidates "
                f"together have an error of {error:.3g} under {strategy!r}. A smaller ridge (lam=) "
                "or a larger tolerance helps."
            )
        missed, units = units, min(2 * units, most)
        choice, error = chosen(units)
    while units - missed > 1:
        middle = (missed + units) // 2
        candidate, error = chosen(middle)
        if error <= tolerance:
            choice, units = candidate, middle
        else:
            missed = middle
    return choice
