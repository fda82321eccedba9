"""The page: tables of accuracy against cost, and who wins, from the runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.arena import plot
from benchmarks.arena.figures import (
    CHANCE,
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
SCREENED = 0.1  # the budget that all methods ran at
# What docs/choosing.md says to take, and where something else.
RECOMMENDED = "order-dp"
RECOMMENDED_FOR = {"cifar10-noisy": "borderline", "fashion-mnist-long-tail": "balanced"}
WINS = "better than the short schedule at equal time and than fresh random"
LOSES = "worse than one of them"
UNTIMED = """Rows without seconds were made on another kind of machine, to see who is worth its
time: a method that is behind at equal steps is not ahead at equal time."""
OPEN = "neither"
GAINS = """## By budget

What is recommended, less the mean of both baselines at equal steps, in points. That at 10 % is part
of the goal, where it was made on a CPU."""

SEEN = {"fashion-mnist": 5, "cifar10": 5}  # seeds that had run when it said so,
SEEN_ELSEWHERE = 3  # and of the other tasks

HEAD = """# Does training on chosen data beat training shorter?

A tenth of the training is cheap on any data. So what a choice of data has to beat is not the long
training, but a short one on all data: `full-short`, annealed over as many steps, and
`fresh-random`, a new random subset in every epoch. These two are the same training on other
batches, so that what they differ by is noise.
"""

HOW = """## How it was measured

Every method runs with several learning rates, and counts with its own best one, chosen on
validation samples that were cut from the training data: one rate for all its seeds, by their mean.
A rate that is 0.3 points behind the best with the first seed runs with others only where that one
fails with them. All runs of a budget make the same number of optimizer steps with batches of one
size, each with a schedule annealed over them, from the same initial weights for the same seed;
weight decay, augmentation and all else are those of the task. `random-sizes` takes random subsets
whose size falls as γᵗ.

Differences are in points, of paired seeds, ± their standard error, with the p of a paired t-test.
*Better* or *worse* is what is so by two standard errors and with a p below 0.05: of three seeds two
errors alone are a p of 0.18. *Equal time* is against the short schedule, interpolated between its
budgets, that takes as long as the method does with all its selections, or against its cheapest run
where that took longer. What a method takes is measured once, beside the short schedule, an epoch of
one after an epoch of the other in one process, in processor seconds of one thread, since the speed
of the machine changes; the seconds are those of the short schedule at its fastest, times that. What
differs by less than 3 % is not told apart. What has one seed, or was not timed so, is hollow in the
plots and on no front.

What can be held against it:

- Only the learning rate is tuned, for all methods alike. What the search takes counts for none.
- Validation samples are clean where labels are wrong, and of all classes alike where some are rare:
  rates are chosen on better data than one may have. The test set has no say in them. What is
  recommended was chosen in sight of it.
- Where classes are rare, the test set has as many of each, and `balanced` draws as many of each: no
  more than a sampler by class does. Choosing by losses within the classes gained nothing on top.
- Between budgets far apart the interpolation is a little below what the short schedule would reach.
- Methods ran with the first seed, the best of them by validation accuracy with others, and most
  seeds went to what was about to be recommended and its rivals.

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
            idle.append(task.name)
            continue
        image = path.with_name(f"arena-{name}.png")
        plot.accuracy_by_cost(found, task.name, image)
        place = f"{task.about}.\n\n" if task.title else ""
        place += f"{machines(race.results.lines(), name)}\n\n" if task.on_gpu else ""
        if any(not entry.timed for entry in found):
            place += f"{UNTIMED}\n\n"
        told = "\n".join([verdict(found), *unrun(race, name, found)])
        sections.append(f"## {task.name}\n\n{place}{told}\n\n![Accuracy and cost]({image.name})\n")
        for fraction in sorted({entry.fraction for entry in found}):
            some = [entry for entry in found if entry.fraction == fraction]
            epochs = f"{100 * fraction:g} % for {task.epochs} epochs, {some[0].steps} steps"
            sections.append(f"### {epochs}\n\n{table(some, found)}\n")
        sections.append(f"### By learning rate\n\n{rates(found)}\n")
        if names := [f"`{name}`" for name in race.methods if name not in methods(found)]:
            sections.append(f"Not run here: {', '.join(names)}.\n")
    if idle:
        sections.append("## Not run\n\n" + "\n".join(f"- {name}" for name in idle) + "\n")
    sections[1:1] = [glance(race), goal(race), by_budget(race), HOW]
    path.write_text("\n".join(sections))


def machines(lines: Sequence[Line], task: str | None = None) -> str:
    """Where the runs were made, of one task or all, and how many shared the machine."""
    places = [line["environment"] for line in lines if task in (None, line["task"])]
    text = f"Run on: {', '.join(sorted({place['device'] for place in places}))}."
    beside = max(place.get("processes", 1) for place in places)
    if beside > 1:
        text += f" Up to {beside} processes shared it: times hold what they cost each other."
    return text


