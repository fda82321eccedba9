"""Timing in turns, and what a benchmark leaves behind: a table and every raw figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def in_turns(
    cases: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each case, once a round, and what each returned last.

    Rounds, not blocks: a machine that slows down for a while slows all of them down.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, run in cases.items():
            _wait()
            start = time.perf_counter()
            results[name] = run()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def command(doc: str | None, prog: str) -> argparse.ArgumentParser:
    """Told by a module's docstring: its first line describes, the rest stands below the options."""
    description, _, details = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """With the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--data", default="mnist", help="as in examples/train.py (mnist)")
    made.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    made.add_argument("--out", type=Path, default=Path("runs/benchmarks") / out)
    return made


def report(path: Path, rows: list[Row], device: str | None = None) -> None:
    """Write all figures to `path` and print a Markdown table of those that are no lists."""
    save(path, rows, device)
    print(markdown(rows))


def save(path: Path, rows: list[Row], device: str | None = None) -> None:
    """Write all figures to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"environment": environment(device), "rows": rows}
    path.write_text(json.dumps(written, indent=1) + "\n")


def markdown(rows: list[Row]) -> str:
    """A table with a column for each key whose value is no list."""
    given = {name: value for row in rows for name, value in row.items()}
    names = [name for name, value in given.items() if not isinstance(value, list)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        values = [row.get(name, "") for name in names]
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peak() -> float:
    """The most memory that this process has held so far, in GiB."""
    # Not getrusage, which counts what the parent held when it started this process.
    return _memory("VmHWM")


def resident() -> float:
    """The memory that this process holds now, in GiB."""
    return _memory("VmRSS")


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 2**20


def environment(device: str | None = None) -> dict[str, Any]:
    """The machine and the versions that were measured with, on a GPU where there is one."""
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    packages = {}
    for name in ("torch", "numpy", "scikit-learn", "apricot-select", "submodlib-py"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "packages": packages,
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
