"""Groups of a Selector: each is chosen from by itself, whatever the strategy and the targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from adaptive_subset import (
    CRAIG,
    CRAIGPB,
    GLISTER,
    Balanced,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    PerEpoch,
    Random,
    Selection,
    Selector,
    SeTa,
    TokenLoss,
    select_in_batch,
)
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies import draws
from adaptive_subset.strategies.division import Shares
from adaptive_subset.strategies.scores import Equal
from tests import models
from tests.test_positions import T, tagger, tokens

N = 100
GROUPS = torch.tensor([2] * 60 + [7] * 30 + [-1] * 10)[
    torch.randperm(N, generator=torch.Generator().manual_seed(0))
]
NAMES = (-1, 2, 7)
LOSSES = torch.rand(N, generator=torch.Generator().manual_seed(1))


def sizes(positions: Tensor) -> list[int]:
    return [int((GROUPS[positions] == group).sum()) for group in NAMES]


def given(losses: Tensor = LOSSES) -> Candidates:
    return Candidates(N, losses=losses, groups=GROUPS)


# Draws


@pytest.mark.parametrize(
    ("shares", "expected"), [("proportional", [3, 18, 9]), ("equal", [10, 10, 10])]
)
@pytest.mark.parametrize("draw", [draws.LargestOfPool(0.5, 0.2), draws.Proportional(0.5)])
def test_groups_have_their_shares(draw: draws.Draw, shares: Shares, expected: list[int]) -> None:
    strategy = PerEpoch(draw=draw, shares=shares)
    choice = strategy.choose(given(), 30, seed=0, epoch=4)
    assert sizes(choice.positions) == expected
    assert choice.weights.tolist() == pytest.approx([N / 30] * 30)


def test_each_group_is_drawn_from_as_if_it_were_alone() -> None:
    draw = draws.LargestOfPool(0.5, 0.2)
    found = PerEpoch(draw=draw).choose(given(), 30, seed=0, epoch=3)
    again = seeded(0, 3, Purpose.SELECTION)
    expected = []
    for group, size in zip(NAMES, (3, 18, 9), strict=True):
        members = torch.nonzero(GROUPS.eq(group))[:, 0]
        part = draw.draw(LOSSES[members], size, epoch=3, generator=again)
        expected += members[part.positions].tolist()
    assert found.positions.tolist() == expected


def test_what_one_group_finds_hard_does_not_crowd_out_another() -> None:
    hard, strategy = LOSSES + 10 * (GROUPS == 2), PerEpoch(draw=draws.LargestOfPool(0.3))
    whole = strategy.choose(Candidates(N, losses=hard), 30, seed=0, epoch=0).positions
    assert sizes(whole)[1] == 30
    assert sizes(strategy.choose(given(hard), 30, seed=0, epoch=0).positions) == [3, 18, 9]


def test_unbiased_weights_stay_unbiased_within_a_group() -> None:
    strategy = PerEpoch(draw=draws.Proportional(0.5, unbiased=True))
    total = torch.zeros(N, dtype=torch.float64)
    for epoch in range(1000):
        choice = strategy.select(given(), 30, seed=0, epoch=epoch)
        total[choice.positions] += choice.weights
    assert float((total / 1000 - 1).abs().max()) < 0.3
    assert float((total / 1000).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("uniform", [0.1, 1.0])
def test_unbiased_weights_stay_so_where_shares_do_not_divide(uniform: float) -> None:
    """Shares of 7, 2 and 1 for 70, 25 and 5: each group still stands for all of its samples."""
    groups = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    pool = Candidates(N, losses=LOSSES, groups=groups)
    strategy = LossSampling(uniform, unbiased=True)
    total = torch.zeros(N, dtype=torch.float64)
    for epoch in range(1000):
        choice = strategy.select(pool, 10, seed=0, epoch=epoch)
        assert torch.bincount(groups[choice.positions]).tolist() == [7, 2, 1]
        total[choice.positions] += choice.weights
    for group in range(3):
        assert float((total / 1000)[groups == group].mean()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(
    ("shares", "expected"), [("proportional", [70, 25, 5]), ("equal", [40, 30, 30])]
)
def test_the_weight_of_a_group(shares: Shares, unbiased: bool, expected: list[int]) -> None:
    """That of its samples, in equal shares that of its share; equal weights are all the same."""
    groups = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    pool, uniform = Candidates(N, losses=LOSSES, groups=groups), draws.Proportional(1.0, unbiased)
    choice = PerEpoch(draw=uniform, shares=shares).select(pool, 10, seed=0, epoch=0)
    found = torch.zeros(3, dtype=torch.float64)
    found.index_add_(0, groups[choice.positions], choice.weights)
    if not unbiased:
        assert choice.weights.tolist() == pytest.approx([N / 10] * 10)
    else:
        assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("strategy", [InfoBatch(), SeTa(), Kakurenbo(share=0.5, confidence=0.5)])
def test_draws_that_size_themselves_do_so_in_each_group(strategy: Any) -> None:
    """By the losses of that group: one that is hard as a whole is pruned as much as another."""
    hard = LOSSES + (GROUPS == 2)
    choice = strategy.choose(given(hard), N, seed=0, epoch=1)
    parts, again = strategy.parts(), seeded(0, 1, Purpose.SELECTION)
    positions: list[int] = []
    weights: list[float] = []
    for group in NAMES:
        members = torch.nonzero(GROUPS.eq(group))[:, 0]
        part = parts.draw.draw(hard[members], len(members), epoch=1, generator=again)
        positions += members[part.positions].tolist()
        weights += part.weights.tolist()
        assert float(part.weights.sum()) == pytest.approx(len(members))
    assert choice.positions.tolist() == positions
    assert choice.weights.tolist() == weights
    assert len(positions) < N


# Strategies that match gradients


def regression() -> TensorDataset:
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return TensorDataset(x, x[:, :4].sin() + 0.1 * x[:, 2:])


def labelled() -> TensorDataset:
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return TensorDataset(x, torch.arange(N) % 4)


def selected(data: Any, strategy: Any, budget: int, **options: Any) -> Selection:
    torch.manual_seed(0)
    criterion = nn.MSELoss() if data is REGRESSION else nn.CrossEntropyLoss()
    options = {"criterion": criterion, **options}
    return Selector(data, strategy, budget=budget, **options).select(models.mlp().double(), 0)


REGRESSION, LABELLED = regression(), labelled()
TARGET = Subset(REGRESSION, range(0, 15)), Subset(LABELLED, range(0, 15))


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("kind", [0, 1], ids=["regression", "labels"])
@pytest.mark.parametrize("name", ["gradmatch", "craig", "glister"])
def test_each_group_is_matched_by_itself(name: str, kind: int, validated: bool) -> None:
    data, target = (REGRESSION, LABELLED)[kind], TARGET[kind]
    build: Any = {"gradmatch": GradMatch, "craig": CRAIG, "glister": GLISTER}[name]
    options: dict[str, Any] = {"validation": target} if validated else {}
    options["criterion"] = (nn.MSELoss(), nn.CrossEntropyLoss())[kind]
    found = selected(data, build(shares="equal"), 9, groups=GROUPS, **options)
    weights = dict(zip(found.indices.tolist(), found.weights.tolist(), strict=True))
    assert sizes(found.indices) == [3, 3, 3]
    for group in NAMES:
        members = torch.nonzero(GROUPS.eq(group))[:, 0]
        part = Subset(data, members.tolist())
        alone = selected(part, build(scope="global"), 3, **options)
        chosen = members[alone.indices]
        assert chosen.tolist() == [i for i in weights if GROUPS[i] == group]
        if name == "glister":  # whose weights are those of all: n / k
            continue
        expected = alone.weights.tolist()
        assert [weights[i] for i in chosen.tolist()] == pytest.approx(expected, rel=1e-5)


def test_what_groups_match_adds_up_to_what_all_match() -> None:
    """Of a target too: with as many samples as numbers in each group the error goes to zero."""
    for options in ({}, {"validation": TARGET[0]}):
        strategy = GradMatch(lam=1e-9, nonnegative=False)
        found = selected(REGRESSION, strategy, 2 * 4 * 9, groups=torch.arange(N) % 2, **options)
        assert found.relative_error is not None
        assert found.relative_error < 1e-3


@pytest.mark.parametrize("build", [GradMatch, CRAIG, GLISTER])
def test_labels_as_groups_are_classes(build: Any) -> None:
    by_class = selected(LABELLED, build(scope="per-class"), 30)
    grouped = selected(LABELLED, build(scope="per-class"), 30, groups=LABELLED[:][1])
    assert torch.equal(by_class.indices, grouped.indices)
    assert torch.equal(by_class.weights, grouped.weights)


def test_a_part_of_the_pool_has_its_groups() -> None:
    found = selected(REGRESSION, GradMatch(), 10, groups=GROUPS, pool_fraction=0.5, seed=3)
    drawn = torch.randperm(N, generator=seeded(3, 0, Purpose.POOL))[:50]
    expected = [round(10 * size / 50) for size in sizes(drawn)]
    assert set(found.indices.tolist()) <= set(drawn.tolist())
    assert sizes(found.indices) == expected
    assert len(selected(REGRESSION, GradientNorm(), 10, groups=GROUPS, pool_fraction=0.5)) == 10


def test_the_smallest_subset_for_an_error_is_divided_too() -> None:
    torch.manual_seed(0)
    selector = Selector(
        REGRESSION,
        GradMatch(lam=0.01, shares="equal"),
        tolerance=0.3,
        criterion=nn.MSELoss(),
        groups=GROUPS,
    )
    found = selector.select(models.mlp().double(), 0)
    assert found.relative_error is not None
    assert found.relative_error <= 0.3
    assert max(sizes(found.indices)) - min(sizes(found.indices)) <= 1


@pytest.mark.parametrize("sketch", [8192, 64])
def test_samples_of_tokens_are_divided(sketch: int) -> None:
    x = tokens(40, T)
    data: Any = list(zip(x, x.flip(1), strict=True))
    groups = torch.arange(40) % 3 - 1
    options: dict[str, Any] = {"criterion": TokenLoss(), "sketch": sketch}
    selector = Selector(data, GradMatch(shares="equal"), budget=12, groups=groups, **options)
    found = selector.select(tagger(), 0)
    for group in (-1, 0, 1):
        members = torch.nonzero(groups.eq(group))[:, 0]
        part: Any = Subset(data, members.tolist())
        alone = Selector(part, GradMatch(), budget=4, **options).select(tagger(), 0)
        own = groups[found.indices] == group
        assert found.indices[own].tolist() == members[alone.indices].tolist()
        torch.testing.assert_close(found.weights[own], alone.weights)


@pytest.mark.parametrize("strategy", [GradMatch(shares="equal"), PerEpoch(shares="equal")])
def test_groups_within_a_batch(strategy: Any) -> None:
    x, y = REGRESSION[:]
    torch.manual_seed(0)
    model = models.mlp().double()
    found = select_in_batch(model, nn.MSELoss(), (x, y), strategy, 30, groups=GROUPS.tolist())
    assert sizes(found.indices) == [10, 10, 10]
    assert bool((found.loss_weights >= 0).all())
    if isinstance(strategy, GradMatch):
        torch.manual_seed(0)
        pool = selected(REGRESSION, strategy, 30, groups=GROUPS)
        assert torch.equal(found.indices, pool.indices)


# What is told


@pytest.mark.parametrize(
    "groups",
    [
        GROUPS.tolist(),
        tuple(GROUPS.tolist()),
        GROUPS.numpy(),
        GROUPS.to(torch.int8),
        GROUPS.numpy().astype(np.int16),
        list(GROUPS),
    ],
    ids=["list", "tuple", "array", "int8", "int16 array", "list of tensors"],
)
def test_groups_come_in_many_forms(groups: Any) -> None:
    selector = Selector(REGRESSION, GradMatch(), budget=30, groups=groups)
    assert selector.pool.groups is not None
    assert torch.equal(selector.pool.groups, GROUPS)
    assert selector.pool.groups.dtype == torch.int64


def test_groups_are_those_that_were_given() -> None:
    groups = GROUPS.clone()
    even = PerEpoch(Equal(), draws.Proportional())
    selector = Selector(REGRESSION, even, budget=30, groups=groups)
    groups[:] = 0
    selection = selector.select(models.mlp(), 0)
    assert sizes(selection.indices) == [3, 18, 9]


def test_a_run_goes_on_with_the_same_groups_only() -> None:
    def build(groups: Any) -> Selector:
        return Selector(REGRESSION, OrderDP(), budget=30, groups=groups)

    state = build(GROUPS).state_dict()
    build(GROUPS.numpy()).load_state_dict(state)
    assert len(state["configuration"]["groups"]) < 50
    for other in (None, GROUPS.flip(0)):
        with pytest.raises(ValueError, match=r"from a selector with the same arguments.*'groups'"):
            build(other).load_state_dict(state)


def test_adapters_hand_groups_on() -> None:
    from adaptive_subset.integrations.subset import Subset as Adapted

    run = Adapted(
        REGRESSION,
        nn.MSELoss(),
        OrderDP(),
        num_replicas=1,
        rank=0,
        budget=30,
        groups=GROUPS,
    )
    run.select(models.mlp(), 0)
    assert run.sampler.selection is not None
    assert sizes(run.sampler.selection.indices) == [3, 18, 9]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (["de", "en"] * 50, TypeError, "whole numbers, a list, array or tensor.*got a list. Numb"),
        (GROUPS.double(), TypeError, "must be whole numbers.*got a Tensor"),
        (GROUPS > 0, TypeError, "must be whole numbers"),
        ([[0], [1, 2]], TypeError, "must be whole numbers"),
        (3.0, TypeError, "must be whole numbers.*got 3.0"),
        (GROUPS.view(50, 2), ValueError, r"one number for each sample .* got shape \(50, 2\)"),
        (3, ValueError, r"one number for each sample .* got shape \(\)"),
        (GROUPS[:99], ValueError, "each of the 100 samples of the dataset, got 99"),
    ],
)
def test_groups_are_checked(groups: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=rf"`groups` must {message}|`groups` .*{message}"):
        Selector(REGRESSION, GradMatch(), budget=30, groups=groups)


@pytest.mark.parametrize(
    "strategy",
    [
        GradMatch(scope="global"),
        CRAIG(scope="global"),
        GLISTER(scope="global"),
        GradMatchPB(batch_size=5),
        CRAIGPB(batch_size=5),
        Random(),
        FreshRandom(),
    ],
)
def test_what_chooses_from_all_at_once_takes_no_groups(strategy: Any) -> None:
    with pytest.raises(ValueError, match="`groups` must be left out for a strategy that chooses"):
        Selector(REGRESSION, strategy, budget=30, groups=GROUPS)
    with pytest.raises(ValueError, match="`groups` must be left out for a strategy that chooses"):
        select_in_batch(
            models.mlp().double(), nn.MSELoss(), REGRESSION[:], strategy, 30, groups=GROUPS
        )


def test_equal_shares_are_those_of_something() -> None:
    strategy = PerEpoch(draw=draws.Proportional(), shares="equal")
    for build in (
        lambda: strategy.choose(Candidates(N, losses=LOSSES), 30, seed=0, epoch=0),
        lambda: Selector(REGRESSION, Balanced(), budget=30),  # not after half of the training
        lambda: select_in_batch(models.mlp(), nn.MSELoss(), REGRESSION[:], strategy, 30),
    ):
        with pytest.raises(ValueError, match=r"`groups` must say what divides .* groups=labels"):
            build()
    with pytest.raises(ValueError, match=r'`shares` must be "proportional" for a draw that sizes'):
        PerEpoch(draw=draws.BelowMeanDropped(), shares="equal")
    with pytest.raises(ValueError, match="`shares` must be"):
        PerEpoch(shares="same")  # type: ignore[arg-type]


def test_a_strategy_of_ones_own_sees_the_groups() -> None:
    from dataclasses import dataclass

    from adaptive_subset import Strategy

    @dataclass(frozen=True)
    class FirstOfEach(Strategy):
        divides = True

        def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
            positions = torch.stack([members[0] for members in candidates.by_group()])
            return Choice(positions, torch.ones(len(positions)))

    found = Selector(REGRESSION, FirstOfEach(), budget=3, groups=GROUPS).select(models.mlp(), 0)
    assert found.indices.tolist() == [int(torch.nonzero(GROUPS.eq(g))[0, 0]) for g in NAMES]
