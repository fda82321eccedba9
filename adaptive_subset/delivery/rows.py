"""What becomes of the tags of targets in an operation of torch.

Tags follow through three kinds of operations, each for a reason that holds whatever the values
are. All others lose them, and `WeightedLoss` raises.

- *Rearrangements* (indexing, stacking, reshaping, …) place elements without looking at their
  values. Applied to row numbers instead of targets they say which row an element comes from.
- *Conversions* (dtype, device, one-hot, …) work on every row by itself, as does a look-up of
  labels in a table.
- *Element-wise operations*, as torch itself tags them, and compositions of such. They work on
  every row by itself where no other operand has rows of its own: numbers, and tensors that are
  broadcast along the rows, have none, and targets of the same samples have the same. A sum of
  targets of two samples whose shares add up to one, as in mixup, is a mixture.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tags = tuple[Any, Any]  # weights and indices: tensors for a batch, numbers for a single sample


def tags_of(value: Any) -> Tags | None:
    """The tags of targets, None for whatever has none or has lost them."""
    return getattr(value, "tags", None) if isinstance(value, Tensor) else None


def rearranged(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Tags of the result of a rearrangement; a list of them where it has several results."""
    first: Any = args[0] if args else kwargs.get("tensors", kwargs.get("input"))
    if func is Tensor.__getitem__ and tags_of(first) is None:
        return _looked_up(first, args[1])
    several = isinstance(first, (list, tuple))
    sources: list[Any] = list(first) if several else [first]
    tags: list[Any] = [getattr(source, "tags", None) for source in sources]
    settings = (*args[1:], *kwargs.values())
    if None in tags or any(isinstance(s, torch.dtype) for s in settings):
        return None
    if func is torch.repeat_interleave and not settings:
        return None  # the targets are numbers of repetitions
    weights, indices = zip(*tags, strict=True)
    kinds = set(map(type, weights))
    if len(kinds) > 1:
        return None
    single = kinds == {float}
    if single and not several:
        return tags[0]  # whatever is in the result belongs to this sample
    if single:
        # Through NumPy, which is quicker at lists of numbers.
        joined = (
            torch.from_numpy(np.array(weights, np.float32)),
            torch.from_numpy(np.array(indices, np.int64)),
        )
        if func is torch.stack and kwargs.get("dim", args[1] if len(args) > 1 else 0) == 0:
            return joined
        rows = [
            torch.full(source.shape, i, device=source.device) for i, source in enumerate(sources)
        ]
    else:
        joined = torch.cat(weights), torch.cat(indices)
        numbers = torch.arange(len(joined[0]), device=sources[0].device)
        rows = [
            part.view(-1, *[1] * (source.ndim - 1)).expand(source.shape)
            for part, source in zip(
                torch.split(numbers, [*map(len, weights)]), sources, strict=True
            )
        ]
    options = {key: v for key, v in kwargs.items() if key not in ("out", "tensors", "input")}
    func = _AS_RESHAPE.get(func, func)  # the rows were expanded: a view might be refused
    moved = func(rows if several else rows[0], *args[1:], **options)
    picked = func in _PICKING and not single
    if isinstance(moved, (tuple, list)):
        return [_tags_of_rows(part, joined, picked and part.ndim < rows[0].ndim) for part in moved]
    return _tags_of_rows(moved, joined, picked and moved.ndim < rows[0].ndim)


def _looked_up(table: Tensor, labels: Any) -> Tags | None:
    """Tags of ``table[labels]``, such as ``eye[labels]``, where each row is of one label."""
    is_label = isinstance(labels, Tensor) and labels.dtype in _LABELS  # others are masks
    return tags_of(labels) if is_label and not table.requires_grad else None


def _tags_of_rows(rows: Tensor, tags: tuple[Tensor, Tensor], picked: bool) -> Tags | None:
    """Tags of a result whose elements come from the given `rows`; None where it mixes them.

    One that was `picked` out of a batch of several may be a single sample.
    """
    rows = rows.to(tags[0].device)
    if rows.ndim == 0:
        return float(tags[0][rows]), int(tags[1][rows])
    if picked and len(tags[0]) > 1 < len(rows) and bool((rows == rows.flatten()[0]).all()):
        return float(tags[0][rows.flatten()[0]]), int(tags[1][rows.flatten()[0]])
    if 0 in rows.shape[1:]:
        return None
    column = (slice(None), *[slice(1)] * (rows.ndim - 1))
    first = rows[column]
    # Strides of zero, where row numbers were only viewed: the whole row is one element.
    if any(rows.stride()[1:]) and not torch.equal(rows, first.expand_as(rows)):
        return None
    first = first.flatten()
    return tags[0][first], tags[1][first]


