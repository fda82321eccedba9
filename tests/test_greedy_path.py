"""One run for all smaller budgets: its choices are those of a run for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaptive_subset.strategies import (
    CRAIG,
    Candidates,
    Choice,
    GradMatch,
    GradMatchPB,
    Strategy,
    gradmatch,
    smallest,
)
from adaptive_subset.strategies.smallest import smallest_choice
from adaptive_subset.strategies.solvers.atoms import DenseAtoms
from adaptive_subset.strategies.solvers.greedy_path import GreedyPath
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from tests.test_strategies import candidates

both_forms = pytest.mark.parametrize("form", ["primal", "dual"])
both_signs = pytest.mark.parametrize("nonnegative", [True, False], ids=["nonnegative", "signed"])


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_of_a_smaller_budget_are_exact_without_a_ridge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.normal(size=(100, 3)) * np.exp(rng.normal(size=(100, 1)))).astype(np.float32)
    atoms, target, path = DenseAtoms(matrix), matrix.sum(0), GreedyPath()
    omp(atoms, target, 100, ridge=0.0, path=path, _form="primal")
    for budget in (2, 3):
        found = path.at(atoms, target, budget, 0.0)
        expected = omp(atoms, target, budget, ridge=0.0, _form="primal")
        np.testing.assert_array_equal(found.support, expected.support)
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-5)


@both_forms
@both_signs
@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 12),
    share=st.floats(0.0, 1.2),
    relative=st.sampled_from([0.0, 1e-3, 0.5, 5.0]),
    tolerance=st.sampled_from([0.0, 0.0, 0.1]),
    seed=st.integers(0, 10_000),
)
def test_every_smaller_budget_lies_on_the_path(
    form: Any,
    nonnegative: bool,
    n: int,
    d: int,
    share: float,
    relative: float,
    tolerance: float,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(n, d)) + seed % 2
    target = matrix.sum(0) + 3 * random.normal(size=d)
    ridge = relative * float((matrix**2).sum(1).mean())
    options = {"nonnegative": nonnegative, "tolerance": tolerance, "_form": form}
    atoms, budget, path = DenseAtoms(matrix), max(1, round(share * n)), GreedyPath()
    assert not path.covers(1)
    omp(atoms, target, budget, ridge=ridge, path=path, **options)
    for size in range(1, n + 1):
        if size <= budget:
            assert path.covers(size)
        if path.covers(size):
            found = path.at(atoms, target, size, ridge)
            expected = omp(atoms, target, size, ridge=ridge, **options)
            assert found.support.tolist() == expected.support.tolist()
            scale = abs(expected.weights).max(initial=0)
            np.testing.assert_allclose(found.weights, expected.weights, 1e-6, 1e-8 * scale)
            energy = float(target @ target)
            assert found.objective == pytest.approx(expected.objective, 1e-7, 1e-10 * energy)
            assert found.residual == pytest.approx(expected.residual, 1e-7, 1e-10 * energy)
            assert found.dropped == expected.dropped


def test_atoms_are_dropped_on_the_path() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(80, 20)) + 0.5
    target, path = 3 * matrix[:4].sum(0) + random.normal(size=20), GreedyPath()
    ridge = 1e-3 * float((matrix**2).sum(1).mean())
    whole = omp(DenseAtoms(matrix), target, 40, ridge=ridge, path=path)
    assert whole.dropped > 5
    for size in range(1, 41):
        found = path.at(DenseAtoms(matrix), target, size, ridge)
        expected = omp(DenseAtoms(matrix), target, size, ridge=ridge)
        assert found.support.tolist() == expected.support.tolist()
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-7)


def in_many_runs(strategy: Strategy, given: Candidates, tolerance: float) -> Choice:
    """The search by a run for each budget."""
    return smallest._smallest(strategy, given, tolerance, 0, 3)


@pytest.mark.parametrize(
    "strategy",
    [
        GradMatch(lam=1e-2),
        GradMatch(lam=1e-2, scope="per-class"),
        GradMatch(lam=1e-2, scope="global"),
        GradMatch(lam=1e-2, nonnegative=False, shares="equal"),
        GradMatchPB(lam=1e-2, batch_size=4),
        CRAIG(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("tolerance", [0.5, 0.2, 0.1])
def test_the_search_finds_what_it_found_in_many_runs(strategy: Strategy, tolerance: float) -> None:
    given = candidates(n=96)
    found = smallest_choice(strategy, given, tolerance, seed=0, epoch=3)
    assert given.derived.keys() <= {"batches"}
    expected = in_many_runs(strategy, candidates(n=96), tolerance)
    assert torch.equal(found.positions, expected.positions)
    torch.testing.assert_close(found.weights, expected.weights)
    assert found.filled == expected.filled
    assert found.objective == pytest.approx(expected.objective)


def test_a_search_runs_the_solver_only_while_the_budget_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []

    def counted(atoms: Any, target: Any, budget: int, **options: Any) -> Any:
        ran.append(budget)
        return omp(atoms, target, budget, **options)

    monkeypatch.setattr(gradmatch, "omp", counted)
    given = candidates(n=96)
    found = smallest_choice(GradMatch(lam=1e-3, scope="global"), given, 0.2, seed=0, epoch=0)
    assert ran == sorted(set(ran))
    assert len(ran) == 1 or ran[-2] < len(found.positions) <= ran[-1]


class Curve:
    """Candidates and a strategy whose error is a function of the budget."""

    batch_size = None

    def __init__(self, n: int, error: Callable[[int], float]) -> None:
        self.n, self.error, self.tried = n, error, list[int]()

    def choose(self, _: Any, budget: int, **__: Any) -> int:
        self.tried.append(budget)
        return budget

    def relative_error(self, choice: int) -> float:
        return self.error(choice)

    def smallest(self, tolerance: float) -> int:
        both: Any = self
        found: Any = smallest._smallest(both, both, tolerance, 0, 0)
        return int(found)


@settings(deadline=None)
@given(
    n=st.integers(1, 100_000),
    slope=st.floats(0.05, 3.0),
    bend=st.floats(0.3, 3.0),
    share=st.floats(0.0, 1.0),
)
def test_the_smallest_is_found_on_any_falling_curve(
    n: int, slope: float, bend: float, share: float
) -> None:
    curve = Curve(n, lambda k: math.exp(-slope * math.log(k + 1) ** bend))
    least = max(1, round(n**share))
    assume(curve.error(least) > 0)
    assert curve.smallest(curve.error(least)) == least
    assert len(curve.tried) == len(set(curve.tried))
    assert len(curve.tried) <= 14 + 3 * math.log2(n + 1)


@pytest.mark.parametrize("least", [300, 5_000, 31_415, 50_000])
@pytest.mark.parametrize(
    ("error", "most"),
    [
        (lambda k: k**-0.3, 8),
        (lambda k: 1 / k, 8),
        (lambda k: 0.02 + k**-0.5, 13),
        (lambda k: (k // 97 + 1) ** -0.4, 32),
        (lambda k: 1.0 if k < 31_415 else 0.01, 25),
    ],
    ids=["slow", "quick", "bent", "stairs", "cliff"],
)
def test_few_budgets_are_tried(error: Callable[[int], float], most: int, least: int) -> None:
    curve = Curve(60_000, error)
    found = curve.smallest(error(least) * (1 + 1e-12))
    assert error(found) == error(least)
    assert found == 1 or error(found - 1) > error(least)
    assert len(curve.tried) <= most


def test_a_miss_by_a_hair_does_not_stop_the_search() -> None:
    curve = Curve(60_000, lambda k: 0.5 + 1e-9 if k < 31_415 else 1e-3)
    assert curve.smallest(0.5) == 31_415
    assert len(curve.tried) == len(set(curve.tried)) <= 45


def test_a_choice_by_itself_holds_no_path() -> None:
    given = candidates(n=96)
    GradMatch().choose(given, 10, seed=0, epoch=0)
    assert not given.derived
