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


def mobilenet_v1(classes: int) -> nn.Module:
    """MobileNet (Howard et al., 2017) for small images: four halvings."""

    def convolution(inputs: int, outputs: int, size: int, stride: int, groups: int) -> nn.Module:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    layers, inputs = [convolution(3, 32, 3, 1, 1)], 32
    for outputs in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
        stride = 2 if outputs > max(inputs, 64) else 1
        layers.append(convolution(inputs, inputs, 3, stride, groups=inputs))
        layers.append(convolution(inputs, outputs, 1, 1, groups=1))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def mobilenet_v2(classes: int) -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018) for small images: three halvings."""
    from torchvision import models

    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2]]
    stages += [[6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    model = models.mobilenet_v2(num_classes=classes, inverted_residual_setting=stages)
    model.features[0][0].stride = (1, 1)
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
