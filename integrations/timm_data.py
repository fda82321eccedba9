"""What train.py reads: its training loader over the subset, and images as its evaluation sees them.

Imports timm, like `timm_weights`.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from adaptive_subset.integrations.timm_flags import Refusal
from timm.data.dataset import AugMixDataset
from timm.data.loader import adapt_to_chs
from torch.utils.data import Dataset, get_worker_info

from adaptive_subset import AdaptiveSubsetSampler, Selector


class EpochSampler(AdaptiveSubsetSampler):
    """An adaptive subset as train.py walks through it.

    With repeated augmentation, as timm's RepeatAugSampler has it: each sample (or mini-batch, where
    these were chosen) comes R times in a row before the processes take turns, so that different
    processes see it. An epoch is as long as without, and holds k / R different ones.

    Args:
        repeats: R; 0 or 1 for none, a fraction repeats some of them once more than others.
        shares: how many processes there are, and which one this is.
        options: see `AdaptiveSubsetSampler`.
    """

    def __init__(
        self, selector: Selector, *, repeats: float, shares: tuple[int, int], **options: Any
    ) -> None:
        told = shares if repeats <= 1 else (1, 0)  # the others are told apart here
        super().__init__(selector, num_replicas=told[0], rank=told[1], **options)
        self._repeats = max(1.0, repeats)
        self._turns = (1, 0) if repeats <= 1 else shares
        self._group = selector.strategy.unit

    def __len__(self) -> int:
        """Samples that this process gets in an epoch.

        train.py asks before the first selection, which a size that follows from a tolerance waits
        for; unless its schedule counts updates, which is refused, nothing depends on the answer.
        """
        try:
            size = super().__len__()
        except TypeError:
            size = len(self.dataset) // self.num_replicas
        return size // (self._group * self._turns[0]) * self._group

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        """Its indices, see `AdaptiveSubsetSampler`."""
        indices = super().__iter__()
        return indices if self._repeats == 1 else self._repeated(indices)

    def _repeated(self, indices: Iterator[int]) -> Iterator[int]:
        (processes, turn), number, left = self._turns, 0, None
        while group := list(islice(indices, self._group)):
            left = len(self) if left is None else left  # known once the epoch has begun
            first, end = (math.ceil(n * self._repeats) for n in (number, number + 1))
            for place in range(first, end):
                if place % processes == turn and left > 0:
                    yield from group
                    left -= len(group)
            number += 1


class EvaluationImages(Dataset[Any]):
    """Images as timm's evaluation sees them: not augmented, normalised, by index.

    Args:
        dataset: a dataset of timm; a copy takes the transform, the reader is shared.
        transform: of an image.
    """

    def __init__(self, dataset: Any, transform: Any = None) -> None:
        while isinstance(dataset, AugMixDataset):
            dataset = dataset.dataset
        self.dataset = copy.copy(dataset)
        self.dataset.transform = transform
        self._reader = _unshared(getattr(dataset, "reader", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if self._reader is None or get_worker_info() is not None:
            return self.dataset[index]
        here = copy.copy(self.dataset)
        here.reader = self._reader
        return here[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reader": None}  # no open file goes to a spawned worker

    def files(self) -> set[str]:
        """The paths of the images, as far as its reader lists them; in a tar file below its own.

        A table, as of Hugging Face, would read all images for their names.
        """
        reader: Any = getattr(self.dataset, "reader", None)
        if not hasattr(reader, "samples"):
            return set()
        root, names = str(reader.root), self.dataset.filenames(absolute=True)
        return {name if name.startswith(root) else os.path.join(root, name) for name in names}

    def classes(self) -> dict[str, int] | None:
        """The label of each class, as far as its reader, or torchvision's dataset, knows them."""
        holder = getattr(self.dataset, "reader", self.dataset)
        named = ("class_to_idx", "class_name_to_idx")  # the latter of tar files
        known: Any = [getattr(holder, name) for name in named if getattr(holder, name, None)]
        return known[0] if known else None

    def common(self, other: EvaluationImages) -> int:
        """How many images are in `other` too, as far as that is known."""
        tables = [getattr(getattr(i.dataset, "reader", None), "split", None) for i in (self, other)]
        if any(tables):
            is_same = tables[0] == tables[1]
        else:  # datasets of torchvision say of which root and split they are
            is_same = repr(self.dataset) == repr(other.dataset)
        return len(self) if is_same else len(self.files() & other.files())

    def labels(self) -> list[Any]:
        """The label of each image, without reading one.

        Raises:
            Refusal: the dataset does not tell.
        """
        holder: Any
        for holder in (getattr(self.dataset, "reader", None), self.dataset):
            if hasattr(holder, "iter_targets"):
                return list(holder.iter_targets())
            if (targets := getattr(holder, "targets", None)) is not None:
                return list(targets)
            if (samples := getattr(holder, "samples", None)) is not None:
                return [label for _, label in samples]
        raise Refusal(
            "--subset-strategy balanced must know the labels of all images in advance, got "
            f"{type(getattr(self.dataset, 'reader', self.dataset)).__name__}, which does not tell "
            "them. Use a folder or tar file with a folder for each class, or a dataset of "
            "torchvision."
        )


