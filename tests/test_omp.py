"""Laws of the ridge OMP; equalities in float64 unless a test says otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from adaptive_subset.gradients import (
    BatchGradients,
    DenseGradients,
    FactoredGradients,
    Gradients,
)
from adaptive_subset.strategies.solvers.atoms import DenseAtoms, atoms_of
from adaptive_subset.strategies.solvers.greedy_path import GreedyPath
from adaptive_subset.strategies.solvers.matching_pursuit import _make_feasible, omp
from tests import reference

FORMS = ("primal", "dual")
both_forms = pytest.mark.parametrize("form", FORMS)
both_signs = pytest.mark.parametrize("nonnegative", [True, False], ids=["nonnegative", "signed"])


def gaussian(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Atoms without ties, and their sum; every third seed with a common positive direction."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        matrix = (matrix + 1) * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return matrix, matrix.sum(dim=0)


class Solution(NamedTuple):
    """An `OMPResult` of tensors."""

    support: Tensor
    weights: Tensor
    objective: float
    residual: float
    dropped: int


def solve(matrix: Tensor, target: Tensor, budget: int, ridge: float, **options: Any) -> Solution:
    """omp on the rows of `matrix`, tensors in and out."""
    result = omp(DenseAtoms(matrix.numpy()), target.numpy(), budget, ridge=ridge, **options)
    return Solution(
        torch.from_numpy(result.support),
        torch.from_numpy(result.weights),
        result.objective,
        result.residual,
        result.dropped,
    )


def assert_sound(result: Solution, matrix: Tensor, budget: int, nonnegative: bool) -> None:
    """What holds whatever the input."""
    support, weights = result.support, result.weights
    assert support.dtype == torch.int64
    assert weights.dtype == matrix.dtype
    assert len(support) == len(weights) <= min(budget, len(matrix))
    assert len(set(support.tolist())) == len(support)
    assert torch.isfinite(weights).all()
    assert np.isfinite([result.objective, result.residual]).all()
    if nonnegative:
        assert (weights > 0).all()


problems = given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    share=st.floats(0.0, 1.2),
    relative=st.sampled_from([1e-3, 0.03, 0.5, 5.0]),
    seed=st.integers(0, 10_000),
)


def drawn(
    n: int, d: int, share: float, relative: float, seed: int
) -> tuple[Tensor, Tensor, int, float]:
    matrix, target = gaussian(n, d, seed)
    target = target + torch.randn(d, generator=torch.Generator().manual_seed(seed + 1)).double()
    ridge = relative * float(matrix.square().sum(dim=1).mean())
    return matrix, target, max(1, round(share * n)), ridge


@both_forms
@pytest.mark.parametrize(("n", "d", "k"), [(300, 20, 15), (300, 20, 80), (60, 90, 30), (40, 5, 39)])
def test_signed_is_scikit_learns_omp_on_the_ridge_gram(n: int, d: int, k: int, form: str) -> None:
    matrix, target = gaussian(n, d, seed=n + k)
    ridge = 0.1 * float(matrix.square().sum(dim=1).mean())
    gram = (matrix @ matrix.T + ridge * torch.eye(n).double()).numpy()
    expected = orthogonal_mp_gram(gram, (matrix @ target).numpy(), n_nonzero_coefs=k)
    result = solve(matrix, target, k, ridge, nonnegative=False, _form=form)
    assert len(result.support) == k
    found = torch.zeros(n, dtype=torch.float64).index_copy(0, result.support, result.weights)
    assert set(np.flatnonzero(expected)) == set(result.support.tolist())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9 * abs(expected).max())


@both_forms
@both_signs
@settings(max_examples=60, deadline=None)
@problems
def test_every_step_is_the_greedy_step_of_the_slow_reference(
    form: str, nonnegative: bool, n: int, d: int, share: float, relative: float, seed: int
) -> None:
    matrix, target, budget, ridge = drawn(n, d, share, relative, seed)
    result = solve(matrix, target, budget, ridge, nonnegative=nonnegative, _form=form)
    support, weights = reference.ridge_omp(
        matrix.numpy(), target.numpy(), budget, ridge, nonnegative=nonnegative
    )
    assert result.support.tolist() == support
    np.testing.assert_allclose(result.weights.numpy(), weights, rtol=1e-6, atol=1e-9)


@both_signs
def test_short_atoms_are_left_out_of_sight_and_nothing_else(nonnegative: bool) -> None:
    """Lengths over many scales, as those of a trained network's gradients are."""
    read = []

    class Counting(DenseAtoms):
        def take(self, index: np.ndarray) -> Counting:
            return Counting(self.matrix[index])

        def correlate(self, vector: np.ndarray, first: int) -> np.ndarray:
            read.append(first)
            return super().correlate(vector, first)

    generator = torch.Generator().manual_seed(4)
    lengths = 10 ** (4 * torch.rand(2000, 1, generator=generator) - 3).double()
    matrix = gaussian(2000, 12, seed=5)[0] * lengths
    target, ridge = matrix.sum(dim=0), 0.5 * float(matrix.square().sum(dim=1).mean())
    options: dict[str, Any] = {"ridge": ridge, "nonnegative": nonnegative}
    seen = omp(Counting(matrix.numpy()), target.numpy(), 60, _form="primal", **options)
    assert sum(read) < 0.5 * 60 * 2000
    support, weights = reference.ridge_omp(
        matrix.numpy(), target.numpy(), 60, ridge, nonnegative=nonnegative
    )
    assert seen.support.tolist() == support
    np.testing.assert_allclose(seen.weights, weights, rtol=1e-6, atol=1e-9)


