"""Which layers are matched, and what is refused, against a loop of backward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.head import Head
from tests import models
from tests.test_last_layer import dense, looped_gradients

N = 7
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(N) % 4
LOSS = nn.CrossEntropyLoss()


def gradients_of(model: nn.Module, head: Head | None = None, x: Tensor = X) -> Tensor:
    return dense(last_layer_gradients(model, [(x[:4], Y[:4]), (x[4:], Y[4:])], LOSS, head=head)[0])


def check(model: nn.Module, heads: list[str], head: Head | None = None) -> None:
    """The gradients are those of `heads`, by a loop of backward calls through the real model."""
    model = model.double()
    expected = looped_gradients(model, LOSS, X, Y, heads)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(gradients_of(model, head), expected, rtol=1e-9, atol=1e-12)


class Rows(nn.Module):
    """Sends other rows through its head than it was given."""

    def __init__(self, enter: Callable[..., Tensor], leave: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)
        self.enter, self.leave = enter, leave

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.fc(self.enter(self.body(x))))


ROWS = {
    "two views": (lambda x: torch.cat([x, -x]), lambda z: z.view(2, -1, 4).mean(0), "8 rows for 4"),
    "views side by side": (
        lambda x: x.repeat_interleave(2, 0),
        lambda z: z.view(-1, 2, 4).mean(1),
        "8 rows for 4",
    ),
    "the first of two views": (
        lambda x: torch.cat([x, -x]),
        lambda z: z[: len(z) // 2],
        "8 rows for 4",
    ),
    "views given back": (lambda x: torch.cat([x, -x]), lambda z: z, "one row for each of the 4"),
    "flipped": (lambda x: x.flip(0), lambda z: z.flip(0), "order of the batch"),
    "rolled": (lambda x: x.roll(1, 0), lambda z: z.roll(-1, 0), "order of the batch"),
    "swapped behind the first two": (
        lambda x: torch.cat([x[:2], x[2:].flip(0)]),
        lambda z: torch.cat([z[:2], z[2:].flip(0)]),
        "order of the batch",
    ),
    "normalised over the batch": (
        lambda x: x,
        lambda z: z - z.mean(0, keepdim=True),
        "order of the batch",
    ),
    "mixed by a little": (lambda x: x, lambda z: z + 1e-3 * z.roll(1, 0), "order of the batch"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_head_that_sees_other_rows_than_the_targets_is_refused(name: str) -> None:
    enter, leave, message = ROWS[name]
    with pytest.raises(ValueError, match=message):
        gradients_of(Rows(enter, leave).double())


def test_rows_are_checked_again_on_a_larger_batch() -> None:
    model = Rows(lambda x: x.flip(0), lambda z: z.flip(0)).double()
    with pytest.raises(ValueError, match="order of the batch"):
        last_layer_gradients(model, [(X[:1], Y[:1]), (X[1:], Y[1:])], LOSS)


def test_rows_that_are_put_in_order_before_the_head_are_fine() -> None:
    model = Rows(lambda x: x.flip(0).flip(0), lambda z: F.softmax(z * 3, 1)).double()
    check(model, ["fc"])


class ScaledHead(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.2 * super().forward(x)


class Residual(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[:, :4]


@pytest.mark.parametrize("kind", [ScaledHead, Residual])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("zero", [False, True])
def test_a_head_that_is_not_quite_linear_is_refused(
    kind: type[nn.Linear], dtype: torch.dtype, zero: bool
) -> None:
    head = kind(2048, 4)
    if zero:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    model = nn.Sequential(nn.Linear(6, 2048), head).to(dtype)
    with pytest.raises(ValueError, match=r"`head` '1' must be a plain linear map"):
        gradients_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_wide_linear_head_passes_in_any_precision(dtype: torch.dtype, autocast: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 8192), nn.Linear(8192, 4)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
        assert gradients_of(model, x=X.to(dtype)).isfinite().all()


class FlatScale(nn.Module):
    """A learnt scale for each class behind the head, kept as a row."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(6, 4), nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale


def test_a_scale_for_each_class_is_no_layer() -> None:
    check(FlatScale((1, 4)), ["fc"])


