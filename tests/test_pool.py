"""The pass over the pool: heads, losses, wrappers, and that nothing of the user's is changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.head import Head
from adaptive_subset.gradients.model_state import unwrap
from adaptive_subset.gradients.source import GradientSource
from tests import models
from tests.test_last_layer import dense, looped_gradients

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(7) % 4


def gradients_of(
    model: nn.Module,
    criterion: Callable[..., Tensor] | None = None,
    x: Tensor = X,
    y: Tensor = Y,
    head: Head | None = None,
) -> Tensor:
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    loss = nn.CrossEntropyLoss() if criterion is None else criterion
    return dense(last_layer_gradients(model, batches, loss, head=head)[0])


@pytest.mark.parametrize(
    ("criterion", "outputs", "target"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), 4, Y),
        (F.cross_entropy, 4, Y),
        (nn.CrossEntropyLoss(), 4, torch.rand(7, 4).softmax(1)),
        (nn.MSELoss(reduction="sum"), 2, torch.randn(7, 2)),
        (nn.BCEWithLogitsLoss(), 3, torch.randint(2, (7, 3)).double()),
        (nn.MultiMarginLoss(), 4, Y),
    ],
)
def test_any_loss_gives_the_gradient_of_each_sample_s_loss(
    criterion: Any, outputs: int, target: Tensor
) -> None:
    model = models.mlp(6, outputs).double()
    target = target.double() if target.is_floating_point() else target
    expected = looped_gradients(model, criterion, X.double(), target, ["2"])
    found = gradients_of(model, criterion, X.double(), target)
    # A loss with "none" adds up what is behind the batch dimension; a mean over it is a constant.
    ratio = found.norm() / expected.norm()
    torch.testing.assert_close(found, expected * ratio, rtol=1e-9, atol=1e-12)


def test_class_weights_and_ignored_labels_reach_the_gradients() -> None:
    model = models.mlp().double()
    y = Y.clone()
    y[2] = -100
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    found = gradients_of(model, nn.CrossEntropyLoss(weight=weight), X.double(), y)
    plain = looped_gradients(model, nn.CrossEntropyLoss(), X.double(), Y, ["2"])
    scale = weight[Y]
    scale[2] = 0
    torch.testing.assert_close(found, plain * scale[:, None])


def test_heads_can_be_named_or_passed() -> None:
    model = models.TwoHeads()
    both = gradients_of(model, head=["head", model.head_dist])
    assert both.shape == (7, 4 * 6 + 4 * 5)
    torch.testing.assert_close(gradients_of(model, head="head"), both[:, :24])
    inner = nn.Sequential(nn.Flatten(), model)
    torch.testing.assert_close(gradients_of(inner, head="1.head_dist"), both[:, 24:])


def test_two_heads_without_a_name_are_ambiguous() -> None:
    with pytest.raises(ValueError, match=r"`head` could not be found.*'head'.*'head_dist'"):
        gradients_of(models.TwoHeads())


class WithClassifier(nn.Sequential):
    def __init__(self, classifier: Any) -> None:
        super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        self.classifier = [classifier]

    def get_classifier(self) -> Any:
        return self.classifier[0]


def test_an_identity_classifier_is_passed_over_for_the_real_head() -> None:
    model = WithClassifier(nn.Identity())
    torch.testing.assert_close(gradients_of(model), gradients_of(model, head="2"))


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (models.mlp(), "classifier", r"`head` must name a module of Sequential, got 'classifier'"),
        (models.mlp(), nn.Linear(2, 2), r"`head` must be a module inside Sequential"),
        (models.mlp(), "1", r"`head` must be or contain a linear layer.*\['0', '2'\]"),
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), None, r"comes from 1 layers.*LayerNorm"),
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), "1", r"got '1' \(LayerNorm\)"),
        (nn.Identity(), None, r"`model` must have parameters"),
        (nn.LayerNorm(6), None, r"one or a list of \[\], or take a strategy that needs no grad"),
    ],
)
def test_a_wrong_head_is_named(model: nn.Module, head: Head | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradients_of(model, head=head)


class OwnWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).relu() @ self.weight.T


def test_a_head_outside_any_layer_is_not_missed() -> None:
    with pytest.raises(ValueError, match=r"parameter of shape \(4, 5\).*outside any layer"):
        gradients_of(OwnWeight())


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x))


def test_a_head_that_is_no_plain_linear_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`head` '1' must be a plain linear map"):
        gradients_of(nn.Sequential(nn.Linear(6, 5), Cosine(5, 4)))


def test_a_head_that_runs_twice_is_refused() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(RuntimeError, match=r"'0' must run exactly once.*got 2 runs"):
        gradients_of(model, head="0")


class Overwriting(nn.Module):
    """Writes over the features behind its head, which autograd forbids in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        z = self.head(features)
        if not self.training:
            features.zero_()
        return z


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MultiMarginLoss()])
def test_features_that_are_written_over_behind_the_head_are_refused(criterion: nn.Module) -> None:
    with pytest.raises(RuntimeError, match=r"'head' must leave its input as it is"):
        gradients_of(Overwriting(), criterion=criterion)


