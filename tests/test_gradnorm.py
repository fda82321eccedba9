"""Sampling by gradient norm: chances, weights, and sums that are right on average."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_subset import Candidates, GradientNorm
from adaptive_subset.gradients import FactoredGradients
from adaptive_subset.strategies.gradnorm import _inclusion

N, BUDGET = 50, 12


def candidates(spread: float = 1.5) -> Candidates:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(N, 3, generator=generator).double()
    scale = (spread * torch.randn(N, 1, generator=generator)).exp().double()
    return Candidates(N, FactoredGradients([(scale * delta, torch.ones(N, 1).double())]))


@given(
    shares=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40),
    part=st.floats(0.01, 1),
)
def test_chances_are_proportional_up_to_one_and_add_up(shares: list[float], part: float) -> None:
    budget = max(1, round(part * len(shares)))
    given_shares = torch.tensor(shares, dtype=torch.float64)
    chances = _inclusion(given_shares / given_shares.sum(), budget)
    assert float(chances.sum()) == pytest.approx(budget)
    assert float(chances.max()) <= 1
    free = chances < 1
    if free.any():
        ratios = chances[free] / given_shares[free]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
        assert (given_shares[~free] >= given_shares[free].max() * (1 - 1e-6)).all()


@pytest.mark.parametrize("spread", [0.3, 1.5, 5.0])
def test_weighted_sums_are_right_on_average(spread: float) -> None:
    pool, strategy = candidates(spread), GradientNorm(uniform=0.3)
    seen, total = torch.zeros(N), torch.zeros(3).double()
    runs = 3000
    for epoch in range(runs):
        choice = strategy.select(pool, BUDGET, seed=0, epoch=epoch)
        seen[choice.positions] += 1
        total += pool.atoms[choice.positions].sum(choice.weights)
    norms = pool.atoms.squared_norms().sqrt()
    chances = _inclusion(0.7 * norms / norms.sum() + 0.3 / N, BUDGET)
    torch.testing.assert_close(seen / runs, chances.float(), rtol=0, atol=0.04)
    error = (total / runs - pool.target).norm() / norms.sum()
    assert float(error) < 0.01


def test_equal_weights_are_biased_towards_what_is_large() -> None:
    pool = candidates()
    choice = GradientNorm(unbiased=False).select(pool, BUDGET, seed=0, epoch=0)
    assert (choice.weights == N / BUDGET).all()
    norms = pool.atoms.squared_norms()
    assert norms[choice.positions].mean() > norms.mean()


def test_what_is_uniform_has_uniform_weights() -> None:
    pool = candidates()
    zero = FactoredGradients([(0 * d, h) for d, h in pool.atoms.blocks])
    for strategy, given_pool in (
        (GradientNorm(uniform=1.0), pool),
        (GradientNorm(), Candidates(N, zero)),
    ):
        choice = strategy.select(given_pool, BUDGET, seed=0, epoch=0)
        torch.testing.assert_close(choice.weights, torch.full((BUDGET,), N / BUDGET).double())


def test_each_epoch_is_a_fresh_draw() -> None:
    draws = [GradientNorm().select(candidates(), BUDGET, seed=0, epoch=e) for e in (0, 0, 1)]
    assert torch.equal(draws[0].positions, draws[1].positions)
    assert not torch.equal(draws[0].positions, draws[2].positions)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"`uniform` must be in \(0, 1\], got 0"):
        GradientNorm(uniform=0)
