"""Weights through timm's own parts: its collate functions, mixup, losses and evaluation transform.

Imports timm. `timm_patch` imports this module only after the training script, so that a timm that
lies beside the script is the one in use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.data.dataset import AugMixDataset
from timm.data.mixup import FastCollateMixup, Mixup
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.jsd import JsdCrossEntropy
from torch import Tensor, nn

from adaptive_subset import WeightedLoss, WeightedTarget


def weighted_collate(collate: Any) -> Any:
    """A collate function like `collate` whose targets carry the weights of their rows."""
    fast = isinstance(collate, FastCollateMixup)
    return WeightedFastMixup(collate) if fast else WeightedCollate(collate)


class WeightedCollate:
    """Collates as the given function does and hands the weights on.

    A sample that becomes several rows (augmentation splits come one after the other) gives each
    of them its weight.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, batch: Sequence[tuple[Any, WeightedTarget]]) -> tuple[Any, WeightedTarget]:
        weights = torch.tensor([target.weights for _, target in batch])
        images, targets = self.collate([(image, target.plain()) for image, target in batch])
        return images, WeightedTarget(targets, weights.repeat(len(targets) // len(weights)))


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


class SoftTargets(nn.Module):
    """A loss of soft targets that takes labels as well: it softens them as mixup would."""

    def __init__(self, loss: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.loss = loss
        self.smoothing = smoothing

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if target.shape != output.shape:
            target = smoothed(target, output.shape[-1], self.smoothing).to(output.dtype)
        loss: Tensor = self.loss(output, target)
        return loss


class _JsdOfSamples(nn.Module):
    """timm's JSD loss with a sample's views in one row: output (n, splits, C), target (n,)."""

    def __init__(self, loss: JsdCrossEntropy) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(output.transpose(0, 1).flatten(0, 1), target)
        return loss


class _WeightedViews(nn.Module):
    """The weighted loss of a batch in which one view of all samples comes after the other."""

    def __init__(self, loss: WeightedLoss, splits: int) -> None:
        super().__init__()
        self.loss = loss
        self.splits = splits

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        views = output.reshape(self.splits, -1, output.shape[-1]).transpose(0, 1)
        loss: Tensor = self.loss(views, target[: len(views)])
        return loss


def weighted(loss: nn.Module) -> nn.Module:
    """The weighted form of one of train.py's losses."""
    if isinstance(loss, JsdCrossEntropy):
        return _WeightedViews(WeightedLoss(_JsdOfSamples(loss)), loss.num_splits)
    if isinstance(loss, BinaryCrossEntropy):
        loss = SoftTargets(loss, loss.smoothing)
    return WeightedLoss(loss)


def selection_loss(loss: nn.Module, mixup: Any) -> nn.Module:
    """What `loss` is for a single view and its label, as the selection sees them.

    The JSD of equal views is zero and flat, what is left is their cross-entropy.
    """
    if isinstance(loss, JsdCrossEntropy):
        inner: nn.Module = loss.cross_entropy_loss
        return inner
    if mixup is not None:
        return SoftTargets(loss, mixup.label_smoothing)
    return SoftTargets(loss, loss.smoothing) if isinstance(loss, BinaryCrossEntropy) else loss


class EvaluationPool:
    """The training images as timm's evaluation sees them, in order; each pass makes its loader.

    Args:
        dataset: the training set. A copy takes the transform, the reader is shared.
        create_loader: makes the loader of a dataset.
    """

    def __init__(self, dataset: Any, create_loader: Callable[[Any], Any]) -> None:
        while isinstance(dataset, AugMixDataset):
            dataset = dataset.dataset
        self.dataset = copy.copy(dataset)
        self.create_loader = create_loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.create_loader(self.dataset))


def pool_arguments(
    training: dict[str, Any], evaluation: dict[str, Any], twin: Any
) -> dict[str, Any]:
    """Arguments of `create_loader` for a pass over the un-augmented training images `twin`.

    Args:
        training, evaluation: those of the script's own loaders.
    """
    alike = ["input_size", "batch_size", "mean", "std", "num_workers", "pin_memory", "device"]
    alike += ["use_prefetcher", "img_dtype", "fp16"]
    if training["interpolation"] != "random":
        alike.append("interpolation")
    return {
        **{name: training[name] for name in alike if name in training},
        **evaluation,
        **{"dataset": twin, "is_training": False},
        **{"distributed": False, "persistent_workers": False},
    }


class AsTrained(nn.Module):
    """A model as train.py runs it: under its autocast and in its memory format."""

    def __init__(
        self, model: nn.Module, autocast: Callable[[], Any], memory_format: torch.memory_format
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.memory_format = memory_format
        if hasattr(model, "get_classifier"):
            self.get_classifier = model.get_classifier

    def forward(self, images: Tensor) -> Any:
        with self.autocast():
            return self.model(images.contiguous(memory_format=self.memory_format))
