"""Losses of timm, which have no `reduction` or none that is enough, evaluated once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: By the name of its class, what such a loss holds. One that holds more is another version's.
_KNOWN = {
    "LabelSmoothingCrossEntropy": {"smoothing", "confidence"},
    "SoftTargetCrossEntropy": set(),
    "BinaryCrossEntropy": {
        *("smoothing", "target_threshold", "reduction", "sum_classes", "smooth_dense"),
    },
}
_MACHINERY = vars(nn.Module()).keys()
_NO_LABEL = torch.iinfo(torch.int64).min  # timm ignores none


def timm_losses(
    criterion: nn.Module, output: Tensor, target: Tensor
) -> tuple[Tensor, int | None] | None:
    """As `torch_losses`, None for what is no loss of timm's, or not on one vector a sample.

    A mean of timm's divides by the samples (``BinaryCrossEntropy`` by all numbers unless it has
    ``sum_classes``).
    """
    kind = type(criterion)
    known = _KNOWN.get(kind.__name__) if kind.__module__.startswith("timm.loss.") else None
    held = vars(criterion).keys() - _MACHINERY
    if known is None or not held <= known or output.ndim != 2 or not target.ndim:
        return None
    if kind.__name__ == "BinaryCrossEntropy":
        return _binary(criterion, output, target)
    is_soft = kind.__name__ == "SoftTargetCrossEntropy"
    if is_soft != (target.shape == output.shape) or is_soft != target.is_floating_point():
        return None
    smoothing: float = 0.0 if is_soft else criterion.smoothing  # type: ignore[assignment]
    if not 0 <= smoothing <= 1 or (not is_soft and criterion.confidence != 1 - smoothing):
        return None
    each = F.cross_entropy(
        output, target, ignore_index=_NO_LABEL, label_smoothing=smoothing, reduction="none"
    )
    return each, len(each)


def _binary(criterion: nn.Module, output: Tensor, target: Tensor) -> tuple[Tensor, int | None]:
    single = copy.copy(criterion)
    vars(single).update(reduction="none", sum_classes=False)
    each: Tensor = single(output, target)
    if getattr(criterion, "sum_classes", False):
        return each, len(each)
    return each, {"none": None, "sum": 1}.get(str(criterion.reduction), each.numel())
