"""Which runs a preset makes, in one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.arena.methods import Method
from benchmarks.arena.race import ALL, finished, settings, unfinished
from benchmarks.arena.results import Cell, Line, Results, price
from benchmarks.arena.tasks import Task
from benchmarks.paper.presets import RATE, Heat, Preset, variants

# One random subset has no selections: what it takes, a step of any method takes.
STEPS = {"random": variants(1)["random"]}
TIMED = "random", 0.1


@dataclass(frozen=True)
class Experiment:
    """The cells of a preset, seed by seed, the dearest budgets first.

    Args:
        heats: those of the preset that are run.
        seeds: in this order.
        results: what is finished.
        prices: what a step takes, see `step_price`.
    """

    preset: Preset
    heats: Sequence[Heat]
    seeds: Sequence[int]
    results: Results
    prices: Results

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

    def to_price(self) -> Iterator[tuple[str, str, float]]:
        """What is to be timed beside all data, of each task: method and budget."""
        for task in self.tasks:
            if any(task in (heat.task, heat.full) for heat in self.heats):
                yield task, *TIMED

    def step_price(self, task: str, device: str) -> float | None:
        """What a step on a subset takes for one of the same network on all data, in turns with it.

        None where that was not measured on such a device.
        """
        method, fraction = TIMED
        known = settings(self.tasks[task], STEPS[method], fraction)
        for line in self.prices.of(task, method, fraction, known):
            if line["environment"]["device"] == device:
                whole, selecting = price(line)
                return whole - selecting
        return None
