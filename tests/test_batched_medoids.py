"""Facility location in lockstep: greedy in each problem as by itself, without waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_subset import CRAIG, Candidates, Choice, Validation
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.strategies.division import Problem
from adaptive_subset.strategies.solvers import batched_medoids
from adaptive_subset.strategies.solvers.batched_medoids import (
    Covering,
    _Covers,
    facility_location_together,
)
from adaptive_subset.strategies.solvers.facility_location import Medoids, Stored, facility_location
from adaptive_subset.strategies.solvers.recorded import LOOK
from tests.operations import WAITS, Counting

ROOM = 2.0**30


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def drawn(m: int, n: int, seed: int, d: int = 3) -> Tensor:
    """Distances (m, n) of points of different scales; of a set to itself where m is 0."""
    generator = np.random.default_rng(seed)
    columns = generator.normal(size=(n, d)) * np.geomspace(0.01, 1, n)[:, None]
    rows = generator.normal(size=(m, d)) if m else columns
    return torch.from_numpy(np.linalg.norm(rows[:, None] - columns[None], axis=2))


def on(device: torch.device, matrix: Tensor, budget: int) -> Covering:
    shape = matrix.shape[0], matrix.shape[1]
    return Covering(shape, matrix.dtype, budget, lambda: Stored(matrix.to(device)))


def together(problems: list[tuple[Tensor, int]], device: torch.device) -> list[Medoids | None]:
    return facility_location_together([on(device, *each) for each in problems], device, room=ROOM)


def assert_greedy(found: Medoids | None, matrix: Tensor, budget: int) -> None:
    """Each choice leaves the least of all, or as little: of two that have only each other, say."""
    assert found is not None
    assert len(found.chosen) == budget
    exact = matrix.double()
    nearest = torch.full((len(exact), 1), torch.inf, dtype=torch.float64)
    for j in found.chosen.tolist():
        costs = torch.minimum(exact, nearest).sum(0)
        assert costs[j] <= costs.min() * (1 + 1e-12)
        nearest = torch.minimum(nearest, exact[:, [j]])
    assert found.owner.tolist() == exact[:, found.chosen].argmin(1).tolist()
    assert found.cost == pytest.approx(float(nearest.sum()), rel=1e-6)


one = st.tuples(st.integers(0, 40), st.integers(2, 40), st.floats(0.01, 1), st.integers(0, 10_000))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(one, min_size=1, max_size=6), at_once=st.sampled_from([1, 7, 128]))
def test_each_problem_is_solved_as_by_itself(
    device: torch.device, cases: list[Any], at_once: int
) -> None:
    problems = [(drawn(m, n, seed), max(1, round(share * n))) for m, n, share, seed in cases]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched_medoids, "AT_ONCE", at_once)
        found = together(problems, device)
    for (matrix, budget), result in zip(problems, found, strict=True):
        if len(facility_location(Stored(matrix), budget).chosen) < budget:
            assert result is None
        else:
            assert_greedy(result, matrix, budget)


def test_hundreds_of_choices_in_single_precision(device: torch.device) -> None:
    """Costs are kept by differences, whose rounding must not add up, nor where scales differ."""
    problems = [(drawn(0, n, n).float(), n // 2) for n in (700, 600)]
    for (matrix, budget), result in zip(problems, together(problems, device), strict=True):
        assert_greedy(result, matrix, budget)


def test_what_it_cannot_solve_is_left(device: torch.device) -> None:
    good, zero = drawn(0, 20, 1), torch.zeros(5, 5)
    twins = drawn(0, 10, 1).repeat(2, 2)  # ten choices leave nothing
    endless = torch.full((3, 3), torch.nan)
    large, empty = drawn(0, 900, 1), torch.zeros(0, 4)
    matrices = [good, zero, twins, endless, large, empty]
    given = [on(device, matrix, 12 if len(matrix) > 5 else 2) for matrix in matrices]
    found = facility_location_together(given, device, room=2e6)
    assert [result is None for result in found] == [False, True, True, True, True, True]
    assert facility_location_together(given, torch.device("cpu")) == [None] * 6  # no room known


def test_the_host_waits_once_in_so_many_ticks() -> None:
    covers = _Covers([on(torch.device("cpu"), drawn(0, n, n), n // 10) for n in (300, 280)])
    with Counting() as seen:
        covers.run()
    ticks = seen.calls["topk"]
    assert seen.calls["_local_scalar_dense"] == ticks // LOOK + 1
    assert not any(seen.calls[name] for name in WAITS)
    assert seen.calls.total() < 45 * ticks  # starts, and views


@pytest.mark.parametrize("scope", ["per-class", "per-gradient", "global"])
@pytest.mark.parametrize("validated", [False, True])
def test_craig_chooses_in_lockstep_what_it_chooses_one_by_one(
    device: torch.device, scope: Any, validated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)

    def gradients(n: int, place: torch.device) -> FactoredGradients:
        factors = (torch.randn(n, width, generator=generator).double() for width in (3, 6))
        delta, h = (factor.to(place) for factor in factors)
        return FactoredGradients([(delta, h)])

    def candidates(place: torch.device) -> Candidates:
        generator.manual_seed(4)
        classes = (torch.arange(120) ** 2 % 3).to(place)  # of different sizes
        validation = None
        if validated:
            own = torch.arange(33, device=place) % 3
            validation = Validation(gradients(33, place), own, 120 / 33)
        return Candidates(120, gradients(120, place), classes, validation)

    expected = CRAIG(scope=scope).choose(candidates(torch.device("cpu")), 9, seed=1, epoch=0)
    calls: list[int] = []

    def counted(given: list[Covering], place: torch.device) -> list[Medoids | None]:
        found = facility_location_together(given, place, room=ROOM)
        calls.extend(result is not None for result in found)
        return found

    monkeypatch.setattr("adaptive_subset.strategies.craig.facility_location_together", counted)
    given = candidates(device)
    solved = CRAIG._solved

    def as_if_on_a_gpu(self: CRAIG, problems: list[Problem], device: torch.device) -> list[Choice]:
        return solved(self, problems, torch.device("cuda"))

    monkeypatch.setattr(CRAIG, "_solved", as_if_on_a_gpu)
    found = CRAIG(scope=scope).choose(given, 9, seed=1, epoch=0)
    assert calls
    assert all(calls)
    assert found.positions.tolist() == expected.positions.tolist()
    torch.testing.assert_close(found.weights, expected.weights)
    # What would take too much is left to the solver that computes distances when they are needed.
    calls.clear()
    CRAIG(scope=scope, memory=0).choose(given, 9, seed=1, epoch=0)
    assert not calls
