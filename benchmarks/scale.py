"""Selection from up to as many samples as ImageNet has: seconds and memory of the solvers.

    python -m benchmarks.scale
    python -m benchmarks.scale --classes 10 --features 10 --fractions 0.1 --strategies gradmatch \
        --sizes 200000 2000000

Gradients are made with a seed, like those of a trained classifier: features gather around a centre
for each class, logits are products with these centres, δ = softmax − one-hot. Each size runs in a
process of its own, so that its peak of memory is its own; it holds the gradients in half
precision, as `Selector(storage_dtype=torch.float16)` keeps them, and selects 30 % of the samples.
`of the processor`: its seconds, where those of the clock count what else the machine does. Of
gradients in a file `own memory` is what counts, since what is read from a file may be dropped at
any time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from adaptive_subset import STRATEGIES
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.storage import in_file
from adaptive_subset.strategies import Candidates
from benchmarks import measure

IMAGENET = 1_281_167
BATCH = 256


def candidates(n: int, classes: int, features: int, folder: Path | None) -> Candidates:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    delta, h = (
        torch.empty(n, width, dtype=torch.float16)
        if folder is None
        else in_file(torch.Size([n, width]), torch.float16, folder)
        for width in (classes, features + 1)
    )
    h[:, -1] = 1  # the bias's
    for start in range(0, n, 1 << 14):
        own = labels[start : start + (1 << 14)]
        made = torch.randn(len(own), features, generator=generator).mul_(1.5)
        made = made.add_(centres[own]).relu_()
        logits = made @ centres.T / max(min(12, features / 4), features / 43)
        shift = torch.nn.functional.one_hot(own, classes)
        delta[start : start + len(own)] = logits.softmax(1).sub_(shift)
        h[start : start + len(own), :-1] = made
    return Candidates(n, FactoredGradients([(delta, h)]), labels)


class OwnMemory(threading.Thread):
    """The most that this process holds itself, in GiB, looked at fifty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self.start()

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            own = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, int(own) / 2**20)
            time.sleep(0.02)


def alone(
    name: str, n: int, classes: int, features: int, fraction: float, folder: Path | None
) -> measure.Row:
    """One selection, in this process."""
    own = OwnMemory()
    given = candidates(n, classes, features, folder)
    before = measure.peak()
    strategy = STRATEGIES[name](**({"batch_size": BATCH} if name.endswith("-pb") else {}))
    budget = round(fraction * n)
    budget -= budget % strategy.unit
    start, processor = time.perf_counter(), time.process_time()
    choice = strategy.select(given, budget, seed=0, epoch=0)
    solved, processor = time.perf_counter(), time.process_time() - processor
    error = given.relative_error(choice)
    return {
        "strategy": name,
        "kept in": "memory" if folder is None else "a file",
        "samples": n,
        "fraction": fraction,
        "selected": budget,
        "solver, s": solved - start,
        "of the processor, s": processor,
        "error of the whole layer, s": time.perf_counter() - solved,
        "peak, GiB": measure.peak(),
        "own memory, GiB": own.most,
        "of it gradients, GiB": 2 * n * (classes + features + 1) / 2**30,
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
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3])
    parser.add_argument("--kept-in", nargs="+", choices=("memory", "file"), default=["memory"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of files")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = itertools.product(options.strategies, options.sizes, options.fractions, options.kept_in)
    if options.alone:
        ((name, size, fraction, kept_in),) = runs
        folder = options.folder if kept_in == "file" else None
        print(json.dumps(alone(name, size, options.classes, options.features, fraction, folder)))
        return
    rows: list[measure.Row] = []
    same = ["--classes", str(options.classes), "--features", str(options.features)]
    for name, size, fraction, kept_in in runs:
        command = [sys.executable, "-m", "benchmarks.scale", "--alone", "--strategies", name, *same]
        command += ["--sizes", str(size), "--fractions", str(fraction)]
        command += ["--kept-in", kept_in, "--folder", str(options.folder)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
    measure.report(options.out, rows)
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
