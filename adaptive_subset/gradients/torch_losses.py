"""Losses whose divisor is known, torch's own above all: one evaluation tells losses and value."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset.gradients.loss_batch import Criterion, widened
from adaptive_subset.gradients.position_losses import PixelLoss, TokenLoss
from adaptive_subset.gradients.timm_losses import timm_losses

#: The losses of torch: by class, the function it calls and the options that it hands on.
_MODULES: dict[Any, tuple[Any, tuple[str, ...]]] = {
    nn.MSELoss: (F.mse_loss, ()),
    nn.L1Loss: (F.l1_loss, ()),
    nn.SmoothL1Loss: (F.smooth_l1_loss, ("beta",)),
    nn.HuberLoss: (F.huber_loss, ("delta",)),
    nn.KLDivLoss: (F.kl_div, ("log_target",)),
    nn.BCELoss: (F.binary_cross_entropy, ("weight",)),
    nn.BCEWithLogitsLoss: (F.binary_cross_entropy_with_logits, ("weight", "pos_weight")),
    nn.NLLLoss: (F.nll_loss, ("weight", "ignore_index")),
    nn.CrossEntropyLoss: (F.cross_entropy, ("weight", "ignore_index", "label_smoothing")),
}
_FORWARDS = {kind: kind.forward for kind in _MODULES}
_FUNCTIONS: dict[Any, tuple[str, ...]] = dict(_MODULES.values())
#: Those of labels; their mean divides by the class weights of the labels that are not ignored, that
#: of the others by how many numbers were compared.
_LABELLED: set[Any] = {F.cross_entropy, F.nll_loss}


def torch_losses(
    criterion: Criterion, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | int | None] | None:
    """The losses as ``reduction="none"`` gives them, and what `criterion` divides their sum by.

    Args:
        criterion: any loss.
        args, kwargs: what it is called with.

    Returns:
        None where `criterion` is none of torch's, timm's and our own, or is called in an unusual
        way. The divisor is None where it returns the losses themselves.

    Raises:
        ValueError: outputs and targets of elementwise losses that would broadcast.
    """
    if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
        return None
    output, target = args
    if isinstance(criterion, nn.Module):
        if not is_as_made(criterion):
            return None
        kind: Any = type(criterion)
        if kind in (TokenLoss, PixelLoss):
            return criterion.terms(output, target)  # type: ignore[operator,no-any-return]
        if kind not in _MODULES:
            return timm_losses(criterion, output, target)
        if kind.forward is not _FORWARDS[kind]:  # patched
            return None
        function, names = _MODULES[kind]
        options = {name: getattr(criterion, name) for name in names}
        reduction: Any = criterion.reduction
    else:
        bound = isinstance(criterion, functools.partial) and not criterion.args
        function = criterion.func if bound else criterion  # type: ignore[attr-defined]
        options = dict(criterion.keywords) if bound else {}  # type: ignore[attr-defined]
        reduction = options.pop("reduction", "mean")
        if not _is_known(function) or not options.keys() <= set(_FUNCTIONS[function]):
            return None
    if function not in _LABELLED and output.ndim != target.ndim:
        raise ValueError(
            f"`target` must have the shape of the outputs, {tuple(output.shape)}, got "
            f"{tuple(target.shape)}: broadcasting would compare outputs with the targets of other "
            "samples. Use target.unsqueeze(1) or output.squeeze(1), for a selection in the dataset "
            "or the criterion: its pass goes by the targets as the dataset has them."
        )
    if reduction not in ("mean", "sum", "none", "batchmean"):
        return None  # torch says what is wrong
    if output.dtype.itemsize >= 4:  # that of a half model is widened: what was cast with it too
        target = widened(target)
        options = {name: widened(value) for name, value in options.items()}
    each: Tensor = function(output, target, **options, reduction="none")
    if reduction in ("sum", "none"):
        return each, 1 if reduction == "sum" else None
    if reduction == "batchmean":
        return each, len(each)
    if function not in _LABELLED or target.is_floating_point():  # soft targets are not weighed
        return each, each.numel()
    return each, _label_weight(target, options.get("weight"), options.get("ignore_index", -100))


def is_as_made(criterion: nn.Module) -> bool:
    """Whether nothing was hung on a module that calling its function would leave out."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    own = vars(criterion)
    return "forward" not in own and not any(own[name] for name in hooks)


def _is_known(function: Any) -> bool:
    try:
        return function in _FUNCTIONS
    except TypeError:  # not hashable
        return False


def _label_weight(labels: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    labels = labels.long()  # bytes would be a mask, in which −100 is 156
    kept = labels != ignored
    if weight is None:
        return kept.sum()
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().to(wide)[labels.where(kept, 0)] * kept).sum()
