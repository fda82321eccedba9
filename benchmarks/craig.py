"""CRAIG against the lazy greedy of apricot and submodlib, and what one large class takes.

    pip install 'adaptive-subset[bench]'
    python -m benchmarks.craig --data mnist

Real gradients: the class of MNIST with label 3, 6,131 samples, of which 614 are chosen. The peers
are given the finished matrix of distances, whose making is not counted for them; "selection" is
all that CRAIG does, distances included. `cost` is the sum of distances that each leaves. Then all
the samples as one problem, of which one in a hundred is chosen, in a process of its own whose
memory is measured (Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adaptive_subset import CRAIG, Candidates
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.strategies.craig import gradient_distances
from adaptive_subset.strategies.solvers.facility_location import facility_location
from benchmarks import measure, trained

Solver = Callable[[], Any]  # gives the chosen positions


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


def one_class(given: Candidates, budget: int, repeats: int) -> list[measure.Row]:
    distances = gradient_distances(given.atoms, given.atoms, memory=math.inf)
    matrix = distances.tile(slice(None), slice(None)).cpu()
    similarity = (matrix.max() - matrix).numpy()

    def craig(**options: Any) -> Solver:
        return lambda: CRAIG(**options).select(given, budget, seed=0, epoch=0).positions.numpy()

    cases: dict[str, Solver] = {
        "CRAIG(), selection": craig(),
        "CRAIG(), matrix given": lambda: facility_location(distances, budget).chosen.numpy(),
        "CRAIG(memory=0), selection": craig(memory=0),
        "CRAIG(epsilon=0.1), selection": craig(epsilon=0.1),
    }
    for name, peer in (("apricot", apricot), ("submodlib", submodlib)):
        try:
            cases[f"{name}, matrix given"] = peer(similarity, budget)
        except ImportError as error:
            print(f"{name} is left out ({error}); pip install 'adaptive-subset[bench]'")
    measure.in_turns(cases, 1)  # to warm up: apricot compiles
    seconds, chosen = measure.in_turns(cases, repeats)
    own = seconds["CRAIG(), selection"]
    return [
        {
            "method": name,
            "n": given.n,
            "k": budget,
            "seconds": statistics.median(seconds[name]),
            "times CRAIG()": measure.ratio(seconds[name], own),
            "cost": float(matrix[np.asarray(chosen[name])].double().amin(0).sum()),
            "raw": seconds[name],
        }
        for name in cases
    ]


def one_problem(given: Candidates, budget: int) -> measure.Row:
    """Time and memory where all samples are one class, from a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        assert isinstance(given.atoms, FactoredGradients)
        torch.save(given.atoms.blocks, file.name)
        command = [sys.executable, "-m", "benchmarks.craig", "--alone", file.name, str(budget)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: measure.Row = json.loads(result.stdout.splitlines()[-1])
    return row


def alone(path: str, budget: int) -> measure.Row:
    atoms = FactoredGradients(torch.load(path))
    before, start = measure.peak(), time.perf_counter()
    choice = CRAIG().select(Candidates(len(atoms), atoms), budget, seed=0, epoch=0)
    return {
        "method": "CRAIG(), one class",
        "n": len(atoms),
        "k": budget,
        "seconds": time.perf_counter() - start,
        "cost": choice.objective,
        "peak GiB": measure.peak(),
        "before, GiB": before,
    }


def main() -> None:
    parser = measure.parser(__doc__, "craig.json")
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        path, budget = options.alone
        print(json.dumps(alone(path, int(budget))))
        return
    given = trained.candidates(options.data)
    members = given.of_group(given.by_group()[options.label])
    rows = one_class(members, math.ceil(members.n / 10), options.repeats)
    measure.report(options.out, rows)
    large = one_problem(given, max(1, given.n // 100))
    measure.report(options.out.with_stem(options.out.stem + "-one-class"), [large])


if __name__ == "__main__":
    main()
