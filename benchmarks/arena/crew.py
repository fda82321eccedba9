"""Who makes the runs: this process, or several beside each other on a large machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from adaptive_subset.energy import EnergyMeter
from benchmarks import measure
from benchmarks.arena.data import Data
from benchmarks.arena.methods import METHODS, Method
from benchmarks.arena.results import Cell, Line
from benchmarks.arena.run import train
from benchmarks.arena.tasks import TASKS, Task


def arena(cell: Cell) -> tuple[Task, Method]:
    """The recipe of the arena's cells."""
    return TASKS[cell.task], METHODS[cell.method]


@dataclass
class Worker:
    """Makes one run after another; data stay in memory as long as the task is the same.

    Args:
        recipe: what a cell is made of. Other processes import it by its name, so it is in no
            module that is run as a command.
        source, cache: see `Task.load`.
        device: to train on.
        threads: of this process.
        metering: gives each run its meter of energy.
    """

    recipe: Callable[[Cell], tuple[Task, Method]]
    source: Path
    cache: Path
    device: str = "cpu"
    threads: int = 1
    metering: Callable[[], EnergyMeter] | None = None
    _loaded: tuple[str, Data] | None = field(default=None, init=False)

    def __call__(self, cell: Cell) -> tuple[Line, float]:
        """What a run measured, and the seconds that it took with all around it."""
        task, method = self.recipe(cell)
        data = self.load(cell.task, task)
        start = time.perf_counter()
        meter = None if self.metering is None else self.metering()
        device = torch.device(self.device)
        measured = train(task, method, cell.fraction, cell.rate, cell.seed, data, device, meter)
        return measured, time.perf_counter() - start

    def load(self, name: str, task: Task) -> Data:
        """The data of a task, for work on as many threads as it has."""
        torch.set_num_threads(self.threads)
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = name, task.load(self.source, self.cache)
        return self._loaded[1]

    def environment(self, processes: int) -> Line:
        """What the runs are made on, and how many share it."""
        found = measure.environment(self.device.partition(":")[0])
        return found | {"threads": self.threads, "processes": processes}


@contextmanager
def at_work(worker: Worker, processes: int) -> Iterator[Callable[[Cell], Future[Any]]]:
    """Gives out cells: to `processes` others, or, where it is one, to this."""
    if processes == 1:
        yield partial(_here, worker)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _employ, (worker,)) as pool:
        yield lambda cell: pool.submit(_employed, cell)


def _here(worker: Worker, cell: Cell) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(worker(cell))
    return done


_mine: list[Worker] = []  # of a process that was started for it


def _employ(worker: Worker) -> None:
    _mine.append(worker)


def _employed(cell: Cell) -> Any:
    return _mine[0](cell)
