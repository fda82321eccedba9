"""Facility location by greedy choice: few medoids that are near to everything.

Symbols: rows i are what is to be covered (m), columns j are what may be chosen (n), d_ij >= 0 their
distance, S the chosen ones, c the largest distance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Distances = Callable[[slice | Array], Array]  # some columns (b) -> (b, m), of each to all rows

BLOCK = 2**24  # numbers in a temporary


@dataclass(frozen=True, eq=False)
class Medoids:
    """The chosen columns and what each of them stands for."""

    chosen: Array  # (s,) int64, s <= k, in the order of choice
    owner: Array  # (m,) int64, the place in `chosen` of the medoid that is nearest to each row
    cost: float  # Σᵢ min over S of d_ij


def facility_location(
    distances: Distances, rows: int, columns: int, budget: int, *, together: int = 1
) -> Medoids:
    r"""Greedily minimise :math:`\sum_i \min_{j \in S} d_{ij}` over at most k columns.

    The same as maximising :math:`\sum_i \max_{j \in S} (c - d_{ij})`, monotone and submodular, so
    that the greedy choice is within 1 − 1/e of the best. Gains only shrink as S grows, so one that
    was computed earlier is a bound, and only columns whose bound exceeds the best gain so far are
    looked at again (lazy greedy, Minoux 1978): the choice is that of the plain greedy algorithm,
    the smallest column where gains are equal.

    Args:
        distances: gives d of some columns to all rows.
        rows: m, may be 0.
        columns: n.
        budget: k >= 1.
        together: how many columns are looked at again at once; several are quicker where distances
            are computed each time, and no matter for the result.

    Returns:
        Medoids; fewer than k where every row has one at distance zero.
    """
    totals = np.concatenate([d.sum(1, dtype=np.float64) for d in _blocks(distances, rows, columns)])
    state = _State(rows)
    if not rows or not totals.any():
        return state.medoids()
    state.choose(int(totals.argmin()), distances)
    gains = np.concatenate([state.gains(d) for d in _blocks(distances, rows, columns)])
    heap = [(-gain, j) for j, gain in enumerate(gains.tolist()) if gain > 0]
    heapq.heapify(heap)
    known = [1] * columns  # the size of S for which the gain of a column was computed
    while heap and len(state.chosen) < budget:
        size = len(state.chosen)
        if known[heap[0][1]] == size:
            state.choose(heapq.heappop(heap)[1], distances)
            continue
        stale: list[int] = []
        while heap and len(stale) < together and known[heap[0][1]] < size:
            stale.append(heapq.heappop(heap)[1])
        columns_again = slice(stale[0], stale[0] + 1) if len(stale) == 1 else np.array(stale)
        for j, gain in zip(stale, state.gains(distances(columns_again)).tolist(), strict=True):
            known[j] = size
            if gain > 0:
                heapq.heappush(heap, (-gain, j))
    return state.medoids()


def stochastic_facility_location(
    distances: Distances,
    rows: int,
    columns: int,
    budget: int,
    *,
    epsilon: float,
    draw: np.random.Generator,
) -> Medoids:
    """As `facility_location`, but each choice is among (n/k) ln(1/ε) random columns.

    Within 1 − 1/e − ε of the best on average, from n ln(1/ε) gains in all (Mirzasoleiman et al.,
    AAAI 2015, "Lazier Than Lazy Greedy").
    """
    state, free = _State(rows), np.arange(columns)
    size = max(1, int(np.ceil(columns / budget * np.log(1 / epsilon))))
    while rows and len(free) and len(state.chosen) < budget:
        places = draw.choice(len(free), min(size, len(free)), replace=False)
        places.sort()
        some = distances(free[places])
        gains = state.gains(some) if state.chosen else -some.sum(1, dtype=np.float64)
        best = int(gains.argmax())
        if not gains[best]:
            break
        state.take(int(free[places[best]]), some[best])
        free = np.delete(free, places[best])
    return state.medoids()


class _State:
    """S, and the nearest of it to every row."""

    def __init__(self, rows: int) -> None:
        self.chosen: list[int] = []
        self.nearest = np.zeros(rows)
        self.owner = np.zeros(rows, dtype=np.int64)

    def cost(self) -> float:
        return float(self.nearest.sum(dtype=np.float64))

    def gains(self, distances: Array) -> Array:
        """(b,) by how much each of the columns would lower the cost; `distances` is (b, m)."""
        lower = np.subtract(self.nearest, distances)
        gains: Array = np.maximum(lower, 0, out=lower).sum(1)
        return gains

    def choose(self, column: int, distances: Distances) -> None:
        self.take(column, distances(slice(column, column + 1))[0])

    def take(self, column: int, distances: Array) -> None:
        if not self.chosen:
            self.nearest = np.full(len(distances), np.inf, distances.dtype)
        closer = distances < self.nearest
        self.nearest[closer] = distances[closer]
        self.owner[closer] = len(self.chosen)
        self.chosen.append(column)

    def medoids(self) -> Medoids:
        cost = self.cost() if self.chosen else 0.0
        return Medoids(np.array(self.chosen, dtype=np.int64), self.owner, cost)


def _blocks(distances: Distances, rows: int, columns: int) -> Iterator[Array]:
    step = max(1, BLOCK // max(1, rows))
    return (distances(slice(i, min(i + step, columns))) for i in range(0, columns, step))
