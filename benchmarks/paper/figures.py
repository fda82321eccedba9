"""What follows from the runs: points lost and factors gained against training on all data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.arena.race import ALL
from benchmarks.arena.results import Line, clock
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.presets import Heat

STOPPED = "all data, stopped at the same time"


def joules(line: Line) -> float | None:
    if "joules" not in line:
        return None
    return float(sum(sum(phase.values()) for phase in line["joules"].values()))


@dataclass(frozen=True)
class Entry:
    """A method at a budget, beside all data at full length with the same seeds.

    Args:
        lines, full: runs in the order of their seeds.
        kind: how its task differs from that of `full`, if it does.
        step: what a step takes for one of `full`, measured in turns with it; None if it was not.
    """

    task: str
    method: str
    fraction: float
    lines: Sequence[Line]
    full: Sequence[Line]
    kind: str = ""
    step: float | None = None

    @property
    def name(self) -> str:
        method = "all data" if self.fraction == 1 else f"`{self.method}`"
        return f"{method}, {self.kind}" if self.kind else method

    @property
    def whole(self) -> Entry:
        """All data in full, beside itself."""
        return Entry(self.task, ALL, 1.0, self.full, self.full)

    @property
    def accuracy(self) -> dict[int, float]:
        """On the test set in %, by seed."""
        return {line["seed"]: 100 * line["test"] for line in self.lines}

    @property
    def seconds(self) -> float:
        """Of a run; as many as its steps would have taken beside `full`, where that is known.

        Selections count in steps of the same run, since the speed of a machine changes from run to
        run.
        """
        if self.step is None:
            return median(clock(line)[0] for line in self.lines)
        plain = median(clock(line)[0] / line["steps"] for line in self.full)
        steps = max(line["steps"] for line in self.lines)  # fewer where one diverged
        return plain * self.step * steps / (1 - self.selecting)

    @property
    def selecting(self) -> float:
        """The share of the seconds that selections take."""
        return median(part / whole for whole, part in map(clock, self.lines))

    @property
    def lost(self) -> float:
        """Points, over the seeds that both have; negative where the subset is better."""
        theirs = {line["seed"]: 100 * line["test"] for line in self.full}
        ours = self.accuracy
        return mean(theirs[seed] - ours[seed] for seed in ours if seed in theirs)

    @property
    def relative_error(self) -> float:
        """Points lost in % of the accuracy with all data."""
        return 100 * self.lost / mean(100 * line["test"] for line in self.full)

    @property
    def speedup(self) -> float:
        return median(clock(line)[0] for line in self.full) / self.seconds

    @property
    def told(self) -> str:
        """What is gained, and what it costs."""
        return f"{self.speedup:.1f} ×, {self.lost:.2f} lost"

    @property
    def energy_ratio(self) -> float | None:
        """Joules of all data over ours, None where one of them was not measured."""
        ours, theirs = ([joules(line) for line in lines] for lines in (self.lines, self.full))
        known = [[j for j in values if j is not None] for values in (ours, theirs)]
        if not known[0] or not known[1]:
            return None
        return median(known[1]) / median(known[0])

    def stopped(self, gain: float) -> dict[int, float]:
        """Test accuracy of all data by seed, when 1 / gain of the run was over.

        Its steps take all the same time, so that the share of steps is that of time and energy. The
        last point of the curve before counts; a seed without one is left out.
        """
        found = {}
        for line in self.full:
            points = [point for point in line["curve"] if point[1] <= line["steps"] / gain]
            if points:
                found[line["seed"]] = 100 * points[-1][3]
        return found


def entries(experiment: Experiment, heat: Heat) -> list[Entry]:
    """Those that have runs, where all data have one with a seed in common."""
    full = experiment.runs(heat.full, ALL, 1.0)
    kind = heat.about if heat.beside else ""
    found = []
    for method in heat.methods:
        lines = experiment.runs(heat.task, method, heat.fraction)
        if {line["seed"] for line in lines} & {line["seed"] for line in full}:
            step = _step(experiment, heat, method, full[0]["environment"]["device"])
            found.append(Entry(heat.task, method, heat.fraction, lines, full, kind, step))
    return found


def as_fast(found: Sequence[Entry], gain: float) -> Entry | None:
    """What lost least of what trains `gain` times as fast as all data, or faster."""
    return min((e for e in found if e.speedup >= gain), key=lambda e: e.lost, default=None)


def _step(experiment: Experiment, heat: Heat, method: str, device: str) -> float | None:
    """What a step of the method takes for one on all data; None where it is another network's."""
    ours, theirs = (experiment.tasks[name] for name in (heat.task, heat.full))
    if ours.network is not theirs.network or ours.batch_size != theirs.batch_size:
        return None
    price = experiment.step_price(heat.task, device)
    return 1.0 if price is not None and method == ALL else price


@dataclass(frozen=True)
class Against:
    """One method minus another, over all tasks, budgets and seeds that both have.

    Args:
        p: of Wilcoxon's signed-rank test, two-sided; None where all differences are zero.
    """

    other: str
    differences: tuple[float, ...]

    @property
    def p(self) -> float | None:
        if not any(self.differences):
            return None
        from scipy import stats

        return float(stats.wilcoxon(self.differences).pvalue)


def compared(found: Sequence[Entry], method: str) -> list[Against]:
    """`method` against all others, all data in full, and all data stopped at its time."""
    ours = {(e.task, e.fraction): e for e in found if e.method == method}
    pairs: dict[str, list[float]] = {}
    for entry in found:
        mine = ours.get((entry.task, entry.fraction))
        if mine is None:
            continue
        if entry is mine:
            others = {STOPPED: mine.stopped(mine.speedup)}
            others["all data in full"] = {r["seed"]: 100 * r["test"] for r in mine.full}
        else:
            name = "all data, short schedule" if entry.method == ALL else entry.method
            others = {name: entry.accuracy}
        for name, accuracy in others.items():
            each = [mine.accuracy[s] - accuracy[s] for s in mine.accuracy if s in accuracy]
            pairs.setdefault(name, []).extend(each)
    return [Against(name, tuple(each)) for name, each in pairs.items() if each]
