"""What goes by the losses of training is told them, or somebody hears of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    GLISTER,
    AdaptiveSubsetSampler,
    FreshRandom,
    OrderDP,
    Random,
    Selector,
    SeTa,
    Strategy,
    WeightedLoss,
)
from adaptive_subset.delivery.retag import retag
from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.loss_record import LossRecord, Memory
from adaptive_subset.strategies import Candidates
from adaptive_subset.strategies.draws import BelowMeanDropped
from tests import models

N = 40
Step = Callable[[WeightedLoss, Tensor, Tensor, nn.Module], Tensor]


def train(step: Step, epochs: int = 2) -> Selector:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(N, 6), torch.arange(N) % 4)
    selector = Selector(data, OrderDP(), fraction=0.5)
    sampler = AdaptiveSubsetSampler(selector)
    loader = DataLoader(sampler.dataset, 5, sampler=sampler)
    criterion, net = WeightedLoss(nn.CrossEntropyLoss(), selector), models.mlp()
    for epoch in range(epochs):
        sampler.maybe_reselect(net, epoch)
        for x, y in loader:
            step(criterion, x, y, net).backward()
    return selector


def usual(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
    loss: Tensor = criterion(net(x), y)
    return loss


def bare(criterion: WeightedLoss, x: Tensor, y: Any, net: nn.Module) -> Tensor:
    return F.cross_entropy(net(x), y.plain())


def mixed_targets(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
    turned = torch.arange(len(x)).roll(1)
    hot = F.one_hot(y, 4).float()
    x, hot = 0.7 * x + 0.3 * x[turned], 0.7 * hot + 0.3 * hot[turned]
    loss: Tensor = criterion(net(x), hot)
    return loss


def mixed_losses(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
    turned = torch.arange(len(x)).roll(1)
    output = net(0.7 * x + 0.3 * x[turned])
    loss: Tensor = 0.7 * criterion(output, y) + 0.3 * criterion(output, y[turned])
    return loss


def test_losses_are_learned() -> None:
    assert int((~train(usual).losses.values.isnan()).sum()) >= N // 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (bare, r"`criterion` must be what the training step computes its loss with, since OrderDP"),
        (mixed_targets, r"`target` must be that of a single sample for OrderDP.* in 20 of 20 rows"),
        (mixed_losses, r"`target` must be that of the samples that the outputs are of"),
    ],
)
def test_a_strategy_that_would_go_by_other_losses_raises(step: Step, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        train(step)


def test_a_loss_of_the_targets_of_two_samples_is_neither_ones_own() -> None:
    """Of equal weights, which would not tell."""
    selector = Selector(TensorDataset(torch.zeros(6, 1), torch.arange(6)), OrderDP(), budget=3)

    def mixed(output: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return 0.7 * F.cross_entropy(output, one) + 0.3 * F.cross_entropy(output, two)

    criterion, labels = WeightedLoss(mixed, selector), torch.tensor([3, 1, 4])
    y = WeightedTarget(labels, torch.ones(3), labels)
    criterion(torch.randn(3, 6, requires_grad=True), y, y[[0, 2, 1]])
    assert selector.losses is not None
    assert (~selector.losses.values.isnan()).nonzero().flatten().tolist() == [3]
    with pytest.raises(RuntimeError, match=r"single sample for OrderDP.* in 2 of 3 rows"):
        selector.losses.check("OrderDP", is_held=True)
    criterion(torch.randn(3, 6, requires_grad=True), y, y.clone())
    assert int((~selector.losses.values.isnan()).sum()) == 3


def test_a_few_mixtures_are_left_out() -> None:
    def some(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
        batches.append(len(x))
        return (mixed_targets if len(batches) % 4 == 0 else usual)(criterion, x, y, net)

    batches: list[int] = []
    known = ~train(some, epochs=1).losses.values.isnan()  # type: ignore[union-attr]
    assert int(known.sum()) == 15  # of four batches of five one is mixed


def test_an_output_may_have_several_losses_of_its_own_samples() -> None:
    def twice(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
        output = net(x)
        loss: Tensor = criterion(output, y) + criterion(output, y[:])
        return loss

    assert torch.equal(*(train(step).losses.values.isnan() for step in (usual, twice)))  # type: ignore[union-attr]


def test_a_pass_over_the_data_that_trains_nothing_is_allowed_before_the_first_epoch() -> None:
    data = TensorDataset(torch.randn(N, 6), torch.arange(N) % 4)
    selector = Selector(data, OrderDP(), fraction=0.5)
    sampler = AdaptiveSubsetSampler(selector)
    criterion, net = WeightedLoss(nn.CrossEntropyLoss(), selector), models.mlp()
    loader = DataLoader(sampler.dataset, 5, sampler=sampler)
    sampler.maybe_reselect(net, 0)
    assert len(list(loader)) == 4
    for x, y in loader:
        criterion(net(x), y).backward()
    assert sampler.maybe_reselect(net, 1) is not None


def test_a_loss_that_is_no_number_is_one_that_has_diverged() -> None:
    def diverging(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
        return usual(criterion, x * torch.nan, y, net)

    with pytest.raises(ValueError, match="`losses` must be finite, got infinity: training has"):
        train(diverging)


def test_losses_of_single_rows_are_learned() -> None:
    def one_by_one(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
        losses = [criterion(net(row[None]), label[None]) for row, label in zip(x, y, strict=True)]
        return torch.stack(losses).mean()

    alone, together = (train(step, epochs=1).losses.values for step in (one_by_one, usual))  # type: ignore[union-attr]
    torch.testing.assert_close(alone, together, equal_nan=True)


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_losses_are_float32_whatever_the_default(default_dtype: torch.dtype) -> None:
    selector = train(usual)
    assert selector.losses is not None
    values = selector.losses.values
    assert values.dtype == torch.float32
    record = LossRecord(N)
    record.load_state_dict(selector.losses.state_dict())
    third = torch.tensor([1 / 3], dtype=torch.float32)
    for at, wanted in ((torch.tensor([3]), third), (torch.tensor([3, 3]), 2 * third)):
        record.note(at, wanted.expand(len(at)))
        values[3] = wanted
        assert torch.equal(record.values.nan_to_num(-1), values.nan_to_num(-1))


def test_weights_are_float32_whatever_the_default(default_dtype: torch.dtype) -> None:
    samples = [("a", WeightedTarget(torch.tensor(1), 1 / 3)) for _ in range(2)]
    collate = retag(lambda items: {"labels": torch.tensor([y for _, y in items])})
    weights = collate(samples)["labels"].weights
    third = torch.tensor(1 / 3, dtype=torch.float32)
    assert torch.equal(weights, third.repeat(2))
    scores, generator = torch.arange(4, dtype=torch.float32), torch.Generator()
    choice = BelowMeanDropped(0.5).draw(scores, 0, epoch=0, generator=generator)
    assert choice.weights.dtype == torch.float32


@pytest.mark.parametrize(
    "strategy", [Random(), FreshRandom(), OrderDP(), SeTa(), GLISTER(refreshes=1)], ids=str
)
def test_equal_weights_are_not_rounded_to_the_default(
    default_dtype: torch.dtype, strategy: Strategy
) -> None:
    n = 23
    rows = torch.arange(2 * n).view(n, 2).to(torch.float32)
    classes = torch.zeros(n, dtype=torch.int64)
    candidates = Candidates(n, DenseGradients(rows), classes, losses=rows[:, 0])
    budget = n if strategy.sizes_itself else 7
    weights = strategy.choose(candidates, budget, seed=0, epoch=0).weights
    assert weights.dtype == torch.float32
    assert torch.equal(weights, torch.full_like(weights, n / len(weights)))


def test_samples_of_another_dataset_are_named() -> None:
    record = LossRecord(3)
    record.note(torch.tensor([0, 5]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"`target` must be that of one of the 3 samples.*5\."):
        _ = record.values


def test_a_record_can_be_copied_in_the_middle_of_a_step() -> None:
    record = LossRecord(3)
    output = torch.zeros(2, 4)
    record.note(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), output)
    for other in (copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        torch.testing.assert_close(other.values, record.values, equal_nan=True)


class Updates(Memory):
    """How often something was kept of a sample."""

    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Tensor:
        return kept.nan_to_num(0) + 1


def test_of_several_losses_of_a_batch_the_mean_counts_once() -> None:
    """As those of an auxiliary head, by the same targets or by others that hold the same."""
    record = LossRecord(5, Updates())
    batches = ([0, 1], [1.0, 3.0], [2.0, 5.0]), ([1, 4], [6.0, 7.0], [8.0, 7.0])
    for samples, main, auxiliary in batches:
        indices = torch.tensor(samples)
        record.note(indices, torch.tensor(main), torch.zeros(2, 3))
        record.note(indices, torch.tensor(auxiliary), torch.zeros(2, 3))
    assert record.values.nan_to_num(-1).tolist() == [1.5, 7, -1, -1, 7]
    assert record.kept is not None
    assert record.kept.nan_to_num(-1).tolist() == [1, 2, -1, -1, 1]

    other = LossRecord(5, Updates())
    for samples, main, auxiliary in batches:
        for losses in (main, auxiliary):
            other.note(torch.tensor(samples), torch.tensor(losses), torch.zeros(2, 3))
    assert torch.equal(other.values.nan_to_num(-1), record.values.nan_to_num(-1))


def test_an_auxiliary_head_counts_and_a_batch_of_another_epoch_is_another() -> None:
    heads: list[nn.Module] = []

    def auxiliary(criterion: WeightedLoss, x: Tensor, y: Tensor, net: nn.Module) -> Tensor:
        heads[:] = heads or [models.mlp()]
        alone.update(zip(y.sample_indices.tolist(), _both(net, x, y), strict=True))  # type: ignore[attr-defined]
        loss: Tensor = criterion(net(x), y) + 0.3 * criterion(heads[0](x), y)
        return loss

    def _both(net: nn.Module, x: Tensor, y: Any) -> list[float]:
        with torch.no_grad():
            main, other = (
                F.cross_entropy(m(x), y.plain(), reduction="none") for m in (net, *heads)
            )
        both: list[float] = ((main + other) / 2).tolist()
        return both

    alone: dict[int, float] = {}
    losses = train(auxiliary, epochs=3).losses
    assert losses is not None
    values = losses.values
    torch.testing.assert_close(values[list(alone)], torch.tensor([*alone.values()]))
    record = LossRecord(3, Updates())
    for _ in range(2):  # of one epoch and the next, between which somebody reads
        record.note(torch.tensor([0, 2]), torch.ones(2), torch.zeros(2, 3))
        kept = record.kept
    assert kept is not None
    assert kept.nan_to_num(-1).tolist() == [2, -1, 2]


def test_mixtures_of_one_batch_after_the_other_stay_apart() -> None:
    record = LossRecord(3)
    for _ in range(3):
        record.note(torch.tensor([-1, -1]), torch.ones(2), torch.zeros(2, 3))
    assert len(record._waiting) == 3


def test_rows_one_by_one_may_follow_a_batch_whose_outputs_are_gone() -> None:
    record = LossRecord(3)
    record.note(torch.tensor([0, 1]), torch.ones(2), torch.zeros(2, 3))
    for i in range(3):
        record.note(torch.tensor([i]), torch.full((1,), 1.0 + i))
    assert record.values.tolist() == [1, 2, 3]
