"""How a weight gets from the sampler to the loss: it travels with its index, then with its target.

The index goes along, so that the loss can tell whose loss it is.

A weight that is kept beside the data (a queue, a "current batch") is silently wrong as soon as
batches are reordered, skipped, split or read ahead. So the sampler yields indices that carry their
weight, and the dataset turns the target of such an index into a tensor that carries it through
collation, workers, pinning, device moves and row operations up to the loss.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from adaptive_subset.delivery.rows import (
    CONVERSIONS,
    LOSSES,
    REARRANGEMENTS,
    Tags,
    elementwise,
    is_elementwise,
    rearranged,
    tags_of,
)


class WeightedTarget(Tensor):
    """Targets that carry the weights and the indices of their samples.

    Operations of torch that rearrange rows or work on every row by itself do the same to the tags,
    and mixing targets of two samples mixes their weights, see `adaptive_subset.delivery.rows`. All
    others give a plain tensor, at which `WeightedLoss` raises: a weight is right or missed, never
    that of another sample. NumPy reads the memory of targets and may not write to it. `original` is
    the target in the dataset, where that is no int; `share` what numbers have multiplied it with.

    Args:
        targets: (n, …) of a batch, or of any shape for a single sample.
        weights: (n,) float32 for a batch, a float for a single sample.
        indices: (n,) int64 for a batch, an int for a single sample; −1, the default, for none.

    Raises:
        TypeError: targets that are no tensor, or weights that are neither tensor nor number.
        ValueError: another number of weights or indices than rows.
    """

    share: Any = 1.0  # mixtures are sums of products
    original: Any = None
    _tags: Tags
    _writes: int  # to the memory, when it was last known whose rows these are

    @staticmethod
    def __new__(
        cls, targets: Tensor, weights: Tensor | float, indices: Tensor | int = -1
    ) -> WeightedTarget:
        if type(targets) is cls:
            targets = targets.plain()
        if type(weights) is not float:
            weights, indices = _checked(targets, weights, indices)
        tagged: WeightedTarget = (
            targets.as_subclass(cls)  # keeps the graph of targets that a model computed
            if targets.requires_grad
            else Tensor._make_subclass(cls, targets)
        )
        tagged._tags, tagged._writes = (weights, indices), _writes(targets)
        return tagged

    @staticmethod
    def of_labels(
        labels: Sequence[int], weights: Sequence[float], indices: Sequence[int]
    ) -> list[Any]:
        """The targets of single samples, as the constructor makes them of ints, but all at once.

        Examples:
            >>> [y.tags for y in WeightedTarget.of_labels([3, 1], [0.5, 1.5], [7, 8])]
            [(0.5, 7), (1.5, 8)]
        """
        # Below autograd they are no views of one tensor, and each counts the writes to itself.
        with torch._C._AutoDispatchBelowAutograd():
            targets: Any = torch.tensor(labels, dtype=torch.int64).unbind()
        for target, weight, index in zip(targets, weights, indices, strict=True):
            target.__class__ = WeightedTarget
            target._tags, target._writes = (weight, index), 0
        return list(targets)

    @staticmethod
    def like(targets: Tensor, y: Tensor) -> Tensor:
        """`targets` with the tags of `y`, whose rows are of the same samples in the same order.

        For targets that were made beside those of the loader, such as a teacher's. Where `y` has
        no tags, as in validation, `targets` stay as they are.

        Args:
            targets: (n, …).
            y: (n, …).

        Raises:
            ValueError: another number of rows.

        Examples:
            >>> y = WeightedTarget(torch.tensor([2, 0]), torch.tensor([0.5, 1.5]))
            >>> WeightedTarget.like(torch.rand(2, 3), y).weights
            tensor([0.5000, 1.5000])
        """
        tags = tags_of(y)
        return targets if tags is None else WeightedTarget(targets, *_moved(tags, targets))

    @property
    def tags(self) -> Tags | None:
        """Weights and indices, or None once rows of other samples may have been written here.

        Setting targets to a number, such as an ignored label, keeps them.
        """
        try:  # as `_writes`, without the call: every sample's tags are read
            return self._tags if self._writes == self._version else None
        except RuntimeError:
            return self._tags if self._writes == 0 else None

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
        if func == _VERSION.__get__:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return _run(func, args, kwargs or {})

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


def _checked(targets: Any, weights: Any, indices: Any) -> Tags:
    if not isinstance(targets, Tensor) or not isinstance(weights, (Tensor, int, float)):
        raise TypeError(
            "`targets` must be a tensor and `weights` a tensor, or a number for a single sample, "
            f"got {type(targets).__name__} and {type(weights).__name__}. Convert them with "
            "torch.as_tensor."
        )
    if not isinstance(weights, Tensor):
        return float(weights), int(indices)
    if not isinstance(indices, Tensor):
        indices = torch.full_like(weights, indices, dtype=torch.int64)
    if targets.ndim == 0 or not weights.shape == indices.shape == targets.shape[:1]:
        raise ValueError(
            "`weights` and `indices` must have one number for each row of targets of shape "
            f"{tuple(targets.shape)}, got shapes {tuple(weights.shape)} and "
            f"{tuple(indices.shape)}. Give targets and weights the same rows."
        )
    return weights, indices


def _rebuild(targets: Tensor, *values: Any) -> WeightedTarget:
    weights, indices = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
    return WeightedTarget(targets, *_moved((weights, indices), targets))


def _moved(tags: Tags, targets: Tensor) -> Tags:
    """`tags` on the device of `targets`."""
    if isinstance(tags[0], float):
        return tags
    # Not to the CPU: nobody would wait for the copy before reading it.
    ahead = targets.device.type != "cpu"
    weights, indices = (tag.to(targets.device, non_blocking=ahead) for tag in tags)
    return weights, indices


def _writes(targets: Tensor) -> int:
    """Autograd's count of writes to the memory of `targets`, through whatever view."""
    try:
        return targets._version
    except RuntimeError:  # tensors of inference mode do not count
        return 0


