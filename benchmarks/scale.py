"""Selection from up to as many samples as ImageNet has: seconds and memory of the solvers.

    python -m benchmarks.scale

Gradients are made with a seed, like those of a trained classifier: features gather around a centre
for each class, logits are products with these centres, δ = softmax − one-hot. Each size runs in a
process of its own, so that its peak of memory is its own; it holds the gradients in half precision,
as `Selector(storage_dtype=torch.float16)` keeps them, and selects 30 % of the samples.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from adaptive_subset import STRATEGIES
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.strategies import Candidates
from benchmarks import measure

CLASSES, FEATURES = 1000, 512
IMAGENET = 1_281_167
BATCH = 256


def candidates(n: int) -> Candidates:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    delta = torch.empty(n, CLASSES, dtype=torch.float16)
    h = torch.ones(n, FEATURES + 1, dtype=torch.float16)  # the last column is the bias's
    for start in range(0, n, 1 << 14):
        own = labels[start : start + (1 << 14)]
        features = torch.randn(len(own), FEATURES, generator=generator).mul_(1.5)
        features = features.add_(centres[own]).relu_()
        logits = features @ centres.T / 12
        shift = torch.nn.functional.one_hot(own, CLASSES)
        delta[start : start + len(own)] = logits.softmax(1).sub_(shift)
        h[start : start + len(own), :-1] = features
    return Candidates(n, FactoredGradients([(delta, h)]), labels)


def alone(name: str, n: int) -> measure.Row:
    """One selection, in this process."""
    given = candidates(n)
    before = measure.peak()
    strategy = STRATEGIES[name](**({"batch_size": BATCH} if name.endswith("-pb") else {}))
    budget = round(0.3 * n)
    budget -= budget % (strategy.batch_size or 1)
    start = time.perf_counter()
    choice = strategy.select(given, budget, seed=0, epoch=0)
    solved = time.perf_counter()
    error = given.relative_error(choice)
    return {
        "strategy": name,
        "samples": n,
        "selected": budget,
        "solver, s": solved - start,
        "error of the whole layer, s": time.perf_counter() - solved,
        "peak, GiB": measure.peak(),
        "of it gradients, GiB": 2 * n * (CLASSES + FEATURES + 1) / 2**30,
        "before, GiB": before,
        "relative error": error,
        "filled": choice.filled,
    }


def plot(rows: list[measure.Row], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, key in zip(axes, ("solver, s", "peak, GiB"), strict=True):
        for name in dict.fromkeys(row["strategy"] for row in rows):
            own = [row for row in rows if row["strategy"] == name]
            axis.plot([row["samples"] for row in own], [row[key] for row in own], "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="samples", ylabel=key)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = measure.parser(__doc__, "scale.json")
    parser.add_argument("--strategies", nargs="+", default=["gradmatch", "gradmatch-pb"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, IMAGENET])
    parser.add_argument("--plot", type=Path, default=Path("runs/benchmarks/scale.png"))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone[0], int(options.alone[1]))))
        return
    rows: list[measure.Row] = []
    for name in options.strategies:
        for size in options.sizes:
            command = [sys.executable, "-m", "benchmarks.scale", "--alone", name, str(size)]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(result.stdout.splitlines()[-1]))
    measure.report(options.out, rows)
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
