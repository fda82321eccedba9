"""Which runs to make: all methods at several learning rates, then the best with more seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from benchmarks.arena.crew import Worker, at_work
from benchmarks.arena.methods import BASELINES, Method, Plan
from benchmarks.arena.results import Cell, Line, Results, best_rate
from benchmarks.arena.tasks import LADDER, Task

ALL = "full-short"  # with a fraction of 1 it trains on all data in full
NEAR = 0.003  # of validation accuracy: what one seed does not tell apart


class Runs(Protocol):
    """What `run` must know: which cells are next, and what they are made of."""

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    @property
    def methods(self) -> Mapping[str, Method]: ...

    @property
    def results(self) -> Results: ...

    def missing(self) -> list[Cell]:
        """The cells to run next; none when all is done."""


@dataclass(frozen=True)
class Race:
    """All cells, as a function of what is finished.

    A heat is a task at a budget. Every method runs with the first seed and each of the task's
    learning rates, and with further rates as long as the best one is at the edge of those tried.
    Then the baselines and the best `finalists` run with the other seeds, at their best rates and
    those that are not told from them, or come next where these fail with other seeds. Only these
    methods start at the other budgets.

    Args:
        prices: what methods took beside the short schedule; see `benchmarks.arena.price`.
    """

    tasks: Mapping[str, Task]
    methods: Mapping[str, Method]
    fractions: Sequence[float]
    seeds: Sequence[int]
    finalists: int
    results: Results
    prices: Results

    def missing(self) -> list[Cell]:
        """The cells to run next, of the first heat of each task that is not over."""
        found = []
        for task in self.tasks:
            heats = (self._screening(task, f) or self._final(task, f) for f in self.fractions)
            found += next(filter(None, heats), [])
        return sorted(found, key=lambda cell: self.fractions.index(cell.fraction))

    def runs(self, task: str, method: str, fraction: float) -> list[Line]:
        """Finished ones, of all learning rates and seeds."""
        return finished(self, task, method, fraction)

    def entrants(self, task: str, fraction: float) -> list[str]:
        if fraction == 1:
            return [ALL]
        if fraction != self.fractions[0]:
            return self.finals(task, self.fractions[0])
        return [name for name, method in self.methods.items() if self.tasks[task].suits(method)]

    def finals(self, task: str, fraction: float) -> list[str]:
        """The baselines, then the best of the others by validation accuracy with the first seed."""

        def score(method: str) -> float:
            lines = self.runs(task, method, fraction)
            return max((r["validation"] for r in lines if r["seed"] == self.seeds[0]), default=0.0)

        entrants = self.entrants(task, fraction)
        others = sorted((m for m in entrants if m not in BASELINES), key=score, reverse=True)
        return [m for m in entrants if m in BASELINES] + others[: self.finalists]

    def several(self) -> Iterator[tuple[str, str, float]]:
        """What has runs of several seeds, beside all data in full: task, method and budget."""
        for task, method, fraction in itertools.product(self.tasks, self.methods, self.fractions):
            seeds = {line["seed"] for line in self.runs(task, method, fraction)}
            if len(seeds) > 1 and fraction < 1:
                yield task, method, fraction

    def _screening(self, task: str, fraction: float) -> list[Cell]:
        cells = []
        for method in self.entrants(task, fraction):
            for rate in self._rates(task, method, fraction):
                cells.append(Cell(task, method, fraction, rate, self.seeds[0]))
        return unfinished(self, cells)

    def _rates(self, task: str, method: str, fraction: float) -> list[float]:
        if fraction == 1 and len(self.fractions) > 1:
            best = best_rate(self.runs(task, ALL, self.fractions[0]))
            return [best] if best is not None else []
        lines = self.runs(task, method, fraction)
        tried = {line["rate"] for line in lines}
        rates = sorted({*self.tasks[task].rates, *tried})
        if tried.issuperset(rates):  # more seeds may find another rate to be the best
            first = [line for line in lines if line["seed"] == self.seeds[0]]
            further = (beyond_edge(best_rate(known), rates) for known in (first, lines))
            rates = sorted({*rates, *itertools.chain(*further)})
        return rates

    def _final(self, task: str, fraction: float) -> list[Cell]:
        finals = self.finals(task, fraction)
        rates = {method: self._contenders(task, method, fraction) for method in finals}
        return unfinished(
            self,
            [
                Cell(task, method, fraction, rate, seed)
                for seed in self.seeds[1:]
                for method in finals
                for rate in rates[method]
            ],
        )

    def _contenders(self, task: str, method: str, fraction: float) -> list[float]:
        """The best learning rate of the first seed, and those that it does not tell from that.

        Where these fall behind another one with more seeds, that and those near it too.
        """
        lines = self.runs(task, method, fraction)
        reached = {r["rate"]: r["validation"] for r in lines if r["seed"] == self.seeds[0]}
        by_rate = {rate: [r["validation"] for r in lines if r["rate"] == rate] for rate in reached}
        rest = sorted(reached, key=lambda rate: (-reached[rate], rate))
        found: list[float] = []
        best = 0.0  # of those found, over all their seeds
        while rest and (not found or reached[rest[0]] > best + NEAR):
            near = [rate for rate in rest if reached[rate] >= reached[rest[0]] - NEAR]
            found, rest = found + near, rest[len(near) :]
            best = max(fmean(by_rate[rate]) for rate in found)
        return found


def settings(task: Task, method: Method, fraction: float) -> Line:
    """What a run depends on beside its learning rate and seed, as plain values."""
    plan = Plan(task.epochs, fraction, task.batch_size)
    return {"task": task.settings(), "method": method.settings(plan)}


def finished(runs: Runs, task: str, method: str, fraction: float) -> list[Line]:
    """Runs that are made, of all learning rates and seeds."""
    known = settings(runs.tasks[task], runs.methods[method], fraction)
    return runs.results.of(task, method, fraction, known)


def unfinished(runs: Runs, cells: Iterable[Cell]) -> list[Cell]:
    """Those of the cells that are to be made."""

    def done(cell: Cell) -> bool:
        known = settings(runs.tasks[cell.task], runs.methods[cell.method], cell.fraction)
        return runs.results.find(cell, known) is not None

    return [cell for cell in cells if not done(cell)]


def beyond_edge(best: float | None, rates: Sequence[float]) -> list[float]:
    """The next learning rate on the ladder where the best one is the first or last of `rates`."""
    if best is None:
        return []
    lower = [rate for rate in LADDER if rate < min(rates)][-1:] if best == min(rates) else []
    higher = [rate for rate in LADDER if rate > max(rates)][:1] if best == max(rates) else []
    return lower + higher


def run(
    race: Runs,
    worker: Worker,
    environment: Line,
    say: Callable[[str], Any] = print,
    processes: int = 1,
) -> None:
    """Make all missing runs, and tell how far it is."""
    known: dict[tuple[str, str], float] = {}  # seconds that a method took
    with at_work(worker, processes) as give_out:
        flying: dict[Future[tuple[Line, float]], Cell] = {}
        while (cells := race.missing()) or flying:
            waiting = [cell for cell in cells if cell not in flying.values()]
            for cell in waiting[: processes - len(flying)]:
                flying[give_out(cell)] = cell
            for made in wait(flying, return_when=FIRST_COMPLETED).done:
                cell, (measured, spent) = flying.pop(made), made.result()
                known[cell.task, cell.method] = spent
                fixed = settings(race.tasks[cell.task], race.methods[cell.method], cell.fraction)
                race.results.add(cell, fixed, {**measured, "environment": environment})
                typical = sum(known.values()) / len(known)
                rest = [other for other in cells if other != cell]
                left = sum(known.get((c.task, c.method), typical) for c in rest) / processes
                say(
                    f"{time.strftime('%H:%M:%S')} {cell.task} {100 * cell.fraction:g} % "
                    f"{cell.method} rate {cell.rate:g} seed {cell.seed}: validation "
                    f"{measured['validation']:.2%}, {measured['seconds']:.0f} s; {len(rest)} more "
                    f"in this round, about {left / 60:.0f} min"
                )