def test_a_head_over_several_positions_at_once_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"must see one vector a sample.*behind the pooling"):
        gradients_of(model, x=torch.randn(7, 3, 4, 4))


class Wrapper(nn.Module):
    """Everything in one child called `module`, as EMA and SWA wrappers have it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the wrapper must not be called")


class ModelEmaV3(Wrapper):
    """Goes by the name of timm's."""

    __module__ = "timm.utils.model_ema"


def timm_s(version: str) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        wrapped: nn.Module = getattr(pytest.importorskip("timm.utils"), version)(model)
        return wrapped

    return wrap


@pytest.mark.parametrize(
    "wrap",
    [
        ModelEmaV3,
        timm_s("ModelEmaV2"),
        timm_s("ModelEmaV3"),
        nn.DataParallel,
        lambda m: torch.optim.swa_utils.AveragedModel(m),
        lambda m: torch.compile(m, backend="eager"),
        lambda m: ModelEmaV3(torch.compile(m, backend="eager")),  # type: ignore[arg-type]
    ],
    ids=["module", "ema 2", "ema 3", "dp", "swa", "compile", "module of compile"],
)
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = models.mlp()
    expected = gradients_of(model)
    wrapped = wrap(model)
    if not isinstance(wrapped, Wrapper):
        wrapped(X)
    torch.testing.assert_close(gradients_of(wrapped), expected)


def test_a_model_compiled_in_place_is_run_uncompiled() -> None:
    model = models.mlp()
    expected = gradients_of(model)
    model.compile(backend="eager")
    model(X)
    compiled = model._compiled_call_impl
    torch.testing.assert_close(gradients_of(model), expected)
    assert model._compiled_call_impl is compiled


def test_a_compiled_part_does_not_hide_the_head() -> None:
    body, head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 4)
    expected = gradients_of(nn.Sequential(body, head))
    compiled: list[Any] = [torch.compile(part, backend="eager") for part in (body, head)]
    model = nn.Sequential(*compiled)
    model(X)
    torch.testing.assert_close(gradients_of(model), expected)


class Normalised(Wrapper):
    """A model of its own, although all it holds is called `module`."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module((x - 2) / 3) / 4
        return output


def test_a_model_that_calls_its_one_part_module_is_run_as_it_is() -> None:
    model = Normalised(models.mlp()).double()
    expected = looped_gradients(model, nn.CrossEntropyLoss(), X.double(), Y, ["module.2"])
    torch.testing.assert_close(gradients_of(model, x=X.double()), expected)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(gradients_of(compiled, x=X.double()), expected)


def test_a_module_with_more_than_a_child_called_module_is_no_wrapper() -> None:
    model = Wrapper(models.mlp())
    model.scale = nn.Parameter(torch.ones(()))
    assert unwrap(model) is model


def numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1].copy()


class Restless(nn.Module):
    """Changes all it can in a forward pass: buffers, attributes, caches, random state."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.cache: dict[str, Tensor] = {}
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert self.norm.running_mean is not None
        self.cache["x"] = x
        self.last = x
        self.norm.running_mean = self.norm.running_mean + 1  # replaced, not updated
        random.random(), np.random.rand(), torch.rand(1)
        if self.fail and self.calls > 2:
            raise RuntimeError("interrupted")
        return self.fc(self.drop(self.norm(x)))