def glance(race: Race, fraction: float = SCREENED) -> str:
    """What each task reached at one budget: the baselines, and what is recommended."""
    rows: list[Sequence[str]] = []
    for name, task in race.tasks.items():
        found = entries(race, name)
        some = at_budget(found, fraction)
        if ALL not in some or FRESH not in some:
            continue
        # One seed alone is best of many by luck.
        others = (e for e in some.values() if e.method not in BASELINES and len(e.accuracy) > 1)
        best = max(others, key=lambda e: e.validation, default=None)
        chosen = some.get(recommended(name)), best
        told = ("–" if e is None else f"`{e.method}` {reached(e)}" for e in chosen)
        full = whole(found)
        base = (reached(some[method]) for method in (ALL, FRESH))
        rows.append((task.name, *base, *told, "–" if full is None else reached(full)))
    heads = ("task", f"`{ALL}`", f"`{FRESH}`", "recommended", "best by validation", "all, in full")
    return (
        f"## At a glance, at {100 * fraction:g} %\n\n{markdown(heads, rows)}\n\n"
        "Test accuracy in %, mean ± standard error over the seeds, with none of one seed. *Best by "
        "validation* is, of the methods that ran with several seeds, which has the highest "
        "validation accuracy with the first. *In full* are all epochs on all data.\n"
    )


def recommended(task: str) -> str:
    return RECOMMENDED_FOR.get(task, RECOMMENDED)


def whole(found: list[Entry]) -> Entry | None:
    """All data in full, if that was run."""
    return next((e for e in found if e.method == ALL and e.fraction == 1), None)


def goal(race: Race, fraction: float = SCREENED) -> str:
    """How far what is recommended is ahead of both baselines, in standard errors, and of how much.

    Of tasks for a CPU, which all methods were to run on.
    """
    rows: list[Sequence[str]] = []
    ahead, behind = [], []
    noise: list[float | None] = []
    for name, task in race.tasks.items():
        found = entries(race, name)
        of = at_budget(found, fraction)
        method = recommended(name)
        if task.on_gpu or not {ALL, FRESH, method} <= of.keys():
            continue
        ours, short = of[method], of[ALL]
        both = (
            at_equal_time(ours, found) or at_equal_steps(ours, short),
            at_equal_steps(ours, of[FRESH]),
        )
        errors = [None if d is None else d.in_errors for d in both]
        if outcome(*both) == WINS:
            ahead.append(task.name)
        if any(number is not None and number < -1 for number in errors):
            behind.append(task.name)
        full = whole(found)
        left = "–" if full is None else f"{full.mean - short.mean:+.2f}"
        told = ("–" if number is None else f"{number:+.1f}" for number in errors)
        later = later_seeds(ours, SEEN.get(name, SEEN_ELSEWHERE))
        mean, afterwards = (written(over_both(entry, found)) for entry in (ours, later))
        rows.append((task.name, f"`{method}`", *told, mean, left, afterwards))
        between = at_equal_steps(short, of[FRESH])
        noise.append(None if between is None else between.p)
    against = f"− `{ALL}`, in standard errors", f"− `{FRESH}`, in those"
    heads = ("task", "recommended", *against, "− the mean of both, in points", "left to win")
    table = markdown((*heads, "− the mean of both, later seeds"), rows)
    missed = [*(["too few won"] if len(ahead) < 3 else []), *(["some lost"] if behind else [])]
    return (
        f"## The goal: {'missed, ' + ' and '.join(missed) if missed else 'reached'}\n\n"
        "What is recommended should be ahead of both baselines by two standard errors, each with a "
        "p below 0.05, on three of the tasks, and on none more than one standard error behind "
        "either. At equal time where the short schedule was run for as long, else at equal steps. "
        "Since the two are the same training, their mean, at equal steps, tells most. *Left to "
        "win* is all data at full length less the short schedule.\n\n"
        f"{table}\n\nAhead on {len(ahead)} of {len(rows)}: "
        f"{'; '.join(ahead) or 'none'}. Behind on {len(behind)}: {'; '.join(behind) or 'none'}.\n\n"
        f"{doubts(noise)}\n"
    )


def later_seeds(entry: Entry, first: int) -> Entry:
    """Without the seeds before `first`."""
    return replace(entry, accuracy={s: a for s, a in entry.accuracy.items() if s >= first})


def by_budget(race: Race) -> str:
    """How far what is recommended is ahead of the mean of both baselines, at each budget."""
    fractions: set[float] = set()
    gains: dict[str, dict[float, str]] = {}
    for name in race.tasks:
        found = entries(race, name)
        ours = [entry for entry in found if entry.method == recommended(name)]
        told = {entry.fraction: over_both(entry, found) for entry in ours}
        gains[name] = {f: written(gain) for f, gain in told.items() if gain is not None}
        fractions |= gains[name].keys()
    rows = [
        (
            race.tasks[name].name,
            f"`{recommended(name)}`",
            *(of.get(f, "–") for f in sorted(fractions)),
        )
        for name, of in gains.items()
        if of
    ]
    heads = ("task", "recommended", *(f"{100 * f:g} %" for f in sorted(fractions)))
    return f"{GAINS}\n\n{markdown(heads, rows)}\n"


