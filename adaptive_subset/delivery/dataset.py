"""The dataset as a DataLoader reads it: the target of a tagged index carries its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adaptive_subset.delivery.epoch import TaggedIndex
from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.items import field, replaced, target_key


class TaggedDataset(Dataset[Any]):
    """A map-style dataset whose targets carry the weight of the index that asked for them.

    An ordinary index gives the item untouched, and a list of indices the batch that the dataset
    makes of it, if it does. Other attributes (``classes``, ``transform``, …) are those of the
    wrapped dataset, to read and to set.

    Args:
        dataset: whatever has ``__getitem__`` and ``__len__``; items are tuples, mappings or objects
            that hold a numeric target. Its ``__getitems__``, if any, may also return a batch.
        target: position, key or attribute of the target. By default the second of a pair, or
            the one field called target, targets, label, labels or y.

    Raises:
        TypeError: on access, where no target is found or it is not numeric.
        ValueError: on access, where a batch of the dataset's own has another number of rows, or
            only some of its indices carry a weight.
    """

    def __init__(self, dataset: Any, target: int | str | None = None) -> None:
        self.dataset = dataset
        self.target = target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list) and any(isinstance(i, TaggedIndex) for i in index):
            # Of DataLoader(…, sampler=BatchSampler(sampler, …), batch_size=None).
            plain = [int(i) for i in index]
            return self._tagged_batch(self.dataset[plain], index, plain)
        if not isinstance(index, TaggedIndex):
            return self.dataset[index]
        return self._tagged(self.dataset[int(index)], index)

    def __getitems__(self, indices: list[Any]) -> Any:
        plain = [int(i) if type(i) is TaggedIndex else i for i in indices]
        if callable(fetch := getattr(self.dataset, "__getitems__", None)):
            items = fetch(plain)
            if not _are_items(items, len(indices)):
                return self._tagged_batch(items, indices, plain)
        else:
            items = [self.dataset[i] for i in plain]
        if self.target is None and set(map(type, indices)) == {TaggedIndex}:
            labels = [item[1] for item in items if type(item) is tuple and len(item) == 2]
            # Nearly always items are of an input and a label, see `_tagged`.
            if len(labels) == len(items) and set(map(type, labels)) == {int} and min(plain) >= 0:
                weights = [index.weight for index in indices]
                targets = WeightedTarget.of_labels(labels, weights, plain)
                return [(item[0], target) for item, target in zip(items, targets, strict=True)]
        return [self._tagged(item, index) for item, index in zip(items, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in vars(self):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dataset", "target") or name.startswith("__"):
            super().__setattr__(name, value)
        else:  # where it is read
            setattr(self.dataset, name, value)

    def _tagged(self, item: Any, index: Any) -> Any:
        if not isinstance(index, TaggedIndex):
            return item
        place = int(index)
        if place < 0:
            place += len(self)  # −1 would stand for no sample
        if self.target is None and type(item) is tuple and len(item) == 2:  # nearly always
            return item[0], _target(item[1], 1, index.weight, place)
        key = target_key(item, self.target)
        return replaced(item, key, _target(field(item, key), key, index.weight, place))

    def _tagged_batch(self, batch: Any, indices: list[Any], plain: list[int]) -> Any:
        """A batch that the dataset has collated by itself, with tags for its rows."""
        tagged = [index for index in indices if isinstance(index, TaggedIndex)]
        if not tagged:
            return batch
        key = target_key(batch, self.target)
        targets = _tensor(field(batch, key), key)
        rows = len(targets) if targets.ndim else 0
        if not len(tagged) == len(indices) == rows:
            raise ValueError(
                "`__getitems__` of the dataset must return a list of as many items, or a batch "
                f"with as many rows, as there are indices, and so must its access by a list, got "
                f"{rows} rows for {len(indices)} indices, {len(tagged)} of them with weights."
            )
        # Through NumPy, which is quicker at lists of numbers.
        weights = np.array([index.weight for index in tagged], np.float32)
        places = np.array(plain, np.int64)
        if min(plain) < 0:  # −1 would stand for no sample
            places %= len(self)
        tags = torch.from_numpy(weights), torch.from_numpy(places)
        return replaced(batch, key, WeightedTarget(targets, *tags))


def _are_items(fetched: Any, n: int) -> bool:
    """Whether `__getitems__` returned n items; otherwise it has collated them by itself."""
    if not isinstance(fetched, (list, tuple)) or len(fetched) != n:
        return False
    # An item without a target is none: these are the columns of a batch.
    return not any(isinstance(part, (Tensor, np.ndarray)) for part in (fetched[0], fetched[-1]))


def _target(value: Any, key: Any, weight: float, place: int) -> WeightedTarget:
    if type(value) is int:  # nearly always
        return WeightedTarget.of_labels([value], [weight], [place])[0]  # type: ignore[no-any-return]
    target = WeightedTarget(_tensor(value, key), weight, place)
    target.original = value
    return target


def _tensor(value: Any, key: Any) -> Tensor:
    """`value` as collation would make it: int64 for an int, float64 for a float."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, (bool, int)):
        return torch.as_tensor(value)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufc":
        return torch.as_tensor(value)
    if isinstance(value, list) and value and all(isinstance(v, (int, float)) for v in value):
        return torch.tensor(value)  # one number a token, which a collate function pads
    if isinstance(value, (str, np.generic, np.ndarray)):
        advice = "Number the classes in the dataset: target_transform=classes.index"
    elif isinstance(value, (Mapping, tuple, list)):
        advice = (
            "Put its parts side by side in the item, pass the position or key of one of them, "
            "Selector(..., target=...), and give its weights to the others: "
            "WeightedTarget.like(other, y)"
        )
    else:
        advice = (
            "Turn it into a number in the dataset (target_transform), or pass Selector(..., "
            "target=...) with the position, key or attribute of the label"
        )
    raise TypeError(
        f"`target` must lead to a number, array or tensor, got {type(value).__name__} at {key!r}. "
        f"{advice}."
    )
