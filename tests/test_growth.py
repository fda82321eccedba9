"""How work and memory grow with n, C, p and k: counted, not timed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from adaptive_subset import CRAIG, GLISTER, GradMatch, GradMatchPB, Strategy
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.strategies.solvers.atoms import Array, DenseAtoms
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from tests.test_strategies import candidates


class LargestTensor(TorchDispatchMode):
    """The most numbers in any tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return result


class CountedAtoms(DenseAtoms):
    """Atoms that count the multiplications of what is asked of them."""

    def __init__(self, matrix: Array, count: list[int] | None = None) -> None:
        super().__init__(matrix)
        self.count = [0] if count is None else count

    def take(self, index: Array) -> CountedAtoms:
        return CountedAtoms(self.matrix[index], self.count)

    def correlate(self, vector: Array, first: int) -> Array:
        self.count[0] += first * self.dim
        return super().correlate(vector, first)

    def gram_column(self, index: int) -> Array:
        self.count[0] += self.matrix.size
        return super().gram_column(index)


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def test_the_pass_multiplies_no_more_than_inference_does() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 10
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    bare = flops(lambda: [model(inputs) for inputs, _ in batches])
    passed = flops(lambda: last_layer_gradients(model, batches, nn.CrossEntropyLoss()))
    # Two samples to find the head, one product of the head on a batch to check it.
    assert bare <= passed <= bare + bare * 2 / 64 + 2 * 16 * 289 * 10


@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize("grown", ["n", "k"])
def test_matching_asks_for_at_most_n_inner_products_a_step(form: str, grown: str) -> None:
    def work(n: int, k: int) -> int:
        matrix = np.random.default_rng(0).random((n, 30))
        atoms = CountedAtoms(matrix)
        omp(atoms, matrix.sum(0), k, ridge=1.0, _form=form)  # type: ignore[arg-type]
        return atoms.count[0]

    n, k = 400, 40
    once = work(n, k)
    # One look at the atoms a step, and one more where dropped ones are replaced.
    assert once <= 2 * k * n * 30
    twice = work(2 * n, k) if grown == "n" else work(n, 2 * k)
    assert twice <= 2.4 * once


@pytest.mark.parametrize(
    "strategy",
    [
        GradMatch(),
        GradMatch(scope="per-class"),
        GradMatch(scope="global"),
        GradMatchPB(batch_size=8),
        GLISTER(),
        CRAIG(),
        CRAIG(memory=0),
    ],
)
def test_no_tensor_holds_every_gradient_or_every_pair(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, classes, p = 1200, 30, 40
    monkeypatch.setattr("adaptive_subset.gradients.factored.BLOCK", 4096)
    given = candidates(n, classes, p)
    tracemalloc.start()
    with LargestTensor() as largest:
        strategy.select(given, 120, seed=0, epoch=0)
    numpy_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The factors have n (C + p) numbers; n C p and n² are above a million.
    most = 2 * n * (classes + p)
    assert largest.numel <= most
    assert numpy_bytes <= 8 * most
