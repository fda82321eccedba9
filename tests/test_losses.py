"""Per-sample and weighted losses against sums written out sample by sample."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset.delivery.weighted_loss import weighted_loss
from adaptive_subset.gradients import coupling, per_sample
from adaptive_subset.gradients.loss_batch import LossBatch
from adaptive_subset.gradients.per_sample import per_sample_losses
from tests.operations import Counting

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
    found, unweighted = weighted_loss(criterion, WEIGHTS, output, target)
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
        weighted_loss(criterion, torch.ones(N), output, target)[0], criterion(output, target)
    )


def _reduced(kind: Any, **options: Any) -> Any:
    return [kind(reduction=reduction, **options) for reduction in ("mean", "sum")]


def _ignoring(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """A function of the user's that ignores a label, in whatever dtype."""
    return F.cross_entropy(output, target, ignore_index=2, reduction=reduction)


#: kind of target → criteria for it, with the torch function that adds up a single sample's terms
RANDOM: dict[str, list[Any]] = {
    "labels": [
        *_reduced(nn.CrossEntropyLoss),
        *_reduced(nn.CrossEntropyLoss, ignore_index=1),
        *_reduced(nn.CrossEntropyLoss, ignore_index=1, label_smoothing=0.2),
        *_reduced(nn.CrossEntropyLoss, weight=CLASS_WEIGHTS, label_smoothing=0.2),
        *_reduced(nn.CrossEntropyLoss, weight=CLASS_WEIGHTS, ignore_index=0),
        *_reduced(nn.MultiMarginLoss, weight=CLASS_WEIGHTS),
        _ignoring,
        functools.partial(F.cross_entropy, ignore_index=3),
    ],
    "soft": [
        *_reduced(nn.CrossEntropyLoss, weight=CLASS_WEIGHTS),
        *_reduced(nn.KLDivLoss),
        nn.KLDivLoss(reduction="batchmean"),
        *_reduced(nn.BCEWithLogitsLoss, weight=CLASS_WEIGHTS),
    ],
    "real": [
        *_reduced(nn.MSELoss),
        *_reduced(nn.HuberLoss, delta=0.3),
        *_reduced(nn.SmoothL1Loss, beta=0.3),
        *_reduced(nn.PoissonNLLLoss),
        functools.partial(F.smooth_l1_loss, beta=0.5),
    ],
}


def _double(criterion: Any) -> Any:
    return criterion.double() if isinstance(criterion, nn.Module) else criterion