@_disable_dynamo
def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on targets and tag its result, see `adaptive_subset.delivery.rows`."""
    first: Any = args[0] if args else kwargs.get("input")
    with torch._C.DisableTorchFunctionSubclass():
        if func in REARRANGEMENTS:
            return _tagged(func(*args, **kwargs), rearranged(func, args, kwargs))
        if func in CONVERSIONS:
            result, tags = func(*args, **kwargs), tags_of(first)
            if func is Tensor.pin_memory and tags is not None and isinstance(tags[0], Tensor):
                # From other memory the copy to a GPU would wait for all that was started there.
                tags = func(tags[0], *args[1:], **kwargs), func(tags[1], *args[1:], **kwargs)
            return result if result is first else _tagged(result, tags)
        if func == _DATA.__get__:
            return _tagged(first.detach(), first.tags)  # writes to `data` would not be counted
        if func is Tensor.__setitem__ and isinstance(args[2], (int, float)):
            follows = None if (tags := tags_of(first)) is None else (tags, 1.0)
        else:
            follows = elementwise(func, args, kwargs) if is_elementwise(func) else None
        if func in LOSSES:
            _warn_if_unweighted(args, kwargs)
        result = func(*args, **kwargs)
        if follows is not None:
            written = func is Tensor.__setitem__ or result is first
            return _followed(result, first if written else None, *follows)
        if isinstance(first, WeightedTarget):
            if func == _DATA.__set__ or func is Tensor.__dlpack__:
                first._writes = -1  # other memory, or memory whose writers are not seen
            elif isinstance(result, np.ndarray) and np.may_share_memory(
                result, first.numpy(force=True)
            ):
                result.flags.writeable = False
    return result


def _tagged(result: Any, tags: Any) -> Any:
    """`result` with its tags; several results with a list of tags, or all with the same."""
    if tags is None:
        return result
    if isinstance(result, (tuple, list)):
        each = tags if isinstance(tags, list) else [tags] * len(result)
        return type(result)(map(_tagged, result, each))
    if not isinstance(result, Tensor):
        return result
    return WeightedTarget(result, *_moved(tags, result))


def _followed(result: Any, written: Any, tags: Tags, share: Any) -> Any:
    """The result of an element-wise operation with its tags; `written` if it went there."""
    if isinstance(written, WeightedTarget):
        written._tags, written._writes, written.share = tags, _writes(written), share
        return result
    if written is not None or not isinstance(result, Tensor):
        return result
    if isinstance(tags[0], Tensor) and result.shape[:1] != tags[0].shape:
        return result  # a reduction of the same name
    tagged = _tagged(result, tags)
    tagged.share = share
    return tagged


def _warn_if_unweighted(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Say once in a process that a plain loss trains without the weights of its targets."""
    global _warned
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    weights = [tags[0] for value in values if (tags := tags_of(value)) is not None]
    # Without a reduction the weights may come next.
    if _warned or not weights or kwargs.get("reduction") == "none":
        return
    if not torch.is_grad_enabled() or not any(value.requires_grad for value in values):
        return
    if bool((torch.as_tensor(weights[0]) - 1).abs().max() > 1e-3):
        _warned = True
        warnings.warn(
            "a loss that is not weighted was given targets whose samples have weights other than "
            "one, so training follows another gradient than the one that was selected. Wrap the "
            "loss: criterion = WeightedLoss(criterion); where no weights are wanted, pass "
            'y.plain(), or use AdaptiveSubsetSampler(..., weighting="resample").',
            stacklevel=5,
        )


_warned = False
_DATA: Any = Tensor.data
_VERSION: Any = Tensor._version
