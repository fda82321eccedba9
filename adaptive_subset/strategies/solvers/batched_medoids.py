"""Facility location for many problems at once, on an accelerator: `facility_location` in lockstep.

Symbols: B problems of at most M rows and N columns, distances D (B, M, N); `nearest` (B, M) is the
distance that each row has left, `costs` (B, N) what would be left after each possible next choice,
but for a number that all columns share.

A *tick* brings the costs up to date by the `AT_ONCE` rows that lag behind the most, and makes the
next choice in every problem in which none lags behind any more. Nothing in it waits for the device,
whose state alone decides; the host looks every 64 ticks whether all are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_subset.strategies.solvers.device_memory import batches
from adaptive_subset.strategies.solvers.facility_location import Distances, Medoids, tiles
from adaptive_subset.strategies.solvers.recorded import LOOK, Recorded

AT_ONCE = 128  # rows; a choice changes some M/s at the s-th


@dataclass(frozen=True)
class Covering:
    """One problem, see `facility_location`; its distances are asked for when it is its turn.

    Args:
        shape: (m, n), of the distances.
        dtype: of the distances.
        budget: k >= 1.
        opened: makes the distances.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    budget: int
    opened: Callable[[], Distances]

    @property
    def bytes(self) -> int:
        """Of the distances."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def facility_location_together(
    problems: Sequence[Covering], device: torch.device, *, room: float | None = None
) -> list[Medoids | None]:
    """What `facility_location` finds in each problem, all of them in lockstep.

    The same choices but for rounding: costs are kept by differences throughout, never taken anew.

    Args:
        problems: any number, of any sizes.
        device: where their distances are.
        room: bytes to use at most, by default most of what is free on the device.

    Returns:
        A result each, and None for what is left to `facility_location`: a problem too large for the
        memory, one in which fewer than k choices gain anything, and all on a device without
        float64.
    """
    results: list[Medoids | None] = [None] * len(problems)
    sizes = [(each.shape[1], each.shape[0]) for each in problems]
    itemsize = max((each.dtype.itemsize for each in problems), default=0)

    def needs(columns: int, rows: int) -> float:
        return itemsize * columns * (rows + 3.0 * AT_ONCE) + 64.0 * (columns + rows)

    for places in batches(sizes, needs, device, room):
        covers = _Covers([problems[place] for place in places])
        covers.run()
        for place, found in zip(places, covers.found(), strict=True):
            results[place] = found
    return results


class _Covers:
    """The state of a batch. A number for each problem is (B, 1), to be broadcast as it is."""

    def __init__(self, problems: list[Covering]) -> None:
        self.shapes = [problem.shape for problem in problems]
        self.budgets = [min(problem.budget, problem.shape[1]) for problem in problems]
        count = len(problems)
        m, n = (max(shape[side] for shape in self.shapes) for side in (0, 1))
        for i, (problem, (rows, columns)) in enumerate(zip(problems, self.shapes, strict=True)):
            distances = problem.opened()
            device = distances.device
            if i == 0:
                # Rows that only fill up are at no distance from anything.
                self.distances = torch.zeros(count, m, n, dtype=problem.dtype, device=device)
                self.costs = torch.zeros(count, n, dtype=torch.float64, device=device)
                self.farthest = self.distances.new_zeros(count, 1)
            own = self.distances[i]
            for some, others in tiles(rows, columns, device):
                own[some, others] = tile = distances.tile(some, others)
                self.costs[i, others] += tile.sum(0, dtype=torch.float64)
                torch.maximum(self.farthest[i], tile.max(), out=self.farthest[i])
            self.costs[i, columns:] = torch.inf

        def column(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)[:, None]

        self.budget = column(self.budgets)
        # To begin with all rows are farther from the chosen ones than from any column.
        self.nearest = (2 * self.farthest).expand(-1, m).contiguous()
        self.known = self.nearest.clone()  # what `costs` take `nearest` to be
        self.owner = torch.zeros(count, m, dtype=torch.int64, device=device)
        self.number = torch.zeros(count, 1, dtype=torch.int64, device=device)  # of choices
        # One place more: for what is not chosen.
        self.order = torch.zeros(count, max(self.budgets) + 1, dtype=torch.int64, device=device)
        # Where nothing is at any distance there is nothing to choose.
        self.alive = (self.farthest > 0) & self.farthest.isfinite()
        self.first = torch.arange(count, device=device)[:, None] * m  # the rows of each
        self.rows = min(AT_ONCE, m)

    def run(self) -> None:
        """Until all problems are finished."""
        tick = Recorded(self.tick) if self.costs.is_cuda else self.tick
        while bool(self.alive.any()):
            for _ in range(LOOK):
                tick()

    def tick(self) -> None:
        """Costs a little nearer to what they should be, or one choice more, in each problem."""
        self._catch_up()
        lags = (self.known > self.nearest).any(1, keepdim=True)
        j = self.costs.argmin(1, keepdim=True)
        column = self.distances.gather(2, j[:, :, None].expand(-1, self.nearest.shape[1], 1))
        column = column[:, :, 0]
        closer = (column < self.nearest).logical_and_(self.alive & ~lags)
        gains = closer.any(1, keepdim=True)
        torch.where(closer, column, self.nearest, out=self.nearest)
        torch.where(closer, self.number, self.owner, out=self.owner)
        self.costs.scatter_(1, j, torch.where(gains, torch.inf, self.costs.gather(1, j)))
        self.order.scatter_(1, torch.where(gains, self.number, self.order.shape[1] - 1), j)
        self.number.add_(gains)
        self.alive.logical_and_((lags | gains) & (self.number < self.budget))

    def _catch_up(self) -> None:
        """Lower the costs by what the rows that lag behind the most have come nearer."""
        i = (self.known - self.nearest).topk(self.rows, 1, sorted=False).indices
        old, new = self.known.gather(1, i), self.nearest.gather(1, i)
        matrix = self.distances.flatten(0, 1)
        rows = matrix.index_select(0, (i + self.first).flatten()).view(*i.shape, -1)
        torch.clamp(rows, new[:, :, None], old[:, :, None], out=rows)
        self.costs.sub_(rows.sum(1, dtype=torch.float64))
        self.known.scatter_(1, i, new)

    def found(self) -> list[Medoids | None]:
        """Of each problem, None where it ended before it made all its choices."""
        numbers = self.number.flatten().tolist()
        order, owner = self.order.cpu(), self.owner.cpu()
        costs = self.nearest.sum(1, dtype=torch.float64).tolist()
        return [
            Medoids(order[i, :number].clone(), owner[i, :rows].clone(), costs[i])
            if number == budget
            else None
            for i, (number, budget, (rows, _)) in enumerate(
                zip(numbers, self.budgets, self.shapes, strict=True)
            )
        ]