def divided_sum(criterion: Any, output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Σ wᵢ ℓᵢ / Z in float64: each ℓᵢ from a sum over one row, Z from losses that cannot cancel."""
    criterion = _double(copy.deepcopy(criterion))
    alone: Any
    if isinstance(criterion, nn.Module):
        alone = copy.deepcopy(criterion)
        alone.reduction = "sum"
    else:
        alone = functools.partial(criterion, reduction="sum")
    rows = [alone(output[i : i + 1], target[i : i + 1]) for i in range(len(output))]
    losses = torch.stack(rows)
    divisor = (losses.sum() / criterion(output, target)).detach()
    return torch.dot(weights.double(), losses) / divisor


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", RANDOM)
def test_random_losses_are_exact_in_every_dtype(kind: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    n = int(torch.randint(2, 40, ()))
    output = torch.randn(n, C).to(dtype)
    weights = torch.rand(n) + 0.1
    target = {
        "labels": torch.randint(C, (n,)).index_fill(0, torch.tensor(0), 2).roll(1),
        "soft": torch.rand(n, C).softmax(1).to(dtype),
        "real": torch.randn(n, C).to(dtype),
    }[kind]
    if kind == "labels":
        target[0] = 3 if seed % 2 else 0  # something is left for every rule that ignores a label
        target[-1] = 1
    for bare in RANDOM[kind]:
        if isinstance(bare, nn.MultiMarginLoss) and dtype.itemsize < 4:
            continue  # torch itself has none
        criterion = copy.deepcopy(bare)
        criterion = criterion.to(dtype) if isinstance(criterion, nn.Module) else criterion
        found_at = output.clone().requires_grad_()
        found, losses = weighted_loss(criterion, weights, found_at, target)
        found.backward()
        wanted_at = output.double().clone().requires_grad_()
        wide = target.double() if target.is_floating_point() else target
        wanted = divided_sum(criterion, wanted_at, wide, weights)
        wanted.backward()
        tolerance = TOLERANCE[dtype]
        assert found_at.grad is not None
        assert wanted_at.grad is not None
        assert losses.shape == (n,)
        assert found.dtype == criterion(output, target).dtype
        largest = float(wanted_at.grad.abs().max())
        torch.testing.assert_close(
            found.double(),
            wanted,
            rtol=tolerance,
            atol=tolerance,
            msg=functools.partial("{}: {}".format, str(bare)),
        )
        torch.testing.assert_close(
            found_at.grad.double(),
            wanted_at.grad,
            rtol=tolerance,
            atol=tolerance * largest,
            msg=functools.partial("gradient of {}: {}".format, str(bare)),
        )


def test_a_criterion_that_is_zero_gives_zero() -> None:
    target = REAL.clone().requires_grad_()
    loss, _ = weighted_loss(nn.MSELoss(), WEIGHTS, target, REAL)
    loss.backward()
    assert float(loss.detach()) == 0
    assert target.grad is not None
    assert target.grad.isfinite().all()


def test_losses_that_cancel_keep_their_gradient() -> None:
    def signed(output: Tensor, target: Tensor) -> Tensor:
        return (output * target).mean(1).mean()

    output = torch.tensor([[1.0], [-1.0], [2.0], [-2.0 + 1e-7]], requires_grad=True)
    loss, _ = weighted_loss(signed, torch.ones(4), output, torch.ones(4, 1))
    (gradient,) = torch.autograd.grad(loss, output)
    torch.testing.assert_close(gradient, torch.full((4, 1), 0.25))


def test_no_reduction_gives_the_weighted_losses() -> None:
    criterion = nn.MSELoss(reduction="none")
    found, losses = weighted_loss(criterion, WEIGHTS, OUTPUT, REAL)
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


class Penalised(nn.Module):
    """Adds what belongs to no sample, and leaves it out where losses are not reduced."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction
        self.centres = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none")
        if self.reduction == "none":
            return each
        return getattr(torch, self.reduction)(each) + 0.01 * self.centres.square().sum()


@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        *[(contrastive, LABELS), (Centred(), REAL), (HiddenWeights(), LABELS)],
        *[(Penalised("mean"), LABELS), (Penalised("sum"), LABELS)],
    ],
)
def test_losses_that_couple_samples_are_refused(criterion: Any, target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(criterion, OUTPUT, target)


class Bounded(nn.Module):
    """One minus the probability of the label."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = 1 - output.softmax(1).gather(1, target[:, None])[:, 0]
        return each if self.reduction == "none" else each.mean()


@pytest.mark.parametrize("height", [1.0, 49.0, 52.0, 200.0])
def test_a_slope_that_vanishes_is_no_reason_to_refuse(height: float) -> None:
    wrong = height * F.one_hot((LABELS + 1) % C, C).float()  # a slope of some exp(−height)
    found, _ = weighted_loss(Bounded(), WEIGHTS, wrong, LABELS)
    each = 1 - wrong.softmax(1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found, (WEIGHTS * each).mean())


BY_LABEL = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


def looked_up(output: Tensor, target: Tensor) -> Tensor:
    weights = torch.tensor([BY_LABEL[int(label)] for label in target.numpy()])
    return (weights * F.cross_entropy(output, target, reduction="none")).mean()


def one_hot_of_numpy(output: Tensor, target: Tensor) -> Tensor:
    hot = torch.from_numpy(np.eye(C)[np.asarray(target) % C])
    return -(hot * F.log_softmax(output, 1)).sum(1).mean()


def real_of_numpy(output: Tensor, target: Tensor) -> Tensor:
    return (output[:, 0] - torch.from_numpy(target.numpy().astype("f8"))).square().mean()


def guarded(output: Tensor, target: Tensor) -> Tensor:
    """Goes on where vmap has no numbers, with wrong ones."""
    try:
        weights = torch.tensor([BY_LABEL[int(label)] for label in target])
    except RuntimeError:
        weights = torch.ones(len(target))
    return (weights * F.cross_entropy(output, target, reduction="none")).mean()


@pytest.mark.parametrize("criterion", [looked_up, one_hot_of_numpy, real_of_numpy, guarded])
def test_a_loss_that_leaves_torch_is_evaluated_in_a_loop(criterion: Any) -> None:
    criterion = functools.partial(criterion)  # one that was not seen before
    each = torch.stack([criterion(OUTPUT[i : i + 1], LABELS[i : i + 1]) for i in range(N)])
    for _ in range(2):
        torch.testing.assert_close(per_sample_losses(criterion, OUTPUT, LABELS), each)
        found, _ = weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)
        torch.testing.assert_close(found, (WEIGHTS * each).mean())


def test_what_a_loss_raises_itself_is_raised() -> None:
    with pytest.raises(KeyError, match="9"):
        per_sample_losses(functools.partial(looked_up), OUTPUT, torch.full((N,), 9))
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(lambda o, t: looked_up(o, t) * o.numpy().mean(), OUTPUT, LABELS)


def test_a_loss_that_fails_on_a_part_of_the_batch_is_told_why() -> None:
    def squeezing(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.squeeze(), target)

    def weighing(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return (F.cross_entropy(output, target, reduction="none") * weight[target]).mean()

    one, half = OUTPUT[:, :1], HOT[:, 0]
    with pytest.raises(
        ValueError, match=r"`criterion`.*squeezing.*\(1, 1\) and \(1,\).*squeeze\(1\)"
    ):
        weighted_loss(squeezing, WEIGHTS, one, half)
    with pytest.raises(
        ValueError, match=r"`criterion`.*squeezing.*raises ValueError \(Target size"
    ):
        per_sample_losses(squeezing, one, half)

    square = OUTPUT[:C], LABELS[:C]  # as many samples as classes, so weights pass for rows
    for criterion in (F.cross_entropy, weighing):
        with pytest.raises(
            ValueError, match=r"`criterion`.*takes the batch but.*functools.partial"
        ):
            weighted_loss(criterion, torch.ones(C), *square, CLASS_WEIGHTS)
    bound = functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS)
    found, _ = weighted_loss(bound, torch.ones(C), *square)
    torch.testing.assert_close(found, F.cross_entropy(*square, CLASS_WEIGHTS))


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
    found, _ = weighted_loss(compiled, WEIGHTS, OUTPUT, LABELS)
    assert criterion.reduction == "mean"
    torch.testing.assert_close(found, weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)[0])


class Scriptable(nn.Module):
    """A loss whose `reduction` can be set once it is scripted: of torch's own it is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction: str = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none", ignore_index=2)
        if self.reduction == "none":
            return each
        return each.sum() / (target != 2).sum()


def test_a_scripted_criterion_is_left_as_it_is() -> None:
    criterion = torch.jit.script(Scriptable())
    found, losses = weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)
    assert criterion.reduction == "mean"
    each = F.cross_entropy(OUTPUT, LABELS, reduction="none", ignore_index=2)
    torch.testing.assert_close(found, (WEIGHTS * each).sum() / 5)
    torch.testing.assert_close(losses, each)


