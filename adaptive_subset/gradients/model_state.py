"""The user's model: taken out of its wrappers, run in eval mode, left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DDP, DataParallel, `torch.compile`, EMA and SWA wrappers.

    A forward pass through DDP on one rank alone waits for ever, and hooks set on a compiled
    module never fire. EMA and SWA wrappers are recognised as modules that hold all their
    parameters in one child named ``module``.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif [name for name, _ in model.named_children()] == ["module"] and not any(
            True for _ in model.parameters(recurse=False)
        ):
            model = model.get_submodule("module")
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` runs uncompiled and in eval mode; on exit it is as it was, also after an exception.

    Restored for every module: training flag, hooks, buffers bit for bit, and the attributes that a
    forward pass may set or fill, such as caches.
    """
    modules = [(module, dict(vars(module))) for module in model.modules()]
    contents = [
        (container, copy.copy(container))
        for _, attributes in modules
        for container in attributes.values()
        if isinstance(container, (dict, list, set))
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        model.eval()
        for module, _ in modules:
            if "_compiled_call_impl" in vars(module):  # set by Module.compile()
                vars(module)["_compiled_call_impl"] = None
        yield
    finally:
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in contents:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for buffer, original in buffers:
            # Only what changed is written: autograd counts a write to a tensor that it has saved.
            if not _same_bits(buffer, original):
                with torch.no_grad():
                    buffer.copy_(original)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