def _unshared(reader: Any) -> Any:
    """`reader` with tar files of its own, None for one that has none.

    timm keeps a tar file open from the first image on. Opened before workers are forked, it would
    be one to all of them, with one place in it, and they would read each other's images.
    """
    opened = {
        name: vars(reader)[name] for name in ("tar_state", "tarfile") if hasattr(reader, name)
    }
    if not opened:
        return None
    reader = copy.copy(reader)
    vars(reader).update(copy.deepcopy(opened))
    return reader


def evaluation_transform(
    create_loader: Callable[..., Any], training: dict[str, Any], evaluation: dict[str, Any]
) -> Any:
    """The transform of timm's evaluation, with what the script gives its own loaders.

    Args:
        create_loader: the script's.
        training, evaluation: arguments of its calls; the latter are empty without a --val-split.
    """
    alike = ["input_size", "batch_size", "mean", "std", "device"]
    if training["interpolation"] != "random":
        alike.append("interpolation")
    arguments = {
        **{name: training[name] for name in alike if name in training},
        **evaluation,
        **{"dataset": _Blank(), "is_training": False, "distributed": False},
        **{"use_prefetcher": False, "num_workers": 0, "persistent_workers": False},
    }
    channels = arguments["input_size"][0]
    for name in {"mean", "std"} & arguments.keys():  # as the prefetcher does, for --in-chans
        arguments[name] = adapt_to_chs(arguments[name], channels)  # type: ignore[no-untyped-call]
    create_loader(**arguments)
    return arguments["dataset"].transform


class _Blank(Dataset[Any]):
    """A dataset for `create_loader` to put its transform on."""

    transform: Any = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def check_validation(
    images: EvaluationImages, evaluation: Any, training: EvaluationImages, name: str
) -> None:
    """Raise a Refusal where a split to match is one that is trained or evaluated on.

    Args:
        images: the split.
        evaluation: the dataset that the script evaluates on, if any.
        training: what it trains on.
        name: of the split.
    """
    held_out = EvaluationImages(evaluation) if evaluation is not None else None
    for other, use in ((held_out, "evaluates on (--val-split)"), (training, "trains on")):
        if other is not None and (common := images.common(other)):
            raise Refusal(
                f"--subset-validation must be a split of its own, got {name}, which holds "
                f"{common} images that the script {use}. Set a part of the training images aside."
            )
    classes = [images.classes(), training.classes()]
    if classes[0] != classes[1]:
        raise Refusal(
            f"--subset-validation must have the classes of the training set, got {name} with "
            f"{len(classes[0] or ())} and {len(classes[1] or ())} there. Give every class a folder "
            "in both, or a --class-map."
        )


def check_labels(images: EvaluationImages, classes: int | None, count: int = 16) -> None:
    """Raise a Refusal where some labels, over the whole of `images`, are none of `classes`."""
    largest = max((images.classes() or {}).values(), default=-1)
    for index in evenly(len(images), count):
        label = images[index][1]
        if not isinstance(label, (Integral, torch.Tensor)) or torch.as_tensor(label).ndim:
            return
        largest = max(largest, int(label))
    if classes is not None and largest >= classes:
        raise Refusal(
            f"--num-classes must be above the largest label, got {classes} and labels up to "
            f"{largest}. Give --num-classes {largest + 1} or more."
        )


def evenly(n: int, count: int) -> list[int]:
    """Up to `count` different indices of n, the first and the last among them."""
    count = min(n, count)
    return torch.linspace(0, n - 1, count, dtype=torch.float64).round().long().tolist()
