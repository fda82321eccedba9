"""The page: the paper's figures beside ours, its plots of our runs, and which claims are seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.arena.report import machines, markdown
from benchmarks.arena.results import Results
from benchmarks.paper import plot
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.figures import Entry, as_fast, compared, entries
from benchmarks.paper.presets import PRESETS, SMALL, with_bf16
from benchmarks.paper.printed import PRINTED, Printed
from benchmarks.paper.verdicts import HERO, HERO_IMBALANCE, judged

HEAD = """# The experiments of GRAD-MATCH's paper

Killamsetty et al., "GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep
Learning Model Training", ICML 2021, §5. SGD with a learning rate of 0.01, momentum 0.9, weight
decay 5e-4 and a cosine over the steps; κ = 1/2, R = 20, λ = 0.5; a tenth of the training data is
the validation set.

**One learning rate for all, the paper's, is not a fair race**: what suits a run on all data does
not suit one with a hundredth of the steps, nor all methods alike. [comparison.md](comparison.md)
gives each method its own best rate, and its answer is the one to choose by. This page asks only
whether the paper's own comparisons are seen again.

- *All data, stopped*: the run on all data with its full schedule, when it had taken as long as the
  method with its selections; `full-short` is all data with a schedule annealed over as many steps.
- `random` is one subset, drawn once; `order-dp` is what this library recommends for clean labels.
  CRAIGPB and CRAIG match the training data, GLISTER the validation set.
- *Lost* is in points of test accuracy against all data in full, paired by seed; *relative error*
  is in % of that. Accuracies are means ± the standard deviation over seeds.
- Times hold training and selection but no evaluation: processor seconds of one thread on a CPU, the
  wall's on a GPU; medians over seeds. Where several processes shared a GPU, it is said. The CPU was
  busy with other work too, which made a run up to nearly twice as long. So a step on a subset was
  timed beside one on all data, an epoch of one after an epoch of the other, selections count in
  steps of their own run, and seconds are those that so many steps on all data took.

