"""What runs leave behind: one JSON line each, in a file that survives being killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run to be made: a task, a method, a budget, a learning rate, a seed."""

    task: str
    method: str
    fraction: float
    rate: float
    seed: int


class Results:
    """Finished runs, by cell and by all settings of task and method.

    A changed recipe makes other runs: those of the old one stay in the file and are left out.

    Args:
        path: of the file that runs are appended to.
        also: files that are only read, such as those of other machines.
    """

    def __init__(self, path: Path, also: Iterable[Path] = ()) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # killed while writing
            os.truncate(path, len(whole))
        self._runs: dict[str, dict[tuple[float, int], Line]] = {}
        others = [file.read_bytes() for file in also if file != path]
        for text in (*others, whole):  # others may be in the middle of a line
            for line in map(json.loads, text[: text.rfind(b"\n") + 1].splitlines()):
                self._keep(line)

    def add(self, cell: Cell, settings: Line, measured: Line) -> Line:
        """Append a finished run; it is on the disk when this returns."""
        line = {**asdict(cell), "settings": settings, **measured}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(line)
        return line

    def find(self, cell: Cell, settings: Line) -> Line | None:
        kind = _kind(cell.task, cell.method, cell.fraction, settings)
        return self._runs.get(kind, {}).get((cell.rate, cell.seed))

    def of(self, task: str, method: str, fraction: float, settings: Line) -> list[Line]:
        """All runs that differ in learning rate and seed only."""
        return list(self._runs.get(_kind(task, method, fraction, settings), {}).values())

    def fractions(self) -> list[float]:
        return sorted({line["fraction"] for line in self.lines()})

    def seeds(self) -> list[int]:
        return sorted({line["seed"] for line in self.lines()})

    def lines(self) -> list[Line]:
        """All finished runs, of any settings."""
        return [line for runs in self._runs.values() for line in runs.values()]

    def _keep(self, line: Line) -> None:
        kind = _kind(line["task"], line["method"], line["fraction"], line["settings"])
        self._runs.setdefault(kind, {})[line["rate"], line["seed"]] = line


def prices_beside(path: Path) -> Results:
    """What was timed in turns (`benchmarks.arena.price`), kept beside the runs at `path`."""
    return Results(path.with_stem(f"{path.stem}-prices"))


def clock(line: Line) -> tuple[float, float]:
    """Seconds of a run in all and for selections: of the wall on a GPU, else of the processor.

    The processor's are those of one thread on an idle machine, where other work only adds waiting.
    """
    kind = "" if line["environment"]["device"] != "cpu" else "processor_"
    return line[f"{kind}seconds"], line[f"selection_{kind}seconds"]


def price(line: Line) -> tuple[float, float]:
    """What a run took in all, and for selections, for a second of the run on all data."""
    (whole, selecting), (plain, _) = clock(line), clock(line | line["beside"])
    return whole / plain, selecting / plain


def best_rate(lines: Iterable[Line]) -> float | None:
    """The learning rate with the best mean accuracy on the validation samples.

    Among the rates that ran with the most seeds, and over the seeds that all of these have, so that
    no rate is favoured by its seeds. The test accuracy has no say. Of equals it is the smallest.
    """
    by_rate: dict[float, dict[int, float]] = {}
    for line in lines:
        by_rate.setdefault(line["rate"], {})[line["seed"]] = line["validation"]
    if not by_rate:
        return None
    most = max(map(len, by_rate.values()))
    tried = {rate: seeds for rate, seeds in by_rate.items() if len(seeds) == most}
    common = set.intersection(*(set(seeds) for seeds in tried.values()))
    if not common:
        raise ValueError(f"learning rates {sorted(tried)} have no seed in common")

    def score(rate: float) -> tuple[float, float]:
        return sum(tried[rate][seed] for seed in common), -rate

    return max(tried, key=score)


def _kind(task: str, method: str, fraction: float, settings: Line) -> str:
    return json.dumps([task, method, fraction, settings], sort_keys=True)
