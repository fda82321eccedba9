"""The gradients of the last layer against a loop of backward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset.gradients import Gradients
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.pool_losses import pool_losses
from tests import models


def looped_gradients(
    model: nn.Module, criterion: Callable[..., Tensor], x: Tensor, y: Tensor, heads: Sequence[str]
) -> Tensor:
    """(n, d): one backward call a sample; obviously correct and slow."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name in heads:
        model.get_submodule(name).requires_grad_()
    rows = []
    for i in range(len(x)):
        model.zero_grad()
        criterion(model(x[i : i + 1]), y[i : i + 1]).backward()
        parts = []
        for name in heads:
            module: Any = model.get_submodule(name)
            matrix = module.weight.grad.flatten(1)
            if module.bias is not None:
                matrix = torch.cat([matrix, module.bias.grad[:, None]], 1)
            parts.append(matrix.flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def dense(gradients: Gradients) -> Tensor:
    return torch.stack([gradients.dense(i) for i in range(len(gradients))])


def images(size: int, channels: int = 3, n: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, num_classes=4)

    return build


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=4, **options)

    return build


class Counted(nn.Module):
    """Holds a number that it is not trained by, before its layers, and takes inputs of any kind."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.ones((), dtype=dtype), requires_grad=False)
        self.body = models.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.float())


#: name → (model, inputs, names of the heads)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "mlp": (models.mlp, torch.randn(5, 6), ["2"]),
    "cnn": (models.cnn, images(8), ["6"]),
    "conv head": (models.conv_head, images(8), ["2"]),
    "in-place activation behind the head": (models.in_place_tail, images(2), ["1"]),
    "scale behind the head": (models.Scaled, torch.randn(5, 6), ["fc"]),
    "torchvision resnet18": (_torchvision("resnet18"), images(32), ["fc"]),
    "torchvision vit": (_torchvision_vit, images(16), ["heads.head"]),
    "timm vit": (_timm("vit_tiny_patch16_224", img_size=32, depth=2), images(32), ["head"]),
    "timm deit distilled, two heads": (
        _timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
        images(32),
        ["head", "head_dist"],
    ),
    "timm resnetv2, 1x1 convolution": (
        _timm("resnetv2_50", layers=[1, 1, 1, 1]),
        images(32),
        ["head.fc"],
    ),
    "timm crossvit, two heads": (
        _timm("crossvit_tiny_240"),
        images(240, n=2),
        ["head.0", "head.1"],
    ),
    "timm volo, auxiliary head": (_timm("volo_d1_224", img_size=32), images(32), ["head"]),
    "timm caformer, head in a container": (_timm("caformer_s18"), images(64), ["head.fc.fc2"]),
    "timm levit, normalised heads": (
        _timm("levit_128s", img_size=64),
        images(64),
        ["head.linear", "head_dist.linear"],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_equal_a_loop_of_backward_calls(name: str) -> None:
    build, x, heads = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = build().double()
    x, y = x.double(), torch.arange(len(x)) % 4
    for module in model.modules():  # heads that start at zero would hide mistakes
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = looped_gradients(model, criterion, x, y, heads)
    batches = [(x[:2], y[:2]), (x[2:], y[2:])] if len(x) > 2 else [(x, y)]
    gradients, targets, _ = last_layer_gradients(model, batches, criterion)
    assert gradients.dtype == torch.float64
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(dense(gradients), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(targets, y)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_inputs_are_not_rounded_to_what_no_layer_computes_in(dtype: torch.dtype) -> None:
    """As by a counter, or by a quantised weight, that is the first parameter of the model."""
    model, x, y = Counted(dtype), torch.randn(5, 6), torch.arange(5) % 4
    expected = looped_gradients(model, nn.CrossEntropyLoss(), x, y, ["body.2"])
    gradients, _, _ = last_layer_gradients(model, [(x, y)], nn.CrossEntropyLoss())
    assert gradients.dtype == torch.float32
    torch.testing.assert_close(dense(gradients), expected)
    losses = pool_losses(model, [(x, y)], nn.CrossEntropyLoss())
    torch.testing.assert_close(losses, F.cross_entropy(model(x), y, reduction="none"))
