"""A copy of a loss to evaluate in its place, so that its own state moves once a step."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.loss_batch import Criterion, widened

# Functions have no state that could be copied.
_AS_THEY_ARE = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial),
    torch.jit.ScriptFunction,
)
_MACHINERY = vars(nn.Module()).keys()  # hooks and the like


def twin(criterion: Criterion, *, wide: bool = False) -> Criterion:
    """A criterion like this one whose evaluation leaves this one as it is.

    Parameters are shared, so that gradients reach them. Buffers, other tensors and containers are
    copies: restoring them behind an evaluation would write to what autograd has saved.

    Args:
        criterion: a module, an object or a function; a function comes back as it is.
        wide: its tensors in half precision are cast to float32.
    """
    for name in ("_orig_mod", "_torchdynamo_orig_callable"):  # where torch.compile keeps it
        criterion = getattr(criterion, name, criterion)
    if isinstance(criterion, torch.jit.ScriptModule):
        # What it holds cannot be reached and is shared, but its `reduction` may be set on the copy.
        return copy.copy(criterion)
    return criterion if isinstance(criterion, _AS_THEY_ARE) else _copied(criterion, wide, {})


def _copied(source: Any, wide: bool, done: dict[int, Any]) -> Any:
    if id(source) in done:
        return done[id(source)]
    result = done[id(source)] = copy.copy(source)
    if not isinstance(state := getattr(result, "__dict__", None), dict):
        return result
    cast = widened if wide else (lambda value: value)
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = cast(_own(value))
        elif isinstance(value, (dict, list, set)) and name not in _MACHINERY:
            state[name] = copy.copy(value)
    if isinstance(source, nn.Module):
        state["_parameters"] = {k: cast(p) for k, p in source._parameters.items()}
        state["_buffers"] = {k: cast(_own(b)) for k, b in source._buffers.items()}
        state["_modules"] = {
            k: _copied(m, wide, done) if isinstance(m, nn.Module) else m
            for k, m in source._modules.items()
        }
    return result


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and not value.requires_grad else value
