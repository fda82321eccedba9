"""Small networks for small images."""

from __future__ import annotations

from torch import nn

NAMES = ("lenet", "cnn", "mlp", "resnet18")


class ModelError(Exception):
    """Why a network cannot be built, in one line."""


def default(shape: tuple[int, int, int]) -> str:
    """The network that suits images of this shape (channels, height, width)."""
    channels, height, width = shape
    if channels == 3 and min(height, width) >= 32:
        return "resnet18"
    return "lenet" if min(height, width) >= 28 else "cnn"


def build(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A freshly initialised network for images of `shape` = (channels, height, width)."""
    if name == "lenet":
        return lenet(shape, classes)
    if name == "cnn":
        return cnn(shape, classes)
    if name == "mlp":
        return mlp(shape, classes)
    return resnet18(shape, classes)


def lenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with rectifiers and max-pooling."""
    channels, height, width = shape
    rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2
    if min(rows, columns) < 1:
        raise ModelError(f"lenet needs images of 12×12 or more, these are {height}×{width}")
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two convolutions that do with images as small as 2 × 2."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 2) * (width // 2), 128), nn.ReLU(),
        nn.Linear(128, classes),
    )  # fmt: skip


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One hidden layer."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 256), nn.ReLU(),
        nn.Linear(256, classes),
    )  # fmt: skip


def resnet18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem for small images: 3 × 3, stride 1, no pooling."""
    try:
        import torchvision
    except ImportError as error:
        advice = "pip install 'adaptive-subset[examples]'"
        raise ModelError(f"resnet18 needs torchvision; install the extra: {advice}") from error
    model: nn.Module = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model
