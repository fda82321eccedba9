"""Two processes: one selection for both, disjoint shares, and loud divergence."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, Selection, Selector
from tests import models

# The processes are shared: they start once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

N = 40


def _fails(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise ValueError("no loss today")


SCENARIOS = (
    *("plain", "a framework shards", "not said", "broken"),
    *("epochs differ", "states differ", "seeds differ"),
)


def _run(rank: int, folder: str) -> None:
    """All scenarios in one process: starting it takes far longer than they do."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=5),  # ranks that diverge unseen wait for one another
    )
    for scenario in SCENARIOS:
        torch.save(_outcome(rank, scenario), f"{folder}/{scenario}-{rank}")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is shut down in order


def _outcome(rank: int, scenario: str) -> Any:
    """What a rank saw of an epoch, or its error."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(N, 6, generator=generator), torch.arange(N) % 4)
    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(6), models.mlp()))
    net.module[0].running_mean += rank  # buffers differ between ranks, as in real runs
    # Rank 0 is the one that selects.
    criterion = _fails if scenario == "broken" and rank == 0 else nn.CrossEntropyLoss()
    seed = rank if scenario == "seeds differ" else 0
    selector = Selector(data, GradMatch(), fraction=0.5, criterion=criterion, seed=seed)
    shares = {"plain": (2, rank), "a framework shards": (1, 0), "not said": (None, None)}
    replicas, own = shares.get(scenario, (2, rank))
    sampler = AdaptiveSubsetSampler(selector, every=2, num_replicas=replicas, rank=own)
    if scenario == "states differ" and rank == 1:
        state = sampler.state_dict()
        chosen = Selection(torch.arange(20), torch.ones(20), epoch=0)
        state["selector"]["selection"] = chosen.state_dict()
        sampler.load_state_dict(state)
    try:
        sampler.maybe_reselect(net, rank if scenario == "epochs differ" else 0)
        assert sampler.selection is not None
        return len(sampler), list(sampler), sampler.selection.indices.tolist()
    except Exception as error:
        return repr(error)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """For each scenario what the ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_run, (str(folder),), nprocs=2)
    return {
        scenario: [
            torch.load(folder / f"{scenario}-{rank}", weights_only=False) for rank in range(2)
        ]
        for scenario in SCENARIOS
    }


def test_ranks_share_one_selection(outcomes: dict[str, list[Any]]) -> None:
    (length, mine, all_mine), (other_length, yours, all_yours) = outcomes["plain"]
    assert length == other_length == len(mine) == len(yours) == 10
    assert all_mine == all_yours
    assert not set(mine) & set(yours)
    assert set(mine) | set(yours) == set(all_mine)


def test_ranks_share_the_selection_that_a_framework_shards(
    outcomes: dict[str, list[Any]],
) -> None:
    """The sampler gives all of it to each rank: the same, though their buffers differ."""
    (length, mine, chosen), (_, yours, other) = outcomes["a framework shards"]
    assert length == len(chosen) == 20
    assert mine == yours
    assert chosen == other


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("epochs differ", "with the same epoch, arguments and state"),
        ("states differ", "{'due': [True, False]}"),
        ("seeds differ", "{'seed': [0, 1]}"),
        ("broken", "no loss today"),
        ("not said", "`num_replicas` and `rank` must be given in a run of 2 processes"),
    ],
)
def test_divergence_raises_on_every_rank(
    outcomes: dict[str, list[Any]], scenario: str, message: str
) -> None:
    for outcome in outcomes[scenario]:
        assert isinstance(outcome, str)
        assert message in outcome
