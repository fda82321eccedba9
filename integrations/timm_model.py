"""A model as train.py runs it, for selections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.model_state import unwrap


def as_trained(
    model: nn.Module, autocast: Callable[[], Any], memory_format: torch.memory_format
) -> nn.Module:
    """`model` out of its wrappers, under the script's autocast and in its memory format.

    It shares all layers, parameters and names with the model; only its `forward` is another.
    """
    inner = unwrap(model)
    if type(inner).__name__ == "FeatureDistillationTrainableModule":  # a student and a projection
        inner = unwrap(inner.get_submodule("student"))
    kind: Any = type(inner)

    class AsTrained(kind):  # type: ignore[misc]  # a base that is known at run time only
        def forward(self, images: Tensor) -> Any:
            with autocast():
                return super().forward(images.contiguous(memory_format=memory_format))

    AsTrained.__name__ = kind.__name__
    twin: nn.Module = copy.copy(inner)
    twin.__class__ = AsTrained
    return twin
