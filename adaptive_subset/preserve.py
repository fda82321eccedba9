"""Leave a user's model and random state exactly as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
def preserved_random_state() -> Iterator[None]:
    """Python's, NumPy's and torch's global generators (CPU and CUDA) are restored on exit."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` runs uncompiled and in eval mode; on exit every flag and buffer is as before.

    Training flags are restored module by module, buffers bit for bit (also those that the model
    replaces or adds), and also when the body raises.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    copies = [
        {name: b.detach().clone() for name, b in own.items() if b is not None} for own in buffers
    ]
    compiled = [module.__dict__.get("_compiled_call_impl") for module in modules]
    try:
        for module, call in zip(modules, compiled, strict=True):
            if call is not None:
                module.__dict__["_compiled_call_impl"] = None
        model.eval()
        yield
    finally:
        for i, module in enumerate(modules):
            module.training = flags[i]
            if compiled[i] is not None:
                module.__dict__["_compiled_call_impl"] = compiled[i]
            module._buffers.clear()
            module._buffers.update(buffers[i])
            for name, copy in copies[i].items():
                _restore(buffers[i][name], copy)


def _restore(buffer: Tensor | None, copy: Tensor) -> None:
    # Only what changed is written: a write would count as an in-place change of a tensor that
    # autograd may have saved.
    if buffer is not None and not _same_bits(buffer, copy):
        with torch.no_grad():
            buffer.copy_(copy)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
