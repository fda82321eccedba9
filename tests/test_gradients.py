"""Factored last-layer gradients against a loop of backward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.factored import BatchGradients, FactoredGradients
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


def dense(gradients: FactoredGradients) -> Tensor:
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


def random_gradients(n: int, shapes: Sequence[tuple[int, int]], seed: int) -> FactoredGradients:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return FactoredGradients([(draw(n, c), draw(n, p)) for c, p in shapes])


@settings(max_examples=40)
@given(
    n=st.integers(1, 7),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=2),
    seed=st.integers(0, 1000),
)
def test_factored_operations_equal_dense_ones(
    n: int, shapes: list[tuple[int, int]], seed: int
) -> None:
    gradients = random_gradients(n, shapes, seed)
    matrix = torch.stack(
        [
            torch.cat([torch.outer(d[i], h[i]).flatten() for d, h in gradients.blocks])
            for i in range(n)
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, dtype=torch.float64, generator=generator)
    vector = torch.randn(gradients.dim, dtype=torch.float64, generator=generator)
    close = torch.testing.assert_close
    assert matrix.shape == (len(gradients), gradients.dim)
    close(dense(gradients), matrix)
    close(gradients.sum(), matrix.sum(0))
    close(gradients.sum(weights), weights @ matrix)
    close(gradients.correlate(vector), matrix @ vector)
    close(gradients.squared_norms(), matrix.square().sum(1))
    close(gradients.gram_column(n - 1), matrix @ matrix[n - 1])
    index = torch.randperm(n, generator=generator)
    close(dense(gradients[index]), matrix[index])


@settings(max_examples=20)
@given(m=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 1000))
def test_batch_gradients_are_means_of_their_members(m: int, size: int, seed: int) -> None:
    gradients = random_gradients(m * size + 1, [(3, 4), (2, 2)], seed)
    members = torch.randperm(m * size + 1)[: m * size].view(m, size)
    batches = BatchGradients(gradients, members)
    matrix = dense(gradients)[members].mean(1)
    vector = torch.randn(gradients.dim, dtype=torch.float64)
    close = torch.testing.assert_close
    assert (len(batches), batches.dim) == matrix.shape
    close(batches.gram, matrix @ matrix.T)
    close(batches.correlate(vector), matrix @ vector)
    close(batches.dense(m - 1), matrix[m - 1])
    weights = torch.rand(m, dtype=torch.float64)
    close(batches.sum(weights, torch.arange(m).flip(0)), weights.flip(0) @ matrix)
    close(batches.gram_column(0), matrix @ matrix[0])
    close(batches.squared_norms(), matrix.square().sum(1))


def test_batch_gram_in_slices_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = random_gradients(12, [(7, 3)], 0)
    members = torch.arange(12).view(4, 3)
    whole = BatchGradients(gradients, members).gram
    monkeypatch.setattr("adaptive_subset.gradients.factored._BLOCK", 30)
    monkeypatch.setattr("adaptive_subset.gradients.factored._TILE", 3)
    torch.testing.assert_close(BatchGradients(gradients, members).gram, whole)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_stored_in_half_precision_is_computed_with_in_single(
    stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive_subset.gradients.factored._ROWS", 5)
    wide = random_gradients(12, [(3, 4), (2, 2)], 0)
    half = FactoredGradients([(d.to(stored), h.to(stored)) for d, h in wide.blocks])
    single = half[:]
    vector, index = torch.randn(half.dim), torch.tensor([7, 2])
    for gradients in (half, single):
        assert gradients.dtype == torch.float32
    assert (half.stored, single.stored) == (stored, torch.float32)
    assert torch.equal(dense(half), dense(single))
    assert torch.equal(dense(half[index]), dense(single)[index])
    assert torch.equal(half.squared_norms(), single.squared_norms())
    assert torch.equal(half.gram_column(3), single.gram_column(3))
    torch.testing.assert_close(half.correlate(vector), single.correlate(vector))
    torch.testing.assert_close(half.correlate(vector, 7), single.correlate(vector, 7))
    torch.testing.assert_close(half.sum(), single.sum())
    weights = torch.rand(12)
    torch.testing.assert_close(half.sum(weights), single.sum(weights))
    chosen = torch.tensor([7, 2, 9, 0, 1, 11, 5])
    expected = single[chosen].sum(weights[:7])
    for gradients in (half, single):
        torch.testing.assert_close(gradients.sum(weights[:7], chosen), expected)
    members = torch.arange(12).view(4, 3)
    grams = [BatchGradients(gradients, members).gram for gradients in (half, single)]
    torch.testing.assert_close(*grams)
    rounding = 4 * torch.finfo(stored).eps
    torch.testing.assert_close(dense(half), dense(wide).float(), rtol=rounding, atol=rounding)
    assert half.is_finite()
    half.blocks[1][0][11, 1] = torch.inf
    assert not half.is_finite()


def test_own_rows_are_the_rows_of_the_class() -> None:
    gradients = random_gradients(6, [(3, 4)], 0)
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    rows = dense(gradients).view(6, 3, 4)[torch.arange(6), classes]
    torch.testing.assert_close(dense(gradients.own_rows(classes)), rows)


def test_own_rows_need_a_row_for_every_class() -> None:
    with pytest.raises(ValueError, match=r"`classes` must be in \[0, 2\].*got 0 to 3"):
        random_gradients(4, [(3, 2)], 0).own_rows(torch.arange(4))


def test_factors_must_line_up() -> None:
    with pytest.raises(ValueError, match=r"pairs of shapes \(n, C\) and \(n, p\)"):
        FactoredGradients([(torch.zeros(3, 2), torch.zeros(4, 2))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_are_seen(bad: float) -> None:
    gradients = random_gradients(4, [(3, 2)], 0)
    assert gradients.is_finite()
    gradients.blocks[0][1][2, 1] = bad
    assert not gradients.is_finite()
