"""Importance sampling: chances, weights, and sums that are right on average."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    AdaptiveSubsetSampler,
    Candidates,
    GradientNorm,
    LossSampling,
    Selector,
    WeightedLoss,
)
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.strategies.draws import inclusion

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
    chances = inclusion(given_shares / given_shares.sum(), budget)
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
        total += pool.atoms.sum(choice.weights, choice.positions)
    norms = pool.atoms.squared_norms().sqrt()
    chances = inclusion(0.7 * norms / norms.sum() + 0.3 / N, BUDGET)
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
    assert isinstance(pool.atoms, FactoredGradients)
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


@pytest.mark.parametrize("strategy", [GradientNorm, LossSampling])
def test_arguments_are_checked(strategy: type[GradientNorm | LossSampling]) -> None:
    with pytest.raises(ValueError, match=r"`uniform` must be in \(0, 1\], got 0"):
        strategy(uniform=0)


def frequencies(losses: torch.Tensor, strategy: LossSampling, runs: int = 3000) -> torch.Tensor:
    seen = torch.zeros(N)
    for epoch in range(runs):
        choice = strategy.select(Candidates(N, losses=losses), BUDGET, seed=0, epoch=epoch)
        seen[choice.positions] += 1
    return seen / runs


@pytest.mark.parametrize("uniform", [0.2, 1.0])
def test_chances_follow_the_losses(uniform: float) -> None:
    losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
    expected = BUDGET * ((1 - uniform) * losses / losses.sum() + uniform / N)
    assert float(expected.max()) < 1
    found = frequencies(losses, LossSampling(uniform=uniform))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.04)


def test_chances_are_in_proportion_to_losses_far_from_zero() -> None:
    losses = 1 + torch.rand(N, generator=torch.Generator().manual_seed(0))
    strategy = LossSampling(uniform=0.2, unbiased=True)
    choice = strategy.select(Candidates(N, losses=losses), BUDGET, seed=0, epoch=0)
    losses = losses.double()
    chances = BUDGET * (0.8 * losses / losses.sum() + 0.2 / N)
    torch.testing.assert_close(choice.weights, 1 / chances[choice.positions])


def test_what_was_not_trained_on_counts_with_the_mean() -> None:
    losses = torch.linspace(0, 2, N)
    losses[::2] = torch.nan
    filled = losses.nan_to_num(float(losses.nanmean()))
    for strategy in (LossSampling(), LossSampling(unbiased=True)):
        known, unknown = (
            strategy.select(Candidates(N, losses=given), BUDGET, seed=0, epoch=3)
            for given in (filled, losses)
        )
        assert torch.equal(known.positions, unknown.positions)
        assert torch.equal(known.weights, unknown.weights)


@pytest.mark.parametrize("losses", [torch.full((N,), torch.nan), torch.zeros(N), -torch.ones(N)])
def test_losses_that_tell_nothing_give_a_uniform_draw(losses: torch.Tensor) -> None:
    choice = LossSampling(unbiased=True).select(
        Candidates(N, losses=losses), BUDGET, seed=0, epoch=0
    )
    torch.testing.assert_close(choice.weights, torch.full((BUDGET,), N / BUDGET).double())


def test_losses_of_both_signs_count_from_the_smallest() -> None:
    losses = torch.randn(N, generator=torch.Generator().manual_seed(0))
    choices = [
        LossSampling().select(Candidates(N, losses=given), BUDGET, seed=0, epoch=0)
        for given in (losses, losses - losses.min())
    ]
    assert torch.equal(choices[0].positions, choices[1].positions)


def test_an_infinite_loss_raises() -> None:
    losses = torch.ones(N)
    losses[3] = torch.inf
    with pytest.raises(ValueError, match="`losses` must be finite, got infinity"):
        LossSampling().select(Candidates(N, losses=losses), BUDGET, seed=0, epoch=0)


def test_training_draws_by_its_own_losses() -> None:
    data = TensorDataset(torch.arange(float(N))[:, None] / N, torch.zeros(N, 1))
    net, selector = nn.Linear(1, 1), Selector(data, LossSampling(uniform=0.1), budget=BUDGET)
    sampler = AdaptiveSubsetSampler(selector, every=1)
    with pytest.raises(RuntimeError, match="learn the losses of training for LossSampling"):
        sampler.maybe_reselect(net, 0)
    criterion = WeightedLoss(nn.L1Loss(), selector)
    seen = torch.zeros(N)
    for epoch in range(200):
        sampler.maybe_reselect(net, epoch)
        for x, y in DataLoader(sampler.dataset, 5, sampler=sampler):
            torch.testing.assert_close(y.weights, torch.ones(len(y)))
            criterion(1.0 * x.requires_grad_(), y)  # a loss of i / N for sample i
            seen[(N * x[:, 0]).round().long()] += 1
    expected = 200 * BUDGET * (0.9 * torch.arange(N) / torch.arange(N).sum() + 0.1 / N)
    assert float((seen - expected).norm() / expected.norm()) < 0.15