```sh
python -m benchmarks.paper --preset mnist --data DIR --small             # runs what is missing
python -m benchmarks.paper --preset mnist --data DIR --small --prices    # times a step
python -m benchmarks.paper --preset mnist --data DIR --device cuda --processes 4
python -m benchmarks.paper --preset cifar10 --data DIR --device cuda --bf16 --energy
python -m benchmarks.paper --report benchmarks/results/paper.jsonl       # writes this page
```
"""


def write(results: Results, prices: Results, path: Path) -> None:
    """The page at `path`, its plots beside it."""
    sections, idle = [HEAD], []
    ours: dict[str, list[Entry]] = {}
    for size, presets in (("", PRESETS), ("small", SMALL)):
        for precision in ("", "bf16"):
            for name, preset in presets.items():
                made = with_bf16(preset) if precision else preset
                label = "-".join(part for part in (name, size, precision) if part)
                experiment = Experiment(made, made.heats, results.seeds(), results, prices)
                if text := _section(label, experiment, path, ours):
                    sections.append(text)
                elif not precision:
                    idle.append(f"`{name}`" + (" `--small`" if size else ""))
    sections.insert(1, _printed(ours))
    if idle:
        sections.append(f"## Not run\n\n{', '.join(idle)}.\n")
    path.write_text("\n".join(sections))


def _section(
    label: str, experiment: Experiment, path: Path, ours: dict[str, list[Entry]]
) -> str | None:
    preset = experiment.preset
    same = [found for other, found in ours.items() if _is_bf16(other) == _is_bf16(label)]
    shown = {(e.task, e.method, e.fraction) for found in same for e in found}
    found = [(heat, entries(experiment, heat)) for heat in preset.heats]
    # What other presets share with this one does not make it one that was run.
    if not any((e.task, e.method, e.fraction) not in shown for _, some in found for e in some):
        return None
    every = list({(e.task, e.method, e.fraction): e for _, some in found for e in some}.values())
    ours.setdefault(label, []).extend(every)
    total, seeds = len(experiment.cells()), len(experiment.seeds)
    finished = (
        f"{total - len(experiment.missing())} of {total} runs are made, with {seeds} seed(s)."
    )
    place = f"{_machine(every)} {finished}"
    text = [f"## {label}, figure {preset.figure}\n\n{preset.note} {place}\n"]
    for task in dict.fromkeys(heat.full for heat, some in found if some):
        about, epochs = preset.tasks[task].about, preset.tasks[task].epochs
        text.append(f"### {about}, {epochs} epochs\n")
        heats = [(heat, some) for heat, some in found if heat.full == task and some]
        mine = [entry for entry in every if any(entry in some for _, some in heats)]
        for kind in ("speed-up", "energy"):
            if kind == "energy" and all(entry.energy_ratio is None for entry in mine):
                continue
            image = path.with_name(f"paper-{label}{_suffix(label, task)}-{kind}.png")
            plot.tradeoff(mine, about, image, energy=kind == "energy")
            text.append(f"![Relative error against {kind}]({image.name})\n")
        largest = max((heat.fraction for heat, _ in heats if not heat.beside), default=1)
        usual = [e for e in mine if (e.kind or e.fraction == largest) and "," not in e.method]
        image = path.with_name(f"paper-{label}{_suffix(label, task)}-convergence.png")
        plot.convergence(usual, f"{about}, {100 * largest:g} %", image)
        text.append(f"![Accuracy in the course of training]({image.name})\n")
        for heat, some in heats:
            head = [heat.about] if heat.about else []
            head += [f"{100 * heat.fraction:g} %"] if heat.fraction < 1 else ["all data"]
            text.append(f"#### {', '.join(head)}\n\n{table(some)}\n")
    hero = HERO_IMBALANCE if "imbalance" in label else HERO
    if rows := wilcoxon(every, hero):
        text.append(f"### `{hero}` against the others\n\n{rows}\n")
    return "\n".join(text)


def _is_bf16(label: str) -> bool:
    return label.endswith("-bf16")


def _suffix(label: str, task: str) -> str:
    """What tells the plots of a preset's tasks apart."""
    return f"-{task.rpartition('-')[2]}" if "imbalance" in label else ""


def _machine(every: Sequence[Entry]) -> str:
    lines = [line for entry in every for line in (*entry.lines, *entry.full)]
    places = [line["environment"] for line in lines]
    text = machines(lines)
    if not any("joules" in line for line in lines):
        reasons = sorted({place.get("energy_missing", "not asked for") for place in places})
        text += f" No energy was measured ({'; '.join(reasons)})."
    elif missing := sorted({why for line in lines for why in line.get("energy_missing", [])}):
        text += f" Counters that could not be read: {'; '.join(missing)}."
    return text


def table(some: Sequence[Entry]) -> str:
    """All data in full, then one row for each method, the most accurate first."""
    measured = any(entry.energy_ratio is not None for entry in some)
    heads = ["method", "seeds", "accuracy", "lost", "relative error", "seconds", "of it selecting"]
    heads += ["speed-up", *(["energy ratio"] if measured else [])]
    heads += ["all data, stopped at this time", "− that"]
    heads += ["all data, stopped at this energy"] if measured else []
    whole = some[0].whole
    rows = [["all data in full", str(len(whole.lines)), spread(whole.accuracy), "", ""]]
    rows[0] += [f"{whole.seconds:.0f}", *[""] * (len(heads) - 6)]
    for entry in sorted(some, key=lambda e: e.lost):
        ratio = entry.energy_ratio
        stopped = entry.stopped(entry.speedup)
        common = [entry.accuracy[s] - stopped[s] for s in entry.accuracy if s in stopped]
        row = [entry.name, str(len(entry.lines)), spread(entry.accuracy)]
        row += [f"{entry.lost:+.2f}", f"{entry.relative_error:.2f} %"]
        row.append(f"{entry.seconds:.1f}" + (" ‡" if _untimed(entry) else ""))
        row += [f"{100 * entry.selecting:.0f} %", f"{entry.speedup:.1f} ×"]
        if measured:
            row.append("–" if ratio is None else f"{ratio:.1f} ×")
        row += [spread(stopped), f"{mean(common):+.2f}" if common else "–"]
        if measured:
            row.append("–" if ratio is None else spread(entry.stopped(ratio)))
        rows.append(row)
    untimed = any(map(_untimed, some))
    note = (
        "\n\n‡ of runs at other times than those on all data, and as rough as the machine's speed."
    )
    return markdown(heads, rows) + (note if untimed else "")