class Behind(nn.Module):
    """A matrix that is no layer behind the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.mix = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ self.mix


def test_a_given_head_is_taken_without_a_search() -> None:
    with pytest.raises(ValueError, match="Pass head="):
        gradients_of(Behind().double())
    check(Behind(), ["fc"], "fc")
    check(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), ["0"], "0")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("head", ["2", None])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_under_weight_norm_the_normalised_weight_is_matched(norm: Any, head: str | None) -> None:
    model: Any = models.mlp().double()
    norm(model[2])
    plain: Any = models.mlp().double()
    plain[0] = model[0]
    with torch.no_grad():
        for part in model[2].parameters():  # away from where the norm changes nothing
            part.mul_(1.5)
        model(X)  # the older one sets the weight in a forward pass
        plain[2].weight.copy_(model[2].weight)
        plain[2].bias.copy_(model[2].bias)
    expected = looped_gradients(plain, LOSS, X, Y, ["2"])
    torch.testing.assert_close(gradients_of(model, head), expected)


class LoRA(nn.Module):
    """As in peft: a frozen layer and a trained product of rank 2 beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + 0.7 * adapted


class WithClassifier(nn.Sequential):
    def get_classifier(self) -> nn.Module:
        return self[-1]


FACTORS = ["2.lora_A.default", "2.lora_B.default"]


@pytest.mark.parametrize("kind", [nn.Sequential, WithClassifier])
def test_an_adapter_around_the_head_is_matched_factor_by_factor(kind: Any) -> None:
    model = kind(nn.Linear(6, 8), nn.Tanh(), LoRA(nn.Linear(8, 4)))
    for head in (None, "2", FACTORS):
        check(model, FACTORS, head)
    check(model, FACTORS[1:], FACTORS[1])


class Beside(nn.Module):
    """A frozen and a trained layer that are added up, but no adapter: the body is trained too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Linear(6, 8), nn.Linear(8, 4)
        self.frozen = nn.Linear(8, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        return self.frozen(h) + self.other(h)


def test_trained_and_frozen_layers_that_are_added_up_are_no_adapter() -> None:
    with pytest.raises(ValueError, match=r"comes from 2 layers.*Pass head=.*'body', 'other'"):
        gradients_of(Beside().double())
    inner = nn.Sequential(Beside()).double()
    with pytest.raises(ValueError, match=r"trained and frozen layers.*0.other.*0.frozen.*list of"):
        gradients_of(inner, "0")


class Magnitude(LoRA):
    """As in DoRA: an adapter that trains more than its factors."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.magnitude = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.magnitude


@pytest.mark.parametrize("head", [None, "2"])
def test_an_adapter_is_not_matched_by_halves(head: str | None) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Magnitude(nn.Linear(8, 4))).double()
    with pytest.raises(ValueError, match=r"'2' must be adapted by linear layers.*\['magnitude'\]"):
        gradients_of(model, head)


class SavedCopy(nn.Module):
    """As peft's `modules_to_save`: a trained copy runs in place of the frozen original."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.original_module = base.requires_grad_(False)
        copy = nn.Linear(base.in_features, base.out_features)
        self.modules_to_save = nn.ModuleDict({"default": copy})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)


def test_a_trained_copy_of_the_head_is_matched() -> None:
    model = WithClassifier(nn.Linear(6, 8), nn.Tanh(), SavedCopy(nn.Linear(8, 4)))
    check(model, ["2.modules_to_save.default"])


def test_a_model_that_is_frozen_as_a_whole_has_a_head() -> None:
    check(models.mlp().requires_grad_(False), ["2"])  # as an average of weights is


class InsideLoRA(nn.Linear):
    """As in loralib: the factors are parameters of the layer itself, B starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A = nn.Parameter(torch.randn(2, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


def _pruned() -> nn.Module:
    layer = nn.Linear(8, 4)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


class Mask(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.arange(8) % 2)


def _masked_weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(8, 4))
    nn.utils.parametrize.register_parametrization(layer, "weight", Mask())
    return layer


@pytest.mark.parametrize("head", [None, "2"])
@pytest.mark.parametrize(
    ("layer", "parameter"),
    [
        (_pruned, "weight_orig"),
        (_masked_weight_norm, "parametrizations.weight"),
        (lambda: InsideLoRA(8, 4), "lora_A"),
        (lambda: parametrizations.spectral_norm(nn.Linear(8, 4)), "parametrizations.weight"),
        (lambda: parametrizations.orthogonal(nn.Linear(8, 4)), "parametrizations.weight"),
        (lambda: parametrizations.weight_norm(nn.Linear(8, 4), "bias"), "parametrizations.bias"),
    ],
)
def test_a_head_whose_weight_is_made_of_others_is_refused(
    layer: Callable[[], nn.Module], parameter: str, head: str | None
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), layer()).double()
    with pytest.raises(ValueError, match=rf"'2' must train its weight.*{parameter}.*pruned"):
        gradients_of(model, head)


