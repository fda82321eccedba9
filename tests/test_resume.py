"""Resuming with torchdata's StatefulDataLoader, which loads the sampler's state in its own time."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptive_subset import (
    AdaptiveSubsetSampler,
    FreshRandom,
    GradMatch,
    LossSampling,
    Selector,
    WeightedLoss,
)
from tests import models

loaders = pytest.importorskip("torchdata.stateful_dataloader")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's
]
N, EPOCHS, BATCH = 40, 4, 4
INPUTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, torch.arange(N) % 4)
STRATEGIES: dict[str, dict[str, Any]] = {
    "gradmatch": {"strategy": GradMatch(), "fraction": 0.3, "every": 2},
    "fresh": {"strategy": FreshRandom(), "fraction": 0.3},
    "losses": {"strategy": LossSampling(), "fraction": 0.3},
    "tolerance": {"strategy": GradMatch(lam=0.01), "tolerance": 0.3, "every": 2},
    "warm": {"strategy": GradMatch(), "fraction": 0.3, "every": 2, "warm_start": 0.5},
}


class Run:
    """A run that can be saved at any step and gone on with; remembers what it trained on."""

    def __init__(self, strategy: Any, workers: int, every: int | None = None, **rest: Any) -> None:
        torch.manual_seed(0)
        warm = {"warm_start": rest.pop("warm_start", 0.0), "epochs": EPOCHS}
        self.net = models.mlp()
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.2)
        self.selector = Selector(DATA, strategy, **rest)
        self.sampler = AdaptiveSubsetSampler(self.selector, every=every, **warm)
        self.criterion = WeightedLoss(nn.CrossEntropyLoss(), self.selector)
        self.loader = loaders.StatefulDataLoader(
            self.sampler.dataset, batch_size=BATCH, sampler=self.sampler, num_workers=workers
        )
        self.seen: list[Any] = []
        self.saved: list[dict[str, Any]] = []

    def train(self, first: int, *, until: int = EPOCHS, save: bool = False) -> list[Any]:
        for epoch in range(first, until):
            self.sampler.maybe_reselect(self.net, epoch)
            for x, y in self.loader:
                loss = self.criterion(self.net(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.seen.append((epoch, x.tolist(), y.weights.tolist(), loss.item()))
                if save:
                    self.saved.append(self.state())
            if save:
                self.saved.append(self.state())
        return self.seen

    def state(self) -> dict[str, Any]:
        parts = ("net", "optimizer", "sampler", "loader")
        state = {part: getattr(self, part).state_dict() for part in parts}
        return copy.deepcopy({**state, "steps": len(self.seen)})

    def load(self, state: dict[str, Any], *parts: str) -> None:
        for part in ("net", "optimizer", *parts):
            getattr(self, part).load_state_dict(copy.deepcopy(state[part]))


@functools.cache
def the_run(strategy: str, workers: int) -> tuple[Run, list[tuple[int, dict[str, Any]]]]:
    """A whole run, and states of it with the epoch to go on with.

    They are of the middle of epoch 1, of the end of epoch 0, inside a period, and of the end of
    epoch 1, where the next one is due for a selection.
    """
    whole = Run(**STRATEGIES[strategy], workers=workers)
    whole.train(0, save=True)
    pairs = zip(whole.saved, whole.saved[1:], strict=False)
    ends = [state for before, state in pairs if before["steps"] == state["steps"]]
    middle = next(state for state in whole.saved if state["steps"] == ends[0]["steps"] + 1)
    return whole, [(1, middle), (1, ends[0]), (2, ends[1])]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_resumes_exactly_wherever_it_stopped(strategy: str, workers: int) -> None:
    whole, states = the_run(strategy, workers)
    for epoch, state in states:
        resumed = Run(**STRATEGIES[strategy], workers=workers)
        resumed.load(state, "sampler", "loader")
        assert resumed.train(epoch) == whole.seen[state["steps"] :], epoch
        past = [entry["epoch"] for entry in resumed.sampler.history]
        assert past == [entry["epoch"] for entry in whole.sampler.history]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_loaders_state_alone_is_enough_or_an_error(strategy: str, workers: int) -> None:
    whole, states = the_run(strategy, workers)
    refused = 0
    for epoch, state in states:
        resumed = Run(**STRATEGIES[strategy], workers=workers)
        resumed.load(state, "loader")
        try:
            seen: list[Any] | None = resumed.train(epoch)
        except RuntimeError as error:
            seen, message = None, str(error)
        if seen is None:
            refused += 1
            assert "Load sampler.state_dict()" in message
            assert not resumed.seen
        else:
            assert seen == whole.seen[state["steps"] :], epoch
            past = [entry["epoch"] for entry in resumed.sampler.history]
            assert past == [entry["epoch"] for entry in whole.sampler.history]
    # What was selected before the loader brought the losses, or the size, cannot be made good.
    assert refused == {"losses": len(states), "tolerance": 1}.get(strategy, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_end_of_an_epoch_left_out_is_no_middle(workers: int) -> None:
    """Workers save before the rest that drop_last leaves out is taken: refused, not replayed."""

    def make() -> tuple[AdaptiveSubsetSampler, Any]:
        sampler = AdaptiveSubsetSampler(Selector(DATA, FreshRandom(), budget=11), every=1)
        return sampler, loaders.StatefulDataLoader(
            sampler.dataset, 4, sampler=sampler, drop_last=True, num_workers=workers
        )

    net = models.mlp()
    whole, loader = make()
    whole.maybe_reselect(net, 0)
    assert len(list(loader)) == 2
    state = copy.deepcopy((whole.state_dict(), loader.state_dict()))
    resumed, again = make()
    resumed.load_state_dict(state[0])
    again.load_state_dict(state[1])
    resumed.maybe_reselect(net, 1)
    if workers:
        with pytest.raises(RuntimeError, match="do not load the loader's state"):
            list(again)
        again = loaders.StatefulDataLoader(resumed.dataset, 4, sampler=resumed, drop_last=True)
    whole.maybe_reselect(net, 1)
    assert [x.tolist() for x, _ in again] == [x.tolist() for x, _ in loader]


def test_a_loader_with_a_state_can_be_attached() -> None:
    sampler = AdaptiveSubsetSampler(Selector(DATA, FreshRandom(), budget=12), every=1)
    loader: Any = sampler.attach(loaders.StatefulDataLoader(DATA, batch_size=4, shuffle=True))
    sampler.maybe_reselect(models.mlp(), 0)
    batches = iter(loader)
    next(batches)
    state = copy.deepcopy(loader.state_dict())
    rest = [x.tolist() for x, _ in batches]
    assert len(rest) == 2
    loader.load_state_dict(state)
    assert [x.tolist() for x, _ in loader] == rest
