"""Losses of a pool, the scores that they are for, and selection within a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    CRAIG,
    CRAIGPB,
    GLISTER,
    AdaptiveSubsetSampler,
    Balanced,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    OrderDP,
    PerEpoch,
    RandomSizes,
    Selector,
    Strategy,
    WeightedLoss,
    select_in_batch,
)
from adaptive_subset.gradients import GradientSource
from adaptive_subset.strategies import draws, scores

N, CLASSES = 40, 4
CRITERION = nn.CrossEntropyLoss(label_smoothing=0.1)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, 6, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (N,), generator=generator))


# ---- losses of a pool


@pytest.mark.parametrize("batch_size", [7, 256])
def test_losses_of_a_pool_are_those_of_a_loop(batch_size: int) -> None:
    net = model().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = GradientSource(data(), batch_size=batch_size).losses(net, CRITERION)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    slow = [CRITERION(net(x[None]), y[None]) for x, y in zip(*data().tensors, strict=True)]
    assert torch.allclose(found, torch.stack(slow), atol=1e-6)
    assert found.device.type == "cpu"
    assert not found.requires_grad


def without_batches() -> DataLoader[object]:
    return DataLoader(data(), batch_sampler=[])


def test_a_pool_without_batches_or_with_other_rows_raises() -> None:
    empty = GradientSource(without_batches())
    with pytest.raises(ValueError, match="`pool` must yield at least one batch"):
        empty.losses(model(), CRITERION)
    halving = nn.Sequential(model(), nn.Flatten(0), nn.Unflatten(0, (-1, 2 * CLASSES)))
    with pytest.raises(ValueError, match="one row for each of the 40 targets"):
        GradientSource(data()).losses(halving, CRITERION)


# ---- scores that are given, or corrected by what is given


def test_a_proxy_says_which_are_hard() -> None:
    proxy = torch.arange(float(N))
    strategy = PerEpoch(scores.Given(proxy), draws.LargestOfPool(0.25))
    choice = strategy.choose(Candidates(N), N // 4, seed=0, epoch=0)
    assert sorted(choice.positions.tolist()) == list(range(30, 40))
    assert not strategy.needs_losses
    assert not strategy.needs_gradients


def test_what_the_reference_cannot_fit_either_is_not_worth_learning() -> None:
    losses = torch.arange(float(N))
    irreducible = torch.where(losses >= 35, losses, torch.zeros(N))  # the five largest: wrong
    strategy = PerEpoch(scores.ReducibleLoss(irreducible), draws.LargestOfPool(0.25))
    choice = strategy.choose(Candidates(N, losses=losses), N // 4, seed=0, epoch=0)
    assert sorted(choice.positions.tolist()) == list(range(25, 35))
    unknown = losses.clone()
    unknown[0] = torch.nan
    assert strategy.score.of(Candidates(N, losses=unknown))[0].isnan()


@pytest.mark.parametrize("kind", [scores.Given, scores.ReducibleLoss])
def test_given_losses_are_a_copy_known_by_their_content(kind: type[scores.Given]) -> None:
    values = torch.rand(N)
    score = kind(values)
    name = repr(score)
    values.zero_()
    assert repr(score) == name
    assert repr(kind(values)) != name
    assert len(repr(score)) < 60


@pytest.mark.parametrize("kind", [scores.Given, scores.ReducibleLoss])
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1.0, 2.0], TypeError),
        (torch.ones(N, 1), ValueError),
        (torch.full((N,), torch.nan), ValueError),
    ],
)
def test_given_losses_are_checked(
    kind: type[scores.Given], values: torch.Tensor, error: type[Exception]
) -> None:
    with pytest.raises(error, match="must"):
        kind(values)


def test_given_losses_of_another_dataset_raise() -> None:
    selector = Selector(data(), PerEpoch(scores.Given(torch.ones(N + 1))), fraction=0.5)
    with pytest.raises(ValueError, match=f"each of the {N} samples of the dataset, got {N + 1}"):
        selector.select(model(), 0)


def test_a_run_with_a_reference_trains_and_resumes() -> None:
    def build(
        irreducible: torch.Tensor,
    ) -> tuple[AdaptiveSubsetSampler, WeightedLoss]:
        score = scores.ReducibleLoss(irreducible)
        selector = Selector(data(), PerEpoch(score, draws.LargestOfPool(0.5)), fraction=0.25)
        return AdaptiveSubsetSampler(selector), WeightedLoss(CRITERION, selector)

    net = model()
    sampler, loss = build(torch.ones(N))
    for epoch in range(3):
        sampler.maybe_reselect(net, epoch)
        for x, y in DataLoader(sampler.dataset, batch_size=5, sampler=sampler):
            loss(net(x), y).backward()
    again, _ = build(torch.ones(N))
    again.load_state_dict(sampler.state_dict())
    other, _ = build(torch.zeros(N))
    with pytest.raises(ValueError, match="same arguments"):
        other.load_state_dict(sampler.state_dict())


# ---- within a batch


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data().tensors
    return x, y


def test_the_largest_losses_of_a_batch_are_chosen() -> None:
    net = model().train()
    losses = GradientSource(data()).losses(net, CRITERION)
    largest = PerEpoch(draw=draws.LargestOfPool(10 / N))
    kept = select_in_batch(net, CRITERION, batch(), largest, 10)
    assert sorted(kept.indices.tolist()) == sorted(losses.topk(10).indices.tolist())
    assert torch.equal(kept.loss_weights, torch.ones(10))
    assert net.training


@pytest.mark.parametrize("strategy", [GradMatch(), GradMatch(scope="global"), CRAIG(),
                                      GradientNorm(), GradMatchPB(batch_size=5)])  # fmt: skip
def test_a_batch_is_a_small_dataset(strategy: Strategy) -> None:
    net = model()
    selector = Selector(data(), strategy, budget=10, criterion=CRITERION, seed=3)
    expected = selector.select(net, 7)
    kept = select_in_batch(net, CRITERION, batch(), strategy, 10, step=7, seed=3)
    assert torch.equal(kept.indices, expected.indices)
    assert torch.allclose(kept.loss_weights, expected.loss_weights)
    assert kept.relative_error == pytest.approx(expected.relative_error)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strategy", [GLISTER(), GradMatch(), OrderDP()])
def test_modes_without_gradients_make_no_difference(mode: Any, strategy: Strategy) -> None:
    net = model()
    expected = select_in_batch(net, CRITERION, batch(), strategy, 10)
    with mode():
        made_inside = [part.clone() for part in batch()]
        found = select_in_batch(net, CRITERION, made_inside, strategy, 10)
    assert torch.equal(found.indices, expected.indices)
    assert not found.weights.is_inference()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_are_not_finite_are_refused(bad: float) -> None:
    x, y = (part.clone() for part in batch())
    x[5] = bad
    with pytest.raises(ValueError, match=rf"`losses` must be finite, got 1 of {N}.*diverged"):
        select_in_batch(nn.Linear(6, CLASSES), CRITERION, (x, y), OrderDP(share=0.25), 10)
    select_in_batch(nn.Linear(6, CLASSES), CRITERION, (x, y), FreshRandom(), 10)


def test_steps_draw_afresh() -> None:
    chosen = [
        select_in_batch(model(), CRITERION, batch(), FreshRandom(), 10, step=step).indices.tolist()
        for step in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_seed_is_no_negative_number() -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        select_in_batch(model(), CRITERION, batch(), FreshRandom(), 10, seed=-1)


@pytest.mark.parametrize("budget", [0, N + 1])
def test_a_budget_is_within_the_batch(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"`budget` must be in \[1, {N}\]"):
        select_in_batch(model(), CRITERION, batch(), "gradmatch", budget)


@pytest.mark.parametrize("kind", [GradMatchPB, CRAIGPB])
def test_mini_batches_of_a_batch_are_whole(kind: type[GradMatchPB | CRAIGPB]) -> None:
    found = select_in_batch(model(), CRITERION, batch(), kind(batch_size=8), 20)
    assert (len(found), found.batch_size) == (16, 8)
    with pytest.raises(ValueError, match="`budget` must hold at least one mini-batch of 8, got 7"):
        select_in_batch(model(), CRITERION, batch(), kind(batch_size=8), 7)


@pytest.mark.parametrize(
    "strategy", [InfoBatch(), PerEpoch(scores.MovingAverage()), RandomSizes(epochs=20)]
)
def test_what_one_batch_cannot_tell_raises(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match="`strategy` must choose a given number"):
        select_in_batch(model(), CRITERION, batch(), strategy, 5)


class NormTimesLoss(Strategy):
    """A strategy that goes by both."""

    needs_gradients = True
    needs_losses = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        assert candidates.losses is not None
        worth = candidates.squared_norms() * candidates.losses
        return Choice.even(worth.topk(budget).indices, candidates.n)


def test_a_strategy_has_what_it_needs_and_nothing_is_run_for_what_it_does_not() -> None:
    class Counting(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x)

    model, batch = Counting(6, 4), (torch.randn(16, 6), torch.arange(16) % 4)
    for strategy in (FreshRandom(), Balanced()):
        groups = batch[1] if strategy.divides else None
        kept = select_in_batch(model, nn.CrossEntropyLoss(), batch, strategy, 4, groups=groups)
        assert len(kept) == 4
    assert model.runs == 0
    kept = select_in_batch(model, nn.CrossEntropyLoss(), batch, NormTimesLoss(), 4)
    output = model(batch[0]).detach()
    losses = nn.functional.cross_entropy(output, batch[1], reduction="none")
    slopes = output.softmax(1) - nn.functional.one_hot(batch[1], 4)
    norms = slopes.square().sum(1) * (batch[0].square().sum(1) + 1)
    assert sorted(kept.indices.tolist()) == sorted((norms * losses).topk(4).indices.tolist())


def test_a_batch_without_a_target_raises_whatever_the_strategy() -> None:
    with pytest.raises(TypeError, match="`target`"):
        select_in_batch(
            nn.Linear(6, 4), nn.CrossEntropyLoss(), {"x": torch.randn(4, 6)}, "random", 2
        )
