"""The weighted loss as the criterion that it wraps: calls, attributes, state, and its errors."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptive_subset import GradMatch, Selector, WeightedLoss, WeightedTarget
from adaptive_subset.gradients.model_state import evaluating
from adaptive_subset.gradients.per_sample import per_sample_losses

N, C = 6, 4
GENERATOR = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(N, C, generator=GENERATOR)
OTHER = torch.randn(N, C, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
WEIGHTS = torch.tensor([0.2, 0.5, 1.5, 2.0, 0.3, 1.5])
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def tagged(target: Tensor) -> WeightedTarget:
    return WeightedTarget(target, WEIGHTS[: len(target)])


def weighted_mean(losses: Tensor) -> Tensor:
    return (WEIGHTS * losses).sum() / N


def cross_entropies(output: Tensor = OUTPUT) -> Tensor:
    return F.cross_entropy(output, LABELS, reduction="none")


CROSS_ENTROPIES = pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda output, target: F.cross_entropy(output, target),
    ],
    ids=["module", "function", "lambda"],
)

# Calls


def auxiliary(output: dict[str, Tensor], target: Tensor) -> Tensor:
    """As for segmentation models with a second head."""
    return F.cross_entropy(output["out"], target) + 0.5 * F.cross_entropy(output["aux"], target)


def mixed(output: Tensor, first: Tensor, second: Tensor, share: float) -> Tensor:
    return share * F.cross_entropy(output, first) + (1 - share) * F.cross_entropy(output, second)


def nested(output: Tensor, target: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output, target["labels"])


#: name → (criterion, a call of it, what it must give)
CALLS: dict[str, tuple[Any, Callable[[Any], Tensor], Tensor]] = {
    "torch's names": (
        nn.CrossEntropyLoss(),
        lambda loss: loss(input=OUTPUT, target=tagged(LABELS)),
        weighted_mean(cross_entropies()),
    ),
    "our names": (
        nn.CrossEntropyLoss(),
        lambda loss: loss(output=OUTPUT, target=tagged(LABELS)),
        weighted_mean(cross_entropies()),
    ),
    "our names, swapped": (
        lambda logits, labels: F.cross_entropy(logits, labels),
        lambda loss: loss(target=tagged(LABELS), output=OUTPUT),
        weighted_mean(cross_entropies()),
    ),
    "two outputs": (
        nn.CosineEmbeddingLoss(margin=0.2),
        lambda loss: loss(OUTPUT, OTHER, tagged(SIGNS)),
        weighted_mean(F.cosine_embedding_loss(OUTPUT, OTHER, SIGNS, 0.2, reduction="none")),
    ),
    "two outputs, function": (
        F.cosine_embedding_loss,
        lambda loss: loss(OUTPUT, OTHER, target=tagged(SIGNS)),
        weighted_mean(F.cosine_embedding_loss(OUTPUT, OTHER, SIGNS, reduction="none")),
    ),
    "ranking": (
        nn.MarginRankingLoss(),
        lambda loss: loss(OUTPUT[:, 0], OTHER[:, 0], tagged(SIGNS)),
        weighted_mean(F.margin_ranking_loss(OUTPUT[:, 0], OTHER[:, 0], SIGNS, reduction="none")),
    ),
    "variance": (
        nn.GaussianNLLLoss(),
        lambda loss: loss(OUTPUT[:, 0], tagged(SIGNS), OTHER[:, 0].abs()),
        weighted_mean(
            F.gaussian_nll_loss(OUTPUT[:, 0], SIGNS, OTHER[:, 0].abs(), reduction="none")
        ),
    ),
    "triplet with targets": (
        lambda a, b, target: (F.triplet_margin_loss(a, b, 0 * a, reduction="none") * target).mean(),
        lambda loss: loss(OUTPUT, OTHER, tagged(SIGNS)),
        weighted_mean(F.triplet_margin_loss(OUTPUT, OTHER, 0 * OUTPUT, reduction="none") * SIGNS),
    ),
    "dict": (
        auxiliary,
        lambda loss: loss({"out": OUTPUT, "aux": OTHER}, tagged(LABELS)),
        weighted_mean(cross_entropies() + 0.5 * cross_entropies(OTHER)),
    ),
    "tuple": (
        lambda output, target: F.cross_entropy(output[1], target),
        lambda loss: loss((OTHER, OUTPUT), tagged(LABELS)),
        weighted_mean(cross_entropies()),
    ),
    "dict of targets": (
        nested,
        lambda loss: loss(OUTPUT, {"labels": tagged(LABELS)}),
        weighted_mean(cross_entropies()),
    ),
    "several targets and a number": (
        mixed,
        lambda loss: loss(OUTPUT, tagged(LABELS), tagged(LABELS), 0.3),
        weighted_mean(cross_entropies()),
    ),
    "losses": (
        functools.partial(F.cross_entropy, reduction="none"),
        lambda loss: loss(OUTPUT, tagged(LABELS)).sum() / N,
        weighted_mean(cross_entropies()),
    ),
    "losses of a function": (
        lambda output, target: F.cross_entropy(output, target, reduction="none"),
        lambda loss: loss(OUTPUT, tagged(LABELS)).sum() / N,
        weighted_mean(cross_entropies()),
    ),
    "script": (
        torch.jit.script(nn.CrossEntropyLoss()),
        lambda loss: loss(OUTPUT, tagged(LABELS)),
        weighted_mean(cross_entropies()),
    ),
    "single sample": (
        nn.CrossEntropyLoss(),
        lambda loss: loss(OUTPUT[0], WeightedTarget(LABELS[0], 2.0)),
        2 * F.cross_entropy(OUTPUT[0], LABELS[0]),
    ),
    "rows that broadcast along": (
        nn.MSELoss(),
        lambda loss: loss(OUTPUT, tagged(SIGNS[:, None])),
        weighted_mean((OUTPUT - SIGNS[:, None]).square().mean(1)),
    ),
}


@pytest.mark.filterwarnings("ignore:Using a target size", "ignore:`torch.jit")
@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_exact(name: str) -> None:
    criterion, call, expected = CALLS[name]
    torch.testing.assert_close(call(WeightedLoss(criterion)), expected)


class Broken:
    """An output that is neither a tensor nor made of tensors."""

    logits = OUTPUT


def two_losses(output: Tensor, target: Tensor) -> Any:
    return F.cross_entropy(output, target), 1


#: name → (call, error, message)
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "[n, 1] against [n]": (
        lambda: WeightedLoss(nn.MSELoss())(OUTPUT[:, :1], tagged(SIGNS)),
        ValueError,
        r"`target` must have the shape of the outputs, \(6, 1\), got \(6,\).*unsqueeze",
    ),
    "[n] against [n, 1], another": (
        lambda: WeightedLoss(nn.PoissonNLLLoss())(OUTPUT[:, 0], tagged(SIGNS[:, None])),
        ValueError,
        r"`target` must have the shape of the outputs, got \(6,\) and \(6, 1\).*\(6, 6\)",
    ),
    "[n, 1] against [n], function": (
        lambda: WeightedLoss(lambda o, t: F.mse_loss(o, t))(OUTPUT[:, :1], tagged(SIGNS)),
        ValueError,
        r"got <lambda>.*shapes \(6, 1\) and \(6,\)",
    ),
    "CTC": (lambda: WeightedLoss(nn.CTCLoss()), TypeError, "`criterion` must take outputs.*CTC"),
    "CTC, function": (
        lambda: WeightedLoss(functools.partial(F.ctc_loss, blank=0)),
        TypeError,
        "`criterion` must take outputs.*F.ctc_loss",
    ),
    "a class": (
        lambda: WeightedLoss(nn.CrossEntropyLoss),  # type: ignore[arg-type]
        TypeError,
        r"`criterion` must be a loss such as nn.CrossEntropyLoss\(\).*got <class",
    ),
    "twice weighted": (
        lambda: WeightedLoss(WeightedLoss(nn.CrossEntropyLoss())),
        TypeError,
        "`criterion` must be a loss.*got WeightedLoss",
    ),
    "no selector": (
        lambda: WeightedLoss(nn.CrossEntropyLoss(), object()),  # type: ignore[arg-type]
        TypeError,
        "`selector` must be a Selector, got object.*sampler.selector",
    ),
    "an object": (
        lambda: WeightedLoss(lambda o, t: F.cross_entropy(o.logits, t))(Broken(), tagged(LABELS)),
        TypeError,
        "`output` must be a tensor, or tuples.*got Broken.*output.logits",
    ),
    "an output squeezed to a number": (
        lambda: WeightedLoss(nn.MSELoss())(torch.zeros(1, 1).squeeze(), tagged(LABELS[:1])),
        ValueError,
        r"`output` must have a row for each sample, got a tensor of shape \(\).*squeeze\(1\)",
    ),
    "a tuple of losses": (
        lambda: WeightedLoss(two_losses)(OUTPUT, tagged(LABELS)),
        TypeError,
        "`criterion` must return a tensor, got tuple",
    ),
    "losses of other rows": (
        lambda: WeightedLoss(lambda o, t: o.mean(0))(OUTPUT, tagged(LABELS)),
        ValueError,
        r"`criterion` must return a number, or losses of the 6 samples, got shape \(4,\)",
    ),
    "too few weights": (
        lambda: WeightedLoss(nn.CrossEntropyLoss())(OUTPUT, tagged(LABELS[:3])),
        ValueError,
        "one weight for each of the 6 outputs, got 3",
    ),
    "too few weights, dict": (
        lambda: WeightedLoss(auxiliary)({"out": OUTPUT, "aux": OTHER}, tagged(LABELS[:3])),
        ValueError,
        "one weight for each of the 6 outputs, got 3",
    ),
    "targets of different samples": (
        lambda: WeightedLoss(mixed)(OUTPUT, tagged(LABELS), tagged(LABELS).flip(0), 0.5),
        ValueError,
        "`target` must carry the same weights in all its parts",
    ),
    "another criterion": (
        lambda: setattr(WeightedLoss(nn.MSELoss()), "criterion", nn.L1Loss()),
        AttributeError,
        "`criterion` cannot be replaced",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_calls_that_raise(name: str) -> None:
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, t: F.cross_entropy(o, t)]
)
def test_an_empty_batch_is_what_the_criterion_makes_of_it(criterion: Any) -> None:
    empty = tagged(LABELS[:0])
    assert WeightedLoss(criterion)(OUTPUT[:0], empty).isnan()
    assert per_sample_losses(criterion, OUTPUT[:0], LABELS[:0]).shape == (0,)
    total = WeightedLoss(nn.CrossEntropyLoss(reduction="sum"))(OUTPUT[:0], empty)
    assert float(total) == 0


def test_labels_that_are_all_ignored_are_what_the_criterion_makes_of_them() -> None:
    target = torch.full((N,), -100)
    for reduction in ("mean", "sum"):
        criterion = nn.CrossEntropyLoss(reduction=reduction)
        found_at, expected_at = (OUTPUT.clone().requires_grad_() for _ in range(2))
        found = WeightedLoss(criterion)(found_at, tagged(target))
        expected = criterion(expected_at, target)
        torch.testing.assert_close(found, expected, equal_nan=True)
        found.backward()
        expected.backward()
        torch.testing.assert_close(found_at.grad, expected_at.grad)


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, t: F.cross_entropy(o, t)]
)
def test_meta_and_inference_tensors(criterion: Any) -> None:
    loss = WeightedLoss(criterion)
    found = loss(OUTPUT.to("meta"), tagged(LABELS).to("meta"))
    assert found.is_meta
    assert found.shape == ()
    with torch.inference_mode():
        found = loss(OUTPUT.clone(), tagged(LABELS.clone()))
    torch.testing.assert_close(found, weighted_mean(cross_entropies()))


# Weights that are lost


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_lost_weights_raise_wherever_a_gradient_can_be_taken(mode: bool, frozen: bool) -> None:
    scale = nn.Parameter(torch.ones(()))  # of the loss itself
    loss = WeightedLoss(lambda o, t: F.cross_entropy(o * scale, t)).train(mode)
    output = OUTPUT.clone().requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=r"`target` must carry.*got a Tensor without any"):
        loss(output, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(loss(output, LABELS), F.cross_entropy(OUTPUT, LABELS))


def test_the_criterion_in_eval_mode_weighs_as_well() -> None:
    loss = WeightedLoss(nn.CrossEntropyLoss()).eval()
    output = OUTPUT.clone().requires_grad_()
    torch.testing.assert_close(loss(output, tagged(LABELS)), weighted_mean(cross_entropies()))


@pytest.mark.parametrize(
    "way",
    ["sampler.dataset", "sampler.attach", r"retag\(collate_fn\)", "WeightedTarget.like", "no_grad"],
)
def test_the_error_for_lost_weights_names_the_ways_out(way: str) -> None:
    with pytest.raises(RuntimeError, match=way):
        WeightedLoss(nn.CrossEntropyLoss())(OUTPUT.clone().requires_grad_(), LABELS)


def test_the_way_out_for_validation_with_a_graph_works() -> None:
    loss = WeightedLoss(nn.CrossEntropyLoss())
    output = OUTPUT.clone().requires_grad_()
    torch.testing.assert_close(loss.criterion(output, LABELS), F.cross_entropy(output, LABELS))


def test_losses_are_noted_in_eval_mode_and_not_without_a_graph() -> None:
    from adaptive_subset import InfoBatch

    selector = Selector(TensorDataset(OUTPUT, LABELS), InfoBatch(epochs=3))
    loss = WeightedLoss(nn.CrossEntropyLoss(), selector).eval()
    target = WeightedTarget(LABELS, WEIGHTS, torch.arange(N))
    assert selector.losses is not None
    with torch.no_grad():
        loss(OUTPUT, target)
    assert selector.losses.values.isnan().all()
    loss(OUTPUT.clone().requires_grad_(), target)
    torch.testing.assert_close(selector.losses.values, cross_entropies())


# Attributes and flags


def test_the_wrapper_has_the_state_of_the_criterion() -> None:
    criterion: Any = nn.CrossEntropyLoss(CLASS_WEIGHTS.clone(), label_smoothing=0.1)
    loss = WeightedLoss(criterion)
    assert list(loss.state_dict()) == list(criterion.state_dict()) == ["weight"]
    assert loss.label_smoothing == 0.1
    assert list(nn.ModuleDict({"loss": loss}).state_dict()) == ["loss.weight"]
    loss.load_state_dict({"weight": torch.ones(C)})
    assert torch.equal(criterion.weight, torch.ones(C))
    loss.double()
    assert criterion.weight.dtype == torch.float64
    loss.eval()
    assert not criterion.training
    assert list(WeightedLoss(F.cross_entropy).state_dict()) == []
    with pytest.raises(AttributeError, match="nothing"):
        loss.nothing  # noqa: B018


def test_printed_it_shows_what_it_weighs() -> None:
    assert repr(WeightedLoss(nn.HuberLoss())) == "WeightedLoss(HuberLoss())"
    model = nn.ModuleDict({"loss": WeightedLoss(Nested())})
    assert repr(model).count("Nested(") == repr(model).count("Dropout(") == 1


def test_attributes_are_written_where_they_are_read() -> None:
    criterion: Any = nn.CrossEntropyLoss(CLASS_WEIGHTS.clone(), label_smoothing=0.1)
    loss = WeightedLoss(criterion)
    loss.label_smoothing = 0.0
    loss.weight = torch.ones(C)
    loss.note = 1
    loss.training = False
    assert criterion.label_smoothing == 0.0
    assert criterion.note == loss.note == 1
    assert not criterion.training
    torch.testing.assert_close(criterion.weight, torch.ones(C))
    torch.testing.assert_close(loss(OUTPUT, tagged(LABELS)), weighted_mean(cross_entropies()))
    del loss.note
    assert not hasattr(criterion, "note")
    function = WeightedLoss(F.cross_entropy)
    function.note = 1
    assert not hasattr(F.cross_entropy, "note")
    function.eval()
    assert not function.training


def test_buffers_that_are_not_saved_stay_so() -> None:
    criterion = nn.CrossEntropyLoss()
    criterion.register_buffer("cache", torch.ones(1), persistent=False)
    assert list(WeightedLoss(criterion).state_dict()) == []


def test_copies_of_the_wrapper_stand_alone() -> None:
    loss: Any = WeightedLoss(nn.CrossEntropyLoss(CLASS_WEIGHTS.clone()))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.double().criterion.weight.fill_(9)
        twin.eval()
        assert not torch.equal(loss.state_dict()["weight"], twin.state_dict()["weight"])
        assert torch.equal(twin.state_dict()["weight"], torch.full((C,), 9.0).double())
        assert loss.criterion.training
        assert not twin.criterion.training


class WithLoss(nn.Module):
    """A model that holds its loss."""

    def __init__(self, criterion: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)
        self.loss = WeightedLoss(criterion)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Dropout(0.0))
        self.calls = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(self.part(output), target)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), Nested(), F.cross_entropy])
@pytest.mark.parametrize("training", [True, False])
def test_a_loss_within_the_model_is_as_before_after_a_selection(
    criterion: Any, training: bool
) -> None:
    model = WithLoss(criterion)
    model.loss.train(training)

    def flags() -> list[bool]:
        inner = criterion.modules() if isinstance(criterion, nn.Module) else []
        return [m.training for m in (*model.modules(), *inner)]

    before = flags()
    selector = Selector(TensorDataset(OUTPUT, LABELS), GradMatch(), budget=2, criterion=criterion)
    selector.select(model, 0)
    assert flags() == before
    with evaluating(model, F.cross_entropy):
        assert not model.loss.training
    assert flags() == before
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    for name, module in model.named_modules():  # as trainers put them back
        module.training = modes[name]
    assert flags() == before


def test_parameters_of_the_loss_are_listed_once() -> None:
    criterion = nn.Sequential(nn.Linear(2, 2))
    loss = WeightedLoss(criterion)
    assert [name for name, _ in loss.named_parameters()] == ["0.weight", "0.bias"]
    assert list(loss.modules()) == [loss, criterion, criterion[0]]


# Criteria with state


class Stateful(nn.Module):
    """Keeps a mean of the outputs and counts its calls in four ways, one of them in its graph."""

    mean: Tensor
    level: Tensor
    seen: list[int]

    def __init__(self, reduction: str | None) -> None:
        super().__init__()
        if reduction is not None:
            self.reduction = reduction
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("level", torch.ones(()))
        self.calls, self.seen = 0, []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.level += 0.1
        factor = 1 + self.mean.square()
        if hasattr(self, "reduction"):  # else vmap would see it, and the samples be coupled
            self.mean.mul_(0.9).add_(0.1 * output.detach().mean())
        reduction = getattr(self, "reduction", "mean")
        losses = F.cross_entropy(self.scale * output, target, reduction=reduction)
        return losses * self.level * factor


@pytest.mark.parametrize("reduction", [None, "mean", "none"])
def test_state_moves_once_a_step_and_never_in_a_selection(reduction: str | None) -> None:
    loss, plain = WeightedLoss(Stateful(reduction)), Stateful(reduction)
    for step in range(4):
        output = OUTPUT + step
        loss(output, tagged(LABELS)).sum().backward()
        plain(output, LABELS).sum().backward()
        per_sample_losses(loss.criterion, OTHER.clone().requires_grad_(), LABELS).sum().backward()
        assert loss.calls == plain.calls
        assert loss.seen == plain.seen
        torch.testing.assert_close(loss.state_dict(), plain.state_dict())


@pytest.mark.parametrize("reduction", [None, "mean", "none"])
def test_criteria_with_state_are_weighted_exactly(reduction: str | None) -> None:
    loss, plain = WeightedLoss(Stateful(reduction)), Stateful(reduction)
    for step in range(4):
        output = OUTPUT + step
        factor = plain(output, LABELS).mean() / cross_entropies(output).mean()
        found = loss(output, tagged(LABELS))
        expected = factor * weighted_mean(cross_entropies(output))
        torch.testing.assert_close(found.sum() / N if reduction == "none" else found, expected)


def test_a_counter_in_an_object_moves_once_a_step() -> None:
    class Counting(SimpleNamespace):
        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(output, target)

        __hash__ = object.__hash__  # type: ignore[assignment]

    criterion = Counting(calls=0)
    for _ in range(3):
        WeightedLoss(criterion)(OUTPUT, tagged(LABELS))
    assert criterion.calls == 3


def test_a_learnt_loss_gets_its_gradient() -> None:
    for reduction in (None, "mean"):
        criterion = Stateful(reduction)
        WeightedLoss(criterion)(OUTPUT, tagged(LABELS)).backward()
        assert criterion.scale.grad is not None
        assert float(criterion.scale.grad) != 0
