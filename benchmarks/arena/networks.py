"""The networks of the tasks, small enough for one core."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def lenet() -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with rectifiers and max-pooling, for 28 × 28 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def small_resnet(width: int = 16) -> nn.Module:
    """Three stages of a convolution, a pooling and a residual block, as the airbench networks."""
    return nn.Sequential(
        *_stage(3, width),
        *_stage(width, 2 * width),
        *_stage(2 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    normal = [nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU()]
    return [convolution, *normal, _Residual(outputs)]


def resnet18(classes: int) -> nn.Module:
    """ResNet-18 (He et al., 2016) with the stem for small images: 3 × 3, stride 1, no pooling."""
    blocks, inputs = [], 64
    for outputs in (64, 128, 256, 512):
        for _ in range(2):
            blocks.append(_Block(inputs, outputs))
            inputs = outputs
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class _Block(nn.Module):
    """Two convolutions; where the width grows the first one has stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, 2, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))
