"""Where in an item or a batch of the user's dataset the target is, and what is input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = ("target", "targets", "label", "labels", "y")


def split_batch(
    batch: Any, target: int | str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs and target of a batch: positional arguments, keyword arguments, target.

    The fields of a tuple are positional arguments of the model, those of a mapping or of an object
    keyword arguments. `target` is as in `TaggedDataset`.

    Example:
        >>> split_batch({"pixels": 1, "label": 2})
        ((), {'pixels': 1}, 2)
    """
    key = target_key(batch, target)
    if isinstance(batch, (tuple, list)):
        place = range(len(batch))[key]
        return tuple(v for i, v in enumerate(batch) if i != place), {}, batch[place]
    fields = batch if isinstance(batch, Mapping) else vars(batch)
    return (), {name: value for name, value in fields.items() if name != key}, fields[key]


def target_key(item: Any, target: int | str | None) -> Any:
    """Where in `item` the target is: a position, key or attribute name.

    Raises:
        TypeError: it is not where `target` says, or not found without a hint.
    """
    if isinstance(item, (tuple, list)):
        names: Sequence[Any] = range(-len(item), len(item))
        guesses: Sequence[Any] = [1] if len(item) == 2 else []
    else:
        names = list(item) if isinstance(item, Mapping) else list(getattr(item, "__dict__", ()))
        guesses = [name for name in _NAMES if name in names]
    if target is not None and target in names:
        return target
    if target is None and len(guesses) == 1:
        return guesses[0]
    kind, size = type(item).__name__, len(item) if isinstance(item, (tuple, list)) else list(names)
    got = f"a {kind} of {size}" if isinstance(size, int) else f"a {kind} with {size}"
    raise TypeError(
        "`target` must say where in an item of the dataset the target is, got "
        f"target={target!r} for {got}. Pass the position, key or attribute: "
        "Selector(..., target=...)."
    )


def field(item: Any, key: Any) -> Any:
    """What `item` holds there."""
    return item[key] if isinstance(item, (tuple, list, Mapping)) else getattr(item, key)


def replaced(item: Any, key: Any, value: Any) -> Any:
    """A shallow copy of `item` with another target."""
    if isinstance(item, tuple):
        fields = list(item)
        fields[key] = value
        return item._make(fields) if hasattr(item, "_make") else tuple(fields)
    changed = copy.copy(item)
    if isinstance(item, (list, Mapping)):
        changed[key] = value
    else:
        object.__setattr__(changed, key, value)
    return changed
