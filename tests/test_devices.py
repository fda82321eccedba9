"""Whole paths on every device that the machine has: a GPU is used where there is one."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    STRATEGIES,
    AdaptiveSubsetSampler,
    GradMatch,
    Selector,
    WeightedLoss,
)
from adaptive_subset.gradients import GradientSource
from tests import models

N = 64
X = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


class Run:
    """A model that is trained on a subset, as a user writes it."""

    def __init__(self, device: torch.device, strategy: Any, data: Any = DATA, **options: Any):
        torch.manual_seed(0)
        self.device = device
        self.model: Any = models.cnn().to(device)
        self.selector = Selector(data, strategy, **{"fraction": 0.5, **options})
        self.sampler = AdaptiveSubsetSampler(self.selector, every=1, epochs=4)
        self.criterion: Any = WeightedLoss(nn.CrossEntropyLoss(), self.selector)
        self.loader = DataLoader(
            self.sampler.dataset,
            batch_size=8,
            sampler=self.sampler,
            pin_memory=device.type == "cuda",
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)

    def epoch(self, number: int) -> list[Tensor]:
        self.sampler.maybe_reselect(self.model, number)
        torch.manual_seed(number)  # of dropout
        losses = []
        for x, y in self.loader:
            assert y.is_pinned() == y.weights.is_pinned() == y.sample_indices.is_pinned()
            x = x.to(self.device, non_blocking=True)
            loss = self.criterion(self.model(x), y.to(self.device, non_blocking=True))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return losses


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raise where the host waits for a GPU."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # it says that it is a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains(device: torch.device, name: str) -> None:
    kind: Any = STRATEGIES[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {"batch_size": 8, "epochs": 4}
    strategy = kind(**{name: given[name] for name in given.keys() & fields})
    options: dict[str, Any] = {"fraction": None} if strategy.sizes_itself else {}
    run = Run(device, strategy, groups=Y if strategy.needs_groups else None, **options)
    for number in range(2):
        losses = run.epoch(number)
        assert losses
        assert all(loss.isfinite() and loss.device.type == device.type for loss in losses)


def test_a_device_selects_what_the_cpu_does(device: torch.device) -> None:
    """In float64, where the devices' roundings do not matter."""
    found = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = models.cnn().double().to(place)
        data = TensorDataset(X.double(), Y)
        selector = Selector(data, GradMatch(), fraction=0.25, criterion=nn.CrossEntropyLoss())
        found.append(selector.select(model, 0))
    assert torch.equal(found[0].indices, found[1].indices)
    torch.testing.assert_close(found[0].weights, found[1].weights)


def test_weights_reach_the_loss_on_the_device(device: torch.device) -> None:
    run = Run(device, GradMatch())
    run.sampler.maybe_reselect(run.model, 0)
    selection = run.sampler.selection
    assert selection is not None
    weights = dict(zip(selection.indices.tolist(), selection.loss_weights.tolist(), strict=True))
    for x, y in run.loader:
        moved = y.to(device, non_blocking=True)
        output = run.model(x.to(device))
        own = torch.tensor([weights[int(i)] for i in y.sample_indices], device=device)
        each = nn.functional.cross_entropy(output, moved.plain(), reduction="none")
        torch.testing.assert_close(run.criterion(output, moved), (own * each).mean())
        assert moved.weights.device.type == device.type


@pytest.mark.parametrize("how", ["autocast", "channels_last", "compiled", "half storage", "file"])
@pytest.mark.parametrize("strategy", ["gradmatch", "glister"])
def test_a_selection_follows_how_the_model_trains(
    device: torch.device, how: str, strategy: str, tmp_path: Path
) -> None:
    options: Any = {
        "half storage": {"storage_dtype": torch.float16},
        "file": {"storage_dir": tmp_path},
    }
    run = Run(device, strategy, **options.get(how, {}))
    if how == "channels_last":
        run.model = run.model.to(memory_format=torch.channels_last)
    if how == "compiled":
        run.model = torch.compile(run.model, backend="eager")
    with torch.autocast(device.type, torch.bfloat16, enabled=how == "autocast"):
        losses = [loss for number in range(2) for loss in run.epoch(number)]
    assert all(loss.isfinite() for loss in losses)
    assert all(p.requires_grad for p in run.model.parameters())


def test_a_run_goes_on_where_it_was_saved(device: torch.device) -> None:
    whole, first = Run(device, GradMatch()), Run(device, GradMatch())
    expected = [whole.epoch(number) for number in range(3)]
    for number in range(2):
        first.epoch(number)
    saved = copy.deepcopy(
        [first.model.state_dict(), first.optimizer.state_dict(), first.sampler.state_dict()]
    )
    second = Run(device, GradMatch())
    for part, state in zip((second.model, second.optimizer, second.sampler), saved, strict=True):
        part.load_state_dict(state)
    torch.testing.assert_close(second.epoch(2), expected[2])


def test_a_dataset_may_lie_on_the_device(device: torch.device) -> None:
    data = TensorDataset(X.to(device), Y.to(device))
    model = models.cnn().to(device)
    found = GradientSource(data, batch_size=16).read(model, nn.CrossEntropyLoss()).gradients
    expected = GradientSource(DATA, batch_size=16).read(model, nn.CrossEntropyLoss()).gradients
    torch.testing.assert_close(found.sum(), expected.sum())


@pytest.mark.parametrize("strategy", ["gradmatch", "loss-sampling"])
def test_a_step_does_not_wait_for_the_device(device: torch.device, strategy: str) -> None:
    run = Run(device, strategy)
    run.epoch(0)  # the first may look at values, and allocates
    run.sampler.maybe_reselect(run.model, 1)
    batches = [(x.to(device), y) for x, y in run.loader]
    for x, y in batches:
        with no_waiting(device):
            loss = run.criterion(run.model(x), y.to(device, non_blocking=True))
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y[: len(y) // 2],
        lambda y: y.flip(0),
        lambda y: y.long().view(-1),
        lambda y: nn.functional.one_hot(y, 4).float(),
        lambda y: torch.cat([y, y]),
    ],
    ids=["slice", "flip", "view", "one-hot", "cat"],
)
def test_operations_on_targets_do_not_wait(device: torch.device, change: Any) -> None:
    from adaptive_subset import WeightedTarget

    weights = torch.rand(N)
    y = WeightedTarget(Y.to(device), weights.to(device), torch.arange(N, device=device))
    change(y)
    with no_waiting(device):
        result = change(y)
    assert result.weights is not None
    plain = change(WeightedTarget(Y, weights, torch.arange(N)))
    torch.testing.assert_close(result.weights.cpu(), plain.weights)
    assert torch.equal(result.sample_indices.cpu(), plain.sample_indices)
