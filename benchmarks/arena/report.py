"""The page: tables of accuracy against cost, and who wins, from the runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.arena import plot
from benchmarks.arena.figures import (
    Difference,
    Entry,
    at_equal_steps,
    at_equal_time,
    entries,
    lossless,
    standard_error,
)
from benchmarks.arena.methods import BASELINES
from benchmarks.arena.race import ALL, Race
from benchmarks.arena.results import Line

FRESH = "fresh-random"
# What docs/choosing.md says to take, and where something else.
RECOMMENDED = "order-dp"
RECOMMENDED_FOR = {"cifar10-noisy": "borderline", "fashion-mnist-long-tail": "balanced"}
WINS = "better than the short schedule at equal time and than fresh random"
LOSES = "worse than one of them"
UNTIMED = """Rows without seconds were made on another kind of machine, to see who is worth its
time: a method that is behind at equal steps is not ahead at equal time."""
OPEN = "neither, or too few seeds to tell"

HEAD = """# Does training on chosen data beat training shorter?

Every method runs with several learning rates, and counts with its own best one, chosen on
validation samples that were cut from the training data; the test set has no say. All runs of a
budget make the same number of optimizer steps with the same batches, each with a schedule annealed
over them, from the same initial weights for the same seed. `full-short` is a short training on all
data, `fresh-random` a new random subset in every epoch, `random-sizes` random subsets whose size
falls as γᵗ. `fresh-random` walks through shuffled passes over all data, as `full-short` does: these
two are the same training, and their difference shows the noise.

Accuracy is that on the test set in %, mean ± standard error over the seeds. Differences are in
points, of paired seeds, ± their standard error, with the p of a paired t-test. *Better* or *worse*
is what is so by two standard errors and with a p below 0.05: of three seeds two errors alone are a
p of 0.18. *Equal time* is
against the short schedule, interpolated between its budgets, that takes as long as the method does
with all its selections, or against its cheapest run where that took longer. What a method takes is
measured beside the short schedule, an epoch of one after an epoch of the other in one process, in
processor seconds of one thread, since the speed of the machine changes; the seconds are those of
the short schedule at its fastest, times that. What differs by less than 3 % is not told apart.

