"""Under a default device that is not the CPU, "meta" for one that is absent, all is as without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    CRAIGPB,
    STRATEGIES,
    AdaptiveSubsetSampler,
    GradMatch,
    GradMatchPB,
    OrderDP,
    RandomSizes,
    Selector,
    TokenLoss,
    WeightedLoss,
    retag,
    select_in_batch,
)
from tests import models

N = 64
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)
OWN: dict[str, Any] = {
    "gradmatch-pb": GradMatchPB(batch_size=8),
    "craig-pb": CRAIGPB(batch_size=8),
    "random-sizes": RandomSizes(epochs=3),
}


@contextmanager
def default_device(name: str | None) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def model() -> nn.Module:
    torch.manual_seed(0)
    return models.mlp()


def losses(
    net: nn.Module, device: str | None, strategy: Any, data: Any = DATA, **options: Any
) -> list[Tensor]:
    """The losses of three epochs under a default device, and what was selected."""
    collate, criterion = options.pop("collate", None), options.pop("criterion", None)
    schedule = options.pop("schedule", {})
    found = []
    with default_device(device):
        selector = Selector(data, strategy, **options)
        sampler = AdaptiveSubsetSampler(selector, every=1, epochs=3, **schedule)
        loss = WeightedLoss(criterion or nn.CrossEntropyLoss(), selector)
        loader = DataLoader(sampler.dataset, 8, sampler=sampler, collate_fn=collate)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        for epoch in range(3):
            sampler.maybe_reselect(net, epoch)
            with torch.device("cpu"):  # a loader draws a seed from the global generator
                batches = iter(loader)
            for x, y in batches:
                value = loss(net(x), y)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                found.append(value.detach())
            if sampler.selection is not None:
                found += [sampler.selection.indices, sampler.selection.weights]
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_chooses_the_same(name: str) -> None:
    strategy = OWN.get(name) or STRATEGIES[name]()
    options: dict[str, Any] = {} if strategy.sizes_itself else {"fraction": 0.5}
    options |= {"groups": Y.tolist()} if strategy.needs_groups else {}
    runs = [losses(model(), device, strategy, **options) for device in (None, "meta")]
    assert same(*runs)


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 0.5, "pool_fraction": 0.8},
        {"fraction": 0.5, "validation": TensorDataset(X[:32], Y[:32])},
        {"fraction": 0.5, "num_workers": 1},
        {"fraction": 0.5, "schedule": {"warm_start": 0.5}},
        {"fraction": 0.5, "criterion": lambda output, y: nn.functional.cross_entropy(output, y)},
        {"tolerance": 0.5},
    ],
    ids=lambda options: list(options)[-1],
)
def test_every_way_to_read_does_too(options: dict[str, Any]) -> None:
    runs = [losses(model(), device, GradMatch(), **options) for device in (None, "meta")]
    assert same(*runs)


def test_sketches_do_too() -> None:
    tokens = torch.randint(7, (N, 5), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(tokens, tokens.roll(1, 1))

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 8), nn.Tanh(), nn.Linear(8, 7))

    options: dict[str, Any] = {"fraction": 0.5, "sketch": 16, "criterion": TokenLoss()}
    assert same(*(losses(net(), d, GradMatch(), data, **options) for d in (None, "meta")))


def test_collate_functions_that_build_targets_do_too() -> None:
    def collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([int(y) for _, y in samples], device="cpu")
        return torch.stack([x for x, _ in samples]), labels

    data = [(x, y) for x, y in zip(X, Y, strict=True)]
    options = {"fraction": 0.5, "collate": retag(collate)}
    assert same(*(losses(model(), d, OrderDP(), data, **options) for d in (None, "meta")))


def test_a_selection_in_a_batch_does_too() -> None:
    found = []
    for device in (None, "meta"):
        net = model()
        with default_device(device):
            chosen = select_in_batch(net, nn.CrossEntropyLoss(), (X, Y), GradMatch(), 16)
        found.append([chosen.indices, chosen.weights])
    assert same(*found)
