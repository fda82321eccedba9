"""Small models for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(inputs: int = 6, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, classes))


def cnn(classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def conv_head(classes: int = 4) -> nn.Module:
    """A 1×1 convolution on pooled features, flattened behind it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, classes, 1), nn.Flatten()
    )


def in_place_tail(classes: int = 4) -> nn.Module:
    """Changes the output of its head in place: a recorder that keeps no copy is far off."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes), nn.ReLU(inplace=True))


class TwoHeads(nn.Module):
    """The mean of two heads on two sets of features, as in distilled transformers."""

    def __init__(self, inputs: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(inputs, 5), nn.Linear(inputs, 5)
        self.head, self.head_dist = nn.Linear(5, classes), nn.Linear(5, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.left(x).relu()) + self.head_dist(self.right(x).tanh())) / 2


class Scaled(nn.Module):
    """A learnt scale and a non-linear map behind the head."""

    def __init__(self, inputs: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes, bias=False)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x) * self.scale).tanh()


class Positions(nn.Module):
    """A head that runs at each number of a sample: logits (n, T, C) of inputs (n, T)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 7), nn.Linear(7, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[..., None]).cumsum(1).tanh())


class TwoInputs(nn.Module):
    """Takes two inputs, for batches with more than one."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(6, classes)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(a * b)


class InPlace(nn.Module):
    """Normalises its input where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(1).mul_(0.5))
