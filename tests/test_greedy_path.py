"""One run for all smaller budgets: its choices are those of a run for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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


@pytest.mark.filterwarnings("ignore:GRAD-MATCH chose")
@pytest.mark.parametrize("scope", ["global", "per-class", "per-gradient"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_filled_in_does_not_hide_the_smallest(
    scope: Any, epsilon: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matching stops early, and what is filled in adds its gradient to a match that was exact."""
    strategy = GradMatch(lam=0, epsilon=epsilon, scope=scope)
    given = candidates(n=48, p=4, seed=seed)
    choices = [strategy.choose(given, k, seed=0, epoch=0) for k in range(1, 49)]
    errors = [given.relative_error(choice) or 0.0 for choice in choices]
    own = [choice.filled == 0 for choice in choices]
    assert not all(own)
    ran: list[int] = []

    def counted(atoms: Any, target: Any, budget: int, **options: Any) -> Any:
        ran.append(budget)
        return omp(atoms, target, budget, **options)

    monkeypatch.setattr(gradmatch, "omp", counted)
    for tolerance in (0.5, 0.2, 0.1, 0.05, 0.02, 1e-3):
        meets = [error <= tolerance for error in errors]
        if not any(m and o for m, o in zip(meets, own, strict=True)):
            continue  # by the luck of what is filled in, or not at all
        ran.clear()
        found = smallest_choice(strategy, given, tolerance, seed=0, epoch=0)
        size = len(found.positions)
        assert meets[size - 1]
        assert size == 1 or not meets[size - 2]
        least = meets.index(True) + 1
        if all(a >= b for a, b in pairwise(errors[:size])):  # it falls steadily
            assert size == least
        assert len(ran) <= 5 * (1 if scope == "global" else 3)


@dataclass(frozen=True)
class Sized:
    size: int
    filled: int


class Curve:
    """Candidates and a strategy whose error is a function of the budget.

    It chooses no more than `most` itself, and what is filled in raises the error.
    """

    unit = 1

    def __init__(self, n: int, error: Callable[[int], float], most: int | None = None) -> None:
        self.n, self.error, self.tried = n, error, list[int]()
        self.most = n if most is None else most

    def choose(self, _: Any, budget: int, **__: Any) -> Sized:
        self.tried.append(budget)
        return Sized(budget, max(0, budget - self.most))

    def relative_error(self, choice: Sized) -> float:
        return self.error(choice.size - choice.filled) + 0.1 * choice.filled

    def smallest(self, tolerance: float) -> int:
        both: Any = self
        found: Any = smallest._smallest(both, both, tolerance, 0, 0)
        return int(found.size)


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


@settings(deadline=None)
@given(
    n=st.integers(1, 100_000), slope=st.floats(0.3, 2.0), most=st.floats(0, 1), end=st.floats(0, 1)
)
def test_the_smallest_is_found_before_the_filling(
    n: int, slope: float, most: float, end: float
) -> None:
    last = max(1, round(n**most))
    curve = Curve(n, lambda k: k**-slope, last)
    least = max(1, round(last**end))
    assert curve.smallest(curve.error(least)) == least
    assert len(curve.tried) == len(set(curve.tried)) <= 14 + 3 * math.log2(n + 1)


def test_what_no_size_meets_is_said_with_the_best_that_was_seen() -> None:
    curve = Curve(60_000, lambda k: 1 / k, 20)
    with pytest.raises(ValueError, match=r"`tolerance` must be .* 60000 candidates .* below 0\.05"):
        curve.smallest(0.01)


def test_a_miss_by_a_hair_does_not_stop_the_search() -> None:
    curve = Curve(60_000, lambda k: 0.5 + 1e-9 if k < 31_415 else 1e-3)
    assert curve.smallest(0.5) == 31_415
    assert len(curve.tried) == len(set(curve.tried)) <= 45


def test_a_choice_by_itself_holds_no_path() -> None:
    given = candidates(n=96)
    GradMatch().choose(given, 10, seed=0, epoch=0)
    assert not given.derived
