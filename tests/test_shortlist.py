"""Short lists of atoms: the choice is that of a look at all of them, and most are not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptive_subset.strategies.solvers import shortlist
from adaptive_subset.strategies.solvers.atoms import DenseAtoms
from adaptive_subset.strategies.solvers.greedy_path import OMPResult
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from adaptive_subset.strategies.solvers.ridge_fit import PrimalFit
from adaptive_subset.strategies.solvers.shortlist import Shortlist
from tests import reference

Array = np.ndarray[Any, Any]
both_signs = pytest.mark.parametrize("nonnegative", [True, False], ids=["nonnegative", "signed"])


class Counting(DenseAtoms):
    """Counts the atoms that are read at looks."""

    read = 0

    def take(self, index: Array) -> Counting:
        return Counting(self.matrix[index])

    def correlate(self, vector: Array, first: int) -> Array:
        Counting.read += first
        return super().correlate(vector, first)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lists for the smallest of problems, and from the first look on."""
    start = Shortlist.__init__

    def at_once(self: Shortlist, *args: Any) -> None:
        start(self, *args)
        self.cost, self.pause, self.looks = 1.0, 1.0, 1.0

    monkeypatch.setattr(shortlist, "WORTH", 0)
    monkeypatch.setattr(shortlist, "_LEAST", 4)
    monkeypatch.setattr(Shortlist, "__init__", at_once)
    Counting.read = 0
    return monkeypatch


def solve(matrix: Array, target: Array, budget: int, ridge: float, **options: Any) -> OMPResult:
    return omp(Counting(matrix), target, budget, ridge=ridge, _form="primal", **options)


def gradients(n: int, d: int, seed: int, dtype: type = np.float64) -> tuple[Array, Array, float]:
    """Like those of a class: features around a centre, times how wrong the sample is."""
    random = np.random.default_rng(seed)
    features = (random.normal(size=(n, d)) + random.normal(size=d)).clip(0)
    features[:, -1] = 1
    matrix = -1 / (1 + np.exp(features @ random.normal(size=(d, 1)))) * features
    return matrix.astype(dtype), matrix.sum(0), 0.5 * float((matrix**2).sum(1).mean())


def all_read(matrix: Array, *args: Any, **options: Any) -> OMPResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist, "WORTH", 1 << 60)
        return solve(matrix, *args, **options)


def assert_same(found: OMPResult, expected: OMPResult) -> None:
    assert found.support.tolist() == expected.support.tolist()
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-9, atol=1e-12)
    assert found.dropped == expected.dropped


@both_signs
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(1, 600),
    d=st.integers(1, 9),
    share=st.floats(0.05, 1.0),
    relative=st.sampled_from([1e-3, 0.1, 1.0]),
    like=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_choice_is_that_of_a_look_at_all(
    short: None,
    nonnegative: bool,
    n: int,
    d: int,
    share: float,
    relative: float,
    like: bool,
    seed: int,
) -> None:
    matrix, target, ridge = gradients(n, d, seed)
    if not like:
        matrix = np.random.default_rng(seed).normal(size=(n, d))
        target = matrix.sum(0) + np.random.default_rng(seed + 1).normal(size=d)
    args = (matrix, target, max(1, round(share * n)), 2 * relative * ridge)
    assert_same(solve(*args, nonnegative=nonnegative), all_read(*args, nonnegative=nonnegative))


@both_signs
def test_the_choice_is_that_of_the_slow_reference(short: None, nonnegative: bool) -> None:
    matrix, target, ridge = gradients(400, 4, seed=1)
    found = solve(matrix, target, 120, ridge, nonnegative=nonnegative)
    assert Counting.read < 0.8 * 120 * 400
    support, weights = reference.ridge_omp(matrix, target, 120, ridge, nonnegative=nonnegative)
    assert found.support.tolist() == support
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6, atol=1e-9)


def test_weights_that_turn_negative_under_a_list_are_seen(short: None) -> None:
    dropped = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        matrix = random.normal(size=(400, 5)) * 10 ** random.uniform(-1, 1, size=(400, 1))
        target = matrix[:40].sum(0) + random.normal(size=5)
        args = (matrix, target, 200, 1e-3 * float((matrix**2).sum(1).mean()))
        found = solve(*args)
        dropped += found.dropped
        assert_same(found, all_read(*args))
    assert dropped > 10


@both_signs
def test_equal_atoms_are_chosen_in_their_order(short: None, nonnegative: bool) -> None:
    """Of whole numbers, so that ties are exact."""
    matrix = np.random.default_rng(0).integers(-2, 4, size=(300, 3)).astype(np.float64)
    args = (matrix, matrix.sum(0), 150, 4.0)
    found, expected = (f(*args, nonnegative=nonnegative) for f in (solve, all_read))
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
    assert len(found.support) == len(expected.support)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_most_atoms_are_not_read(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is used, but for the size from which on it is."""
    monkeypatch.setattr(shortlist, "WORTH", 1 << 16)
    matrix, target, ridge = gradients(30_000, 9, 2, dtype)
    Counting.read = 0
    found = solve(matrix, target, 3000, ridge)
    assert Counting.read < 0.35 * 3000 * 30_000
    assert found.support.tolist() == all_read(matrix, target, 3000, ridge).support.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("relative", [1e-6, 0.5])
def test_the_bound_holds_for_every_atom(dtype: type, relative: float) -> None:
    """|cᵢ/α − c₀ᵢ| <= τhᵢ, in float64, of heights that are computed in less."""
    matrix, target, ridge = gradients(500, 6, 3, dtype)
    norms = (matrix.astype(np.float64) ** 2).sum(1)
    order = np.argsort(-norms)
    matrix, norms = matrix[order], norms[order]
    exact = matrix.astype(np.float64)
    fit = PrimalFit(DenseAtoms(matrix), target, norms, 300, 2 * relative * ridge)
    for index in range(20):
        fit.add(index)
    fit.list.limit = 1e9
    c = matrix @ fit.residual.astype(dtype)
    fit.list.make(c, c, fit.support, fit.operator, fit.residual)
    root = np.linalg.cholesky(fit.operator)
    heights = fit.list._heights(matrix, c, root).astype(np.float64)
    at_look = exact @ fit.residual
    tight = 0.0
    for index in range(20, 300):
        fit.add(index)
        assert fit.list.open
        moved = np.abs(exact @ fit.residual / fit.list.scale - at_look)
        assert (moved <= fit.list.turn * heights * (1 + 1e-9)).all()
        tight = max(tight, float((moved / (fit.list.turn * heights)).max()))
    assert tight > 0.8
