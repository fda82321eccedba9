"""What callers write and checkpoints hold: the rules that many arguments share."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Described:
    """Something that its attributes tell from others of its kind, as a dataclass is written.

    So what is no dataclass, too, is written alike in every process and run. Attributes that begin
    with an underscore, such as what is remembered between calls, are left out.
    """

    def __repr__(self) -> str:
        told = (f"{name}={value!r}" for name, value in vars(self).items() if name[0] != "_")
        return f"{type(self).__qualname__}({', '.join(told)})"


def whole(name: str, value: Any) -> int:
    """`value` as an int: ints, also NumPy's and those in a tensor of one element.

    Raises:
        TypeError: anything else; a float too, that of a whole number included.
    """
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"`{name}` must be a whole number, got {shown(value)}.")


def natural(name: str, value: Any, least: int = 0) -> int:
    """`value` as an int of at least 0, such as an epoch or a seed, or of at least `least`.

    Raises:
        TypeError: no whole number.
        ValueError: a smaller one.
    """
    if (n := whole(name, value)) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {n}.")
    return n


def number(name: str, value: Any) -> float:
    """`value` as a float: real numbers, also NumPy's. NaN is left to the caller's range.

    Raises:
        TypeError: anything else; a bool too.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"`{name}` must be a number, got {shown(value)}.")


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False.

    Raises:
        TypeError: anything else; "false" and 0 too, of which the first would count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}.")
    return value


def check_fields(instance: Any) -> None:
    """Raise where a field of a dataclass is not what its annotation says: int, float, bool, None.

    Raises:
        TypeError: it is of another kind.
        ValueError: a float that is not finite.
    """
    for field in fields(instance):
        name, value, kinds = field.name, getattr(instance, field.name), str(field.type).split(" | ")
        if value is None and "None" in kinds:
            continue
        if "bool" in kinds:
            flag(name, value)
        elif "int" in kinds:
            whole(name, value)
        elif "float" in kinds and not math.isfinite(number(name, value)):
            raise ValueError(f"`{name}` must be finite, got {value}.")


def check_share(name: str, value: float) -> None:
    """Raise a ValueError where `value` is no share that can be taken, in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` must be in (0, 1], got {value}.")


def check_rest(name: str, value: float) -> None:
    """Raise a ValueError where `value` is no share that can be left out, in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value}.")


def check_word(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise a ValueError where `value` is none of the words that are `known`."""
    if value not in known:
        choices = " or ".join(f'"{word}"' for word in known)
        raise ValueError(f"`{name}` must be {choices}, got {value!r}.")


def loss(criterion: T) -> T:
    """`criterion` if it can be called as a loss.

    Raises:
        TypeError: it cannot, or is a class.
    """
    if isinstance(criterion, type) or not callable(criterion):
        raise TypeError(
            "`criterion` must be a loss such as nn.CrossEntropyLoss(), a module or a function, got "
            f"{criterion!r}."
        )
    return criterion


def shown(value: Any) -> str:
    """`value` as it is written, or the name of its type where that would be long."""
    if value is None or isinstance(value, (bool, Real, str)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"


def shape_or_kind(value: Any) -> str:
    """The shape of a tensor, which has the wrong one; else `value` as `shown`."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)


def check_one_each(name: str, values: Tensor, n: int) -> None:
    """Raise a ValueError where `values` are not those of the n samples of the dataset."""
    if len(values) != n:
        raise ValueError(
            f"`{name}` must hold one number for each of the {n} samples of the dataset, got "
            f"{len(values)}. Compute them on the dataset that is trained on."
        )


def group_of_each(groups: Any, n: int) -> Tensor:
    """`groups`, numbers of any kind for n samples, as (n,) int64 on the CPU; a copy.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: not one for each sample.
    """
    try:
        given = groups if isinstance(groups, Tensor) else torch.from_numpy(np.array(groups))
    except (TypeError, ValueError):  # names, or rows of several lengths
        given = torch.zeros(0)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(
            "`groups` must be whole numbers, a list, array or tensor of them, got "
            f"{shown(groups)}. Number what has names: np.unique(names, return_inverse=True)[1]."
        )
    if given.ndim != 1:
        raise ValueError(
            "`groups` must hold one number for each sample of the dataset, got shape "
            f"{tuple(given.shape)}."
        )
    check_one_each("groups", given, n)
    return given.detach().to("cpu", torch.int64, copy=True)


def digest(values: Tensor) -> str:
    """What tells given values on the CPU from others, short enough for a configuration."""
    content = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
    return f"<{len(values)} values, {content}>"


def check_state(owner: str, state: Any, fields: Mapping[str, Any]) -> None:
    """Raise a ValueError where `state` has not the `fields`, by name and type, of an `owner`'s."""
    problem = None
    if not isinstance(state, Mapping):
        problem = shown(state)
    elif missing := [key for key in fields if key not in state]:
        problem = f"a dict without {', '.join(map(repr, missing))}"
    else:
        for key, kind in fields.items():
            if not isinstance(state[key], kind) or isinstance(state[key], bool):
                problem = f"{shown(state[key])} as its {key!r}"
    if problem is not None:
        raise ValueError(
            f"`state` must be what the state_dict() of a {owner} returned, got {problem}. The "
            "checkpoint is damaged, or that of something else."
        )


def check_configuration(owner: str, here: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise a ValueError where a saved configuration is not that of the object `here`.

    What one of them lacks, as of another version, was not given there: None.
    """
    pairs = {name: (saved.get(name), here.get(name)) for name in {**here, **saved}}
    if differing := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        raise ValueError(
            f"`state` must come from a {owner} with the same arguments, got (saved, here): "
            f"{differing}. Construct it as in the interrupted run."
        )