@both_signs
@pytest.mark.parametrize("relative", [0.5, 1e-3, 1e-6])
@pytest.mark.parametrize(("n", "d", "k"), [(400, 30, 120), (100, 150, 60)])
def test_primal_and_dual_agree(n: int, d: int, k: int, relative: float, nonnegative: bool) -> None:
    matrix, target = gaussian(n, d, seed=1)
    ridge = relative * float(matrix.square().sum(dim=1).mean())
    primal, dual = (
        solve(matrix, target, k, ridge, nonnegative=nonnegative, _form=form) for form in FORMS
    )
    assert primal.support.tolist() == dual.support.tolist()
    assert primal.dropped == dual.dropped
    assert (primal.dropped > 0) <= nonnegative
    torch.testing.assert_close(primal.weights, dual.weights, rtol=1e-4, atol=1e-6)
    assert primal.objective == pytest.approx(dual.objective, rel=1e-6)


@pytest.mark.parametrize(
    ("k", "d", "form"), [(90, 10, "primal"), (3, 10, "dual"), (90, 5000, "dual")]
)
def test_the_cheaper_form_is_chosen(k: int, d: int, form: str) -> None:
    class Counting(DenseAtoms):
        columns = 0

        def take(self, index: np.ndarray) -> Counting:
            return self  # the order is no matter here

        def gram_column(self, index: int) -> np.ndarray:
            self.columns += 1
            return super().gram_column(index)

    matrix, target = gaussian(100, d, seed=2)
    atoms = Counting(matrix.numpy())
    omp(atoms, target.numpy(), k, ridge=100.0)
    assert (atoms.columns > 0) == (form == "dual")


@both_forms
@settings(max_examples=40, deadline=None)
@problems
def test_the_weights_are_the_ridge_nnls_solution_on_their_support(
    form: str, n: int, d: int, share: float, relative: float, seed: int
) -> None:
    matrix, target, budget, ridge = drawn(n, d, share, relative, seed)
    result = solve(matrix, target, budget, ridge, _form=form)
    assert_sound(result, matrix, budget, nonnegative=True)
    chosen = matrix[result.support]
    rest = target - result.weights @ chosen
    scale = float((matrix @ target).abs().max())
    torch.testing.assert_close(chosen @ rest, ridge * result.weights, rtol=0, atol=1e-9 * scale)
    if len(result.support) < min(budget, n):  # nothing left that would help
        outside = (matrix @ rest).index_fill(0, result.support, 0.0)
        assert float(outside.max()) <= 1e-9 * scale
    if len(result.support):
        expected = reference.nonnegative_ridge_weights(chosen.numpy(), target.numpy(), ridge)
        np.testing.assert_allclose(result.weights.numpy(), expected, rtol=1e-6, atol=1e-9)
        signed = reference.ridge_weights(chosen.numpy(), target.numpy(), ridge).clip(min=0)
        bound = reference.ridge_objective(chosen.numpy(), target.numpy(), ridge, signed)
        assert result.objective <= bound * (1 + 1e-9)


