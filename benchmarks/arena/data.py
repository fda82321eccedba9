"""Data of the tasks as tensors: kept decoded, without a validation set, corrupted at will."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples import data as examples

VALIDATION = 10_000  # samples, or a fifth of the data where that is less


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Inputs (n, …) and labels (n,), fetched a batch at a time."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        rows = torch.tensor(indices)
        return list(zip(self.inputs[rows].unbind(), self.labels[rows].unbind(), strict=True))

    def take(self, rows: Tensor) -> Samples:
        return Samples(self.inputs[rows], self.labels[rows])

    def to(self, device: torch.device) -> Samples:
        """Inputs on `device`; labels, by which nothing is slow, stay with the weights."""
        return Samples(self.inputs.to(device), self.labels)


class Batches(Samples):
    """The same, of which a loader gets ready-made batches: its work is little beside a step's."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(samples.inputs, samples.labels)

    def __getitems__(self, indices: list[int]) -> Any:
        return self[torch.tensor(indices)]


def as_it_is(batch: Any) -> Any:
    """The collate function of `Batches`."""
    return batch


@dataclass(frozen=True)
class Data:
    """What a task trains on, chooses learning rates on, and is judged on.

    Args:
        train: without the validation samples.
        validation: cut from the training data, stratified, the same for every seed.
        test: seen by no decision.
        reference: a small clean balanced part of `train` that a selector may match, if there is
            one.
    """

    train: Samples
    validation: Samples
    test: Samples
    reference: Samples | None = None


def images(name: str, source: Path, cache: Path) -> Data:
    """The images of folder `name` in `source`, or, where there is none, as torchvision has them.

    A folder holds IDX files, ``train/CLASS/*`` and ``test/CLASS/*``, or a tar file of these.
    """
    return split(*_halves(name, source, cache))


def with_tenth(name: str, source: Path, cache: Path, few: int | None = None) -> Data:
    """As `images`, but a tenth is the validation set, which is the reference too.

    With `few`, of so many of the training images, in which each class has its share.
    """
    train, test = _halves(name, source, cache)
    if few is not None:
        train = train.take(stratified(train.labels, few)[0])
    found = split(train, test, len(train) // 10)
    return replace(found, reference=found.validation)


def _halves(name: str, source: Path, cache: Path) -> tuple[Samples, Samples]:
    path = cache / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = examples.load(_folder(name, source, cache))
        halves = [found.plain.images.half(), torch.tensor(found.plain.labels)]
        halves += [found.test.images.half(), torch.tensor(found.test.labels)]
        torch.save(halves, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    train, labels, test, test_labels = torch.load(path)
    return Samples(train.float(), labels), Samples(test.float(), test_labels)


def _folder(name: str, source: Path, cache: Path) -> str:
    folder = source / name
    if not folder.is_dir():
        return name
    for archive in sorted(folder.glob("*.tar*")):
        unpacked = cache / "unpacked" / name
        if not unpacked.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked.with_suffix(".part"), filter="data")
            unpacked.with_suffix(".part").rename(unpacked)
        return str(unpacked)
    return str(folder)


def split(train: Samples, test: Samples, size: int | None = None) -> Data:
    """`train` without a validation set of `size` in which each class has its share."""
    size = min(VALIDATION, len(train) // 5) if size is None else size
    validation, rest = stratified(train.labels, size)
    return Data(train.take(rest), train.take(validation), test)


def stratified(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rows of `size` samples in which each class has its share, and all others."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    # In the order of the classes, every (n / size)-th sample has all classes in proportion.
    order = order[torch.argsort(labels[order], stable=True)]
    places = (torch.arange(size, dtype=torch.float64) * len(order) / size).long()
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[places] = True
    return order[chosen].sort().values, order[~chosen].sort().values


def map_train(change: Callable[[Samples], Samples], given: Data) -> Data:
    """`given` with other training samples; validation and test stay clean."""
    return replace(given, train=change(given.train))


def wrong_labels(share: float, samples: Samples) -> Samples:
    """Exactly `share` of the labels replaced by another class, drawn uniformly."""
    generator = torch.Generator().manual_seed(1)
    classes = int(samples.labels.max()) + 1
    labels = samples.labels.clone()
    rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    labels[rows] += torch.randint(1, classes, (len(rows),), generator=generator)
    return Samples(samples.inputs, labels % classes)


def long_tail(factor: float, clean: int, given: Data) -> Data:
    """The c-th class with ``factor^(−c / (C − 1))`` of its samples, the last with 1 / factor.

    Of each class `clean` samples are the reference; all methods train on these too.
    """
    labels = given.train.labels
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(2)
    kept, reference = [], []
    for label in range(classes):
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        kept.append(rows[: round(len(rows) * factor ** (-label / (classes - 1)))])
        reference.append(kept[-1][:clean])
    train, few = (given.train.take(torch.cat(rows)) for rows in (kept, reference))
    return replace(given, train=train, reference=few)


def cut_classes(share: float, samples: Samples, kept: float = 0.1) -> Samples:
    """`share` of the classes, drawn at random, keep only `kept` of their samples."""
    generator = torch.Generator().manual_seed(4)
    classes = int(samples.labels.max()) + 1
    rows = []
    for place, label in enumerate(torch.randperm(classes, generator=generator).tolist()):
        some = (samples.labels == label).nonzero()[:, 0]
        if place < round(share * classes):
            order = torch.randperm(len(some), generator=generator)
            some = some[order[: round(kept * len(some))]]
        rows.append(some)
    return samples.take(torch.cat(rows).sort().values)


def near_duplicates(copies: int, samples: Samples) -> Samples:
    """A random 1 / copies of the images, each `copies` times, shifted by a pixel and with noise."""
    generator = torch.Generator().manual_seed(3)
    few = torch.randperm(len(samples), generator=generator)[: len(samples) // copies]
    rows = few.repeat(copies)
    shifts = torch.randint(-1, 2, (len(rows), 2), generator=generator).tolist()
    noise = 0.1 * torch.randn(samples.inputs[rows].shape, generator=generator)
    images = [
        samples.inputs[row].roll(shift, (-2, -1))
        for row, shift in zip(rows.tolist(), shifts, strict=True)
    ]
    return Samples(torch.stack(images) + noise, samples.labels[rows])
