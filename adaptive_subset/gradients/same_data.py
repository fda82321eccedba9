"""Whether all ranks have the same data: what an index stands for must not depend on the rank."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adaptive_subset.distributed import Ranks
from adaptive_subset.gradients.pool_checks import read_twice
from adaptive_subset.items import split_batch
from adaptive_subset.randomness import preserved_random_state

_SAMPLES = 16


def check_same_data(
    ranks: Ranks, pool: Any, target: int | str | None, *, name: str, num_workers: int
) -> None:
    """Compare the targets of a few samples of a map-style `pool`; all `ranks` call it.

    Targets only, since inputs may differ in their last bits from machine to machine; those that
    come out differently from access to access are left out.

    Raises:
        RuntimeError: they differ; on all ranks.
    """
    n = len(pool)
    count = min(_SAMPLES, n)
    places = np.linspace(0, n - 1, count).round().astype(np.int64).tolist()
    told = ranks.step(lambda: _targets(pool, places, target, num_workers))
    for place, (first, *others) in zip(places, zip(*told, strict=True), strict=True):
        if None in (first, *others):
            continue
        for rank, other in enumerate(others, 1):
            if other != first:
                raise RuntimeError(
                    f"`{name}` must hold the same samples in the same order on every rank, got "
                    f"target {other} of sample {place} on rank {rank}, and {first} on rank 0. "
                    "Build it alike on all of them: sort names of files, give random_split a "
                    "seeded generator, and leave it to the sampler which rank gets which samples."
                )


def _targets(
    pool: Any, places: list[int], target: int | str | None, num_workers: int
) -> list[str | None]:
    """Each target as it is written, None for one that is drawn at random."""
    with preserved_random_state():
        # As workers are: what is random by these is the same on all ranks. Not torch.manual_seed,
        # which would seed a GPU as well.
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        pairs = read_twice(pool, places, partial(_written, target=target), num_workers)
    return [one if one == two else None for one, two in pairs]


def _written(item: Any, target: int | str | None) -> str:
    """The numbers and names of the target of an item; shortened where there are many."""
    leaves = [
        leaf.tolist() if isinstance(leaf, (Tensor, np.ndarray, np.generic)) else leaf
        for leaf in tree_leaves(split_batch(item, target)[2])
        if isinstance(leaf, (Tensor, np.ndarray, np.generic, int, float, str))
    ]
    text = repr(leaves[0] if len(leaves) == 1 else leaves)
    if len(text) > 60:
        text = f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
    return text
