"""The way of one run of matching pursuit, on which the choices of all smaller budgets lie."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptive_subset.strategies.solvers.atoms import Array, Atoms


@dataclass(frozen=True, eq=False)
class OMPResult:
    """The chosen atoms, their weights, and how good the match is."""

    support: Array  # (s,) int64, s <= k, in the order of choice
    weights: Array  # (s,) in the atoms' dtype; all > 0 if non-negative
    objective: float  # ‖Σ wᵢaᵢ − b‖² + λ‖w‖²
    residual: float  # ‖Σ wᵢaᵢ − b‖²
    dropped: int  # how often an atom was taken out again

    @classmethod
    def of(
        cls, support: Array, weights: Array, rest: Array, ridge: float, dropped: int
    ) -> OMPResult:
        """That of weights which leave the `rest` b − Σ wᵢaᵢ."""
        residual, wide = float(rest @ rest), weights.astype(np.float64)
        return cls(support, weights, residual + ridge * float(wide @ wide), residual, dropped)


class GreedyPath:
    """What `omp` did at each step: enough for its result with any smaller budget.

    A budget does nothing but end a run. Held are, for each step, r (d) in the primal form and
    c_S (s) in the dual one, and no atoms.
    """

    def __init__(self) -> None:
        self.budget = 0
        self.steps: list[tuple[int, list[int], Array]] = []
        self.size = 0  # of the support at its end

    def begin(
        self, budget: int, ridge: float, order: Array, primal: bool, dtype: np.dtype[Any]
    ) -> None:
        """A run starts: with the λ that it solves with, its atoms' order and dtype, its form."""
        self.budget, self.ridge, self.order, self.primal = budget, ridge, order, primal
        self.dtype = dtype
        self.steps, self.size = [], 0

    def step(self, best: int, out: list[int], state: Array) -> None:
        """One atom more, those `out` fewer; `state` is that of the fit after it."""
        self.steps.append((best, out, state))
        self.size += 1 - len(out)

    def covers(self, budget: int) -> bool:
        """Whether the result for a budget of at most n lies on it: no larger, or not spent."""
        unspent = self.size < self.budget and len(self.steps) < most_steps(self.budget)
        return unspent or budget <= self.budget

    def at(self, atoms: Atoms, target: Array, budget: int, ridge: float) -> OMPResult:
        """The result of `omp` with this budget that the path covers, of the same atoms and b."""
        support: list[int] = []
        budget, dropped, state = min(budget, len(atoms)), 0, np.zeros(0)
        for step in self.steps[: most_steps(budget)]:
            best, out, state = step
            support.append(best)
            dropped += len(out)
            for index in out:
                support.remove(index)
            if len(support) == budget:
                break
        chosen = self.order[np.array(support, dtype=np.int64)]
        if self.primal and support:  # the state is the residual
            own = atoms.take(chosen)
            own = own if own.dtype == self.dtype else own.double()
            rows = np.stack([own.dense(place) for place in range(len(chosen))])
            state = rows.astype(np.float64) @ state  # as the fit does: λ may be very small
        weights = (state / self.ridge).astype(atoms.dtype)
        rest = target.astype(np.float64) - atoms.sum(weights.astype(np.float64), chosen)
        return OMPResult.of(chosen, weights, rest, ridge, dropped)


Paths = defaultdict[int, GreedyPath]  # of each problem, by its place
PATHS = "greedy paths"  # among what is derived of candidates, while several budgets are tried


def most_steps(budget: int) -> int:
    """After so many `omp` ends in any case."""
    return 4 * budget + 100
