"""Weights through timm's own parts that make batches: its collate functions and mixup.

Imports timm. `timm_patch` imports this module only after the training script, so that a timm that
lies beside the script is the one in use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data.mixup import FastCollateMixup, Mixup
from torch import Tensor

from adaptive_subset import WeightedTarget


def weighted_collate(collate: Any) -> Any:
    """A collate function like `collate` whose targets carry the weights of their rows."""
    fast = isinstance(collate, FastCollateMixup)
    return WeightedFastMixup(collate) if fast else WeightedCollate(collate)


class WeightedCollate:
    """Collates as the given function does and hands weights and indices on.

    A sample that becomes several rows (augmentation splits come one after the other) gives each
    of them its own.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, batch: Sequence[tuple[Any, WeightedTarget]]) -> tuple[Any, WeightedTarget]:
        weights = torch.tensor([target.weights for _, target in batch])
        indices = torch.tensor([target.sample_indices for _, target in batch])
        images, targets = self.collate([(image, target.plain()) for image, target in batch])
        rows = torch.arange(len(weights)).repeat(len(targets) // len(weights))
        return images, WeightedTarget(targets, weights[rows], indices[rows])


class WeightedFastMixup(FastCollateMixup):
    """timm's mixup while collating, see `mixed_target` for the weights.

    Derived from it because timm's loader asks so before it switches mixup off.
    """

    def __init__(self, mixup: FastCollateMixup) -> None:
        vars(self).update(vars(mixup))
        self.mixup = mixup

    def __call__(
        self, batch: Sequence[tuple[Any, WeightedTarget]], _: Any = None
    ) -> tuple[Tensor, WeightedTarget]:
        rows = [(image, row) for row, (image, _) in enumerate(batch)]
        images, mixing = _mixing_rows(self.mixup, self.mixup_enabled, len(rows))(rows)
        labels: Any = torch.stack([target for _, target in batch])
        return images, mixed_target(mixing, labels, self.mixup)


class WeightedMixup(Mixup):
    """timm's mixup on the device, see `mixed_target` for the weights."""

    def __init__(self, mixup: Mixup) -> None:
        vars(self).update(vars(mixup))
        self.mixup = mixup

    def __call__(self, x: Tensor, target: WeightedTarget) -> tuple[Tensor, WeightedTarget]:
        rows = torch.arange(len(x), device=x.device)
        x, mixing = _mixing_rows(self.mixup, self.mixup_enabled, len(x))(x, rows)
        return x, mixed_target(mixing, target, self.mixup)


def _mixing_rows(mixup: Any, enabled: bool, rows: int) -> Any:
    """`mixup` for batches whose classes are the row numbers: its targets say what was mixed."""
    twin = copy.copy(mixup)
    twin.mixup_enabled, twin.num_classes, twin.label_smoothing = enabled, rows, 0.0
    return twin


def mixed_target(mixing: Tensor, target: WeightedTarget, mixup: Any) -> WeightedTarget:
    """Soft targets and weights of mixed samples: both are mixed as the images were.

    Args:
        mixing: (m, n), row i holds the shares of the n samples in mixed sample i: λᵢ at i and
            1 − λᵢ at its partner.
        target: (n,) labels with weights.
        mixup: says how many classes there are and how much labels are smoothed.
    """
    soft = smoothed(target.plain(), mixup.num_classes, mixup.label_smoothing)
    weights: Any = target.weights
    return WeightedTarget(mixing @ soft.to(mixing.dtype), mixing.to(weights.dtype) @ weights)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(n, C) soft targets of (n,) labels, as timm's mixup makes them: smoothing / C elsewhere."""
    own = labels[:, None] == torch.arange(classes, device=labels.device)
    return own * (1.0 - smoothing) + smoothing / classes