def test_the_criterion_is_left_as_it_is() -> None:
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    before = copy.deepcopy(criterion.__dict__)
    per_sample_losses(criterion, OUTPUT, LABELS)
    torch.testing.assert_close(criterion.state_dict(), {"weight": CLASS_WEIGHTS})
    assert criterion.reduction == before["reduction"] == "mean"


def rare_zeros(output: Tensor, target: Tensor) -> Tensor:
    """Ignores a label, and has no `reduction` to tell."""
    losses = F.cross_entropy(output, target, reduction="none") * (target != 0)
    return losses.sum() / (target != 0).sum().clamp(min=1)


@pytest.mark.parametrize("batches", [2, 4, 6])
@pytest.mark.parametrize(
    "criterion", [rare_zeros, lambda o, t: F.cross_entropy(o, t, ignore_index=0)]
)
def test_a_label_that_is_ignored_on_a_late_batch_is_refused(criterion: Any, batches: int) -> None:
    criterion = functools.partial(criterion)  # one that was not seen before
    for _ in range(batches):
        weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS.clamp(min=1))
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)
    for _ in range(batches):
        per_sample_losses(criterion, OUTPUT, LABELS.clamp(min=1))
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        per_sample_losses(criterion, OUTPUT, LABELS)


def test_one_ignored_label_of_a_thousand_is_refused() -> None:
    target = torch.ones(2000, dtype=torch.long)
    target[7] = 0
    output = torch.randn(2000, C)
    with pytest.raises(ValueError, match=r"shapes \(2000, 4\) and \(2000,\)"):
        weighted_loss(functools.partial(rare_zeros), torch.ones(2000), output, target)