@both_forms
@pytest.mark.parametrize("seed", range(4))
def test_a_budget_for_all_atoms_gives_the_full_nnls_solution(form: str, seed: int) -> None:
    matrix, target = gaussian(50, 20, seed)
    target = target + 10 * matrix[:5].sum(dim=0)
    result = solve(matrix, target, 50, 0.3, _form=form)
    expected = reference.nonnegative_ridge_weights(matrix.numpy(), target.numpy(), 0.3)
    found = torch.zeros(50, dtype=torch.float64).index_copy(0, result.support, result.weights)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


@both_signs
@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 7), d=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_never_below_the_brute_force_optimum(nonnegative: bool, n: int, d: int, seed: int) -> None:
    matrix, target = gaussian(n, d, seed)
    for budget in range(1, min(n, 3) + 1):
        result = solve(matrix, target, budget, 0.5, nonnegative=nonnegative)
        best = reference.best_subset_objective(
            matrix.numpy(), target.numpy(), budget, 0.5, nonnegative=nonnegative
        )
        assert result.objective >= best * (1 - 1e-9)


@both_signs
@pytest.mark.parametrize("seed", range(5))
def test_one_atom_of_equal_norms_is_optimal(nonnegative: bool, seed: int) -> None:
    """One atom lowers the objective by c²/(λ + ‖a‖²): with equal norms the largest c is best."""
    matrix, _ = gaussian(30, 4, seed)
    matrix = matrix / matrix.norm(dim=1, keepdim=True)
    target = matrix[:9].sum(dim=0)
    result = solve(matrix, target, 1, 0.5, nonnegative=nonnegative)
    best = reference.best_subset_objective(
        matrix.numpy(), target.numpy(), 1, 0.5, nonnegative=nonnegative
    )
    assert result.objective == pytest.approx(best, rel=1e-9)


@both_forms
@both_signs
def test_a_smaller_budget_gives_a_prefix(form: str, nonnegative: bool) -> None:
    """Of the support, as long as no atom was dropped."""
    matrix, target = gaussian(80, 10, seed=3)
    options = {"nonnegative": nonnegative, "_form": form}
    long = solve(matrix, target, 30, 8.0, **options)
    assert long.dropped == 0
    for budget in (1, 2, 13, 29):
        short = solve(matrix, target, budget, 8.0, **options)
        assert short.support.tolist() == long.support[:budget].tolist()
        assert short.objective >= long.objective


@both_forms
@both_signs
@settings(max_examples=25, deadline=None)
@problems
def test_the_order_of_the_atoms_does_not_matter(
    form: str, nonnegative: bool, n: int, d: int, share: float, relative: float, seed: int
) -> None:
    matrix, target, budget, ridge = drawn(n, d, share, relative, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    options = {"nonnegative": nonnegative, "_form": form}
    plain = solve(matrix, target, budget, ridge, **options)
    shuffled = solve(matrix[order], target, budget, ridge, **options)
    assert order[shuffled.support].tolist() == plain.support.tolist()
    torch.testing.assert_close(shuffled.weights, plain.weights, rtol=1e-6, atol=1e-9)


@both_forms
@both_signs
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 7.0, 1e8])
def test_the_unit_of_the_gradients_does_not_matter(
    form: str, nonnegative: bool, scale: float
) -> None:
    matrix, target = gaussian(60, 12, seed=4)
    options = {"nonnegative": nonnegative, "_form": form}
    for ridge in (0.0, 3.0):
        plain = solve(matrix, target, 10, ridge, **options)
        scaled = solve(scale * matrix, scale * target, 10, scale**2 * ridge, **options)
        assert scaled.support.tolist() == plain.support.tolist()
        torch.testing.assert_close(scaled.weights, plain.weights, rtol=1e-5, atol=1e-6)
        assert scaled.residual == pytest.approx(scale**2 * plain.residual, rel=1e-5)


