"""Seeded draws: pure functions of a seed, an epoch and a purpose, never of global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adaptive_subset.default_device import on_cpu


class Purpose(IntEnum):
    """What a draw is for. Draws for different purposes have nothing to do with one another."""

    SELECTION = 0  # what a strategy draws
    POOL = 1  # the candidates that a selection looks at
    PASS = 2  # the order of a pass over all data
    ORDER = 3  # the order of an epoch
    RESAMPLING = 4  # which samples of an epoch are repeated
    WORKERS = 5  # the seeds of a loader's workers
    SKETCH = 6  # what long gradients are reduced by


def seeded(seed: int, epoch: int, purpose: Purpose, part: int = 0) -> torch.Generator:
    """A CPU generator that depends on the arguments and on nothing else."""
    words = (seed, epoch, int(purpose), part)[: 4 if part else 3]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


@on_cpu()
def shard(n: int, size: int, epoch: int, seed: int) -> Tensor:
    """The `epoch`-th stretch of `size` <= n in an endless row of shuffled passes over ``range(n)``.

    Successive epochs walk through the data without replacement, so that every sample is seen
    equally often (the sampling of RS2, Okanovic et al. 2024, §3). Where a pass ends inside an
    epoch, the samples of that epoch wait in the next pass, so that none comes twice in it. Returns
    (size,) int64, distinct.

    Examples:
        >>> seen = torch.cat([shard(10, 4, epoch, seed=0) for epoch in range(5)])
        >>> torch.bincount(seen).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    first, last = epoch * size // n, ((epoch + 1) * size - 1) // n
    # What a pass has of the epoch that it ends in, at its end, decides what waits in the next one.
    # Waiting never reaches the last n − size of a pass: where that is enough, nothing before it
    # counts. Where an epoch is at most half of a pass it always is.
    back = max(0, first - 1)
    while back and (back + 1) * n % size > n - size:
        back -= 1
    passes = [torch.zeros(0, dtype=torch.int64)]
    for i in range(back, last + 1):
        order = torch.randperm(n, generator=seeded(seed, i, Purpose.PASS))
        missing = -(i * n) % size  # what the epoch that the pass before ended in still needs
        if missing:
            taken = torch.zeros(n, dtype=torch.bool)
            taken[passes[-1][len(passes[-1]) - (size - missing) :]] = True
            head = (~taken[order]).nonzero()[:missing, 0]
            later = torch.ones(n, dtype=torch.bool)
            later[head] = False
            order = torch.cat([order[head], order[later]])
        passes = [*passes[-1:], order] if i > first else [order]
    start = epoch * size - first * n
    return torch.cat(passes)[start : start + size]


@on_cpu()
def resample(weights: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling: `size` positions, drawn in proportion to `weights` (m,).

    Each position appears within one of ``size · w / Σw`` times. Returns (size,) int64, in the
    order of a random permutation of the positions.
    """
    order = torch.randperm(len(weights), generator=generator)
    edges = weights[order].double().cumsum(0)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    ticks = (torch.arange(size, dtype=torch.float64) + offset) * (edges[-1] / size)
    return order[torch.searchsorted(edges, ticks, right=True).clamp_(max=len(weights) - 1)]


class SeededLoader(DataLoader[Any]):
    """A DataLoader whose workers get seeds of their own, not from the global generator."""

    def __init__(self, data: Any, batch_size: int | None, **options: Any) -> None:
        generator = seeded(0, 0, Purpose.WORKERS)
        super().__init__(data, batch_size, generator=generator, **options)

    @on_cpu()  # for the draw of the seeds; what is read, is read outside
    def __iter__(self) -> Any:
        return super().__iter__()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators (CPU and CUDA) are restored on exit."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