def test_small_losses_are_compared_as_well() -> None:
    def halved(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(1).sum() / (len(output) + 1)

    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        weighted_loss(halved, WEIGHTS, 1e-5 * OUTPUT.float(), 1e-5 * REAL.float())


def test_a_device_is_not_waited_for_and_heard_at_the_next_call() -> None:
    record = coupling.Known()
    for agrees in (True, False, True):
        record.note(torch.tensor(agrees), "(6, 4)")
    criterion = functools.partial(focal)
    coupling._known[criterion] = record
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)
    weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)  # said once


def test_a_batch_that_is_refused_later_has_no_value() -> None:
    divisor, agrees = per_sample._divisor_of_samples(
        torch.tensor(0.7), torch.ones(4), LossBatch.of(4, (torch.ones(4),), {})
    )
    assert divisor.isnan()
    assert not agrees


class MeanOfImages(nn.Module):
    """Its mean is one of images, each over its own pixels; without reduction it gives pixels."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, ignore_index=0, reduction="none")
        if self.reduction == "none":
            return losses
        return (losses.sum(1) / (target != 0).sum(1)).mean()


def test_a_mean_that_divides_sample_by_sample_is_refused() -> None:
    target = torch.tensor([[1, 2, 3], [1, 0, 0], [1, 0, 2]])
    with pytest.raises(ValueError, match=r"`criterion` must be a sum or mean of losses"):
        weighted_loss(MeanOfImages(), torch.ones(3), torch.randn(3, C, 3), target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_ignored_labels_and_class_weights(dtype: torch.dtype) -> None:
    target = torch.tensor([0, 1, 2, 3] * 16 + [-100] * 64)
    output, weights = torch.randn(128, C).to(dtype), torch.rand(128)
    class_weights = torch.tensor([0.1, 1.0, 4.0, 9.0])
    for weight in (None, class_weights.to(dtype)):
        for criterion in (
            nn.CrossEntropyLoss(weight),
            functools.partial(F.cross_entropy, weight=weight),
            type("Own", (nn.CrossEntropyLoss,), {})(weight),  # goes the general way
        ):
            found, _ = weighted_loss(criterion, weights, output, target)
            wide = None if weight is None else weight.float()
            losses = F.cross_entropy(output.float(), target, wide, reduction="none")
            kept = target != -100
            divisor = kept.sum() if wide is None else wide[target[kept]].sum()
            expected = torch.dot(weights, losses) / divisor
            torch.testing.assert_close(found, expected.to(dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("weight", [None, torch.rand(200, generator=GENERATOR)])
@pytest.mark.parametrize("n", [200, 50])  # as many as classes, for which a mask would do
def test_labels_in_bytes_divide_as_others_do(weight: Tensor | None, n: int) -> None:
    """Among them −100 is 156, and as an index they are a mask."""
    output, target = torch.randn(n, 200), torch.randint(150, 160, (n,))
    criterion = nn.CrossEntropyLoss(weight)
    found, _ = weighted_loss(criterion, torch.ones(n), output, target.byte())
    torch.testing.assert_close(found, criterion(output, target))


def test_a_function_that_fails_in_float32_is_refused_by_name() -> None:
    weight = CLASS_WEIGHTS.bfloat16()

    def own(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, weight)

    with pytest.raises(ValueError, match=r"`criterion` must take float32 outputs.*got own"):
        weighted_loss(own, WEIGHTS, OUTPUT.bfloat16(), LABELS)


def test_autocast_does_not_round_what_is_compared() -> None:
    table = torch.randn(C, C)

    def own(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output @ table, target)

    output = torch.randn(N, C)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = weighted_loss(own, WEIGHTS, output, LABELS)
    losses = F.cross_entropy(output @ table, LABELS, reduction="none")
    torch.testing.assert_close(found.float(), torch.dot(WEIGHTS, losses) / N, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("criterion", "target", "operation"),
    [
        (nn.CrossEntropyLoss(CLASS_WEIGHTS), LABELS, "_log_softmax"),
        (_timm("LabelSmoothingCrossEntropy"), LABELS, "_log_softmax"),
        (_timm("SoftTargetCrossEntropy"), SOFT, "_log_softmax"),
        (_timm("BinaryCrossEntropy"), HOT, "binary_cross_entropy_with_logits"),
        (
            _timm("BinaryCrossEntropy", sum_classes=True),
            HOT,
            "binary_cross_entropy_with_logits",
        ),
    ],
)
def test_losses_of_torch_and_timm_are_evaluated_once(
    criterion: Any, target: Tensor, operation: str
) -> None:
    for _ in range(3):  # on none of them is anything checked
        with Counting() as counting:
            weighted_loss(criterion, WEIGHTS, OUTPUT, target)
        assert counting.calls[operation] == 1


def test_another_version_of_a_loss_of_timms_is_not_taken_for_the_one_that_is_known() -> None:
    criterion = _timm("SoftTargetCrossEntropy")
    criterion.temperature = 2.0  # whatever a later version may hold
    criterion.register_forward_pre_hook(lambda m, args: (args[0] / m.temperature, args[1]))
    for hooked in (True, False):
        if not hooked:
            criterion._forward_pre_hooks.clear()
        with Counting() as counting:
            found, _ = weighted_loss(criterion, torch.ones(N), OUTPUT, SOFT)
        assert counting.calls["_log_softmax"] > 1
        torch.testing.assert_close(found, criterion(OUTPUT, SOFT))


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (OUTPUT, IGNORING),  # timm ignores no label
        (OUTPUT[..., None], LABELS[:, None]),
    ],
)
def test_timms_label_smoothing_refuses_what_timm_refuses(output: Tensor, target: Tensor) -> None:
    criterion = _timm("LabelSmoothingCrossEntropy")
    with pytest.raises((IndexError, RuntimeError)):
        criterion(output, target)
    with pytest.raises((IndexError, RuntimeError)):
        weighted_loss(criterion, WEIGHTS, output, target)


def test_a_loss_of_torchs_that_was_patched_is_not_taken_for_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        nn.CrossEntropyLoss, "forward", lambda self, x, y: F.cross_entropy(2 * x, y)
    )
    criterion = nn.CrossEntropyLoss()
    found, _ = weighted_loss(criterion, torch.ones(N), OUTPUT, LABELS)
    torch.testing.assert_close(found, criterion(OUTPUT, LABELS))


def test_a_weight_for_each_number_is_not_taken_for_none() -> None:
    """By such weights torch divides, where it has them; they are of a batch, not of its part."""
    weight = torch.rand(N, C, dtype=torch.float64, generator=GENERATOR) + 0.5
    functions: list[Any] = [F.mse_loss, F.l1_loss, F.huber_loss]
    for function in functions:
        if "weight" in inspect.signature(function).parameters:
            with pytest.raises(ValueError, match="same size"):
                weighted_loss(functools.partial(function, weight=weight), WEIGHTS, OUTPUT, REAL)


def test_a_loss_of_torchs_that_was_changed_is_not_taken_for_torchs() -> None:
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_pre_hook(lambda _, args: (args[0], args[1].where(args[1] > 0, -100)))
    found, _ = weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)
    losses = F.cross_entropy(OUTPUT, LABELS, ignore_index=0, reduction="none")
    torch.testing.assert_close(found, torch.dot(WEIGHTS.double(), losses) / 4)


def test_a_criterion_compiled_in_place_is_left_as_it_is() -> None:
    criterion = nn.CrossEntropyLoss(CLASS_WEIGHTS)
    expected = weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)[0]
    criterion.compile(backend="eager")
    torch.testing.assert_close(weighted_loss(criterion, WEIGHTS, OUTPUT, LABELS)[0], expected)
    own = type("Own", (nn.CrossEntropyLoss,), {})(CLASS_WEIGHTS)  # goes the general way
    own.compile(backend="eager")
    torch.testing.assert_close(weighted_loss(own, WEIGHTS, OUTPUT, LABELS)[0], expected)
    composite = Composite()
    composite.compile(backend="eager")
    torch.testing.assert_close(
        weighted_loss(composite, WEIGHTS, OUTPUT, LABELS)[0],
        weighted_loss(Composite(), WEIGHTS, OUTPUT, LABELS)[0],
    )
    compiled = torch.compile(focal, backend="eager")
    torch.testing.assert_close(
        weighted_loss(compiled, WEIGHTS, OUTPUT, LABELS)[0],
        weighted_loss(focal, WEIGHTS, OUTPUT, LABELS)[0],
    )
