"""Per-sample and weighted losses against sums written out sample by sample."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset import WeightedLoss, WeightedTarget
from adaptive_subset.delivery.weighted_loss import weighted_loss
from adaptive_subset.gradients.per_sample import per_sample_losses

N, C = 6, 4
GENERATOR = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(N, C, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])
IGNORING = torch.tensor([0, -100, 2, 3, -100, 0])
SOFT = torch.rand(N, C, dtype=torch.float64, generator=GENERATOR).softmax(1)
HOT = F.one_hot(LABELS, C).double()
REAL = torch.randn(N, C, dtype=torch.float64, generator=GENERATOR)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 1.5, 2.0, 0.3, 1.5])


def _timm(name: str, **options: Any) -> Any:
    import timm.loss

    return getattr(timm.loss, name)(**options)


class Composite(nn.Module):
    """A loss of the user's without a `reduction`."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.CrossEntropyLoss()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.part(output, target) + 0.1 * output.square().sum(1).mean()


def focal(output: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(output, target, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


#: name → (criterion, target, what the criterion divides the sum of per-sample losses by)
LOSSES: dict[str, tuple[Any, Tensor, Any]] = {
    "cross entropy": (nn.CrossEntropyLoss(), LABELS, N),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), LABELS, 1),
    "class weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), LABELS, CLASS_WEIGHTS[LABELS].sum()),
    "ignored labels": (nn.CrossEntropyLoss(), IGNORING, 4),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS, N),
    "soft targets": (nn.CrossEntropyLoss(), SOFT, N),
    "function": (F.cross_entropy, LABELS, N),
    "function with class weights": (
        functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS),
        LABELS,
        CLASS_WEIGHTS[LABELS].sum(),
    ),
    "squared error": (nn.MSELoss(), REAL, N * C),
    "absolute error": (nn.L1Loss(), REAL, N * C),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), HOT, N * C),
    "mixed signs": (nn.PoissonNLLLoss(), REAL.abs(), N * C),
    "batch mean": (nn.KLDivLoss(reduction="batchmean"), SOFT, N),
    "composite": (Composite(), LABELS, N),
    "focal": (focal, LABELS, N),
    "timm label smoothing": (_timm("LabelSmoothingCrossEntropy", smoothing=0.1), LABELS, N),
    "timm soft targets": (_timm("SoftTargetCrossEntropy"), SOFT, N),
    "timm binary": (_timm("BinaryCrossEntropy"), HOT, N * C),
    "timm binary, labels": (_timm("BinaryCrossEntropy"), LABELS, N * C),
    "timm binary, sum of classes": (_timm("BinaryCrossEntropy", sum_classes=True), LABELS, N),
    "timm asymmetric": (_timm("AsymmetricLossSingleLabel"), LABELS, N),
}
# The mean over a batch of one divides by the sample's own class weight; here it must not.
SINGLE = {
    "class weights": nn.CrossEntropyLoss(CLASS_WEIGHTS, reduction="sum"),
    "function with class weights": nn.CrossEntropyLoss(CLASS_WEIGHTS, reduction="sum"),
    "ignored labels": nn.CrossEntropyLoss(reduction="sum"),
}


def written_out(name: str, output: Tensor) -> Tensor:
    """(n,): the criterion on batches of one, times the terms that its mean divides by."""
    criterion, target, _ = LOSSES[name]
    single = SINGLE.get(name, criterion)
    terms = C if LOSSES[name][2] == N * C else 1
    return torch.stack([terms * single(output[i : i + 1], target[i : i + 1]) for i in range(N)])


@pytest.mark.parametrize("name", LOSSES)
def test_weighted_losses_and_gradients_are_exact(name: str) -> None:
    criterion, target, divisor = LOSSES[name]
    output = OUTPUT.clone().requires_grad_()
    losses = written_out(name, output)
    expected = (WEIGHTS * losses).sum() / divisor
    found, unweighted = weighted_loss(criterion, output, target, WEIGHTS)
    torch.testing.assert_close(unweighted, losses)
    torch.testing.assert_close(per_sample_losses(criterion, output, target), losses)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, output), torch.autograd.grad(expected, output)
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_give_the_bare_criterion(name: str, dtype: torch.dtype) -> None:
    criterion, target, _ = LOSSES[name]
    criterion = copy.deepcopy(criterion)
    if isinstance(criterion, nn.Module):
        criterion.to(dtype)
    elif isinstance(criterion, functools.partial) and dtype == torch.float32:
        pytest.skip("its class weights are float64")
    target = target.to(dtype) if target.is_floating_point() else target
    output = OUTPUT.to(dtype)
    torch.testing.assert_close(
        weighted_loss(criterion, output, target, torch.ones(N))[0], criterion(output, target)
    )


