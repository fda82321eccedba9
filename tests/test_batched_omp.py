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
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.strategies.solvers.atoms import atoms_of
from adaptive_subset.strategies.solvers.batched_pursuit import (
    Matching,
    _Pursuit,
    omp_together,
)
from adaptive_subset.strategies.solvers.greedy_path import OMPResult
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from adaptive_subset.strategies.solvers.recorded import LOOK
from tests.operations import WAITS, Counting
from tests.test_omp import NEAR_ROUNDING, of_few_ranks

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


def crowded(seed: int) -> Problem:
    """More atoms than dimensions, all in the budget: several weights turn negative at once."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(80, 30, generator=generator).double()
    target = 3 * matrix[:4].sum(0) + torch.randn(30, generator=generator).double()
    ridge = 1e-4 * float(matrix.square().sum(1).mean())
    return DenseGradients(matrix), target, 80, ridge


def test_atoms_leave_in_the_order_in_which_their_weights_reach_zero(device: torch.device) -> None:
    problems = [crowded(seed) for seed in range(20)]
    found = together(problems, device)
    assert sum(result.dropped for result in found) > 300
    assert_same(found, problems)


@both_signs
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_factors_of_any_dtype(device: torch.device, dtype: torch.dtype, nonnegative: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    problems: list[Problem] = []
    for n in (90, 70, 31):
        blocks = [
            (
                torch.randn(n, 6, generator=generator).to(dtype),
                torch.rand(n, 9, generator=generator).to(dtype),
            )
            for _ in range(2)
        ]
        gradients = FactoredGradients(blocks)
        ridge = 0.5 * float(gradients.squared_norms().mean())
        problems.append((gradients, gradients.sum(), n // 4, ridge))
    found = together(problems, device, nonnegative=nonnegative)
    for result, problem in zip(found, problems, strict=True):
        expected = alone(problem, nonnegative=nonnegative)
        assert result.support.tolist() == expected.support.tolist()
        assert result.weights.dtype == expected.weights.dtype
        np.testing.assert_allclose(result.weights, expected.weights, rtol=1e-3, atol=1e-4)
        assert result.objective == pytest.approx(expected.objective, rel=1e-4)


@both_signs
def test_duplicates_zeros_and_nothing_to_gain(device: torch.device, nonnegative: bool) -> None:
    """Of whole numbers, so that ties are exact in both."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-2, 3, (8, 4), generator=generator).double()
    repeated = torch.cat([torch.zeros(2, 4).double(), whole, whole])
    orthogonal = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0.0, 1.0]).double()
    problems: list[Problem] = [
        (DenseGradients(repeated), repeated.sum(0), 18, 2.0),
        (DenseGradients(torch.zeros(5, 3).double()), torch.ones(3).double(), 2, 0.0),
        (DenseGradients(torch.zeros(5, 3).double()), torch.zeros(3).double(), 2, 1.0),
        (DenseGradients(whole), torch.zeros(4).double(), 3, 1.0),
        (DenseGradients(orthogonal[0]), orthogonal[1], 2, 1.0),
    ]
    found = together(problems, device, nonnegative=nonnegative)
    assert_same(found[1:], problems[1:], nonnegative=nonnegative)
    expected = alone(problems[0], nonnegative=nonnegative)
    assert found[0].objective == pytest.approx(expected.objective, rel=1e-9)


def test_what_it_can_not_solve_is_left_to_the_other(device: torch.device) -> None:
    good = drawn(20, 4, 0.5, 0.5, 1)
    tiny = (*good[:3], 0.0)  # no atom could be dropped by a downdate
    endless = (DenseGradients(torch.full((3, 2), torch.nan).double()), torch.ones(2).double(), 1, 1)
    large = drawn(2000, 4, 0.5, 0.5, 1)
    given = [on(device, problem) for problem in (good, tiny, endless, large)]
    found = omp_together(given, device, room=2e6)
    assert [result is None for result in found] == [False, True, True, True]
    assert omp_together(given[:2], device, nonnegative=False, room=2e6)[1] is not None
    single = DenseGradients(torch.ones(3, 2)), torch.ones(2), 1, 1e-6  # `omp` takes it to float64
    assert omp_together([on(device, single)], device, nonnegative=False, room=2e6) == [None]
    assert omp_together(given[:1], torch.device("cpu")) == [None]  # it does not say what is free


@both_signs
def test_the_host_waits_once_in_so_many_ticks(nonnegative: bool) -> None:
    problems = [drawn(300, 40, 0.5, 0.5, seed) for seed in range(3)]
    pursuit = _Pursuit([on(torch.device("cpu"), each) for each in problems], nonnegative, 0.0)
    with Counting() as seen:
        pursuit.run()
    assert seen.calls["_local_scalar_dense"] == pursuit.ticks // LOOK + 1
    assert not any(seen.calls[name] for name in WAITS)
    assert seen.calls.total() < (65 if nonnegative else 45) * pursuit.ticks  # starts, and views


def test_the_walk_towards_a_new_fit_ends_at_its_first_boundary(device: torch.device) -> None:
    """By hand, as for `omp`, in weights times λ; beside a problem whose weights are all > 0."""
    pursuit = _Pursuit([on(device, drawn(3, 3, 1.0, 0.5, seed)) for seed in (1, 2)], True, 0.0)

    def walk(*new: float) -> Any:
        pursuit.c[:, :3] = torch.tensor([new, (5.0, 6.0, 7.0)])
        pursuit._walk()
        assert pursuit.old[1, :3].tolist() == [5.0, 6.0, 7.0]
        assert not pursuit.leaving[1].any()
        return pursuit.old[0, :3].tolist(), pursuit.leaving[0, :3].tolist()

    pursuit.inside[:, :3] = True
    pursuit.old[:, :2] = 1.0
    assert walk(-1, -0.5, 3) == (pytest.approx([0, 0.25, 1.5]), [True, False, False])
    # While it has not left, nothing moves, whatever turns negative.
    assert walk(4, -9, 3) == (pytest.approx([0, 0.25, 1.5]), [True, False, False])
    pursuit.inside[0, 0] = pursuit.leaving[0, 0] = False
    assert walk(9, -1, -4.5) == (pytest.approx([0, 0, 0.3]), [False, True, False])
    # Both that reach zero together leave.
    pursuit.leaving[0] = False
    pursuit.old[0, 1:3] = torch.tensor([1.0, 2.0])
    assert walk(9, -1, -2) == (pytest.approx([0, 0, 0]), [False, True, True])


@both_signs
@pytest.mark.parametrize("seed", range(24, 44))
def test_what_rounding_spoils_is_left_to_the_solver_for_one(
    seed: int, nonnegative: bool, device: torch.device
) -> None:
    gradients = of_few_ranks(seed)
    mean, target = float(gradients.squared_norms().mean()), gradients.sum()
    problems = [on(device, (gradients, target, 90, s * mean)) for s in NEAR_ROUNDING]
    for found in omp_together(problems, device, nonnegative=nonnegative, room=ROOM):
        assert found is None or found.residual < float(target @ target)
