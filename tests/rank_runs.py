"""Several processes on this machine, joined by gloo through a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.fx.experimental.symbolic_shapes  # autograd loads it: here once for all processes
import torch.multiprocessing as mp


def in_ranks(
    ranks: int, work: Callable[[int], Any], folder: Path, timeout: float = 60
) -> list[Any]:
    """What ``work(rank)`` returns on each of so many processes, forked from this one."""
    mp.start_processes(_rank, (ranks, work, folder, timeout), nprocs=ranks, start_method="fork")  # type: ignore[attr-defined]
    return [torch.load(folder / f"{ranks}-{rank}", weights_only=False) for rank in range(ranks)]


def _rank(rank: int, ranks: int, work: Callable[[int], Any], folder: Path, timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group-{ranks}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    torch.save(work(rank), folder / f"{ranks}-{rank}")
    with suppress(RuntimeError):  # whoever is out first closes the connections
        dist.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that is shut down in order


def outcome(compute: Callable[[], Any]) -> Any:
    """What it returns, or the name and message of what it raises."""
    try:
        return compute()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
