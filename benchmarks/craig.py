"""CRAIG against the lazy greedy of apricot and submodlib, on the gradients of one class.

    pip install 'adaptive-subset[bench]'
    python -m benchmarks.craig --data mnist --out runs/craig.json

All choose a tenth of one class for the same distances, in turns in one process; the gradients are
those of a network after one epoch. The peers are given the finished matrix, whose making is not
counted for them, while the time of CRAIG is that of the whole selection. Then one sample in a
hundred of all the data as one problem, in a process of its own whose memory is measured. Raw
figures and the environment are saved.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive_subset import CRAIG, Candidates
from adaptive_subset.gradients import FactoredGradients
from adaptive_subset.pool import last_layer_gradients, pool_loader
from adaptive_subset.strategies.craig import gradient_distances
from adaptive_subset.strategies.facility import facility_location
from examples import data, models

Solver = Callable[[], Any]  # gives the chosen positions


def gradients(source: str) -> tuple[FactoredGradients, Tensor]:
    """Last-layer gradients of all training samples after one epoch, and their classes."""
    torch.manual_seed(0)
    images = data.load(source)
    model = models.build(models.default(images.shape), images.shape, images.classes)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for x, y in DataLoader(images.plain, 128, shuffle=True):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    loader = pool_loader(images.plain, batch_size=256, num_workers=0)
    found = last_layer_gradients(model, loader, criterion, size=len(images.plain))
    return found[0], found[1]


def apricot(similarity: np.ndarray, budget: int) -> Solver:
    from apricot import FacilityLocationSelection

    def solve() -> Any:
        selection = FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy")
        return selection.fit(similarity).ranking

    return solve


def submodlib(similarity: np.ndarray, budget: int) -> Solver:
    from submodlib.functions.facilityLocation import FacilityLocationFunction

    n = len(similarity)
    function = FacilityLocationFunction(n=n, mode="dense", sijs=similarity, separate_rep=False)

    def solve() -> Any:
        picks = function.maximize(budget=budget, optimizer="LazyGreedy", show_progress=False)
        return [position for position, _ in picks]

    return solve


def one_class(atoms: FactoredGradients, budget: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds and objective of every method, in turns; the first round warms up."""
    given = Candidates(len(atoms), atoms)
    distances = gradient_distances(atoms, atoms, memory=8.0)
    matrix = distances.tile(slice(None), slice(None))
    similarity = (matrix.max() - matrix).numpy()

    def craig(**options: Any) -> Solver:
        return lambda: CRAIG(**options).select(given, budget, seed=0, epoch=0).positions.numpy()

    solvers: dict[str, Solver] = {
        "CRAIG()": craig(),
        "CRAIG(), matrix given": lambda: facility_location(distances, budget).chosen.numpy(),
        "CRAIG(memory=0)": craig(memory=0),
        "CRAIG(epsilon=0.1)": craig(epsilon=0.1),
    }
    for name, peer in (("apricot", apricot), ("submodlib", submodlib)):
        try:
            solvers[f"{name} lazy, matrix given"] = peer(similarity, budget)
        except ImportError as error:
            print(f"{name} is left out ({error}); pip install 'adaptive-subset[bench]'")
    rows: dict[str, dict[str, Any]] = {name: {"method": name, "seconds": []} for name in solvers}
    for turn in range(repeats + 1):
        for name, solve in solvers.items():
            start = time.perf_counter()
            chosen = torch.from_numpy(np.array(solve()))
            taken = time.perf_counter() - start
            rows[name]["objective"] = float(matrix[chosen].double().amin(0).sum())
            if turn:
                rows[name]["seconds"].append(taken)
    return list(rows.values())


def peak() -> float:
    """The most memory that this process has held so far, in GiB; Linux."""
    # Not getrusage, which counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def whole(path: str, budget: int) -> dict[str, Any]:
    """All samples as one problem, without classes."""
    atoms = FactoredGradients(torch.load(path))
    before = peak()
    start = time.perf_counter()
    choice = CRAIG().select(Candidates(len(atoms), atoms), budget, seed=0, epoch=0)
    return {
        "n": len(atoms),
        "k": budget,
        "seconds": time.perf_counter() - start,
        "objective": choice.objective,
        "peak_gib": peak(),
        "peak_gib_before": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="mnist", help="as in examples/train.py (mnist)")
    parser.add_argument("--label", type=int, default=3, help="the class (3)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/craig.json"))
    parser.add_argument("--whole", nargs=2, metavar=("FILE", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole:
        print(json.dumps(whole(options.whole[0], int(options.whole[1]))))
        return

    atoms, classes = gradients(options.data)
    members = (classes == options.label).nonzero()[:, 0]
    n, k = len(members), math.ceil(len(members) / 10)
    if not n:
        parser.error(f"--label {options.label} does not occur in {options.data}")
    rows = one_class(atoms[members], k, options.repeats)
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(atoms.blocks, file.name)
        command = [sys.executable, "-m", "benchmarks.craig", "--whole", file.name]
        command.append(str(max(1, len(atoms) // 100)))
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    large = json.loads(result.stdout.splitlines()[-1])
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    report = {"environment": environment, "n": n, "k": k, "one_class": rows, "whole": large}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))

    print(f"\n{n} samples of class {options.label}, k = {k}:\n")
    print("| method | time | time / CRAIG() | objective |")
    print("|---|---|---|---|")
    for row in rows:
        ratios = [t / own for t, own in zip(row["seconds"], rows[0]["seconds"], strict=True)]
        times = f"{statistics.median(row['seconds']):.2f} s | {statistics.median(ratios):.2f}"
        print(f"| {row['method']} | {times} | {row['objective']:.6g} |")
    print(
        f"\n{large['n']} samples as one problem, k = {large['k']}: {large['seconds']:.0f} s, "
        f"peak memory {large['peak_gib']:.2f} GiB "
        f"({large['peak_gib_before']:.2f} GiB before the selection), "
        f"objective {large['objective']:.6g}"
    )


if __name__ == "__main__":
    main()
