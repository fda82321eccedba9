"""GRAD-MATCH and CRAIG on an accelerator: all classes in lockstep against one after the other.

    python -m benchmarks.device_solvers --device cuda
    python -m benchmarks.device_solvers --device cpu --small

Random gradients of the size of CIFAR-10 and ResNet-18, structured by class as in `scale.py`: 50,000
samples, 10 classes, 512 features and a bias. `seconds`: a whole `select`, of gradients that are on
the device, the quicker of two. `one by one`: the same by the solvers that take one class after the
other, GRAD-MATCH's in numpy on the CPU and CRAIG's on the device, of as many classes as go into
--limit seconds, scaled up to all. `same`: the share of the picks on which both agree in these
classes. In float32 they may part where two candidates are equally good but for rounding.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from adaptive_subset import CRAIG, Candidates, GradMatch
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.precision import full_precision
from adaptive_subset.strategies.craig import gradient_distances
from adaptive_subset.strategies.solvers.facility_location import facility_location
from benchmarks import measure


def candidates(n: int, classes: int, features: int, device: torch.device) -> Candidates:
    """δ = softmax − one-hot of logits that are products with a centre for each class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, features, generator=generator)
    labels = torch.arange(n) % classes
    h = torch.ones(n, features + 1)  # the last column is the bias's
    h[:, :-1] = torch.randn(n, features, generator=generator).mul_(1.5).add_(centres[labels])
    h[:, :-1].relu_()
    delta = (h[:, :-1] @ centres.T / 12).softmax(1)
    delta -= torch.nn.functional.one_hot(labels, classes)
    blocks = [(delta.to(device), h.to(device))]
    return Candidates(n, FactoredGradients(blocks), labels.to(device))


def double(given: Candidates) -> Candidates:
    assert isinstance(given.atoms, FactoredGradients)
    blocks = [(delta.double(), h.double()) for delta, h in given.atoms.blocks]
    return replace(given, gradients=FactoredGradients(blocks))


def on_cpu(given: Candidates) -> Candidates:
    assert isinstance(given.atoms, FactoredGradients)
    blocks = [(delta.cpu(), h.cpu()) for delta, h in given.atoms.blocks]
    return Candidates(given.n, FactoredGradients(blocks))


def alone(strategy: GradMatch | CRAIG, given: Candidates, budget: int) -> torch.Tensor:
    """The positions of what is chosen of one class."""
    if isinstance(strategy, CRAIG):
        with full_precision(given.device):
            distances = gradient_distances(given.atoms, given.atoms, strategy.memory)
            return facility_location(distances, budget).chosen
    whole = replace(strategy, scope="global")
    return whole.choose(on_cpu(given), budget, seed=0, epoch=0).positions


def compared(
    strategy: GradMatch | CRAIG, given: Candidates, budget: int, limit: float
) -> measure.Row:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        choice = strategy.choose(given, budget, seed=0, epoch=0)  # positions are on the CPU
        seconds.append(time.perf_counter() - start)
    classes, chosen = given.by_group(), set(choice.positions.tolist())
    some = given.own_rows() if strategy.scope == "per-gradient" else given
    each, equal = [], 0
    for members in classes:
        problem = some.of_group(members)
        start = time.perf_counter()
        picks = alone(strategy, problem, budget // len(classes))
        each.append(time.perf_counter() - start)
        equal += len(chosen & set(members[picks].tolist()))
        if sum(each) > limit:
            break
    reference = sum(each) / len(each) * len(classes)
    return {
        "strategy": type(strategy).__name__,
        "scope": strategy.scope,
        "dtype": str(given.atoms.dtype).removeprefix("torch."),
        "selected": budget,
        "seconds": min(seconds),
        "first": seconds[0],
        "one by one": reference,
        "times faster": reference / min(seconds),
        "classes compared": len(each),
        "same": equal / (len(each) * (budget // len(classes))),
        "filled": choice.filled,
    }


def main() -> None:
    parser = measure.parser(__doc__, "device-solvers.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="3,000 samples of 33 features")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of one by one (2)")
    options = parser.parse_args()
    n, features = (3_000, 32) if options.small else (50_000, 512)
    given = candidates(n, 10, features, torch.device(options.device))
    tenth, most = n // 10, 3 * n // 10
    cases: list[tuple[GradMatch | CRAIG, Candidates, int]] = [
        (GradMatch(), given, tenth),
        (GradMatch(scope="per-class"), given, tenth),
        (CRAIG(), given, tenth),
        (GradMatch(), double(given), tenth),
        (GradMatch(), given, most),
        (GradMatch(scope="per-class"), given, most),
        (CRAIG(), given, most),
    ]
    rows = []
    for strategy, some, budget in cases:
        rows.append(compared(strategy, some, budget, options.limit))
        print(measure.markdown(rows[-1:]), flush=True)
    measure.report(options.out, rows)


if __name__ == "__main__":
    main()
