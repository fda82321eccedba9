"""Seeded draws: pure functions of a seed, an epoch and a purpose, never of global random state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def seeded(seed: int, *salt: int) -> torch.Generator:
    """A CPU generator that depends on `seed` and every number in `salt`, and on nothing else."""
    state = np.random.SeedSequence((seed, *salt)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def shard(n: int, size: int, epoch: int, seed: int) -> Tensor:
    """The `epoch`-th stretch of `size` in an endless row of shuffled passes over ``range(n)``.

    Successive epochs walk through the data without replacement, so that every sample is seen
    equally often (the sampling of RS2, Okanovic et al. 2024, §3). Returns (size,) int64.

    Example:
        >>> seen = torch.cat([shard(10, 4, epoch, seed=0) for epoch in range(5)])
        >>> torch.bincount(seen).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    first, last = epoch * size // n, ((epoch + 1) * size - 1) // n
    passes = [torch.randperm(n, generator=seeded(seed, i)) for i in range(first, last + 1)]
    start = epoch * size - first * n
    return torch.cat(passes)[start : start + size]


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
