"""What follows from the runs: means, paired differences at equal steps and at equal time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan, log, nan
from statistics import mean, stdev

from benchmarks.arena.race import ALL, Race, settings
from benchmarks.arena.results import Line, best_rate, clock, price

SAME = 0.03  # of the time: differences below it are not told from noise
ERRORS, CHANCE = 2, 0.05  # by how many standard errors, and with what p, a difference is sure


@dataclass(frozen=True)
class Entry:
    """A method at a budget, at its own best learning rate.

    Args:
        rates: all that were tried, with the validation accuracy of the first seed.
        rate: the best of them on the validation samples.
        accuracy: on the test samples, in %, of each seed at that rate.
        steps, samples: that training really made.
        seconds: everything counted; NaN where no run was made on the kind of machine that the task
            is for. Those of the short schedule are its steps at its fastest: other work can only
            make a run slower.
        selecting: seconds of these for selection.
        beside: whether seconds are the short schedule's times what the method took beside it, in
            turns; else they are those of its fastest run, at whatever speed the machine had.
    """

    method: str
    fraction: float
    rates: Mapping[float, float]
    rate: float
    accuracy: Mapping[int, float]
    steps: int
    samples: int
    seconds: float
    selecting: float
    beside: bool = True

    @property
    def mean(self) -> float:
        return mean(self.accuracy.values())

    @property
    def timed(self) -> bool:
        """Whether its seconds are known."""
        return not isnan(self.seconds)

    @property
    def settled(self) -> bool:
        """Whether both cost and accuracy may be ranked: all data in full, or timed in turns and of
        several seeds."""
        return self.beside and (self.fraction == 1 or len(self.accuracy) > 1)

    @property
    def validation(self) -> float:
        """In %, of the first seed at the best rate."""
        return 100 * self.rates[self.rate]

    @property
    def at_edge(self) -> bool:
        return len(self.rates) > 1 and self.rate in (min(self.rates), max(self.rates))


@dataclass(frozen=True)
class Difference:
    """Of paired seeds, in points; the error and p need two of them."""

    each: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.each)

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return standard_error(self.each)

    @property
    def in_errors(self) -> float | None:
        """The mean in standard errors, None where there is none."""
        return self.mean / self.error if self.error else None

    @property
    def p(self) -> float | None:
        """Of a paired t-test, two-sided."""
        if len(self.each) < 2 or stdev(self.each) == 0:
            return None
        from scipy import stats

        return float(stats.ttest_1samp(self.each, 0).pvalue)

    @property
    def sure(self) -> bool:
        """Whether the mean is told from zero.

        Two standard errors alone are little where seeds are few: those of three have a p of 0.18.
        """
        if self.error is None or abs(self.mean) <= ERRORS * self.error:
            return False
        return self.p is None or self.p < CHANCE


def standard_error(values: tuple[float, ...]) -> float | None:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def entries(race: Race, task: str) -> list[Entry]:
    """All methods at all budgets that have a run, in the order of the table of methods."""
    found = (_entry(race, task, m, f) for f in race.fractions for m in race.methods)
    return [entry for entry in found if entry is not None]


def _entry(race: Race, task: str, method: str, fraction: float) -> Entry | None:
    lines = race.runs(task, method, fraction)
    rate = best_rate(lines)
    if rate is None:
        return None
    first = [line for line in lines if line["seed"] == race.seeds[0]]
    best = [line for line in lines if line["rate"] == rate]
    steps = best[0]["steps"]
    took = _beside(race, task, method, fraction)
    if took is None:
        spent = min(map(clock, _own(race, lines)), default=(nan, nan))
    else:
        spent = tuple(step_seconds(race, task) * steps * share for share in took)
    return Entry(
        method,
        fraction,
        rates={r["rate"]: r["validation"] for r in sorted(first, key=lambda r: float(r["rate"]))},
        rate=rate,
        accuracy={r["seed"]: 100 * r["test"] for r in sorted(best, key=lambda r: int(r["seed"]))},
        steps=steps,
        samples=best[0]["samples"],
        seconds=spent[0],
        selecting=spent[1],
        beside=took is not None,
    )


def _beside(race: Race, task: str, method: str, fraction: float) -> tuple[float, float] | None:
    """What a run and its selections took, for one second of the short schedule in turns with it."""
    if method == ALL:
        return 1.0, 0.0
    known = settings(race.tasks[task], race.methods[method], fraction)
    lines = race.prices.of(task, method, fraction, known)
    return next(map(price, _own(race, lines)), None)


def step_seconds(race: Race, task: str) -> float:
    """Of a step of the short schedule in the fastest of its runs, NaN where there is none."""
    lines = [line for f in race.fractions for line in race.runs(task, ALL, f)]
    return min((clock(line)[0] / line["steps"] for line in _own(race, lines)), default=nan)


def _own(race: Race, lines: Iterable[Line]) -> list[Line]:
    """Those whose time counts."""
    return [line for line in lines if at_home(race, line) and not line.get("diverged")]


def at_home(race: Race, line: Line) -> bool:
    """Whether the run was made on the kind of machine that its task is for, GPU or not."""
    on_gpu: bool = line["environment"]["device"] != "cpu"
    return on_gpu == race.tasks[line["task"]].on_gpu


def at_equal_steps(entry: Entry, other: Entry | None) -> Difference | None:
    """`entry` minus `other`, which made as many steps."""
    return None if other is None else _paired(entry.accuracy, other.accuracy)


def at_equal_time(entry: Entry, everything: list[Entry], baseline: str = ALL) -> Difference | None:
    """`entry` minus the baseline with as many seconds, between two of its budgets.

    The baseline's accuracy is interpolated in the logarithm of the time, seed by seed. It is that
    of the cheapest budget where even that took longer. None where no run took as long, or where
    the two were not timed beside each other.
    """
    if not entry.beside:
        return None
    points = sorted(
        (e for e in everything if e.method == baseline and e.timed), key=lambda e: e.seconds
    )
    # Those of the same budget may differ by chance in time only.
    same = [e for e in points if abs(entry.seconds / e.seconds - 1) <= SAME]
    if same:
        return _paired(entry.accuracy, same[0].accuracy)
    below = [e for e in points if e.seconds < entry.seconds]
    above = [e for e in points if e.seconds > entry.seconds]
    if not above:
        return None
    if not below:
        return _paired(entry.accuracy, above[0].accuracy)
    low, high = below[-1], above[0]
    share = log(entry.seconds / low.seconds) / log(high.seconds / low.seconds)
    common = {seed: low.accuracy[seed] for seed in entry.accuracy if seed in low.accuracy}
    return _paired(entry.accuracy, _between(common, high.accuracy, share))


def _between(low: Mapping[int, float], high: Mapping[int, float], share: float) -> dict[int, float]:
    """For each seed at the cheaper budget the accuracy at `share` of the way to the dearer one.

    Where fewer seeds have the dearer one, their mean gain is that of all. By how much the gain of
    each is off counts for as many seeds as it stands for, so that the error of a mean over seeds
    includes that of the gain. One seed alone has no such error: it is only compared with itself.
    """
    gains = {seed: high[seed] - low[seed] for seed in low if seed in high}
    if len(gains) < 2:
        return {seed: low[seed] + share * gain for seed, gain in gains.items()}
    typical, stands_for = mean(gains.values()), len(low) / len(gains)
    off = {seed: stands_for * (gain - typical) for seed, gain in gains.items()}
    return {seed: start + share * (typical + off.get(seed, 0.0)) for seed, start in low.items()}


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    each = tuple(ours[seed] - theirs[seed] for seed in ours if seed in theirs)
    return Difference(each) if each else None


def pareto(found: list[Entry]) -> list[Entry]:
    """Those that nothing cheaper is at least as good as, from cheap to dear."""
    front: list[Entry] = []
    for entry in sorted((e for e in found if e.timed), key=lambda e: (e.seconds, -e.mean)):
        if not front or entry.mean > front[-1].mean:
            front.append(entry)
    return front


def lossless(found: list[Entry], within: float = 0.1) -> Entry | None:
    """The cheapest that is at most `within` points worse than all data in full, if that was run.

    Of those that may be ranked: among many of one seed each some are as good by luck.
    """
    full = [entry for entry in found if entry.fraction == 1]
    if not full:
        return None
    good = (e for e in found if e.settled and e.timed and e.mean >= full[0].mean - within)
    return min(good, key=lambda e: e.seconds, default=None)