class Averaged(nn.Module):
    """A container that averages two heads, as a classifier of its model."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) + self.right(x)) / 2


def test_a_container_that_averages_heads_stands_for_all_of_them() -> None:
    check(WithClassifier(nn.Linear(6, 6), Averaged()), ["1.left", "1.right.1"])
    check(nn.Sequential(nn.Linear(6, 6), Averaged()), ["1.left", "1.right.1"], "1")


def test_a_container_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    end = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"end in linear layers.*'1'.*LayerNorm.*\['1.0'\]"):
        gradients_of(nn.Sequential(nn.Linear(6, 6), end).double(), "1")


class Tied(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(-x)


def test_heads_that_share_a_weight_are_refused() -> None:
    for head in (["one", "two"], ""):
        with pytest.raises(ValueError, match=r"of their own, got \['one', 'two'\].*sum of theirs"):
            gradients_of(Tied().double(), head)


def test_a_head_must_be_a_module_or_a_name() -> None:
    with pytest.raises(TypeError, match=r"`head` must be a module, its name.*got int.*'0', '2'"):
        gradients_of(models.mlp().double(), [2])  # type: ignore[list-item]


def test_both_heads_of_a_timm_repvit_are_matched() -> None:
    import timm

    model = timm.create_model("repvit_m0_9", num_classes=4, distillation=True).double()
    x = torch.randn(3, 3, 32, 32).double()
    heads = ["head.head.l", "head.head_dist.l"]
    for name in heads:
        nn.init.normal_(model.get_parameter(f"{name}.weight"))
    expected = looped_gradients(model, LOSS, x, Y[:3], heads)
    found = dense(last_layer_gradients(model, [(x, Y[:3])], LOSS)[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Returns(nn.Module):
    """Wraps up its logits."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.other, self.wrap = nn.Linear(6, 4), nn.Linear(6, 4), wrap

    def forward(self, x: Tensor) -> Any:
        self.other(x)
        return self.wrap(self.fc(x))


@pytest.mark.parametrize(
    "wrap", [lambda z: {"logits": z, "loss": None}, lambda z: SimpleNamespace(logits=z)]
)
def test_logits_are_taken_out_of_an_output(wrap: Callable[[Tensor], Any]) -> None:
    model = Returns(wrap).double()
    expected = looped_gradients(model.fc, LOSS, X, Y, [""])
    torch.testing.assert_close(gradients_of(model), expected)