@both_forms
@both_signs
def test_objective_and_residual_are_those_of_the_returned_weights(
    form: str, nonnegative: bool
) -> None:
    for dtype in (torch.float32, torch.float64):
        matrix, target = (t.to(dtype) for t in gaussian(60, 12, seed=5))
        result = solve(matrix, target, 25, 2.0, nonnegative=nonnegative, _form=form)
        weights = result.weights.double()
        residual = float((weights @ matrix[result.support].double() - target).square().sum())
        assert result.residual == pytest.approx(residual, rel=1e-9)
        assert result.objective == pytest.approx(residual + 2 * float(weights @ weights), rel=1e-9)


@both_forms
@both_signs
def test_without_a_ridge_the_fit_is_least_squares_on_the_support(
    form: str, nonnegative: bool
) -> None:
    matrix, target = gaussian(200, 40, seed=7)
    result = solve(matrix, target, 20, 0.0, nonnegative=nonnegative, _form=form)
    assert len(result.support) == 20
    expected = reference.ridge_weights(matrix[result.support].numpy(), target.numpy(), 0.0)
    np.testing.assert_allclose(result.weights.numpy(), expected, rtol=1e-5)


@both_forms
@pytest.mark.parametrize("seed", [10, 18, 26])
def test_without_a_ridge_the_fit_stays_accurate_where_atoms_are_dropped(
    seed: int, form: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(60, 20, generator=generator).double() + 1.5
    target = 5 * torch.randn(20, generator=generator).double() + matrix.sum(dim=0)
    result = solve(matrix, target, 18, 0.0, _form=form)
    chosen = matrix[result.support].numpy()
    assert result.dropped > 0
    expected = reference.ridge_weights(chosen, target.numpy(), 0.0)
    np.testing.assert_allclose(result.weights.numpy(), expected, atol=1e-5 * expected.max())


def test_the_walk_towards_a_new_fit_ends_at_its_first_boundary() -> None:
    """By hand: (1, 1, 0) → (−1, −½, 3) meets w₀ = 0 half way, at (0, ¼, 3/2); from there
    (¼, 3/2) → (−1, −4½) meets w₁ = 0 after 1/5, w₂ = 0 only after 1/4."""

    class Scripted:
        support: list[int] = [0, 1, 2]  # noqa: RUF012
        fits = iter(([-1.0, -0.5, 3.0], [-1.0, -4.5], [2.0]))

        def weights(self) -> np.ndarray:
            return np.array(next(self.fits))

        def remove(self, index: int) -> None:
            self.support = [i for i in self.support if i != index]

    fit = Scripted()
    assert _make_feasible(fit, np.ones(2)) == [0, 1]  # type: ignore[arg-type]
    assert fit.support == [2]


@both_forms
@both_signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_ridge_a_sparse_combination_is_recovered_and_nothing_else(
    form: str, nonnegative: bool, dtype: torch.dtype
) -> None:
    matrix, _ = gaussian(100, 60, seed=8)
    true = torch.tensor([3.0, 2.0, 4.0, 2.5], dtype=torch.float64)
    target = true @ matrix[[5, 17, 60, 99]]
    result = solve(matrix.to(dtype), target.to(dtype), 30, 0.0, nonnegative=nonnegative, _form=form)
    order = result.support.argsort()
    assert result.support[order].tolist() == [5, 17, 60, 99]
    torch.testing.assert_close(result.weights[order].double(), true, rtol=1e-4, atol=1e-6)


@both_signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_ridge_it_ends_near_d_atoms_with_next_to_no_residual(
    nonnegative: bool, dtype: torch.dtype
) -> None:
    matrix, target = (t.to(dtype) for t in gaussian(600, 30, seed=13))
    result = solve(matrix, target, 600, 0.0, nonnegative=nonnegative)
    assert 25 <= len(result.support) <= 45
    assert result.residual <= 1e-8 * float(target @ target)


@both_forms
@both_signs
def test_duplicates_share_the_weight_under_a_ridge(form: str, nonnegative: bool) -> None:
    atom = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    result = solve(atom.repeat(3, 1), 7 * atom[0], 2, 5.0, nonnegative=nonnegative, _form=form)
    torch.testing.assert_close(result.weights, torch.full((2,), 7 * 25 / (5 + 2 * 25)).double())


@both_forms
@both_signs
def test_duplicates_and_zero_atoms_are_no_gain_without_a_ridge(
    form: str, nonnegative: bool
) -> None:
    matrix, _ = gaussian(3, 6, seed=10)
    matrix = torch.cat([torch.zeros(2, 6).double(), matrix, matrix, matrix])
    result = solve(matrix, matrix[2:5].sum(dim=0), 11, 0.0, nonnegative=nonnegative, _form=form)
    assert sorted((result.support.sub(2) % 3).tolist()) == [0, 1, 2]
    torch.testing.assert_close(result.weights, torch.ones(3).double(), rtol=1e-5, atol=0)


@both_forms
@both_signs
@pytest.mark.parametrize("ridge", [0.0, 1.0])
@pytest.mark.parametrize(
    ("matrix", "target"),
    [
        (torch.zeros(5, 3), torch.ones(3)),
        (torch.ones(5, 3), torch.zeros(3)),
        (torch.zeros(5, 3), torch.zeros(3)),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0])),
        (torch.zeros(0, 3), torch.ones(3)),
    ],
    ids=["zero atoms", "zero target", "all zero", "orthogonal", "no atoms"],
)
def test_where_nothing_can_be_matched_nothing_is_chosen(
    matrix: Tensor, target: Tensor, ridge: float, form: str, nonnegative: bool
) -> None:
    result = solve(matrix, target, 2, ridge, nonnegative=nonnegative, _form=form)
    assert len(result.support) == len(result.weights) == 0
    assert result.residual == result.objective == float(target @ target)


