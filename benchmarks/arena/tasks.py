"""The tasks: data, network and recipe of training, each sized for one core."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from benchmarks.arena import data, networks, text
from benchmarks.arena.data import Data
from benchmarks.arena.methods import Method

LADDER = tuple(m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5))  # of learning rates


@dataclass(frozen=True)
class Task:
    """One task, the same for all methods.

    Args:
        load: data from the folder of all data and a folder to cache in.
        network: builds it, freshly initialised from the global random state.
        about: what the data are, part of the key of a run: change it with `load`.
        epochs: T, of a run on subsets; on all data a run has as many steps.
        rates: the learning rates tried first, consecutive on `LADDER`.
        schedule: "cosine" or "one-cycle", over the steps that the run really makes.
        augment: of a whole batch, with a generator of its own.
        title: its name in tables, that of the data where there is none; no part of the key either.
        reference: whether the data have a clean reference set, for methods that match it.
        uneven: whether classes differ in size, for methods that draw as many of each: where they
            do not, these are the same methods twice.
        on_gpu: whether it is too large for a core.
        precision: "float32", or "bfloat16" for autocast.
        points, points_full: of the curve, on a part of the data and on all; no part of the key.
            Few, where nobody draws it: looking at 15,000 images takes as long as many steps.
    """

    load: Callable[[Path, Path], Data]
    network: Callable[[], nn.Module]
    about: str
    epochs: int
    rates: tuple[float, ...]
    schedule: str = "one-cycle"
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    title: str = ""
    reference: bool = False
    uneven: bool = False
    on_gpu: bool = False
    precision: str = "float32"
    points: int = 2
    points_full: int = 2

    @property
    def name(self) -> str:
        return self.title or self.about

    def suits(self, method: Method) -> bool:
        """Whether its data have what the method is there for."""
        return (self.reference or not method.reference) and (self.uneven or not method.by_class)

    def settings(self) -> dict[str, Any]:
        """What a run depends on, as plain values."""
        names = ("about", "epochs", "schedule", "batch_size", "momentum", "weight_decay")
        fixed = {name: getattr(self, name) for name in (*names, "label_smoothing")}
        if self.precision != "float32":  # earlier runs do not name what was the only way
            fixed["precision"] = self.precision
        return fixed

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.precision))

    def optimizer(
        self, model: nn.Module, rate: float, steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        sgd = torch.optim.SGD(
            model.parameters(), rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        if self.schedule == "cosine":
            return sgd, CosineAnnealingLR(sgd, steps)
        return sgd, OneCycleLR(sgd, rate, total_steps=steps)


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) shifted by up to 4 pixels, the edges reflected, and half mirrored."""
    n, _, height, width = x.shape
    top, left = torch.randint(9, (2, n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    rows, columns = torch.arange(height) + top, torch.arange(width)
    columns = torch.where(mirror, columns.flip(0), columns) + left
    place = x.device
    batch, rows, columns = (i.to(place) for i in (torch.arange(n), rows, columns))
    padded = F.pad(x, (4, 4, 4, 4), "reflect").permute(0, 2, 3, 1)
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _noisy(source: Path, cache: Path) -> Data:
    clean = data.images("cifar10", source, cache)
    return data.map_train(partial(data.wrong_labels, 0.2), clean)


def _long_tailed(source: Path, cache: Path) -> Data:
    return data.long_tail(50, 20, data.images("fashion-mnist", source, cache))


def _redundant(source: Path, cache: Path) -> Data:
    whole = data.images("fashion-mnist", source, cache)
    return data.map_train(partial(data.near_duplicates, 10), whole)


_FASHION = Task(
    partial(data.images, "fashion-mnist"),
    networks.lenet,
    about="Fashion-MNIST, LeNet",
    title="Fashion-MNIST",
    epochs=100,
    rates=(0.02, 0.05, 0.1),
    schedule="cosine",
    weight_decay=2e-3,
)
_CIFAR = Task(
    partial(data.images, "cifar10"),
    networks.small_resnet,
    about="CIFAR-10, residual network of width 16, crop and flip",
    title="CIFAR-10",
    epochs=40,
    rates=(0.1, 0.2, 0.5),
    label_smoothing=0.1,
    augment=crop_and_flip,
)

TASKS = {
    "fashion-mnist": _FASHION,
    "cifar10": _CIFAR,
    "cifar10-wide": replace(
        _CIFAR,
        network=partial(networks.small_resnet, 64),
        about="CIFAR-10 on a GPU, residual network of width 64, crop and flip",
        title="CIFAR-10, a wider network",
        rates=(0.2, 0.5, 1.0),
        batch_size=512,
        precision="bfloat16",
        on_gpu=True,
    ),
    "cifar10-noisy": replace(
        _CIFAR,
        load=_noisy,
        about=f"{_CIFAR.about}, 20 % of the training labels wrong",
        title="CIFAR-10, a fifth of the labels wrong",
    ),
    "fashion-mnist-long-tail": replace(
        _FASHION,
        load=_long_tailed,
        about="Fashion-MNIST, LeNet, classes of 5000 down to 100, clean reference of 20 each",
        title="Fashion-MNIST, rare classes",
        epochs=200,
        reference=True,
        uneven=True,
    ),
    "fashion-mnist-redundant": replace(
        _FASHION,
        load=_redundant,
        about="Fashion-MNIST, LeNet, 5,000 images with ten near-duplicates each",
        title="Fashion-MNIST, near-duplicates",
        epochs=50,
    ),
    "mails": Task(
        text.mails,
        text.LastLayer,
        about="Spam or not, the last layer of MiniLM on the first 48 tokens of a mail",
        title="Mails",
        epochs=20,
        rates=(0.01, 0.02, 0.05),
        batch_size=32,
        uneven=True,
    ),
}
