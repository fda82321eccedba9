"""The experiments of GRAD-MATCH's paper: accuracy lost against time and energy saved.

    python -m benchmarks.paper --preset mnist --data DIR --small    # goes on where it was killed
    python -m benchmarks.paper --report benchmarks/results/paper.jsonl   # only writes the page

DIR holds a folder for each set (mnist, cifar10, …): IDX files, train/CLASS/* and test/CLASS/*, or a
tar file of these. Without one, torchvision downloads the set (the extra `examples`).

Everything trains with the paper's one learning rate; docs/comparison.md is where each method has
its own best one. Each finished run is one JSON line in OUT/paper.jsonl, and is never repeated. With
--processes several are made beside each other, on a large GPU or many cores.

    python -m benchmarks.paper --preset mnist --data DIR --small --prices   # times a step of each
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from adaptive_subset.energy import EnergyError, EnergyMeter
from benchmarks import measure
from benchmarks.arena import price
from benchmarks.arena.crew import Worker
from benchmarks.arena.race import run
from benchmarks.arena.results import Line, Results, prices_beside
from benchmarks.paper.experiment import STEPS, Experiment
from benchmarks.paper.presets import PRESETS, SMALL, chosen, of_cell

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.report:
        from benchmarks.paper import report

        path = options.report[0]
        report.write(Results(path, options.report[1:]), prices_beside(path), options.page)
        return
    preset = chosen(options.preset, options.small, options.bf16)
    heats = [
        replace(heat, methods=tuple(m for m in heat.methods if m in (options.methods or [m])))
        for heat in preset.heats
        if heat.fraction in (options.fractions or [heat.fraction])
    ]
    path = options.out / "paper.jsonl"
    results = Results(path)
    experiment = Experiment(preset, heats, options.seeds, results, prices_beside(path))
    recipe = partial(of_cell, options.preset, options.small, options.bf16)
    places = options.data, options.out / "cache", options.device, options.threads
    worker = Worker(recipe, *places)
    if options.prices:
        price.run(preset.tasks, STEPS, experiment.to_price(), experiment.prices, worker)
        return
    environment = worker.environment(options.processes)
    check_same_device(results.lines(), environment["device"], options.out)
    if options.energy:
        try:
            EnergyMeter()
            worker.metering = EnergyMeter
        except EnergyError as error:
            environment["energy_missing"] = str(error)
            print(f"Energy is not measured: {error}.")
    run(experiment, worker, environment, partial(print, flush=True), options.processes)


def check_same_device(lines: Iterable[Line], device: str, out: Path) -> None:
    """Times of different hardware say nothing of each other.

    Raises:
        SystemExit: there are runs of another device.
    """
    others = {line["environment"]["device"] for line in lines} - {device}
    if others:
        raise SystemExit(
            f"--out {out} holds runs on {', '.join(sorted(others))}, this is {device}: speed-ups "
            "compare runs on one device. Give another --out."
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = measure.command(__doc__, "benchmarks.paper")
    add = parser.add_argument
    add("--preset", choices=PRESETS, metavar="PRESET", help=", ".join(PRESETS))
    add("--small", action="store_true", help="the twin that fits two cores")
    add("--data", type=Path, default=Path("data"), help="folder with a folder for each set (data)")
    add("--out", type=Path, default=Path("runs/paper"), help="for results and decoded data")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--methods", nargs="+", help="of the preset, beside all data at full length")
    add("--fractions", nargs="+", type=float, help="of the preset")
    add("--processes", type=int, default=1, help="runs beside each other, each of so many threads")
    add("--bf16", action="store_true", help="train under autocast to bfloat16")
    add("--energy", action="store_true", help="measure joules; keep others off the machine")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--prices", action="store_true", help="run nothing, time a step of each task")
    add("--report", type=Path, nargs="+", metavar="JSONL", help="run nothing, report these results")
    add("--page", type=Path, default=PAGE, help="where the report goes (docs/paper.md)")
    options = parser.parse_args(arguments)
    if (options.preset is None) == (options.report is None):
        parser.error("give one of --preset and --report")
    if options.small and options.preset not in SMALL:
        parser.error(f"--small is there for {', '.join(SMALL)}, not for {options.preset}")
    if options.energy and options.processes > 1:
        parser.error("--energy measures the whole machine: give it without --processes")
    if options.preset is not None:
        preset = (SMALL if options.small else PRESETS)[options.preset]
        unknown = {*(options.methods or [])} - {*preset.methods}
        unknown |= {*(options.fractions or [])} - {heat.fraction for heat in preset.heats}
        if unknown:
            parser.error(f"{options.preset} has no {', '.join(map(str, unknown))}")
    return options


if __name__ == "__main__":
    main()