def test_nonnegative_takes_no_atom_that_points_away() -> None:
    matrix = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    assert solve(matrix, torch.tensor([1.0, 0.0]), 2, 0.1).support.tolist() == [0]
    assert len(solve(-matrix[:1], torch.tensor([1.0, 0.0]), 2, 0.1).support) == 0
    assert len(solve(matrix, torch.tensor([1.0, 0.0]), 2, 0.1, nonnegative=False).support) == 2


@both_forms
def test_a_single_atom_has_the_closed_form_weight(form: str) -> None:
    matrix = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    result = solve(matrix, torch.tensor([1.0, 1.0]), 9, 10.0, _form=form)
    assert result.support.tolist() == [0]
    assert float(result.weights) == pytest.approx(7 / 35)


@both_forms
@both_signs
def test_the_tolerance_is_the_first_objective_small_enough(form: str, nonnegative: bool) -> None:
    matrix, target = gaussian(80, 10, seed=3)
    options = {"nonnegative": nonnegative, "_form": form}
    energy = float(target @ target)
    full = solve(matrix, target, 12, 8.0, **options)
    tolerance = 1.5 * full.objective / energy
    stopped = solve(matrix, target, 12, 8.0, tolerance=tolerance, **options)
    size = len(stopped.support)
    assert 0 < size < 12
    assert stopped.objective <= tolerance * energy
    assert solve(matrix, target, size - 1, 8.0, **options).objective > tolerance * energy


