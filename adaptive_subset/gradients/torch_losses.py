"""Losses whose divisor is known, torch's own above all: one evaluation tells losses and value."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset.gradients.loss_batch import Criterion
from adaptive_subset.gradients.position_losses import PixelLoss, TokenLoss

#: Those that compare number with number; their mean divides by how many.
_ELEMENTWISE: set[Any] = {
    *(nn.MSELoss, F.mse_loss),
    *(nn.L1Loss, F.l1_loss),
    *(nn.SmoothL1Loss, F.smooth_l1_loss),
    *(nn.HuberLoss, F.huber_loss),
    *(nn.BCELoss, F.binary_cross_entropy),
    *(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
    *(nn.KLDivLoss, F.kl_div),
}
#: Those of labels; their mean divides by the class weights of the labels that are not ignored.
_LABELLED: set[Any] = {nn.CrossEntropyLoss, F.cross_entropy, nn.NLLLoss, F.nll_loss}
_KNOWN = _ELEMENTWISE | _LABELLED
_OPTIONS = {
    *("reduction", "weight", "ignore_index", "label_smoothing"),
    *("pos_weight", "log_target", "beta", "delta"),
}


def torch_losses(
    criterion: Criterion, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | int | None] | None:
    """The losses as ``reduction="none"`` gives them, and what `criterion` divides their sum by.

    Args:
        criterion: any loss.
        args, kwargs: what it is called with.

    Returns:
        None where `criterion` is none of torch's own and of ours, or is called in an unusual way.
        The divisor is None where it returns the losses themselves.

    Raises:
        ValueError: outputs and targets of elementwise losses that would broadcast.
    """
    if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
        return None
    if isinstance(criterion, nn.Module):
        kind: Any = type(criterion)
        if not is_as_defined(criterion):
            return None
        if kind in (TokenLoss, PixelLoss):
            return criterion.terms(*args)  # type: ignore[operator,no-any-return]
        if kind not in _KNOWN:
            return None
        option: Callable[..., Any] = functools.partial(getattr, criterion)
        unreduced: Criterion = _module_without_reduction(criterion)
    else:
        bound = isinstance(criterion, functools.partial) and not criterion.args
        kind = criterion.func if bound else criterion  # type: ignore[attr-defined]
        options = criterion.keywords if bound else {}  # type: ignore[attr-defined]
        if not _is_known(kind) or not options.keys() <= _OPTIONS:
            return None
        option = options.get
        unreduced = functools.partial(criterion, reduction="none")
    output, target = args
    if kind not in _LABELLED and output.ndim != target.ndim:
        raise ValueError(
            f"`target` must have the shape of the outputs, {tuple(output.shape)}, got "
            f"{tuple(target.shape)}: broadcasting would compare outputs with the targets of other "
            "samples. Use target.unsqueeze(1) or output.squeeze(1)."
        )
    reduction = option("reduction", "mean")
    if reduction not in ("mean", "sum", "none", "batchmean"):
        return None  # torch says what is wrong
    each = unreduced(output, target)
    if reduction in ("sum", "none"):
        return each, 1 if reduction == "sum" else None
    if reduction == "batchmean":
        return each, len(each)
    if kind not in _LABELLED or target.is_floating_point():  # soft targets are not weighed
        return each, each.numel()
    return each, _label_weight(target, option("weight", None), option("ignore_index", -100))


def is_as_defined(module: nn.Module) -> bool:
    """Whether a call of it does what its class says."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _module_without_reduction(criterion: nn.Module) -> nn.Module:
    twin = copy.copy(criterion)
    vars(twin)["reduction"] = "none"
    return twin


def _is_known(function: Any) -> bool:
    try:
        return function in _KNOWN
    except TypeError:  # not hashable
        return False


def _label_weight(labels: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    kept = labels.detach() != ignored
    if weight is None:
        return kept.sum()
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().to(wide)[labels.where(kept, 0)] * kept).sum()