@pytest.mark.parametrize(
    ("wrap", "head", "error", "message"),
    [
        (lambda z: (z, z), None, TypeError, r"`model` must return a tensor.*`logits`, got tuple"),
        (lambda z: {"output": z}, "fc", TypeError, r"`model` must return a tensor.*got dict"),
        (lambda z: {"logits": [z]}, None, TypeError, r"`model` must return a tensor.*got dict"),
        (lambda z: z.detach(), "fc", ValueError, r"\['fc'\] must lead to.*keep no_grad"),
        (lambda z: z.argmax(1), "fc", ValueError, r"\['fc'\] must lead to.*argmax"),
        (lambda z: z, "other", ValueError, r"`head` \['other'\] must lead to the output"),
        (lambda z: z, ["fc", "other"], ValueError, r"`head` 'other' must lead to the output"),
        (lambda z: z.mean(), "fc", ValueError, r"one row for each of the 4.*shape \(\)"),
        (lambda z: z.T, "fc", ValueError, "order of the batch"),  # as many classes as samples
    ],
)
def test_what_is_no_output_is_named(
    wrap: Callable[[Tensor], Any], head: Head | None, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        gradients_of(Returns(wrap).double(), head)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x, TypeError, r"`model` must be a torch.nn.Module, got a function"),
        (nn.Linear, TypeError, r"`model` must be a torch.nn.Module, got the class Linear"),
        (models.mlp().state_dict(), TypeError, r"`model` must be a.*got a OrderedDict"),
        (None, TypeError, r"`model` must be a torch.nn.Module, got a NoneType"),
        (nn.Linear(6, 4, device="meta"), ValueError, r"`model` must hold numbers.*meta device"),
        (nn.LazyLinear(4), ValueError, r"`model` must be initialised.*Run it once"),
    ],
)
def test_what_is_no_model_is_named(model: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        gradients_of(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a Python module.*got a RecursiveScriptModule"):
        gradients_of(torch.jit.script(models.mlp()))


def test_scripted_layers_before_and_behind_the_head_are_fine() -> None:
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Tanh()).double()
    expected = looped_gradients(plain, LOSS, X, Y, ["2"])
    model = nn.Sequential(torch.jit.script(plain[:2]), plain[2], torch.jit.script(plain[3]))
    torch.testing.assert_close(gradients_of(model), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"`head` could not be found.*used outside any layer"):
        gradients_of(nn.Sequential(nn.Linear(6, 8), torch.jit.script(nn.Linear(8, 4))).double())


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        model: Any = fully_shard(models.mlp(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"hold its parameters whole.*FSDP.*DTensor"):
            gradients_of(model)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("names", ["FullyShardedDataParallel", "FlatParameter"])
def test_other_shardings_are_known_by_name(names: str) -> None:
    kind = nn.Parameter if names == "FlatParameter" else nn.Sequential
    named = type(names, (kind,), {})
    model: Any = models.mlp()
    if kind is nn.Parameter:
        model[0].weight = named(torch.zeros(8, 6))
    else:
        model = nn.Sequential(named(model))
    with pytest.raises(ValueError, match=rf"hold its parameters whole.*{names}"):
        gradients_of(model)


def test_parameters_that_zero_3_took_away_are_refused() -> None:
    model: Any = models.mlp()
    model[0].weight = nn.Parameter(torch.empty(0))
    model[0].weight.ds_id = 0
    with pytest.raises(ValueError, match=r"hold its parameters whole.*ds_id"):
        gradients_of(model)


def test_inference_mode_around_the_pass_makes_no_difference() -> None:
    model = models.cnn().double()
    x = torch.randn(N, 3, 8, 8).double()
    expected = gradients_of(model, x=x)
    with torch.inference_mode():
        made_inside = x * 1
        found, targets, weight = last_layer_gradients(model, [(made_inside, Y)], LOSS)
    assert weight is not None
    for tensor in (targets, weight, *found.rows()):
        assert not tensor.is_inference()
    torch.testing.assert_close(dense(found), expected)


def test_the_loss_and_its_gradient_stay_out_of_autocast() -> None:
    seen = []

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        mixed = output @ torch.eye(4)  # autocast would round it
        seen.append((output.dtype, mixed.dtype))
        return F.cross_entropy(mixed, target, reduction="none").mean()

    model, x = models.mlp(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = last_layer_gradients(model, [(x, Y)], criterion)[0]
        logits = model(x)
    assert logits.dtype == torch.bfloat16  # the model itself runs as it trains
    assert set(seen) == {(torch.float32, torch.float32)}
    expected = logits.float().softmax(1) - F.one_hot(Y, 4)
    torch.testing.assert_close(found.rows()[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("criterion", [LOSS, lambda o, t: LOSS(o, t)], ids=["known", "unknown"])
def test_the_slopes_of_a_half_model_are_not_rounded(dtype: torch.dtype, criterion: Any) -> None:
    model, x = models.mlp().to(dtype), X.to(dtype)
    batches = [(x[:5], Y[:5]), (x[5:], Y[5:])]
    found = last_layer_gradients(model, batches, criterion)[0].rows()[0]
    logits = torch.cat([model(part) for part, _ in batches]).detach()
    expected = logits.float().softmax(1) - F.one_hot(Y, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_cast_with_a_half_model_goes_with_its_wider_outputs(dtype: torch.dtype) -> None:
    model, x = models.mlp().to(dtype), X.to(dtype)
    real, shares = torch.rand(N, 4).to(dtype), torch.tensor([1.0, 0.5, 2.0, 0.25])
    known: list[tuple[nn.Module, Tensor]] = [
        (nn.CrossEntropyLoss(weight=shares), Y),
        (nn.BCEWithLogitsLoss(pos_weight=shares), real),
        (nn.HuberLoss(), real),
    ]
    for criterion, target in known:
        found = last_layer_gradients(model, [(x, target)], criterion.to(dtype))[0].rows()[0]
        logits = model(x).detach().float().requires_grad_()
        wide = target.float() if target.is_floating_point() else target
        vars(criterion)["reduction"] = "sum"
        criterion.float()(logits, wide).backward()
        torch.testing.assert_close(found, logits.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (models.Scaled(), None),
        (models.TwoHeads(), ["head", "head_dist"]),
        (Behind(), "fc"),
        (nn.Sequential(nn.Linear(6, 8), LoRA(nn.Linear(8, 4))), None),
    ],
    ids=["scaled", "heads", "matrix", "adapter"],
)
def test_a_half_model_goes_on_behind_its_head_in_its_own_dtype(
    model: nn.Module, head: Head | None
) -> None:
    exact = gradients_of(model, head, X.float())
    half = gradients_of(copy.deepcopy(model).bfloat16(), head, X.float())
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.1 * exact.norm()


def test_a_tail_of_matrices_runs_under_autocast() -> None:
    model, x = Behind(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients_of(model, "fc", x)
    torch.testing.assert_close(found, gradients_of(model, "fc", x), rtol=0.05, atol=0.05)
