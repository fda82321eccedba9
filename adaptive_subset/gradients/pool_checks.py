"""What can be a pool: a dataset of samples, or batches in its order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from adaptive_subset.default_device import on_cpu
from adaptive_subset.gradients.protocol import Gradients
from adaptive_subset.gradients.snapshot import preserved_generators
from adaptive_subset.items import split_batch
from adaptive_subset.randomness import SeededLoader, preserved_random_state

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def read_twice(
    pool: Any, places: Iterable[int], collate_fn: Callable[[Any], Any], num_workers: int
) -> list[tuple[Any, Any]]:
    """What `collate_fn` makes of the items of a dataset at `places`, each read twice.

    By a worker where there are to be some, see `GradientSource`; random states are left alone.
    """
    twice = Subset(pool, [place for place in places for _ in range(2)])
    read = SeededLoader(twice, None, num_workers=min(1, num_workers), collate_fn=collate_fn)
    with preserved_random_state(), preserved_generators(pool):
        found = list(read)
    return list(zip(found[::2], found[1::2], strict=True))


def is_map_style(data: Any) -> bool:
    """Whether `data` is a dataset of samples: it has a length and access by index.

    That is what a DataLoader asks for too: lists of samples and Hugging Face datasets are some,
    loaders, streams and mappings are none.

    Examples:
        >>> is_map_style([([0.0, 1.0], 0)]), is_map_style(iter([]))
        (True, False)
    """
    return (
        hasattr(type(data), "__len__")
        and hasattr(type(data), "__getitem__")
        and not isinstance(data, (DataLoader, IterableDataset, Mapping, str, bytes))
    )


def check_pool(pool: Any, target: int | str | None, name: str) -> None:
    """Raise where `pool` is neither samples nor batches, or cannot be read again and again.

    Raises:
        TypeError: it is neither, or an iterator of one pass.
        ValueError: a list of batches, which would be taken for samples.
    """
    kind = type(pool).__name__
    # Some loaders are iterators that start over.
    if isinstance(pool, Iterator) and type(pool).__module__ in ("builtins", "itertools"):
        raise TypeError(
            f"`{name}` must be readable at every selection, got a {kind}, which ends after one "
            "pass. Pass what it was made from, or DataLoader(batches, batch_size=None)."
        )
    iterable = isinstance(pool, Iterable) and not isinstance(pool, (Mapping, str, bytes))
    if not is_map_style(pool) and not iterable:
        raise TypeError(
            f"`{name}` must be a dataset with a length and access by index, or an iterable of "
            f"batches, got a {kind}. Pass the training data without random transforms, or its "
            "DataLoader."
        )
    if isinstance(pool, (list, tuple)) and len(pool) and _is_batch(pool[0], target):
        raise ValueError(
            f"`{name}` must hold samples where it is a {kind}, got what looks like ready-made "
            "batches: inputs and integer targets of the same length. Pass them as "
            "DataLoader(batches, batch_size=None)."
        )


def _is_batch(item: Any, target: int | str | None) -> bool:
    """Whether `item` of a list is rather a batch than a sample: one integer label an input row."""
    try:
        args, kwargs, y = split_batch(item, target)
    except TypeError:  # for the pass to report
        return False
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return (
        isinstance(y, Tensor)
        and y.ndim == 1
        and not y.is_floating_point()
        and bool(inputs)
        and all(value.ndim > 1 and len(value) == len(y) for value in inputs)
    )


def shuffles(pool: Any) -> bool:
    """Whether a loader draws its order; one with its own way of doing so is not seen."""
    samplers = [getattr(pool, "sampler", None)]
    samplers.append(getattr(getattr(pool, "batch_sampler", None), "sampler", None))
    return any(isinstance(s, _SHUFFLING) or getattr(s, "shuffle", None) is True for s in samplers)


def collated(items: list[Any], collate_fn: Callable[[list[Any]], Any] | None, name: str) -> Any:
    """A batch of samples, by `collate_fn` or torch's own.

    Raises:
        ValueError: torch's cannot make one of them.
    """
    if collate_fn is not None:
        return collate_fn(items)
    try:
        with on_cpu():  # labels and inputs to one place, where they can be pinned
            return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`{name}` must hold items that torch can put into batches, got {error}. Say how "
            "training puts them together: Selector(..., collate_fn=...)."
        ) from error


def check_finite(gradients: Gradients, name: str) -> None:
    """Raise a ValueError where gradients are no numbers, or their inner products are none.

    All that strategies compute of them is at most about ``(Σ‖gᵢ‖)²``, which must have room too.
    """
    length = float(gradients.squared_norms().sqrt().sum(dtype=torch.float64))
    if length <= math.sqrt(torch.finfo(gradients.dtype).max):  # NaN is not
        return
    if gradients.is_finite():
        raise ValueError(
            f"`{name}` must give gradients whose inner products have room in {gradients.dtype}, "
            f"got lengths that add up to {length:.3g}. The model is diverging, or inputs or "
            "targets are in too small a unit: check the learning rate, and scale the data."
        )
    raise ValueError(
        f"`{name}` must give finite gradients, got NaN or infinity in "
        f"{getattr(gradients, 'stored', gradients.dtype)}. The model has diverged, a "
        "sample is broken, or features exceed the range of the dtype: check the learning "
        "rate, the data and storage_dtype=."
    )
