"""Which runs a preset makes, in one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.arena.methods import Method
from benchmarks.arena.race import ALL, finished, unfinished
from benchmarks.arena.results import Cell, Line, Results
from benchmarks.arena.tasks import Task
from benchmarks.paper.presets import RATE, Heat, Preset


@dataclass(frozen=True)
class Experiment:
    """The cells of a preset, seed by seed, the dearest budgets first.

    Args:
        heats: those of the preset that are run.
        seeds: in this order.
        results: what is finished.
    """

    preset: Preset
    heats: Sequence[Heat]
    seeds: Sequence[int]
    results: Results

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.preset.tasks

    @property
    def methods(self) -> Mapping[str, Method]:
        return self.preset.methods

    def cells(self) -> list[Cell]:
        """All of them."""
        kinds = [(heat.full, ALL, 1.0) for heat in self.heats]
        for heat in sorted(self.heats, key=lambda heat: -heat.fraction):
            kinds += [(heat.task, method, heat.fraction) for method in heat.methods]
        return [Cell(*kind, RATE, seed) for seed in self.seeds for kind in dict.fromkeys(kinds)]

    def missing(self) -> list[Cell]:
        """Those that are not finished."""
        return unfinished(self, self.cells())

    def runs(self, task: str, method: str, fraction: float) -> list[Line]:
        """Finished ones, in the order of their seeds."""
        return sorted(finished(self, task, method, fraction), key=lambda line: int(line["seed"]))
