"""What goes into a model and comes out of it: inputs moved, parts of a batch, logits, targets."""

from __future__ import annotations

import copy
import inspect
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptive_subset.items import split_batch


def arguments_and_targets(
    batches: Iterable[Any], target: int | str | None, name: str
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """What the model takes, by position and by name, and the targets (n, …) of each batch.

    Args:
        batches: what a DataLoader yields; those without a sample are left out.
        target: see `split_batch`.
        name: what errors call the batches.

    Raises:
        TypeError: targets that are not found, or are no numbers.
        ValueError: no batch, or one without a batch dimension.
    """
    some = False
    for batch in batches:
        args, kwargs, y = split_batch(batch, target)
        targets = _targets_of(y, name)
        if len(targets):
            some = True
            yield args, kwargs, targets
    if not some:
        raise ValueError(f"`{name}` must yield at least one batch, got none.")


def _targets_of(y: Any, name: str) -> Tensor:
    """Targets as a tensor (n, …)."""
    is_list = isinstance(y, (list, tuple)) and all(isinstance(v, numbers.Number) for v in y)
    if not isinstance(y, (Tensor, np.ndarray)) and not is_list:
        inside = f" of {type(y[0]).__name__}" if isinstance(y, (list, tuple)) and y else ""
        raise TypeError(
            f"`target` must be one tensor of numbers for a batch of `{name}`, got a "
            f"{type(y).__name__}{inside}. Turn labels into numbers in the dataset, or pass the "
            "position or key of the one to train on: Selector(..., target=...)."
        )
    targets = y if isinstance(y, Tensor) else torch.as_tensor(y, device="cpu")
    if targets.ndim == 0:
        raise ValueError(
            f"`{name}` must yield batches, got a target without a batch dimension. Give the "
            "DataLoader a batch_size."
        )
    return targets


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        fields = {key: _mapped(field, change) for key, field in value.items()}
        if not isinstance(value, MutableMapping):
            return fields
        changed: Any = copy.copy(value)  # of its own kind, whose attributes a model may read
        changed.update(fields)
        return changed
    if isinstance(value, (tuple, list)):
        parts = [_mapped(entry, change) for entry in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def part(value: Any, rows: slice, n: int) -> Any:
    """Those rows of every tensor in a batch of n."""
    return _mapped(value, lambda t: t[rows] if t.ndim and len(t) == n else t)


def copied_to(device: torch.device, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy there. A device gets it when it gets there; nobody waits for what is on its way."""
    # Never so to the CPU, which would read it before it has come.
    return tensor.to(device, dtype, non_blocking=device.type != "cpu", copy=True)


def to_model(inputs: Any, place: Tensor, *, copies: bool = True) -> Any:
    """Copies on the model's device, floating ones in its dtype (autocast chooses its own).

    Copies, since a model may write to its inputs, which are the user's and may be needed again;
    without `copies` only where device or dtype are others.
    """
    cast = not torch.is_autocast_enabled(place.device.type)

    def moved(tensor: Tensor) -> Tensor:
        dtype = place.dtype if cast and tensor.is_floating_point() else tensor.dtype
        if not copies:
            return tensor.to(place.device, dtype)
        return copied_to(place.device, tensor, dtype)

    return _mapped(inputs, moved)


def run_model(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    place: Tensor,
    *,
    parameters: dict[str, Tensor] | None = None,
    copies: bool = True,
) -> Tensor:
    """The logits of `model` for what an item holds beside its target, see `to_model`.

    Args:
        parameters: in place of the model's own, by name; None for these.

    Raises:
        TypeError: items hold other things than the model takes, or it returns no tensor.
    """
    args, kwargs = to_model((args, kwargs), place, copies=copies)
    try:
        if parameters is None:
            return logits_of(model(*args, **kwargs))
        return logits_of(torch.func.functional_call(model, parameters, args, kwargs))
    except TypeError:
        _check_arguments(model, args, kwargs)
        raise


def _check_arguments(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Raise a TypeError where an item holds other things than the model takes.

    For a call that has failed: hooks before it may change what a model is called with.
    """
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except ValueError:  # no signature can be told
        return
    except TypeError as error:
        raise TypeError(
            "`model` must take all that an item of the pool holds beside its target, fields of a "
            f"dict or an object by name, got {len(args)} by position and {sorted(kwargs)} by name "
            f"({error}). Pass a pool of items that hold what it takes, with the target where those "
            "of the dataset have it (target=-1 for the last): Selector(..., pool=...)."
        ) from None


def logits_of(output: Any) -> Tensor:
    """The logits as they are.

    Also of an output object or a dict that holds them as `logits`, or as `out`, as torchvision's
    segmentation models do.
    """
    is_dict = isinstance(output, Mapping)
    logits: Any = (
        output.get("logits", output.get("out")) if is_dict else getattr(output, "logits", output)
    )
    if not isinstance(logits, Tensor):
        raise TypeError(
            "`model` must return a tensor, or an object or a dict with a tensor `logits`, got "
            f"{type(output).__name__}. Wrap the model so that it returns its logits."
        )
    return logits


def check_one_row_each(output: Tensor, n: int) -> None:
    """Raise a ValueError where a model returned other rows than the n targets of the batch."""
    if output.ndim == 0 or len(output) != n:
        raise ValueError(
            f"`model` must return one row for each of the {n} targets of a batch, got an output "
            f"of shape {tuple(output.shape)}. Check `target=`, and what the model does with views "
            "and lists."
        )
