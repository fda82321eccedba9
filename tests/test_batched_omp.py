"""Matching pursuit in lockstep: what it chooses is what `omp` chooses, without waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_subset.gradients import DenseGradients, Gradients
from adaptive_subset.strategies.solvers.atoms import atoms_of
from adaptive_subset.strategies.solvers.batched_pursuit import Matching, omp_together
from adaptive_subset.strategies.solvers.matching_pursuit import OMPResult, omp

ROOM = 2.0**30
both_signs = pytest.mark.parametrize("nonnegative", [True, False], ids=["nonnegative", "signed"])


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


Problem = tuple[Gradients, Tensor, int, float]  # gradients on the CPU, target, budget, ridge


def on(device: torch.device, problem: Problem) -> Matching:
    gradients, target, budget, ridge = problem
    rows = [row.to(device) for row in gradients.rows()]
    return Matching(
        len(gradients),
        budget,
        lambda: (gradients.with_rows(rows).compact(), target.to(device), ridge),
    )


def together(problems: list[Problem], device: torch.device, **options: Any) -> list[OMPResult]:
    given = [on(device, problem) for problem in problems]
    found = omp_together(given, device, **{"room": ROOM, **options})
    assert None not in found
    return [result for result in found if result is not None]


def alone(problem: Problem, **options: Any) -> OMPResult:
    gradients, target, budget, ridge = problem
    return omp(atoms_of(gradients), target.numpy(), budget, ridge=ridge, _form="dual", **options)


def assert_same(found: list[OMPResult], problems: list[Problem], **options: Any) -> None:
    for result, problem in zip(found, problems, strict=True):
        expected = alone(problem, **options)
        assert result.support.tolist() == expected.support.tolist()
        assert result.support.dtype == expected.support.dtype
        assert result.weights.dtype == expected.weights.dtype
        scale = abs(expected.weights).max(initial=0)
        np.testing.assert_allclose(result.weights, expected.weights, rtol=1e-6, atol=1e-8 * scale)
        energy = float(problem[1] @ problem[1])
        assert result.objective == pytest.approx(expected.objective, rel=1e-6, abs=1e-12 * energy)
        assert result.residual == pytest.approx(expected.residual, rel=1e-6, abs=1e-12 * energy)
        assert result.dropped == expected.dropped


def drawn(n: int, d: int, share: float, relative: float, seed: int) -> Problem:
    """Every third seed with a common positive direction, and a target that is not the sum."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        matrix = (matrix + 1) * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    target = matrix.sum(0) + torch.randn(d, generator=generator, dtype=torch.float64)
    ridge = relative * float(matrix.square().sum(1).mean())
    return DenseGradients(matrix), target, max(1, round(share * n)), ridge


one = st.tuples(
    st.integers(1, 60),
    st.integers(1, 12),
    st.floats(0.0, 1.2),
    st.sampled_from([0.003, 0.03, 0.5, 5.0]),
    st.integers(0, 10_000),
)


@both_signs
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(one, min_size=1, max_size=6), tolerance=st.sampled_from([0.0, 0.0, 0.05]))
def test_each_problem_is_solved_as_by_itself(
    nonnegative: bool, device: torch.device, cases: list[Any], tolerance: float
) -> None:
    problems = [drawn(*case) for case in cases]
    options = {"nonnegative": nonnegative, "tolerance": tolerance}
    assert_same(together(problems, device, **options), problems, **options)
