"""The paper's plots, of our runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.paper.figures import Entry

LEAST = 0.01  # % of relative error that the logarithmic axis shows; no loss at all is drawn there


@contextmanager
def _figure(path: Path, title: str, x: str, y: str):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3, which="both")
    yield axes
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tradeoff(found: Sequence[Entry], title: str, path: Path, *, energy: bool = False) -> None:
    """Relative error against speed-up or energy ratio, both logarithmic; lines join budgets."""
    gain: Callable[[Entry], Any] = (lambda e: e.energy_ratio) if energy else (lambda e: e.speedup)
    x = "energy of all data / energy" if energy else "speed-up over all data"
    with _figure(path, title, x, f"relative error in % (at least {LEAST:g})") as axes:
        for place, name in enumerate(dict.fromkeys(entry.name for entry in found)):
            points = [e for e in found if e.name == name and gain(e) is not None]
            axes.plot(
                [gain(e) for e in points],
                [max(LEAST, e.relative_error) for e in points],
                "osD^v<>Pp*hX"[place % 12] + "-",
                color=f"C{place % 10}",
                linewidth=0.8,
                label=name.replace("`", ""),
            )
        axes.set(xscale="log", yscale="log")


def convergence(found: Sequence[Entry], title: str, path: Path) -> None:
    """Test accuracy against time, the mean over seeds, of all data and of each method."""
    with _figure(path, title, "seconds, selection included", "test accuracy (%)") as axes:
        for entry in (found[0].whole, *found):
            curves = [line["curve"] for line in entry.lines if not line["diverged"]]
            if not curves:
                continue
            scale = entry.seconds / mean(line["seconds"] for line in entry.lines)
            points = list(zip(*curves, strict=False))
            seconds = [scale * mean(p[0] for p in point) for point in points]
            accuracy = [100 * mean(p[3] for p in point) for point in points]
            axes.plot(seconds, accuracy, label=entry.name.replace("`", ""))
        axes.set_xscale("log")