def doubts(noise: Sequence[float | None]) -> str:
    """What keeps a reader from taking the goal for more than it is."""
    chances = [p for p in noise if p is not None]
    lines = [
        "- Recommended is what did best on these tasks, each for its kind of data, and a winner's "
        "gains are flattered. Not those of the last column: its seeds ran after the choice, on the "
        "same test samples."
    ]
    if chances:
        low = sum(p < CHANCE for p in chances)
        lines.append(
            f"- Between the two baselines, where there is nothing to find, {low} of "
            f"{len(chances)} differences have a p below {CHANCE:g}, the least {min(chances):.2g}. "
            "No p is corrected for how many there are: take one of that size for no proof."
        )
    return "\n".join(lines)


def at_budget(found: Sequence[Entry], fraction: float) -> dict[str, Entry]:
    """By method."""
    return {entry.method: entry for entry in found if entry.fraction == fraction}


def over_both(entry: Entry, found: Sequence[Entry]) -> Difference | None:
    """`entry` minus the mean of both baselines at its budget, of the seeds that all three have."""
    of = at_budget(found, entry.fraction)
    if not {ALL, FRESH} <= of.keys():
        return None
    short, fresh = of[ALL].accuracy, of[FRESH].accuracy
    middle = {seed: (short[seed] + fresh[seed]) / 2 for seed in short if seed in fresh}
    return at_equal_steps(entry, replace(entry, accuracy=middle))


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
        short, fresh = (next((e for e in some if e.method == m), None) for m in (ALL, FRESH))
        outcomes: dict[str, list[str]] = {text: [] for text in (WINS, LOSES, OPEN)}
        for entry in some:
            if entry.method not in (ALL, FRESH) and len(entry.accuracy) > 1:
                timed = at_equal_time(entry, found)
                text = outcome(timed, at_equal_steps(entry, fresh))
                # What is behind at equal steps is not ahead at equal time.
                if timed is None and outcome(at_equal_steps(entry, short), None) == LOSES:
                    text = LOSES
                outcomes[text].append(f"`{entry.method}`")
        if any(outcomes.values()):
            parts = (f"{text}: {', '.join(names) or 'none'}" for text, names in outcomes.items())
            lines.append(f"- At {100 * fraction:g} %: {'; '.join(parts)}.")
        lines += single(some, fraction)
    if (cheapest := lossless(found)) is not None and (full := whole(found)) is not None:
        seeds = "1 seed" if len(full.accuracy) == 1 else f"{len(full.accuracy)} seeds"
        place = f"`{cheapest.method}` at {100 * cheapest.fraction:g} %, {reached(cheapest)}"
        told = f"{place}, {cheapest.seconds:.0f} s" if cheapest.fraction < 1 else "nothing"
        lines.append(
            f"- Cheaper than all data in full ({reached(full)} of {seeds}, {full.seconds:.0f} s), "
            "at most 0.1 points worse, of several seeds and timed beside the short schedule: "
            f"{told}."
        )
    return "\n".join(lines)


def single(some: list[Entry], fraction: float) -> list[str]:
    """Who has one seed only, beside the least validation accuracy that went on to more seeds."""
    others = [entry for entry in some if entry.method not in BASELINES]
    went_on = [entry.validation for entry in others if len(entry.accuracy) > 1]
    alone = [f"`{e.method}` ({e.validation:.2f})" for e in others if len(e.accuracy) == 1]
    if not alone:
        return []
    last = f"; those with more had at least {min(went_on):.2f}" if went_on else ""
    names = ", ".join(alone)
    told = f"with one seed only (validation accuracy{last})"
    return [f"- At {100 * fraction:g} %, {told}: {names}."]


def unrun(race: Race, task: str, found: list[Entry]) -> list[str]:
    """Who was to go on from the first budget, and did not, for each of the others."""
    if (full := whole(found)) is None or not at_budget(found, SCREENED):
        return []
    finals = replace(race, fractions=[SCREENED]).finals(task, SCREENED)
    lines = []
    for fraction in sorted({entry.fraction for entry in found} - {1}):
        there = at_budget(found, fraction)
        if FRESH not in there:
            continue  # run for the interpolation of the short schedule
        if names := [f"`{method}`" for method in finals if method not in there]:
            left = f"{full.mean - there[ALL].mean:+.2f} points were left to win"
            lines.append(
                f"- At {100 * fraction:g} % did not run, where {left}: {', '.join(names)}."
            )
    return lines


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
