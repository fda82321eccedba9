"""Where in an item or a batch of the user's dataset the target is, and what is input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

_NAMES = ("target", "targets", "label", "labels", "y")


def split_batch(
    batch: Any, target: int | str | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs and target of a batch: positional arguments, keyword arguments, target.

    The fields of a tuple are positional arguments of the model, those of a mapping or of an object
    keyword arguments. `target` is as in `TaggedDataset`.

    Examples:
        >>> split_batch({"pixels": 1, "label": 2})
        ((), {'pixels': 1}, 2)
    """
    key = target_key(batch, target)
    if isinstance(batch, (tuple, list)):
        place = range(len(batch))[key]
        return tuple(v for i, v in enumerate(batch) if i != place), {}, batch[place]
    names = names_of(batch)
    return (), {name: field(batch, name) for name in names if name != key}, field(batch, key)


def target_key(item: Any, target: int | str | None) -> Any:
    """Where in `item` the target is: a position, key or attribute name.

    Raises:
        TypeError: it is not where `target` says, or not found without a hint.
    """
    names = names_of(item)
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    guesses: list[Any] = [1] if pair else [name for name in _NAMES if name in names]
    key = target if target is not None else guesses[0] if len(guesses) == 1 else None
    if key is not None and key in names:
        named = isinstance(item, tuple) and isinstance(key, str)
        return item._fields.index(key) if named else key
    kind, is_row = type(item).__name__, isinstance(item, (tuple, list))
    got = f"a {kind} of {len(item)}" if is_row else f"a {kind} with {names}"
    advice = (
        "Pass the position, key or attribute: Selector(..., target=...). For a dataset with "
        "several targets pass that of one of them, and give its weights to the others: "
        "WeightedTarget.like(other, y)."
    )
    if not names or (is_row and len(item) == 1):
        advice = (
            "Make a dataset whose items hold a target, as TensorDataset(x, y) is, or where it is "
            "the input itself, as TensorDataset(x, x)."
        )
    raise TypeError(
        "`target` must say where in an item of the data the target is, got "
        f"target={target!r} for {got}. {advice}"
    )


def names_of(item: Any) -> list[Any]:
    """Positions, keys of a mapping, or names of an object's attributes, in slots or not."""
    if isinstance(item, (tuple, list)):
        size = len(item)
        return [*range(size), *range(-size, 0), *getattr(item, "_fields", ())]
    if isinstance(item, Mapping):
        return list(item)
    slots = [getattr(kind, "__slots__", ()) for kind in reversed(type(item).__mro__)]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    names = [name for name in names if not name.startswith("__") and hasattr(item, name)]
    return [*names, *getattr(item, "__dict__", ())]


def field(item: Any, key: Any) -> Any:
    """What `item` holds there."""
    return item[key] if isinstance(item, (tuple, list, Mapping)) else getattr(item, key)


def replaced(item: Any, key: Any, value: Any) -> Any:
    """A shallow copy of `item` with another target."""
    if isinstance(item, tuple):
        fields = list(item)
        fields[key] = value
        return item._make(fields) if hasattr(item, "_make") else tuple(fields)
    if isinstance(item, Mapping) and not isinstance(item, MutableMapping):
        return {**item, key: value}
    changed = copy.copy(item)
    if isinstance(item, (list, Mapping)):
        changed[key] = value
    else:
        object.__setattr__(changed, key, value)
    return changed
