"""Which runs a preset makes: all, in one order, or the share of one of several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.arena.methods import Method
from benchmarks.arena.race import ALL, finished, unfinished
from benchmarks.arena.results import Cell, Line, Results
from benchmarks.arena.tasks import Task
from benchmarks.paper.presets import RATE, Heat, Preset

FIXED = 0.02  # of a full run: what selections take at any budget, roughly


@dataclass(frozen=True)
class Experiment:
    """The cells of a preset, seed by seed, the dearest budgets first.

    Args:
        heats: those of the preset that are run.
        seeds: in this order.
        results: what is finished.
        shard: (i, N), the i-th of N processes that share the cells between them.
    """

    preset: Preset
    heats: Sequence[Heat]
    seeds: Sequence[int]
    results: Results
    shard: tuple[int, int] = (0, 1)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.preset.tasks

    @property
    def methods(self) -> Mapping[str, Method]:
        return self.preset.methods

    def cells(self) -> list[Cell]:
        """All of them, of every shard."""
        tasks = dict.fromkeys(heat.task for heat in self.heats)
        kinds = [(task, ALL, 1.0) for task in tasks if not task.endswith("-extended")]
        for heat in sorted(self.heats, key=lambda heat: -heat.fraction):
            kinds += [(heat.task, method, heat.fraction) for method in heat.methods]
        return [Cell(*kind, RATE, seed) for seed in self.seeds for kind in dict.fromkeys(kinds)]

    def missing(self) -> list[Cell]:
        """Those of this shard that are not finished."""
        return unfinished(self, self._own())

    def runs(self, task: str, method: str, fraction: float) -> list[Line]:
        """Finished ones, in the order of their seeds."""
        return sorted(finished(self, task, method, fraction), key=lambda line: int(line["seed"]))

    def _own(self) -> list[Cell]:
        """Each cell, from the dearest on, is of the process with the least to do so far."""
        mine, shards = self.shard
        cells, load = self.cells(), [0.0] * shards
        kept = set()
        costs = {cell: self.tasks[cell.task].epochs * (cell.fraction + FIXED) for cell in cells}
        for cell in sorted(cells, key=lambda cell: -costs[cell]):
            least = load.index(min(load))
            load[least] += costs[cell]
            if least == mine:
                kept.add(cell)
        return [cell for cell in cells if cell in kept]