@both_forms
@both_signs
@pytest.mark.parametrize("born", [torch.float32, torch.bfloat16])
def test_float32_atoms_match_as_well_as_float64_ones(
    born: torch.dtype, form: str, nonnegative: bool
) -> None:
    matrix, target = gaussian(500, 30, seed=9)
    matrix = torch.relu(matrix).to(born).float()
    ridge = 0.1 * float(matrix.square().sum(dim=1).mean())
    options = {"nonnegative": nonnegative, "_form": form}
    single = solve(matrix, target.float(), 25, ridge, **options)
    double = solve(matrix.double(), target, 25, ridge, **options)
    assert single.objective == pytest.approx(double.objective, rel=1e-3)
    chosen = matrix[single.support].double().numpy()
    exact = reference.ridge_weights(chosen, target.numpy(), ridge)
    np.testing.assert_allclose(single.weights.numpy(), exact, atol=1e-4 * abs(exact).max())


@both_forms
@both_signs
@pytest.mark.parametrize("relative", [0.0, 1e-6, 1e-5])
@pytest.mark.parametrize(("n", "d", "k"), [(21, 21, 18), (34, 19, 18), (40, 6, 39)])
def test_under_a_small_ridge_float32_atoms_are_matched_as_in_float64(
    n: int, d: int, k: int, relative: float, form: Any, nonnegative: bool
) -> None:
    """Of lengths far apart. A weight is a correlation over λ, and so is the error of one."""
    matrix, _ = gaussian(n, d, seed=n)
    lengths = torch.randn(n, 1, generator=torch.Generator().manual_seed(n)).mul(2).exp()
    matrix = (matrix * lengths).float()
    target, ridge = matrix.sum(0), relative * float(matrix.square().sum(1).mean())
    options = {"nonnegative": nonnegative, "_form": form}
    single = solve(matrix, target, k, ridge, **options)
    double = solve(matrix.double(), target.double(), k, ridge, **options)
    assert single.support.tolist() == double.support.tolist()
    torch.testing.assert_close(single.weights, double.weights.float(), rtol=1e-6, atol=0)


def kinds(delta: Tensor, features: Tensor) -> list[Gradients]:
    """The same gradients, held in several ways, and the means of pairs of them."""
    factored = FactoredGradients([(delta, features)])
    dense = DenseGradients((delta[:, :, None] * features[:, None]).flatten(1))
    pairs = torch.arange(len(delta)).view(-1, 2)
    return [factored, dense, *(BatchGradients(each, pairs) for each in (factored, dense))]


@both_forms
@pytest.mark.parametrize("kind", range(4))
def test_gradients_of_any_kind_are_computed_with_in_float64(kind: int, form: Any) -> None:
    """Of whole numbers, so that float32 holds each product of two factors."""
    generator = torch.Generator().manual_seed(2)
    delta, features = (
        torch.randint(-9, 10, (60, width), generator=generator).float() for width in (4, 5)
    )
    single, double = kinds(delta, features)[kind], kinds(delta.double(), features.double())[kind]
    target, path = single.sum().numpy(), GreedyPath()
    found, expected = (
        omp(atoms_of(each), target.astype(atoms_of(each).dtype), 15, ridge=0.0, _form=form)
        for each in (single, double)
    )
    assert single.double().dtype == torch.float64
    assert found.weights.dtype == np.float32
    np.testing.assert_array_equal(found.support, expected.support)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6)
    omp(atoms_of(single), target, 20, ridge=0.0, path=path, _form=form)
    again = path.at(atoms_of(single), target, 15, 0.0)
    np.testing.assert_array_equal(again.support, expected.support)
    np.testing.assert_allclose(again.weights, expected.weights, rtol=1e-6)