```sh
python -m benchmarks.arena --data DIR                                # runs what is missing
python -m benchmarks.arena --data DIR --prices                       # times what has several seeds
python -m benchmarks.arena --report benchmarks/results/arena.jsonl   # writes this page
```
"""


def write(race: Race, path: Path) -> None:
    """The page at `path`, its plots beside it."""
    sections = [HEAD]
    idle = []
    for name, task in race.tasks.items():
        found = entries(race, name)
        if not found:
            idle.append(task.about)
            continue
        image = path.with_name(f"arena-{name}.png")
        plot.accuracy_by_cost(found, task.about, image)
        place = f"{machines(race.results.lines(), name)}\n\n" if task.on_gpu else ""
        if any(not entry.timed for entry in found):
            place += f"{UNTIMED}\n\n"
        sections.append(
            f"## {task.about}\n\n{place}{verdict(found)}\n\n![Accuracy and cost]({image.name})\n"
        )
        for fraction in sorted({entry.fraction for entry in found}):
            some = [entry for entry in found if entry.fraction == fraction]
            epochs = f"{100 * fraction:g} % for {task.epochs} epochs, {some[0].steps} steps"
            sections.append(f"### {epochs}\n\n{table(some, found)}\n")
        sections.append(f"### By learning rate\n\n{rates(found)}\n")
        if names := [f"`{name}`" for name in race.methods if name not in methods(found)]:
            sections.append(f"Not run here: {', '.join(names)}.\n")
    if idle:
        sections.append("## Not run\n\n" + "\n".join(f"- {about}" for about in idle) + "\n")
    sections.insert(1, f"{glance(race)}\n{goal(race)}")
    path.write_text("\n".join(sections))


def machines(lines: Sequence[Line], task: str | None = None) -> str:
    """Where the runs were made, of one task or all, and how many shared the machine."""
    places = [line["environment"] for line in lines if task in (None, line["task"])]
    text = f"Run on: {', '.join(sorted({place['device'] for place in places}))}."
    beside = max(place.get("processes", 1) for place in places)
    if beside > 1:
        text += f" Up to {beside} processes shared it: times hold what they cost each other."
    return text


def glance(race: Race, fraction: float = 0.1) -> str:
    """For each task, at one budget, the best method by validation beside the baselines."""
    rows: list[Sequence[str]] = []
    for name, task in race.tasks.items():
        found = entries(race, name)
        some = {e.method: e for e in found if e.fraction == fraction}
        if ALL not in some or FRESH not in some:
            continue
        most = max(len(entry.accuracy) for entry in some.values())
        others = [
            entry
            for entry in some.values()
            if entry.method not in BASELINES and len(entry.accuracy) == most
        ]
        best = max(others, key=lambda e: e.validation, default=None)
        cells = [task.about, *(reached(some[method]) for method in (ALL, FRESH))]
        if best is not None:
            short, fresh = at_equal_time(best, found), at_equal_steps(best, some[FRESH])
            cells += [f"`{best.method}` {reached(best)}", written(short), written(fresh)]
        else:
            cells += ["none with as many seeds", "", ""]
        rows.append(cells)
    heads = ("task", f"`{ALL}`", f"`{FRESH}`", "best of the others, by validation")
    against = (f"− `{ALL}`, equal time", f"− `{FRESH}`, equal steps")
    table = markdown((*heads, *against), rows)
    return f"## At a glance, at {100 * fraction:g} %\n\n{table}\n"


def goal(race: Race, fraction: float = 0.1) -> str:
    """How far what is recommended is ahead of both baselines, in standard errors, and of how much.

    Of tasks for a CPU, which all methods were to run on.
    """
    rows: list[Sequence[str]] = []
    ahead, behind = [], []
    for name, task in race.tasks.items():
        found = entries(race, name)
        of = {entry.method: entry for entry in found if entry.fraction == fraction}
        method = RECOMMENDED_FOR.get(name, RECOMMENDED)
        if task.on_gpu or not {ALL, FRESH, method} <= of.keys():
            continue
        ours, short = of[method], of[ALL]
        both = (
            at_equal_time(ours, found) or at_equal_steps(ours, short),
            at_equal_steps(ours, of[FRESH]),
        )
        errors = [None if d is None else d.in_errors for d in both]
        if outcome(*both) == WINS:
            ahead.append(task.about)
        if any(number is not None and number < -1 for number in errors):
            behind.append(task.about)
        full = next((e for e in found if e.method == ALL and e.fraction == 1), None)
        left = "–" if full is None else f"{full.mean - short.mean:+.2f}"
        told = ("–" if number is None else f"{number:+.1f}" for number in errors)
        mean = written(at_equal_steps(ours, mean_of(short, of[FRESH])))
        rows.append((task.about, f"`{method}`", *told, mean, left))
    against = f"− `{ALL}`, in standard errors", f"− `{FRESH}`, in those"
    heads = ("task", "recommended", *against, "− the mean of both, in points", "left to win")
    missed = [*(["too few won"] if len(ahead) < 3 else []), *(["some lost"] if behind else [])]
    return (
        f"## The goal: {'missed, ' + ' and '.join(missed) if missed else 'reached'}\n\n"
        "What is recommended should be ahead of both baselines by two standard errors, each with a "
        "p below 0.05, on three of the tasks, and on none more than one standard error behind "
        "either. At equal time where the short schedule was run for as long, else at equal steps. "
        "Since the two are the same training, their mean, at equal steps, tells most. The last "
        "column, all data at full length less the short schedule, is what there is to win at "
        "all.\n\n"
        f"{markdown(heads, rows)}\n\nAhead on {len(ahead)} of {len(rows)}: "
        f"{'; '.join(ahead) or 'none'}. Behind on {len(behind)}: {'; '.join(behind) or 'none'}.\n"
    )


def mean_of(one: Entry, other: Entry) -> Entry:
    """The first, with the mean accuracy of both for each seed that both have."""
    common = {seed: other.accuracy[seed] for seed in one.accuracy if seed in other.accuracy}
    return replace(one, accuracy={s: (one.accuracy[s] + common[s]) / 2 for s in common})


def reached(entry: Entry) -> str:
    """Test accuracy with its standard error."""
    error = standard_error(tuple(entry.accuracy.values()))
    return f"{entry.mean:.2f}" + ("" if error is None else f" ± {error:.2f}")


def methods(found: list[Entry]) -> set[str]:
    return {entry.method for entry in found}


def table(some: list[Entry], found: list[Entry]) -> str:
    """One row for each method at one budget, the best first."""
    columns = "method, seeds, rate, accuracy, seconds, of it selecting, samples"
    against = "− `full-short` equal steps, − `fresh-random` equal steps, − `full-short` equal time"
    heads = f"{columns}, {against}".split(", ")
    of = {entry.method: entry for entry in some}
    rows: list[Sequence[str]] = []
    for entry in sorted(some, key=lambda e: -e.mean):
        rows.append(
            (
                f"`{entry.method}`",
                str(len(entry.accuracy)),
                f"{entry.rate:g}" + (" †" if entry.at_edge else ""),
                reached(entry),
                (f"{entry.seconds:.0f}" + ("" if entry.beside else " ‡")) if entry.timed else "–",
                f"{entry.selecting:.1f}" if entry.timed else "–",
                f"{entry.samples:,}",
                "" if entry.method == ALL else written(at_equal_steps(entry, of.get(ALL))),
                "" if entry.method == FRESH else written(at_equal_steps(entry, of.get(FRESH))),
                "" if entry.method == ALL else written(at_equal_time(entry, found)),
            )
        )
    notes = []
    if any(entry.at_edge for entry in some):
        notes.append("† the best of the rates tried is at their edge.")
    if any(entry.timed and not entry.beside for entry in some):
        notes.append(
            "‡ not timed beside the short schedule: of the method's fastest run, on a machine of "
            "whatever speed."
        )
    return "\n\n".join([markdown(heads, rows), *notes])


def rates(found: list[Entry]) -> str:
    """Validation accuracy of the first seed at each rate; bold is the best of all seeds."""
    tried = sorted({rate for entry in found for rate in entry.rates})
    rows: list[Sequence[str]] = []
    for entry in found:
        cells = [f"{100 * entry.rates[r]:.2f}" if r in entry.rates else "" for r in tried]
        cells = [f"**{c}**" if r == entry.rate else c for r, c in zip(tried, cells, strict=True)]
        rows.append((f"`{entry.method}`", f"{100 * entry.fraction:g} %", *cells))
    heads = (
        "validation accuracy, first seed (bold: best over all seeds)",
        "budget",
        *(f"{rate:g}" for rate in tried),
    )
    return markdown(heads, rows)


def verdict(found: list[Entry]) -> str:
    """Which methods win at equal time, which lose, and for which it is open."""
    lines = []
    for fraction in sorted({entry.fraction for entry in found}):
        some = [entry for entry in found if entry.fraction == fraction]
        whole, fresh = (next((e for e in some if e.method == m), None) for m in (ALL, FRESH))
        outcomes: dict[str, list[str]] = {text: [] for text in (WINS, LOSES, OPEN)}
        for entry in some:
            if entry.method not in (ALL, FRESH):
                short = at_equal_time(entry, found)
                text = outcome(short, at_equal_steps(entry, fresh))
                # What is behind at equal steps is not ahead at equal time.
                if short is None and outcome(at_equal_steps(entry, whole), None) == LOSES:
                    text = LOSES
                outcomes[text].append(f"`{entry.method}`")
        if any(outcomes.values()):
            parts = (f"{text}: {', '.join(names) or 'none'}" for text, names in outcomes.items())
            lines.append(f"- At {100 * fraction:g} %: {'; '.join(parts)}.")
        lines += single(some)
    if (cheapest := lossless(found)) is not None:
        lines.append(
            f"- The cheapest within 0.1 points of all data in full: `{cheapest.method}` at "
            f"{100 * cheapest.fraction:g} %, {cheapest.seconds:.0f} s."
        )
    return "\n".join(lines)


def single(some: list[Entry]) -> list[str]:
    """Who has one seed only, beside the least validation accuracy that went on to more seeds."""
    others = [entry for entry in some if entry.method not in BASELINES]
    went_on = [entry.validation for entry in others if len(entry.accuracy) > 1]
    alone = [f"`{e.method}` ({e.validation:.2f})" for e in others if len(e.accuracy) == 1]
    if not alone:
        return []
    last = f"; those with more had at least {min(went_on):.2f}" if went_on else ""
    names = ", ".join(alone)
    return [f"- Run with one seed only (validation accuracy{last}): {names}."]


def outcome(short: Difference | None, fresh: Difference | None) -> str:
    """What follows from both differences, as far as they are sure."""
    sure = [d for d in (short, fresh) if d is not None and d.sure]
    if any(d.mean < 0 for d in sure):
        return LOSES
    return WINS if len(sure) == 2 else OPEN


def written(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    if difference.error is None:
        return f"{difference.mean:+.2f}"
    p = "" if difference.p is None else f" (p {difference.p:.2g})"
    return f"{difference.mean:+.2f} ± {difference.error:.2f}{p}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