@pytest.mark.parametrize("fail", [False, True])
def test_model_and_random_state_are_left_as_found(fail: bool) -> None:
    model = Restless()
    model.fail = fail
    model.norm.eval()  # flags differ between modules
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    calls: list[int] = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    buffers = dict(model.named_buffers())
    before = copy.deepcopy(
        {
            "state": model.state_dict(),
            "grads": [p.grad for p in model.parameters()],
            "flags": [(m.training, len(m._forward_hooks)) for m in model.modules()],
            "needs": [p.requires_grad for p in model.parameters()],
            "versions": [p._version for p in model.parameters()],
        }
    )
    names = [sorted(vars(m)) for m in model.modules()]
    parameters = list(model.parameters())
    random_state = random.getstate(), numpy_state(), torch.get_rng_state()
    if fail:
        with pytest.raises(RuntimeError, match="interrupted"):
            gradients_of(model)
    else:
        gradients_of(model)
    after = {
        "state": model.state_dict(),
        "grads": [p.grad for p in model.parameters()],
        "flags": [(m.training, len(m._forward_hooks)) for m in model.modules()],
        "needs": [p.requires_grad for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
    }
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [sorted(vars(m)) for m in model.modules()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert model.cache == {}
    assert random.getstate() == random_state[0]
    assert np.array_equal(numpy_state(), random_state[1])
    assert torch.equal(torch.get_rng_state(), random_state[2])


def test_a_graph_that_the_user_holds_survives() -> None:
    model = models.cnn()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    loss = F.cross_entropy(model(x), y)
    gradients_of(model, x=torch.randn(7, 3, 8, 8))
    loss.backward()


def test_the_pass_uses_no_dropout_and_the_running_statistics() -> None:
    model = models.cnn().double().train()
    x = torch.randn(7, 3, 8, 8).double()
    expected = looped_gradients(model, nn.CrossEntropyLoss(), x, Y, ["6"])
    torch.testing.assert_close(gradients_of(model, x=x), expected)


class Crowded(nn.Module):
    """Runs out of memory above `room` samples at once."""

    sizes: ClassVar[list[int]] = []  # of the batches it saw; not its own, which are restored

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.body = models.mlp()

    def forward(self, x: Tensor, *, shift: Tensor, scale: float = 1.0) -> Tensor:
        self.sizes.append(len(x))
        output: Tensor = self.body(x * scale + shift)
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        return output


@pytest.mark.parametrize("size", [None, 7])
def test_a_batch_that_does_not_fit_is_run_in_halves(
    size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    model, shift = Crowded(room=7), torch.randn(7, 6)
    batches = [
        {"x": X[rows], "shift": shift[rows], "scale": 2.0, "label": Y[rows]}
        for rows in (slice(0, 5), slice(5, 7))
    ]

    def found() -> Tensor:
        criterion = nn.CrossEntropyLoss()
        return dense(last_layer_gradients(model, batches, criterion, size=size)[0])

    whole = found()
    model.sizes.clear()
    model.room = 2
    torch.testing.assert_close(found(), whole)
    # The first looks for the head; the second did not fit; all later ones do.
    assert model.sizes == [2, 5, 2, 2, 1, 2]
    assert "5 samples at once do not fit in memory: going on with 2" in caplog.text
    model.room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
        found()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_are_kept_in_the_storage_dtype(stored: torch.dtype) -> None:
    model, batches, criterion = models.mlp(), [(X[:4], Y[:4]), (X[4:], Y[4:])], F.cross_entropy
    plain = last_layer_gradients(model, batches, criterion)[0]
    kept = last_layer_gradients(model, batches, criterion, storage_dtype=stored)[0]
    for factor, exact in zip(kept.rows(), plain.rows(), strict=True):
        assert torch.equal(factor, exact.to(stored))


def test_half_precision_models_accumulate_in_float32() -> None:
    model = models.mlp()
    exact = gradients_of(model)
    half = gradients_of(copy.deepcopy(model).bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradients_of(model)
    assert autocast.dtype == torch.float32
    torch.testing.assert_close(autocast, exact, rtol=0.05, atol=0.05)


def test_inference_and_no_grad_mode_around_the_pass_make_no_difference() -> None:
    model = models.mlp()
    expected = gradients_of(model)
    with torch.no_grad():
        torch.testing.assert_close(gradients_of(model), expected)


def test_batches_may_hold_several_inputs_or_fields() -> None:
    model = models.TwoInputs()
    ones = torch.ones_like(X)
    expected = gradients_of(model.fc)
    loss = nn.CrossEntropyLoss()
    triple = last_layer_gradients(model, [(X, ones, Y)], loss, target=2)[0]
    fields = last_layer_gradients(model, [{"a": X, "b": ones, "label": Y}], loss)[0]
    torch.testing.assert_close(dense(triple), expected)
    torch.testing.assert_close(dense(fields), expected)


@pytest.mark.parametrize("size", [6, 8])
def test_a_pool_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"each of its {size} samples.*got 7"):
        last_layer_gradients(models.mlp(), [(X, Y)], nn.CrossEntropyLoss(), size=size)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        last_layer_gradients(models.mlp(), [], nn.CrossEntropyLoss())


def test_a_shuffled_pool_is_refused() -> None:
    data = TensorDataset(X, Y)
    shuffled = GradientSource(DataLoader(data, shuffle=True))
    with pytest.raises(ValueError, match=r"`pool` must.*order of the dataset.*shuffle=False"):
        shuffled.read(models.mlp(), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"`validation` must.*order of the dataset"):
        shuffled.over(shuffled.pool, "validation").read(models.mlp(), nn.CrossEntropyLoss())


def test_a_model_must_return_a_tensor() -> None:
    class Tuple(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(TypeError, match=r"`model` must return a tensor.*got tuple"):
        gradients_of(Tuple(6, 4))
