"""Accuracy against cost, with the Pareto front."""

from __future__ import annotations

from pathlib import Path

from benchmarks.arena.figures import Entry, pareto, standard_error


def accuracy_by_cost(found: list[Entry], title: str, path: Path) -> None:
    """One point a method and budget; lines join the budgets of a method.

    Hollow is what is not on the front, since its cost or its accuracy is not to be ranked.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = [entry for entry in found if entry.timed]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    markers = "osD^v<>Pp*hX"
    methods = list(dict.fromkeys(entry.method for entry in found))
    for place, method in enumerate(methods):
        points = sorted((e for e in found if e.method == method), key=lambda e: e.seconds)
        color, marker = plt.get_cmap("tab20")(place % 20), markers[place % len(markers)]
        axes.plot([e.seconds for e in points], [e.mean for e in points], color=color, linewidth=0.8)
        for e in points:
            axes.errorbar(
                e.seconds,
                e.mean,
                standard_error(tuple(e.accuracy.values())) or 0.0,
                fmt=marker,
                color=color,
                markerfacecolor=color if e.settled else "none",
                label=method if e is points[0] else None,
            )
    front = pareto([entry for entry in found if entry.settled])
    axes.plot([e.seconds for e in front], [e.mean for e in front], "k--", label="Pareto front")
    axes.set(title=title, xscale="log", xlabel="seconds of training, selection included")
    axes.set_ylabel("test accuracy (%), each at its best learning rate")
    best = max(entry.mean for entry in found)
    floor = sorted(entry.mean for entry in found)[len(found) // 5]
    axes.set_ylim(floor - 0.5 * (best - floor) - 0.1, best + 0.2 * (best - floor) + 0.1)
    for label_by in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        label_by("{x:g}")  # seconds, not powers of ten
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
