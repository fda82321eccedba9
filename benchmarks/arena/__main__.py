"""Does training on chosen data beat just training shorter, at equal cost?

    python -m benchmarks.arena --data DIR             # goes on where it was interrupted
    python -m benchmarks.arena --report benchmarks/results/arena.jsonl   # only writes the page

DIR holds a folder for each set (fashion-mnist, cifar10): IDX files, train/CLASS/* and test/CLASS/*,
or a tar file of these. Without one, torchvision downloads the set (the extra `examples`).

Every method runs with several learning rates, of which the best on a validation split of the
training data counts, and for as many optimizer steps; then the best run with more seeds. Each
finished run is one JSON line in OUT/arena.jsonl. Times are those of one thread.

    python -m benchmarks.arena --data DIR --prices    # times them beside the short schedule
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks import measure
from benchmarks.arena import price, report
from benchmarks.arena.crew import Worker, arena
from benchmarks.arena.methods import METHODS
from benchmarks.arena.race import Race, run
from benchmarks.arena.results import Results, prices_beside
from benchmarks.arena.tasks import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    path = options.report or options.out / "arena.jsonl"
    results, prices = Results(path), prices_beside(path)
    race = Race(
        tasks={name: TASKS[name] for name in options.tasks},
        methods={name: METHODS[name] for name in options.methods},
        fractions=options.fractions,
        seeds=options.seeds,
        finalists=options.finalists,
        results=results,
        prices=prices,
    )
    if options.report is None:
        places = options.data, options.out / "cache", options.device, options.threads
        worker = Worker(arena, *places)
        if options.prices:
            price.run(race.tasks, race.methods, race.several(), prices, worker)
        else:
            run(race, worker, worker.environment(options.processes), processes=options.processes)
    everything = replace(
        race,
        tasks=TASKS,
        methods=METHODS,
        fractions=results.fractions(),
        seeds=results.seeds(),
    )
    report.write(everything, options.page)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = measure.command(__doc__, "benchmarks.arena")
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="folder with a folder for each set (data)")
    add("--out", type=Path, default=Path("runs/arena"), help="for results and decoded data")
    add("--tasks", nargs="+", choices=TASKS, metavar="TASK",
        help=f"{', '.join(TASKS)} (those for a core, or for a GPU, by --device)")  # fmt: skip
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
        help=", ".join(METHODS))  # fmt: skip
    add("--fractions", nargs="+", type=float, default=[0.1],
        help="budgets, the one that all methods run at first (0.1); 1 is all data")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--finalists", type=int, default=5, help="beside the baselines (5)")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--processes", type=int, default=1, help="runs beside each other, each of so many threads")
    add("--prices", action="store_true", help="train no further: time what ran with several seeds")
    add("--report", type=Path, metavar="JSONL", help="run nothing, report these results")
    add("--page", type=Path, default=PAGE, help="where the report goes (docs/comparison.md)")
    options = parser.parse_args(arguments)
    on_gpu = options.device != "cpu"
    options.tasks = options.tasks or [n for n, task in TASKS.items() if task.on_gpu == on_gpu]
    if any(not 0 < fraction <= 1 for fraction in options.fractions):
        parser.error(f"--fractions must be in (0, 1], got {options.fractions}")
    return options


if __name__ == "__main__":
    main()
