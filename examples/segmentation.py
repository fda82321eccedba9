"""Discs, squares and crosses to be told apart pixel by pixel, with torchvision's FCN, on a CPU.

    python examples/segmentation.py --seeds 0 1 2

The images are drawn here, and the network starts from nothing.
"""

from __future__ import annotations

import torch
from equal_cost import Experiment, Plan, Run, Train, fit
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

from adaptive_subset import PixelLoss

SIZE, CLASSES = 32, 4  # pixels; background, disc, square, cross


def shapes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 3, SIZE, SIZE) of one to three shapes each, and labels (n, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *size, 1, 1, generator=generator)

    rows, columns = torch.meshgrid(*2 * [torch.arange(SIZE) + 0.5], indexing="ij")
    x = drawn(0, 0.5, 3).expand(-1, -1, SIZE, SIZE).clone()
    y = torch.zeros(n, SIZE, SIZE, dtype=torch.int64)
    for shape in range(3):
        down, right = rows - drawn(6, SIZE - 6), columns - drawn(6, SIZE - 6)
        radius, colour = drawn(3, 7), drawn(0.3, 1, 3)
        near, far = torch.minimum(down.abs(), right.abs()), torch.maximum(down.abs(), right.abs())
        disc = down.square() + right.square() < radius.square()
        kind = torch.randint(1, CLASSES, (n, 1, 1), generator=generator)
        square, cross = far < 0.9 * radius, (far < radius) & (near < 0.35 * radius)
        inside = torch.where(kind == 1, disc, torch.where(kind == 2, square, cross))
        inside &= drawn(0, 1) < 1 - 0.4 * shape
        y = torch.where(inside, kind, y)
        x = torch.where(inside.unsqueeze(1), colour, x)
    return x + 0.1 * torch.randn(x.shape, generator=generator) - 0.5, y


class Segmenter(FCN):  # type: ignore[misc]
    """An FCN on the first layers of a ResNet-18; its logits are of the size of the image."""

    def __init__(self) -> None:
        backbone = IntermediateLayerGetter(resnet18(weights=None), {"layer1": "out"})
        super().__init__(backbone, FCNHead(64, CLASSES))


def prepare(samples: int, plan: Plan) -> Train:
    data = TensorDataset(*shapes(samples, 0))
    validation, test = shapes(max(20, samples // 2), 1), shapes(max(20, samples // 2), 2)

    def train(method: str, rate: float, seed: int) -> Run:
        torch.manual_seed(seed)
        model = Segmenter()
        seconds = fit(Logits(model), data, PixelLoss(), method, rate, plan)
        return Run(method, rate, seed, overlap(model, *validation), overlap(model, *test), seconds)

    return train


class Logits(nn.Module):
    """torchvision's segmentation models return a dict, a loss takes its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)["out"]
        return logits


@torch.inference_mode()
def overlap(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The intersection of predicted and true pixels over their union, as a mean of the classes."""
    predicted = torch.cat([model.eval()(part)["out"].argmax(1) for part in torch.split(x, 100)])
    parts = [(predicted == c, y == c) for c in range(CLASSES)]
    ratios = [(a & b).sum() / (a | b).sum().clamp(min=1) for a, b in parts]
    return float(torch.stack(ratios).mean())


EXPERIMENT = Experiment(
    prepare,
    samples=400,
    plan=Plan(epochs=12, fraction=0.2, batch_size=20, every=6),
    rates=(1e-3, 3e-3, 1e-2),
    figure="mean intersection over union",
)

if __name__ == "__main__":
    EXPERIMENT.main(__doc__)