def _untimed(entry: Entry) -> bool:
    return entry.step is None and entry.lines[0]["environment"]["device"] == "cpu"


def spread(accuracy: dict[int, float]) -> str:
    values = list(accuracy.values())
    if not values:
        return "–"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def wilcoxon(every: Sequence[Entry], hero: str) -> str:
    """Accuracy over all budgets and seeds; nothing where `hero` has not run."""
    rows = [
        (
            f"`{against.other}`" if against.other.isascii() and " " not in against.other
            else against.other,
            str(len(against.differences)),
            str(sum(difference > 0 for difference in against.differences)),
            f"{mean(against.differences):+.2f}",
            "–" if (p := against.p) is None else f"{p:.2g}",
        )
        for against in compared(every, hero)
    ]  # fmt: skip
    heads = ("against", "pairs", "won", "mean difference in points", "p (Wilcoxon signed-rank)")
    note = (
        "\n\nPairs are seeds at one budget of one task. With fewer than 6, p cannot be below 0.05."
    )
    return markdown(heads, rows) + note if rows else ""


def _printed(ours: dict[str, list[Entry]]) -> str:
    rows = []
    for item in PRINTED:
        budget = "not said" if item.fraction is None else f"{100 * item.fraction:g} %"
        method = "all data" if item.fraction == 1 else f"`{item.method}`"
        row = [item.where, item.task, method, budget]
        row.append(f"{item.speedup:g} ×, {item.lost:g} lost")
        for twin in ("", "-small"):
            row.append(_beside(ours, item.task, twin, item.method, item.fraction))
        rows.append([*row, _as_fast(ours, item)])
    heads = ["in the paper", "task", "method", "budget", "the paper's", "ours", "our small twin's"]
    heads += ["least lost of ours as fast"]
    note = (
        "The last column takes the method and the budget that lost least of what is at least as "
        "fast as the paper's: the best of many on the test set, which flatters it a little. "
        "These are all the figures of the paper's main text; its other points are only in plots "
        "and in an appendix that was not at hand. It says moreover, and our runs say below each:"
    )
    return f"## What the paper prints\n\n{markdown(heads, rows)}\n\n{note}\n\n{judged(ours)}\n"


def _beside(
    ours: dict[str, list[Entry]], task: str, twin: str, method: str, fraction: float | None
) -> str:
    base, _, longer = task.partition("-")
    wanted = f"{base}{twin}" + (f"-{longer}" if longer else "")
    smaller = "-batches-of-20"
    texts = []
    for label, found in ours.items():
        for entry in found:
            same = entry.task.removesuffix(smaller), entry.method, entry.fraction
            if same == (wanted, method, fraction):
                name = " (bf16)" if _is_bf16(label) else ""
                name += " (batches of 20)" if entry.task.endswith(smaller) else ""
                texts.append(entry.told + name)
    return "; ".join(dict.fromkeys(texts)) or "not run"


def _as_fast(ours: dict[str, list[Entry]], item: Printed) -> str:
    found = [e for some in ours.values() for e in some if e.task == item.task and e.fraction < 1]
    if (best := as_fast(found, item.speedup)) is None:
        return "not run"
    return f"{best.name} at {100 * best.fraction:g} %: {best.told}"