def elementwise(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tags, Any] | None:
    """Tags of the result of an element-wise operation, if it has the shape of its targets.

    Returns also the targets' share in the result: a for ``a · y``, one for all that is no product.
    None where rows of other samples take part, or may take part.
    """
    name = func.__name__.strip("_")
    operands = dict(enumerate(args)) | {key: kwargs[key] for key in kwargs if key != "alpha"}
    names = _CONDITIONS.get(func, _CONDITIONS.get(name, ()))
    conditions = [operands.pop(place) for place in names if place in operands]
    values = list(operands.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    targets: list[Any] = [tensor for tensor in tensors if tags_of(tensor) is not None]
    if not targets or "out" in kwargs:
        return None
    first, others = targets[0], targets[1:]
    if any(isinstance(value, (np.ndarray, list, tuple)) for value in values):
        return None
    if any(isinstance(c, Tensor) and not _keeps_rows(c, first) for c in conditions):
        return None
    if any(t is not first and tags_of(t) is None and not _rowless(t, first) for t in tensors):
        return None
    if any(other.shape[:1] != first.shape[:1] or other.ndim != first.ndim for other in others):
        return None
    if all(are_same(first.tags, other.tags) for other in others):
        numbers = [v for v in values if v is not first and isinstance(v, (int, float, Tensor))]
        if name in ("mul", "multiply") and len(numbers) == 1 and not others:
            return first.tags, _scaled(first.share, numbers[0])
        return first.tags, 1.0
    if name == "add" and len(targets) == len(values) == 2:
        mixed = _mixture(first, others[0], kwargs.get("alpha", 1))
        return None if mixed is None else (mixed, 1.0)
    return None


def _keeps_rows(condition: Tensor, target: Any) -> bool:
    """Whether a choice by `condition` leaves the rows of a batch `target` where they are."""
    return isinstance(target.tags[0], float) or condition.ndim <= target.ndim


def _rowless(operand: Tensor, target: Any) -> bool:
    """Whether `operand` is broadcast along the rows of a batch `target`."""
    if isinstance(target.tags[0], float):
        return False
    if operand.ndim < target.ndim:
        return True
    return operand.ndim == target.ndim and operand.shape[0] == 1 < len(target)


def are_same(tags: Tags, others: Tags) -> bool:
    """Whether both are those of the same samples."""
    return all(
        tag is other
        or (
            torch.equal(tag, other)
            if isinstance(tag, Tensor) and isinstance(other, Tensor)
            else not isinstance(tag, Tensor) and not isinstance(other, Tensor) and tag == other
        )
        for tag, other in zip(tags, others, strict=True)
    )


def _scaled(share: Any, factor: Any) -> Any:
    if isinstance(factor, Tensor):
        return share * factor.detach() if factor.ndim == 0 else 0.0
    return share * factor


def _mixture(one: Any, two: Any, alpha: Any) -> Tags | None:
    """Tags of ``one + alpha · two``: weights ``λᵢwᵢ + (1 − λᵢ)w_partner``, and no index."""
    shares = float(one.share), float(two.share * alpha)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        return None
    (weights, indices), (partners, partner_indices) = one.tags, two.tags
    if isinstance(weights, float) != isinstance(partners, float):
        return None
    mixed = shares[0] * weights + shares[1] * partners
    return mixed, common_indices(indices, partner_indices)


def common_indices(indices: Any, others: Any) -> Any:
    """`indices` where the `others` are the same; −1, of no one sample, elsewhere."""
    if isinstance(indices, Tensor):
        return torch.where(indices == others, indices, -1)
    return indices if indices == others else -1


@functools.cache
def is_elementwise(func: Any) -> bool:
    """Whether `func` is one of torch's operations that work on every element by itself."""
    name = getattr(func, "__name__", "")
    if not any(getattr(owner, name, None) == func for owner in _OWNERS):
        return False
    name = name.strip("_")
    kernels = getattr(torch.ops.aten, name, None)
    return name in _COMPOSED or any(
        torch.Tag.pointwise in getattr(kernels, overload).tags
        for overload in (kernels.overloads() if kernels is not None else ())
    )


def _named(names: str) -> set[Any]:
    """The functions and methods of torch that have these names."""
    found = {getattr(owner, name, None) for owner in (torch, Tensor) for name in names.split()}
    return found - {None}


REARRANGEMENTS = _named(
    "__getitem__ select index_select narrow take_along_dim gather masked_select diagonal unfold"
    " stack cat concat concatenate hstack vstack dstack column_stack row_stack"
    " flip fliplr flipud roll rot90 repeat tile expand expand_as broadcast_to repeat_interleave"
    " chunk split split_with_sizes tensor_split hsplit vsplit unbind"
    " view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze atleast_1d"
    " transpose swapaxes swapdims movedim moveaxis permute t adjoint"
)
_LABELS = (torch.int64, torch.int32, torch.int16, torch.int8)
_PICKING = _named("__getitem__ select unbind")
_AS_RESHAPE = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape_as}
CONVERSIONS = _named(
    "to cpu cuda pin_memory type type_as long int short char byte bool float double half bfloat16"
    " cfloat cdouble clone detach contiguous"
) | {F.one_hot}
_OWNERS = (torch, Tensor, torch._C.TensorBase, torch.special, F)
_COMPOSED = {  # of element-wise kernels, without a tag of torch's
    *("floordiv", "rfloordiv", "floor_divide", "rdiv", "rpow", "rmod", "fill", "zero"),
    *("invert", "and", "or", "xor", "lshift", "rshift"),
    *("multiply", "divide", "subtract", "negative", "absolute"),
    *("greater", "greater_equal", "less", "less_equal", "not_equal"),
}
#: Operands that choose between others and add no values; a method counts from its own tensor.
_CONDITIONS: dict[Any, tuple[Any, Any]] = {
    **{"where": (0, "condition"), Tensor.where: (1, "condition")},
    "masked_fill": (1, "mask"),
}
LOSSES = {
    value
    for name, value in vars(F).items()
    if name.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div"))
}
