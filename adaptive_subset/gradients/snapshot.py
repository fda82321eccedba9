"""Note what a pass may change of the user's objects, and put it back."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LONG = 64  # a longer list holds samples, not transforms


@contextmanager
def preserved_modules(*modules: Any) -> Iterator[None]:
    """Whatever these modules hold is as it was on exit, also after an exception.

    That is, of every module that is reachable through attributes and containers, also of one that
    is no registered child: training flags, hooks, attributes that a forward pass sets, what
    containers hold at any depth, and buffers, other tensors and NumPy arrays, bit for bit.
    Parameters are not copied: a pass hands out its own, see `last_layer_gradients`.
    """
    reached = _reached(modules, _held)
    flags = [
        (value, value.training) for value in reached if isinstance(value, torch.jit.ScriptModule)
    ]
    contents = [(value, _content(value)) for value in reached if _is_mutable(value)]
    tensors = [
        (value, value.detach().clone())
        for value in reached
        if isinstance(value, Tensor)
        and not isinstance(value, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type != "meta"
    ]
    arrays = [
        (value, value.copy())
        for value in reached
        if isinstance(value, np.ndarray) and value.flags.writeable
    ]
    with _preserved_generators(reached):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            for array, kept in arrays:
                if array.shape != kept.shape:
                    array.resize(kept.shape, refcheck=False)
                np.copyto(array, kept)
            for container, content in contents:
                container.clear()
                (container.update if isinstance(container, (dict, set)) else container.extend)(
                    content
                )
            for tensor, original in tensors:
                # Only what changed is written: autograd counts a write to a tensor it has saved.
                if not _same_bits(tensor, original):
                    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                        if tensor.shape != original.shape:
                            tensor.resize_(original.shape)
                        tensor.copy_(original)


@contextmanager
def preserved_generators(data: Any) -> Iterator[None]:
    """The random generators that a dataset or loader holds are as they were on exit.

    They are found in its attributes, in those of what it holds (transforms, a wrapped dataset, a
    sampler), and in short lists and dicts; not in closures.
    """
    with _preserved_generators(_reached([data], _attributes)):
        yield


@contextmanager
def _preserved_generators(values: Iterable[Any]) -> Iterator[None]:
    restore: list[Callable[[], Any]] = []
    for value in values:
        if isinstance(value, torch.Generator):
            restore.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            restore.append(functools.partial(setattr, bits, "state", bits.state))
        elif isinstance(value, np.random.RandomState):
            restore.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            restore.append(functools.partial(value.setstate, value.getstate()))
    try:
        yield
    finally:
        for call in restore:
            call()


def _reached(roots: Iterable[Any], held: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """Everything that `held` leads to from the roots, each once."""
    found: dict[int, Any] = {}
    stack = list(roots)
    while stack:
        value = stack.pop()
        if id(value) not in found:
            found[id(value)] = value
            stack.extend(held(value))
    return list(found.values())


def _held(value: Any) -> Iterable[Any]:
    """What a module or a container holds; a script module has all but its attributes elsewhere."""
    if isinstance(value, torch.jit.ScriptModule):
        return [vars(value), *value.children(), *value.buffers(recurse=False)]
    return [vars(value)] if isinstance(value, nn.Module) else _elements(value)


def _attributes(value: Any) -> Iterable[Any]:
    """What an object or a short container holds."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, (dict, list, set, tuple, deque)):
        return _elements(value) if len(value) <= _LONG else ()
    if isinstance(value, (type, Tensor, np.ndarray)):
        return ()
    # A method bound to an object, as a transform may be one, leads to that object.
    return [getattr(value, "__self__", None), *getattr(value, "__dict__", {}).values()]


def _elements(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, set, tuple, deque)) else ()


def _is_mutable(value: Any) -> bool:
    return isinstance(value, (dict, list, set, deque))


def _content(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
