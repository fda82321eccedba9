"""What a comparison shows: a table, a plot and a file with every figure behind them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import torch
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Runs = dict[str, list[dict[str, Any]]]  # method -> the results of its seeds


def table(runs: Runs, title: str) -> Table:
    """One row a method: accuracy, times and energy if measured, as means over the seeds."""
    result = Table(title=title)
    columns = ["method", "test accuracy", "training time", "speed-up", "of it selecting"]
    measured = all(run["joules"] is not None for results in runs.values() for run in results)
    for column in [*columns, "energy"] if measured else columns:
        result.add_column(column, justify="left" if column == "method" else "right")
    full_seconds = mean(run["seconds"] for run in runs["full"]) if "full" in runs else None
    for method, results in runs.items():
        accuracies = [100 * run["accuracy"] for run in results]
        seconds = mean(run["seconds"] for run in results)
        energy = [f"{mean(run['joules'] for run in results):.0f} J"] if measured else []
        result.add_row(
            method,
            f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f} %"
            if len(accuracies) > 1
            else f"{accuracies[0]:.2f} %",
            f"{seconds:.1f} s",
            f"{full_seconds / seconds:.1f} ×" if full_seconds else "–",
            f"{mean(run['selection_seconds'] for run in results):.2f} s",
            *energy,
        )
    return result


def plot(runs: Runs, title: str, path: Path) -> None:
    """Test accuracy against training time; a line is the mean of a method's seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method, results in runs.items():
        curves = torch.tensor(
            [[(p["seconds"], p["accuracy"]) for p in r["curve"]] for r in results]
        )
        seconds, accuracy = curves.mean(0).T
        (line,) = axes.plot(seconds, 100 * accuracy, label=method)
        lowest, highest = curves[..., 1].aminmax(dim=0)
        axes.fill_between(seconds, 100 * lowest, 100 * highest, color=line.get_color(), alpha=0.15)
        axes.plot(seconds[-1:], 100 * accuracy[-1:], "o", color=line.get_color())
    axes.set(title=title, xscale="log", xlabel="training time (s), selection included")
    axes.set_ylabel("test accuracy (%)")
    finals = [100 * run["accuracy"] for results in runs.values() for run in results]
    room = 1 + max(finals) - min(finals)  # show the ends of the curves, not their first steps
    axes.set_ylim(max(0.0, min(finals) - room), max(finals) + 0.2 * room)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that the times were measured with."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or device.type,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def write_json(path: Path, content: Any) -> None:
    """Write the file in one step, so that a job killed here leaves no half of it."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


def _cpu_model() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
