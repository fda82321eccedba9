"""The dataset as a DataLoader reads it: the target of a tagged index carries its weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adaptive_subset.delivery.tags import TaggedIndex, WeightedTarget
from adaptive_subset.items import field, replaced, target_key


class TaggedDataset(Dataset[Any]):
    """A map-style dataset whose targets carry the weight of the index that asked for them.

    An ordinary index gives the item untouched. Other attributes (``classes``, ``transform``, …) are
    those of the wrapped dataset.

    Args:
        dataset: items are tuples, mappings or objects that hold a numeric target.
        target: position, key or attribute of the target. By default the second of a pair, or
            the one field called target, targets, label, labels or y.

    Raises:
        TypeError: on access, where no target is found or it is not numeric.
    """

    def __init__(self, dataset: Any, target: int | str | None = None) -> None:
        self.dataset = dataset
        self.target = target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        plain = [int(i) if isinstance(i, TaggedIndex) else i for i in indices]
        if callable(fetch := getattr(self.dataset, "__getitems__", None)):
            items = fetch(plain)
        else:
            items = [self.dataset[i] for i in plain]
        return [
            self._tagged(item, index) if isinstance(index, TaggedIndex) else item
            for item, index in zip(items, indices, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in vars(self):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _tagged(self, item: Any, index: TaggedIndex) -> Any:
        tags = index.weight, int(index)
        if self.target is None and type(item) is tuple and len(item) == 2:  # nearly always
            return item[0], WeightedTarget(_tensor(item[1], 1), *tags)
        key = target_key(item, self.target)
        return replaced(item, key, WeightedTarget(_tensor(field(item, key), key), *tags))


def _tensor(value: Any, key: Any) -> Tensor:
    """`value` as collation would make it: int64 for an int, float64 for a float."""
    if type(value) is int:
        return torch.scalar_tensor(value, dtype=torch.int64)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, (bool, int, np.generic, np.ndarray)):
        return torch.as_tensor(value)
    raise TypeError(
        f"`target` must lead to a number, array or tensor, got {type(value).__name__} at {key!r}. "
        "Turn it into a number in the dataset (target_transform), or pass Selector(..., target=...)"
        " with the position, key or attribute of the label."
    )