def test_a_criterion_that_is_zero_gives_zero() -> None:
    target = REAL.clone().requires_grad_()
    loss, _ = weighted_loss(nn.MSELoss(), target, REAL, WEIGHTS)
    loss.backward()
    assert float(loss.detach()) == 0
    assert target.grad is not None
    assert target.grad.isfinite().all()


def test_losses_that_cancel_keep_their_gradient() -> None:
    def signed(output: Tensor, target: Tensor) -> Tensor:
        return (output * target).mean(1).mean()

    output = torch.tensor([[1.0], [-1.0], [2.0], [-2.0 + 1e-7]], requires_grad=True)
    loss, _ = weighted_loss(signed, output, torch.ones(4, 1), torch.ones(4))
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient, torch.full((4, 1), 0.25))


def test_no_reduction_gives_the_weighted_losses() -> None:
    criterion = nn.MSELoss(reduction="none")
    found, losses = weighted_loss(criterion, OUTPUT, REAL, WEIGHTS)
    squares = (OUTPUT - REAL).square()
    torch.testing.assert_close(found, squares * WEIGHTS[:, None].double())
    torch.testing.assert_close(losses, squares.sum(1))


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return torch.logsumexp(output @ output.T, 1).mean()


class Centred(nn.MSELoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input - input.mean(0), target)


class HiddenWeights(nn.Module):
    """Divides by the class weights of the batch and offers no `reduction`."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, CLASS_WEIGHTS)


@pytest.mark.parametrize(
    ("criterion", "target"), [(contrastive, LABELS), (Centred(), REAL), (HiddenWeights(), LABELS)]
)
def test_losses_that_couple_samples_are_refused(criterion: Any, target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(criterion, OUTPUT, target)


def test_a_batch_of_one_class_does_not_hide_class_weights() -> None:
    criterion, alike = HiddenWeights(), torch.full((N,), 2)
    per_sample_losses(criterion, OUTPUT, alike)
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(criterion, OUTPUT, LABELS)
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(criterion, OUTPUT, LABELS)


def test_a_compiled_criterion_is_left_as_it_is() -> None:
    criterion = nn.CrossEntropyLoss()
    compiled = torch.compile(criterion, backend="eager")
    found, _ = weighted_loss(compiled, OUTPUT, LABELS, WEIGHTS)
    assert criterion.reduction == "mean"
    torch.testing.assert_close(found, weighted_loss(criterion, OUTPUT, LABELS, WEIGHTS)[0])


def test_the_criterion_is_left_as_it_is() -> None:
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    before = copy.deepcopy(criterion.__dict__)
    per_sample_losses(criterion, OUTPUT, LABELS)
    torch.testing.assert_close(criterion.state_dict(), {"weight": CLASS_WEIGHTS})
    assert criterion.reduction == before["reduction"] == "mean"


def test_the_wrapper_has_the_state_of_the_criterion() -> None:
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS.clone(), label_smoothing=0.1)
    loss = WeightedLoss(criterion)
    assert list(loss.state_dict()) == list(criterion.state_dict()) == ["weight"]
    assert loss.label_smoothing == 0.1
    assert list(nn.ModuleDict({"loss": loss}).state_dict()) == ["loss.weight"]
    loss.load_state_dict({"weight": torch.ones(C)})
    assert criterion.weight is not None
    assert torch.equal(criterion.weight, torch.ones(C))
    loss.float()
    assert criterion.weight.dtype == torch.float32
    loss.eval()
    assert not criterion.training
    assert list(WeightedLoss(F.cross_entropy).state_dict()) == []
    with pytest.raises(AttributeError, match="nothing"):
        loss.nothing  # noqa: B018


def test_copies_of_the_wrapper_stand_alone() -> None:
    loss = WeightedLoss(nn.CrossEntropyLoss(CLASS_WEIGHTS.clone()))
    twin = copy.deepcopy(loss)
    twin.double().criterion.weight.fill_(9)  # type: ignore[attr-defined]
    assert not torch.equal(loss.state_dict()["weight"], twin.state_dict()["weight"])
    assert torch.equal(twin.state_dict()["weight"], torch.full((C,), 9.0).double())


def test_keyword_arguments_and_single_targets() -> None:
    loss = WeightedLoss(nn.CrossEntropyLoss())
    tagged = WeightedTarget(LABELS, WEIGHTS)
    torch.testing.assert_close(loss(output=OUTPUT, target=tagged), loss(OUTPUT, tagged))
    one = WeightedTarget(LABELS[0], 2.0)
    torch.testing.assert_close(loss(OUTPUT[0], one), 2 * F.cross_entropy(OUTPUT[0], LABELS[0]))
