"""Every strategy on several datasets and subset sizes: accuracy and time, as Markdown tables.

    python -m benchmarks.strategies --data mnist fashion-mnist --out runs/strategies

Each cell is a run of examples/train.py for each seed; finished ones are kept and not repeated, so
the command goes on where it was interrupted, and the table shows what is there (`--table` only
shows it).
Options that it does not know go to examples/train.py; `--every 5 --pool-fraction 0.25 --out
runs/often`, say, selects more often from fewer candidates.

Accuracies are means ± standard deviations over the seeds. Times are those of the fastest seed,
since other work on the machine can only make a run slower. "Full, stopped" is the run on all the
data, stopped once it has taken the time of `gradmatch`; it has not annealed its learning rate by
then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from adaptive_subset import STRATEGIES

EXAMPLE = Path(__file__).parents[1] / "examples" / "train.py"
WARM = ("random", "gradmatch", "gradmatch-pb", "craig", "craig-pb", "glister", "gradient-norm")
METHODS = ["full", "full-short", *STRATEGIES, *(f"{name}-warm" for name in WARM)]

Runs = dict[str, list[dict[str, Any]]]


def main() -> None:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", default=["mnist", "fashion-mnist"], help="as in examples/train.py")
    add("--fractions", nargs="+", default=["0.1", "0.05", "0.01"])
    add("--seeds", nargs="+", default=["0", "1", "2"])
    add("--methods", nargs="+", default=METHODS)
    add("--epochs", default="100")
    add("--weight-decay", default="2e-3")
    add("--out", type=Path, default=Path("runs/strategies"))
    add("--table", action="store_true", help="show what is there, run nothing")
    options, others = parser.parse_known_args()

    if not options.table:
        # Seed by seed, so that an interrupted comparison has all methods with fewer seeds.
        for last in range(len(options.seeds)):
            for data in options.data:
                for fraction in options.fractions:
                    run(options, data, fraction, options.seeds[: last + 1], others)
    tables = {
        (Path(data).name, fraction): {
            method: finished(folder(options.out, data, fraction), method, options.seeds)
            for method in options.methods
        }
        for data in options.data
        for fraction in options.fractions
    }
    print(markdown(tables, options.methods, len(options.seeds)))


def finished(place: Path, method: str, seeds: list[str]) -> list[dict[str, Any]]:
    """The runs that are there, the newest of each seed."""
    runs = []
    for seed in seeds:
        paths = (place / "finished").glob(f"{method}-seed{seed}-*.json")
        newest = sorted(paths, key=lambda path: path.stat().st_mtime)[-1:]
        runs += [json.loads(path.read_text()) for path in newest]
    return runs


def folder(out: Path, data: str, fraction: str) -> Path:
    return out / f"{Path(data).name}-{fraction}"


def run(
    options: argparse.Namespace, data: str, fraction: str, seeds: list[str], others: list[str]
) -> None:
    # A run on all the data is the same for every fraction.
    once = ("full", "infobatch") if fraction != options.fractions[0] else ()
    methods = [method for method in options.methods if method not in once]
    arguments = {
        "data": [data],
        "fraction": [fraction],
        "epochs": [options.epochs],
        "weight-decay": [options.weight_decay],
        "methods": methods,
        "seeds": seeds,
        "out": [str(folder(options.out, data, fraction))],
    }
    flags = [word for name, values in arguments.items() for word in (f"--{name}", *values)]
    subprocess.run([sys.executable, str(EXAMPLE), *flags, *others], check=True)


def markdown(tables: dict[tuple[str, str], Runs], methods: list[str], seeds: int) -> str:
    """Accuracy in %, and training time as a share of that of the full run."""
    full: dict[str, list[dict[str, Any]]] = {}
    for (data, _), runs in tables.items():
        if runs.get("full"):
            full[data] = runs["full"]
    heads = [f"{data}, {100 * float(fraction):g} %" for data, fraction in tables]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method in [*methods, "full, stopped"]:
        cells = []
        for (data, _), runs in tables.items():
            found = runs.get(method, [])
            seconds = fastest(full[data]) if data in full else None
            if method == "full, stopped" and data in full and runs.get("gradmatch"):
                limit = fastest(runs["gradmatch"])
                found = [stopped(r, limit * r["seconds"] / fastest(full[data])) for r in full[data]]
            cells.append(cell(found, seconds, seeds))
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(runs: list[dict[str, Any]], full_seconds: float | None, seeds: int) -> str:
    if not runs:
        return ""
    accuracies = [100 * r["accuracy"] for r in runs]
    spread = f" ± {stdev(accuracies):.2f}" if len(runs) > 1 else ""
    notes = [f"{100 * fastest(runs) / full_seconds:.0f} %"] if full_seconds else []
    if len(runs) < seeds:
        notes.append(f"{len(runs)} seed" + "s" * (len(runs) > 1))
    return f"{mean(accuracies):.2f}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def fastest(runs: list[dict[str, Any]]) -> float:
    return float(min(r["seconds"] for r in runs))


def stopped(run: dict[str, Any], limit: float) -> dict[str, Any]:
    """The last point of a run's curve within `limit` seconds."""
    points = [point for point in run["curve"] if point["seconds"] <= limit]
    point: dict[str, Any] = points[-1] if points else run["curve"][0]
    return point


if __name__ == "__main__":
    main()
