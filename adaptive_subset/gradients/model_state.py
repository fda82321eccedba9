"""The user's model: taken out of its wrappers, run in eval mode, left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from adaptive_subset.gradients.snapshot import preserved_modules

# What holds a model in `module` and computes just what that does.
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# By name, since other packages may not be there, and torch's compiler and sharding take seconds.
_NAMED = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "apex.parallel.distributed.DistributedDataParallel": "module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
}
_SHARDED = ("DTensor", "FlatParameter", "FullyShardedDataParallel")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DDP, DataParallel, `torch.compile`, EMA and SWA wrappers.

    A forward pass through DDP on one rank alone waits for ever, and hooks set on a compiled
    module never fire. Only wrappers that are known to compute what their module does are taken
    off: a model that scales the inputs or outputs of its one child is another function.
    """
    while (name := _name_of_inner(model)) is not None:
        model = model.get_submodule(name)
    return model


def _name_of_inner(model: nn.Module) -> str | None:
    if isinstance(model, _WRAPPERS):
        return "module"
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__)
    return next((_NAMED[name] for name in names if name in _NAMED), None)


def readable(model: Any) -> nn.Module:
    """The module to run, taken out of its wrappers.

    Raises:
        TypeError: it is no module, or a scripted one.
        ValueError: it has no parameters, or not all of them, or they hold no numbers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {_kind(model)}. Pass the module itself, not "
            "a function around it, its class or its state."
        )
    module = unwrap(model)
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` must be a Python module, whose layers can be watched, got a "
            f"{type(module).__name__}. Pass the module that was scripted or traced."
        )
    parameters = list(module.parameters())
    if not parameters:
        raise ValueError("`model` must have parameters, got a module without any.")
    kinds = {type(part).__name__ for part in (*module.modules(), *parameters)}
    # DTensor hides behind Parameter, and DeepSpeed leaves empty tensors with a `ds_id`.
    kinds |= {type(p.data).__name__ for p in parameters}
    sharded = [name for name in _SHARDED if name in kinds]
    if sharded or any(hasattr(p, "ds_id") and p.numel() == 0 for p in parameters):
        raise ValueError(
            "`model` must hold its parameters whole, got sharded ones (FSDP, tensor parallel or "
            f"ZeRO: {', '.join(sharded) or 'ds_id'}). Gather a whole copy and select with that, or "
            "take a strategy that needs no gradients."
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            "`model` must be initialised, got lazy parameters without a shape. Run it once on a "
            "batch first."
        )
    if any(p.is_meta for p in parameters):
        raise ValueError(
            "`model` must hold numbers, got parameters on the meta device. Move it with "
            "to_empty() and initialise it first."
        )
    return module


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def place_of(model: nn.Module) -> Tensor:
    """The parameter that says on which device and in which dtype a model takes its inputs.

    That is a floating one: a counter or a quantised weight that comes first would round them.
    """
    floating = (p for p in model.parameters() if p.is_floating_point())
    return next(floating, next(model.parameters()))


def is_on_gpu(model: Any) -> bool:
    """Whether inputs have a way to go; False for what is no model."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return any(p.is_cuda for p in parameters)


def can_freeze(model: nn.Module) -> bool:
    """Whether `frozen` can put back what it takes: leaves of autograd, not of inference mode."""
    return all(p.is_leaf and not p.is_inference() for p in model.parameters())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of `model` requires gradients in here, so that no graph leads to it.

    That is set on the parameters themselves once, since to swap them for others in every forward
    pass takes longer than the layers of a small network do.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module, criterion: Any) -> Iterator[None]:
    """`model` runs uncompiled and in eval mode; on exit both are as they were, see snapshot."""
    with preserved_modules(model, criterion):
        model.eval()
        for module in model.modules():
            if "_compiled_call_impl" in vars(module):  # set by Module.compile()
                vars(module)["_compiled_call_impl"] = None
        yield
