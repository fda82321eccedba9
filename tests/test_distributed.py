"""Two processes: one selection for both, disjoint shares, and loud divergence."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, Random, Selector
from tests import models

# The processes are shared: they start once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

N = 40


def data(n: int = N) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 6, generator=generator), torch.arange(n) % 4)


def make(place: int, /, n: int = N, **options: Any) -> AdaptiveSubsetSampler:
    ours: dict[str, Any] = {"every": 2, "num_replicas": 2, "rank": place}
    names = ("every", "weighting", "num_replicas", "rank", "epochs", "warm_start", "order_seed")
    ours |= {name: options.pop(name) for name in names if name in options}
    if "order_seed" in ours:
        ours["seed"] = ours.pop("order_seed")
    criterion = options.pop("criterion", nn.CrossEntropyLoss())
    options = {"strategy": GradMatch(), "fraction": 0.5, "criterion": criterion, **options}
    return AdaptiveSubsetSampler(Selector(data(n), options.pop("strategy"), **options), **ours)


class RandomTargets(Dataset[Any]):
    """Labels by a generator of its own, which is another one on each rank."""

    def __init__(self, seed: int) -> None:
        self.data, self.generator = data(), torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.data[index][0], torch.rand(4, generator=self.generator)


class Unpicklable(Exception):
    def __init__(self, code: int, reason: str) -> None:  # unpickled with one argument
        super().__init__(f"{reason} ({code})")


def fails_with(error: BaseException) -> Callable[..., torch.Tensor]:
    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise error

    return criterion


# What rank 0 and rank 1 differ in.
DIFFERING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seed": ({}, {"seed": 1}),
    "order_seed": ({}, {"order_seed": 1}),
    "samples": ({"budget": 20, "fraction": None}, {"budget": 20, "fraction": None, "n": 36}),
    "budget": ({}, {"fraction": 0.4}),
    "tolerance": ({"fraction": None, "tolerance": 0.4}, {"fraction": None, "tolerance": 0.5}),
    "strategy": ({}, {"strategy": GradMatch(lam=0.1)}),
    "weighting": ({}, {"weighting": "resample"}),
    "every": ({}, {"every": 3}),
    "num_replicas": ({"num_replicas": 1, "rank": 0}, {}),
    "warm_epochs": ({"epochs": 4, "warm_start": 0.5}, {"epochs": 4, "warm_start": 0.75}),
    "pool_fraction": ({}, {"pool_fraction": 0.75}),
    "groups": ({"groups": [0, 1] * 20}, {"groups": [1, 0] * 20}),
    # How the pool is read, on which it depends who reads what, and how often the ranks meet.
    "validation": ({"validation": data(20)}, {}),
    "pool": ({"pool": DataLoader(data(), 10)}, {}),
    "batch_size": ({"batch_size": 4}, {"batch_size": 12}),
    "sketch": ({}, {"sketch": 16}),
    "head": ({"head": "1.2"}, {"head": "1.0"}),
    "storage_dtype": ({}, {"storage_dtype": torch.float16}),
}
# What only rank 0, which selects, raises.
FAILURES: dict[str, BaseException] = {
    "error": ValueError("no loss today"),
    "unpicklable": Unpicklable(7, "no loss today"),
    "interrupt": KeyboardInterrupt("no loss today"),
    "exit": SystemExit("no loss today"),
}


def _outcome(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    early = make(rank, num_replicas=None, rank=None)  # before there is a group
    early_said = make(0, num_replicas=1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=5),  # ranks that diverge unseen wait for one another
    )
    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(6), models.mlp()))
    net.module[0].running_mean += rank  # buffers differ between ranks, as in real runs
    results: dict[str, Any] = {}

    def delivered(sampler: AdaptiveSubsetSampler, epoch: int = 0) -> Any:
        sampler.maybe_reselect(net, epoch)
        assert sampler.selection is not None
        return len(sampler), list(sampler), sampler.selection.indices.tolist()

    results["plain"] = _outcome(lambda: delivered(make(rank)))
    results["a framework shards"] = _outcome(lambda: delivered(early_said))
    results["not said, early"] = _outcome(lambda: delivered(early))
    results["not said"] = _outcome(lambda: delivered(make(0, num_replicas=None, rank=None)))
    half = {"num_replicas": 2, "rank": 0} if rank == 0 else {"num_replicas": None, "rank": None}
    results["said by one"] = _outcome(lambda: delivered(make(rank, **half)))
    results["one share twice"] = _outcome(lambda: delivered(make(0)))
    results["a share too many"] = _outcome(lambda: delivered(make(rank, num_replicas=3)))
    results["epochs"] = _outcome(lambda: delivered(make(rank), epoch=rank))
    results["an epoch of one rank"] = _outcome(lambda: delivered(make(rank), -rank))
    for name, options in DIFFERING.items():
        results[f"differ in {name}"] = _outcome(partial(delivered, make(rank, **options[rank])))
    reordered = Subset(data(), [0, *range(N - 1, 0, -1)] if rank else range(N))
    names = {"pool": "another order", "validation": "another order of validation"}
    for argument, name in names.items():
        reading: dict[str, Any] = {argument: reordered}
        results[name] = _outcome(partial(delivered, make(rank, **reading)))
    drawn: dict[str, Any] = {"pool": RandomTargets(rank), "strategy": GradMatch(scope="global")}
    results["random targets"] = _outcome(partial(delivered, make(rank, **drawn)))
    sampler = make(0, num_replicas=1, strategy=Random())
    sampler.maybe_reselect(net, 0)
    state = sampler.state_dict()
    if rank == 1:
        state["selector"]["selection"]["indices"] = (torch.arange(20) + 1) % N
    loaded = make(0, num_replicas=1, strategy=Random())
    loaded.load_state_dict(state)
    results["differ in state"] = _outcome(lambda: delivered(loaded, 1))
    for name, error in FAILURES.items():
        criterion = fails_with(error) if rank == 0 else nn.CrossEntropyLoss()
        results[name] = _outcome(partial(delivered, make(rank, criterion=criterion)))
    results["after all"] = _outcome(lambda: delivered(make(rank)))  # the group still works
    torch.save(results, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is shut down in order


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What each rank got, by scenario."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(_run, (str(folder),), nprocs=2)
    ranks = [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]
    return lambda scenario: [results[scenario] for results in ranks]


@pytest.mark.parametrize("scenario", ["plain", "after all"])
def test_ranks_share_one_selection(outcomes: Any, scenario: str) -> None:
    (length, mine, all_mine), (other_length, yours, all_yours) = outcomes(scenario)
    assert length == other_length == len(mine) == len(yours) == 10
    assert all_mine == all_yours
    assert not set(mine) & set(yours)
    assert set(mine) | set(yours) == set(all_mine)


def test_ranks_share_the_selection_that_a_framework_shards(outcomes: Any) -> None:
    """The sampler gives all of it to each rank: the same, though their buffers differ."""
    (length, mine, chosen), (_, yours, other) = outcomes("a framework shards")
    assert length == len(chosen) == 20
    assert mine == yours
    assert chosen == other


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("epochs", "same epoch"),
        ("an epoch of one rank", "`epoch` must be at least 0, got -1"),
        ("not said", "`num_replicas` and `rank` must be given in a run of 2 processes"),
        ("not said, early", "`num_replicas` and `rank` must be given in a run of 2 processes"),
        ("said by one", "`num_replicas` and `rank` must be given in a run of 2 processes"),
        ("one share twice", "`rank` must give each of the 2 shares"),
        ("a share too many", "`rank` must give each of the 3 shares"),
        ("differ in state", "'selection': ["),
        ("another order", "`pool` must hold the same samples in the same order on every rank"),
        ("another order of validation", "`validation` must hold the same samples in the same"),
        *[(f"differ in {name}", f"'{name}': [") for name in DIFFERING],
        *[(name, "no loss today") for name in FAILURES],
    ],
)
def test_what_one_rank_does_otherwise_raises_on_both(
    outcomes: Any, scenario: str, message: str
) -> None:
    for outcome in outcomes(scenario):
        assert isinstance(outcome, str), outcome
        assert message in outcome


def test_targets_that_are_drawn_at_random_are_not_compared(outcomes: Any) -> None:
    assert [outcome[0] for outcome in outcomes("random targets")] == [10, 10]


def test_an_interrupt_of_rank_0_is_an_error_of_the_others(outcomes: Any) -> None:
    assert [o.partition(":")[0] for o in outcomes("interrupt")] == [
        "KeyboardInterrupt",
        "RuntimeError",
    ]
    assert outcomes("exit") == [
        "SystemExit: no loss today",
        "RuntimeError: rank 0 failed: SystemExit: no loss today",
    ]
    assert outcomes("unpicklable")[1] == "RuntimeError: rank 0 failed: Unpicklable: " \
        "no loss today (7)"  # fmt: skip
