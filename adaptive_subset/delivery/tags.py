"""How a weight gets from the sampler to the loss: it travels with its index, then with its target.

The index goes along, so that the loss can tell whose loss it is.

A weight that is kept beside the data (a queue, a "current batch") is silently wrong as soon as
batches are reordered, skipped, split or read ahead. So the sampler yields indices that carry their
weight, and the dataset turns the target of such an index into a tensor that carries it through
collation, workers, pinning, device moves and row operations up to the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tags = tuple[Any, Any]  # weights and indices: tensors for a batch, numbers for a single sample


class TaggedIndex(int):
    """An index with the weight of its sample; an ordinary int to everyone else.

    Example:
        >>> index = TaggedIndex(7, 0.5)
        >>> index + 1, index.weight
        (8, 0.5)
    """

    weight: float

    def __new__(cls, index: int, weight: float) -> TaggedIndex:
        tagged = super().__new__(cls, index)
        tagged.weight = weight
        return tagged

    def __getnewargs__(self) -> tuple[int, float]:  # type: ignore[override]
        return int(self), self.weight


class WeightedTarget(Tensor):
    """Targets that carry the weights and the indices of their samples.

    Operations that keep, move, repeat or reorder rows (indexing, stacking, flipping, moving to a
    device, one-hot coding, arithmetic with a number, …) do the same to the tags. All others give
    a plain tensor, at which `WeightedLoss` raises: a weight is right or missed, never that of
    another sample.

    Args:
        targets: (n, …) of a batch, or of any shape for a single sample.
        weights: (n,) float32 for a batch, a float for a single sample.
        indices: (n,) int64 for a batch, an int for a single sample; −1 where there is none, as
            for a target that was mixed from several. By default −1.
    """

    _tags: Tags
    _memory: Tensor  # the same, as a plain tensor: its count of writes is faster to read
    _writes: int

    @staticmethod
    def __new__(
        cls, targets: Tensor, weights: Tensor | float, indices: Tensor | int = -1
    ) -> WeightedTarget:
        if isinstance(weights, Tensor) and not isinstance(indices, Tensor):
            indices = torch.full_like(weights, indices, dtype=torch.int64)
        tagged: WeightedTarget = Tensor._make_subclass(cls, targets)
        tagged._tags = weights, indices
        tagged._memory = targets
        tagged._writes = _writes(targets)
        return tagged

    @property
    def tags(self) -> Tags | None:
        """Weights and indices, or None once the targets were written to: rows may have changed.

        Setting targets to a number, such as an ignored label, keeps them.
        """
        return self._tags if self._writes == _writes(self._memory) else None

    @property
    def weights(self) -> Tensor | float | None:
        """The weights, None if they are lost, see `tags`."""
        return None if (tags := self.tags) is None else tags[0]

    @property
    def sample_indices(self) -> Tensor | int | None:
        """The indices in the dataset, None if they are lost, see `tags`."""
        return None if (tags := self.tags) is None else tags[1]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if func is Tensor.__setitem__ and isinstance(args[2], (int, float)):
                args[0]._writes += 1
            if func in _ROW_OPERATIONS:
                return _with_rows(func, args, kwargs, result)
            numbers = all(isinstance(operand, (int, float)) for operand in args[1:])
            same_rows = func in _SAME_ROWS or (func in _ARITHMETIC and numbers)
            if same_rows and args and result is not args[0]:
                tags = args[0].tags
                return result if tags is None else WeightedTarget(result, *_moved(tags, result))
        return result

    def plain(self) -> Tensor:
        """The targets without their weights."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Tags go by value: shared memory of their own would cost a file handle a batch.
        if (tags := self.tags) is None:
            return Tensor.clone, (self.plain(),)
        values = tuple(tag.numpy(force=True) if isinstance(tag, Tensor) else tag for tag in tags)
        return _rebuild, (self.plain(), *values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        tags, targets = self.tags, self.plain().clone()
        return targets if tags is None else WeightedTarget(targets, *copy.deepcopy(tags, memo))


def _rebuild(targets: Tensor, *values: Any) -> WeightedTarget:
    weights, indices = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
    return WeightedTarget(targets, *_moved((weights, indices), targets))


def _moved(tags: Tags, targets: Tensor) -> Tags:
    """`tags` on the device of `targets`."""
    if isinstance(tags[0], float):
        return tags
    weights, indices = (tag.to(targets.device, non_blocking=True) for tag in tags)
    return weights, indices


def _writes(targets: Tensor) -> int:
    """Autograd's count of writes to the memory of `targets`, through whatever view."""
    try:
        return targets._version
    except RuntimeError:  # tensors of inference mode do not count
        return 0


def _with_rows(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Any:
    """Attach to `result` the tags of the rows that it consists of.

    Which rows those are is found by applying the operation to row numbers instead of targets, so
    that no operation needs a rule of its own.
    """
    first: Any = args[0] if args else kwargs.get("tensors", kwargs.get("input"))
    sources: list[Any] = list(first) if isinstance(first, (list, tuple)) else [first]
    tags: list[Any] = [s.tags if isinstance(s, WeightedTarget) else None for s in sources]
    if any(tag is None for tag in tags):
        return result
    weights, indices = zip(*tags, strict=True)
    single = isinstance(weights[0], float)
    if any(isinstance(weight, float) != single for weight in weights):
        return result
    if single:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if func is not torch.stack or dim != 0:
            return result
        return WeightedTarget(result, torch.tensor(weights), torch.tensor(indices))
    joined = torch.cat(weights), torch.cat(indices)
    numbers = torch.arange(len(joined[0]), device=sources[0].device)
    rows = [
        part.view(-1, *[1] * (s.ndim - 1)).expand(s.shape)
        for part, s in zip(torch.split(numbers, list(map(len, sources))), sources, strict=True)
    ]
    kwargs = {name: value for name, value in kwargs.items() if name != "out"}
    moved = func(rows if isinstance(first, (list, tuple)) else rows[0], *args[1:], **kwargs)
    if isinstance(result, (tuple, list)):
        pairs = zip(result, moved, strict=True)
        return type(result)(_attach(part, ids, joined) for part, ids in pairs)
    return _attach(result, moved, joined)


def _attach(result: Tensor, rows: Tensor, tags: tuple[Tensor, Tensor]) -> Tensor:
    rows = rows.to(tags[0].device)
    if rows.ndim == 0:
        return WeightedTarget(result, float(tags[0][rows]), int(tags[1][rows]))
    flat = rows.reshape(len(rows), -1)
    if flat.shape[1] == 0 or not torch.equal(flat, flat[:, :1].expand_as(flat)):
        return result  # a row of the result mixes samples
    return WeightedTarget(result, *(tag[flat[:, 0]] for tag in tags))


_ROW_OPERATIONS = {
    *(torch.stack, torch.cat, torch.concat, torch.concatenate),
    *(Tensor.__getitem__, Tensor.index_select, torch.index_select, Tensor.narrow, torch.narrow),
    *(Tensor.flip, torch.flip, Tensor.roll, torch.roll, Tensor.repeat, Tensor.expand),
    *(Tensor.repeat_interleave, torch.repeat_interleave),
    *(Tensor.chunk, torch.chunk, Tensor.split, torch.split, Tensor.unbind, torch.unbind),
    *(Tensor.tensor_split, torch.tensor_split),
    *(Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten),
    *(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze),
}
_SAME_ROWS = {
    *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.type, Tensor.type_as),
    *(Tensor.long, Tensor.int, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
    *(Tensor.clone, torch.clone, Tensor.detach, Tensor.contiguous, F.one_hot),
}
_ARITHMETIC = {  # with numbers; with another tensor it may mix rows
    *(Tensor.add, Tensor.sub, Tensor.__rsub__, Tensor.mul, Tensor.div, Tensor.remainder),
    *(Tensor.__eq__, Tensor.__ne__, Tensor.eq, Tensor.ne, Tensor.lt, Tensor.le, Tensor.gt),
    *(Tensor.ge, Tensor.clamp),
}
