"""∂ℓ/∂z of many batches at once is that of each batch by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptive_subset.gradients import slopes
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.source import GradientSource
from tests import models
from tests.operations import Counting
from tests.test_last_layer import dense

N = 23
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
SOFT = torch.rand(N, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
SIZES = (4, 5, 3, 4, 4, 3)


class Ending(nn.Module):
    """A network that does something to some of its outputs."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.end = models.mlp(), end

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x)
        return self.end(output) if len(x) == 3 else output


def written_to_behind_autograd(output: Tensor) -> Tensor:
    output.data.mul_(3)
    return output


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda z: z,
    "scaled": lambda z: 3 * z,
    "scaled in place": lambda z: z.mul_(3),
    "scaled behind autograd": written_to_behind_autograd,
    "the same, viewed": lambda z: z.view_as(z),
}


def alone(model: nn.Module, criterion: Any, y: Tensor) -> Tensor:
    """(n, d): every batch in a pass of its own, none waits for another."""
    parts = zip(X.split(SIZES), y.split(SIZES), strict=True)
    return torch.cat([dense(last_layer_gradients(model, [p], criterion)[0]) for p in parts])


@pytest.mark.parametrize("size", [N, None])
@pytest.mark.parametrize("numbers", [1, 40, 1 << 18])
@pytest.mark.parametrize("end", ENDS)
def test_batches_that_wait_stay_in_order(
    end: str, numbers: int, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "_NUMBERS", numbers)
    model, criterion = Ending(ENDS[end]), nn.CrossEntropyLoss(label_smoothing=0.1)
    batches = list(zip(X.split(SIZES), Y.split(SIZES), strict=True))
    found, targets, _ = last_layer_gradients(model, batches, criterion, size=size)
    torch.testing.assert_close(dense(found), alone(model, criterion, Y))
    assert torch.equal(targets, Y)


def test_targets_may_change_their_kind_on_the_way() -> None:
    model, criterion = models.mlp(), nn.CrossEntropyLoss()
    labels = SOFT.argmax(1)
    batches = list(zip(X.split(SIZES), labels.split(SIZES), strict=True))
    for i in (3, 4):
        batches[i] = batches[i][0], batches[i][1].int().long().to(torch.uint8)
    found = dense(last_layer_gradients(model, batches, criterion)[0])
    torch.testing.assert_close(found, alone(model, criterion, labels))


@pytest.mark.parametrize(("criterion", "y"), [(nn.CrossEntropyLoss(), SOFT), (nn.MSELoss(), SOFT)])
def test_soft_and_real_targets(criterion: nn.Module, y: Tensor) -> None:
    model = models.mlp()
    batches = list(zip(X.split(SIZES), y.split(SIZES), strict=True))
    found = dense(last_layer_gradients(model, batches, criterion)[0])
    torch.testing.assert_close(found, alone(model, criterion, y))


def test_the_loss_is_evaluated_for_many_batches_at_once() -> None:
    def passes(batches: int) -> int:
        x, y = X.repeat(batches, 1), Y.repeat(batches)
        with Counting() as counting:
            GradientSource(TensorDataset(x, y), batch_size=N).read(
                models.mlp(), nn.CrossEntropyLoss()
            )
        return counting.calls["_log_softmax"]

    assert passes(20) == passes(10)


def test_a_loss_that_nobody_knows_sees_the_batches_as_they_are() -> None:
    model, seen = models.mlp(), []

    def criterion(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        seen.append(len(output))
        return F.cross_entropy(output, target, reduction=reduction)

    batches = list(zip(X.split(SIZES), Y.split(SIZES), strict=True))
    found = dense(last_layer_gradients(model, batches, criterion)[0])
    torch.testing.assert_close(found, alone(model, criterion, Y))
    assert max(seen) == max(SIZES)


def test_a_dataset_is_left_as_it_is_by_a_model_that_writes_to_its_inputs() -> None:
    model, x = models.InPlace(), X.clone()
    expected = GradientSource(TensorDataset((x - 1) * 0.5, Y), batch_size=8).read(
        model.body, nn.CrossEntropyLoss()
    )
    for _ in range(2):
        found = GradientSource(TensorDataset(x, Y), batch_size=8).read(model, nn.CrossEntropyLoss())
        torch.testing.assert_close(dense(found.gradients), dense(expected.gradients))
    assert torch.equal(x, X)