def adversarial() -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs on which active sets flip, Gram matrices are singular, or scales are far apart."""
    grid = torch.arange(1, 41, dtype=torch.float64)
    hilbert = 1 / (grid[:, None] + grid[None, :12])
    matrix, target = gaussian(40, 12, seed=11)
    wide = matrix * torch.logspace(-8, 8, 40, dtype=torch.float64)[:, None]
    near = matrix[:4].repeat(10, 1) + 1e-9 * matrix
    line = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None] * matrix[:1]
    return {
        "hilbert": (hilbert, hilbert[::2].sum(dim=0) - hilbert[1::2].sum(dim=0) * 0.99),
        "scales": (wide, wide.sum(dim=0)),
        "nearly equal": (near, near.sum(dim=0) + target),
        "one line": (line, 5 * matrix[0] + target),
        "opposite pairs": (torch.cat([matrix, -matrix]), target),
        "alternating": (grid[:, None] ** torch.arange(12) / 40.0**11, (-1.0) ** grid[:12]),
        "integers": (matrix.round(), matrix.round().sum(dim=0)),
    }


@both_forms
@both_signs
@pytest.mark.parametrize("name", adversarial())
def test_it_ends_and_stays_sound_on_adversarial_inputs(
    name: str, form: str, nonnegative: bool
) -> None:
    matrix, target = adversarial()[name]
    for dtype in (torch.float32, torch.float64):
        for ridge in (0.0, 1e-12, 1e-3, 1e3):
            for budget in (1, 11, 40):
                options = {"nonnegative": nonnegative, "_form": form}
                result = solve(matrix.to(dtype), target.to(dtype), budget, ridge, **options)
                assert_sound(result, matrix.to(dtype), budget, nonnegative)
                energy = float(target @ target)
                assert result.residual <= energy * (1 + 1e-3), (dtype, ridge, budget)


def test_inputs_and_global_state_are_left_alone() -> None:
    matrix, target = gaussian(20, 5, seed=12)
    before, state = (matrix.clone(), target.clone()), torch.get_rng_state()
    for form in FORMS:
        solve(matrix, target, 8, 0.1, _form=form)
    assert torch.equal(matrix, before[0])
    assert torch.equal(target, before[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": torch.ones(4)}, r"`target` must have an atom's shape \(3,\), got \(4,\)\."),
        ({"target": torch.ones(3) / 0}, r"`target` must be finite, got 3 of 3 that are not\."),
        (
            {"matrix": torch.tensor([[1.0, torch.nan, 0.0], [0.0, 0.0, 1.0]])},
            r"`atoms` must be finite, got 1 of 2 that are not\.",
        ),
        (
            {"matrix": torch.ones(2, 3).half()},
            r"`atoms` must be float32 or float64, got float16\. Upcast them",
        ),
        ({"budget": 0}, r"`budget` must be at least 1, got 0\."),
        ({"ridge": -0.5}, r"`ridge` must be finite and at least 0, got -0\.5\."),
        ({"ridge": float("nan")}, r"`ridge` must be finite and at least 0, got nan\."),
        ({"tolerance": -1.0}, r"`tolerance` must be finite and at least 0, got -1\.0\."),
    ],
)
def test_arguments_out_of_range_are_named(changed: dict[str, object], message: str) -> None:
    arguments = {"matrix": torch.ones(2, 3), "target": torch.ones(3), "budget": 1, "ridge": 0.1}
    with pytest.raises(ValueError, match=message):
        solve(**(arguments | changed))  # type: ignore[arg-type]


def of_few_ranks(seed: int) -> FactoredGradients:
    """A hundred gradients in float32; what is left of one beside others may round to below −λ."""
    generator = torch.Generator().manual_seed(seed)

    def product(columns: int) -> Tensor:
        left = torch.randn(100, 1, generator=generator) ** 3
        return left @ torch.randn(1, columns, generator=generator)

    delta = product(3).softmax(1) - torch.eye(3)[torch.arange(100) % 3]
    return FactoredGradients([(delta, product(60))])


NEAR_ROUNDING = (1e-6, 1.5e-6, 3e-6)  # ridges, in units of their mean squared norm


@both_signs
@pytest.mark.parametrize("seed", range(24, 44))
def test_a_ridge_near_the_rounding_of_the_atoms_is_no_trouble(seed: int, nonnegative: bool) -> None:
    gradients = of_few_ranks(seed)
    mean, target = float(gradients.squared_norms().mean()), gradients.sum().numpy()
    for share in NEAR_ROUNDING:
        found = omp(
            *(atoms_of(gradients), target, 90),
            ridge=share * mean,
            nonnegative=nonnegative,
            _form="dual",
        )
        assert found.residual < float(target @ target)
