"""Accelerate: it shards the loader, reads a batch ahead and counts epochs by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, Selector
from tests import models

accelerate = pytest.importorskip("accelerate")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's
]
N, K = 48, 24
INPUTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, torch.arange(N) % 4)


def make() -> AdaptiveSubsetSampler:
    selector = Selector(DATA, GradMatch(), budget=K, criterion=nn.CrossEntropyLoss())
    return AdaptiveSubsetSampler(selector, every=2, num_replicas=1, rank=0)


def numbers(batches: Any) -> list[int]:
    rows = torch.cat([x for x, _ in batches])
    return [int((row.cpu() == INPUTS).all(1).nonzero()[0, 0]) for row in rows]


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1"}
    early = make()  # before there is a process group
    store = FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    seen: dict[str, Any] = {}
    for name, sampler in {"early": early, "late": make()}.items():
        loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler)
        torch.manual_seed(0)
        net, loader = accelerator.prepare(models.mlp(), loader)
        for epoch in range(3):
            sampler.maybe_reselect(net, epoch)
            assert sampler.selection is not None
            seen[f"{name} {epoch}"] = numbers(loader), sampler.selection.indices.tolist()
        assert not hasattr(sampler, "generator")
    torch.save(seen, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is shut down in order


def test_each_sample_of_an_epoch_is_seen_once_over_both_ranks(tmp_path: Path) -> None:
    spawn(_run, (str(tmp_path),), nprocs=2)
    mine, yours = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert mine.keys() == yours.keys()
    assert len(mine) == 6
    for name, (own, chosen) in mine.items():
        other, other_chosen = yours[name]
        assert chosen == other_chosen
        assert len(own) == len(other) == K // 2
        assert sorted(own + other) == sorted(chosen)
    assert mine["early 0"][0] != mine["early 1"][0]  # another order, though the same samples


def test_a_restart_is_told_to_the_loader() -> None:
    """It calls ``set_epoch(0)`` then, which would repeat the order of epoch 0."""
    accelerator, net = accelerate.Accelerator(cpu=True), models.mlp()
    torch.manual_seed(0)

    def prepared() -> tuple[AdaptiveSubsetSampler, Any]:
        sampler = make()
        loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler)
        return sampler, accelerator.prepare(loader)

    whole, loader = prepared()
    orders = []
    for epoch in range(4):
        whole.maybe_reselect(net, epoch)
        orders.append(numbers(loader))
        if epoch == 2:
            state = whole.state_dict()
    resumed, loader = prepared()
    resumed.load_state_dict(state)
    resumed.maybe_reselect(net, 3)
    with pytest.raises(RuntimeError, match=r"last maybe_reselect, 3, got 0 .*loader.set_epoch"):
        numbers(loader)
    loader.set_epoch(3)
    assert numbers(loader) == orders[3]


def test_accelerate_finds_no_generator_to_take_over() -> None:
    """It would seed a sampler's attribute of this name by itself."""
    assert not hasattr(make(), "generator")
