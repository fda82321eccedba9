"""What a method's run takes beside that of the short schedule: both in turns, in one process.

Runs of different hours meet a machine of different speed; those of the same minute do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.arena.crew import Worker
from benchmarks.arena.data import Data
from benchmarks.arena.methods import Method
from benchmarks.arena.phases import Phases
from benchmarks.arena.race import ALL, settings
from benchmarks.arena.results import Cell, Results, price
from benchmarks.arena.run import Training
from benchmarks.arena.tasks import Task

SEED = 0


def in_turns(
    task: Task,
    methods: Mapping[str, Method],
    fraction: float,
    rate: float,
    seed: int,
    data: Data,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Train with each method and on all data, an epoch of one after an epoch of the other.

    Returns:
        For each method what its run took, as `train` tells it, and under `beside` what the run on
        all data took. One that broke down has no price.
    """
    with ExitStack() as stack:

        def start(method: Method) -> tuple[Training, Phases]:
            phases = stack.enter_context(Phases(device))
            return Training(task, method, fraction, rate, seed, data, phases), phases

        plain, plain_phases = start(Method(None))
        runs = {name: start(method) for name, method in methods.items()}
        steps = plain.epochs.steps
        for step in range(steps // task.epochs, steps + 1, steps // task.epochs):
            plain.advance(step)
            runs = {name: run for name, run in runs.items() if run[0].advance(step)}
        beside = plain_phases.spent()
        return {name: {**phases.spent(), "beside": beside} for name, (_, phases) in runs.items()}


def run(
    tasks: Mapping[str, Task],
    methods: Mapping[str, Method],
    wanted: Iterable[tuple[str, str, float]],
    prices: Results,
    worker: Worker,
    say: Callable[[str], Any] = print,
) -> None:
    """Time what has no price yet.

    Args:
        tasks, methods: all that are wanted.
        wanted: task, method and budget; those that share the first and the last run together.
        prices: where they are kept.
    """
    heats: dict[tuple[str, float], list[str]] = {}
    for name, method, fraction in wanted:
        known = settings(tasks[name], methods[method], fraction)
        if not prices.of(name, method, fraction, known):
            heats.setdefault((name, fraction), []).append(method)
    environment = worker.environment(1)
    for (name, fraction), asked in heats.items():
        task, timed = tasks[name], {method: methods[method] for method in asked}
        data, device, rate = worker.load(name, task), torch.device(worker.device), task.rates[0]
        made = in_turns(task, timed, fraction, rate, SEED, data, device)
        for method, took in made.items():
            cell = Cell(name, method, fraction, rate, SEED)
            known = settings(task, timed[method], fraction)
            line = prices.add(cell, known, {**took, "environment": environment})
            say(f"{name} {100 * fraction:g} % {method}: {price(line)[0]:.3f} of `{ALL}`")
