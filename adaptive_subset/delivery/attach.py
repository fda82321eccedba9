"""An existing DataLoader, made to read the adaptive subset."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from adaptive_subset.checks import shown
from adaptive_subset.delivery.dataset import TaggedDataset

# Whose other samplers walk through all of the data, or a rank's share of it.
_WHOLE = ("torch", "torchdata", "timm", "accelerate", "adaptive_subset")


def attached(
    loader: DataLoader[Any], sampler: Sampler[int], dataset: TaggedDataset
) -> DataLoader[Any]:
    """See `AdaptiveSubsetSampler.attach`.

    Args:
        loader: over `dataset`, or over what that wraps; stays as it is.
        sampler: what the new loader reads by.
        dataset: what the new loader reads.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"`loader` must be a DataLoader, got {shown(loader)}.")
    inner, batches = loader.dataset, loader.batch_sampler
    if inner is not dataset and inner is not dataset.dataset:
        raise ValueError(
            f"`loader` must read the dataset of the selector, got one over another "
            f"{type(inner).__name__}. Give the Selector `loader.dataset`."
        )
    # torchdata's loaders form batches in the same way, by a class of their own that has a state.
    known = type(batches) is BatchSampler or type(batches).__module__.startswith("torchdata.")
    if isinstance(inner, IterableDataset) or not isinstance(batches, BatchSampler) or not known:
        raise ValueError(
            "`loader` must form batches by `batch_size` from a sampler, got "
            f"batch_sampler={batches!r}. Build it with batch_size=."
        )
    if isinstance(batches.sampler, (SubsetRandomSampler, WeightedRandomSampler)):
        # Not all of its dataset may be there to train on.
        raise ValueError(
            "`loader` must leave it to the subset which samples it reads, got a "
            f"{type(batches.sampler).__name__}, whose choice would be lost. Give Selector and "
            "loader torch.utils.data.Subset(dataset, indices) for a part of the data, and to draw "
            "as many of each class use Balanced() with Selector(..., groups=labels)."
        )
    if batches.drop_last and 0 < _length(sampler) < batches.batch_size:
        raise ValueError(
            "`loader` must have batches of no more than the subset where it leaves out the last "
            f"one, got batch_size={batches.batch_size} and drop_last=True for epochs of "
            f"{_length(sampler)} samples, which leaves nothing to train on. Build it with "
            "drop_last=False or a smaller batch_size."
        )
    if not _is_whole(batches.sampler, len(dataset)):
        warnings.warn(
            f"`loader` has a sampler of its own, {type(batches.sampler).__name__}, whose order and "
            "choice give way to those of the subset. Build the loader with shuffle=True where that "
            "is meant; what it is to leave out, leave out of the dataset.",
            stacklevel=3,
        )
    new = copy.copy(loader)
    # DataLoader.__setattr__ refuses these three; a fresh copy has no workers to mislead yet.
    new.__dict__.update(
        dataset=dataset,
        sampler=sampler,
        batch_sampler=type(batches)(sampler, batches.batch_size, batches.drop_last),
        _iterator=None,
    )
    return new


def _length(sampler: Any) -> int:
    """The samples of an epoch, 0 where the first selection will tell."""
    try:
        return len(sampler)
    except TypeError:
        return 0


def _is_whole(sampler: Any, n: int) -> bool:
    """Whether it does nothing but walk through all n samples, or a rank's share of them."""
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != n):
        return False
    return type(sampler).__module__.partition(".")[0] in _WHOLE
