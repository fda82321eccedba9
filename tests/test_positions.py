"""Heads that run at many positions of a sample: tokens and pixels, against backward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from adaptive_subset import (
    CRAIG,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    PixelLoss,
    Selector,
    TokenLoss,
    WeightedLoss,
    WeightedTarget,
)
from adaptive_subset.gradients import DenseGradients, GradientSource
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.model_io import logits_of
from adaptive_subset.gradients.sketch import Sketch, SketchedGradients, TensorSketch
from tests.test_last_layer import dense

N, T, V = 5, 6, 11


def own_head(model: nn.Module, name: str) -> nn.Module:
    """A copy whose head shares its weight with no other layer: what the head alone adds."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    head: Any = model.get_submodule(name)
    head.weight = nn.Parameter(head.weight.detach().clone())
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach().clone())
    return model


def looped(model: nn.Module, inputs: dict[str, Tensor], y: Tensor, loss: Any, name: str) -> Tensor:
    """(n, d): one backward call a sample through the loss added up over its positions."""
    model, rows = own_head(model, name), []
    head: Any = model.get_submodule(name)
    for i in range(len(y)):
        model.zero_grad()
        one = {key: value[i : i + 1] for key, value in inputs.items()}
        output = model(**one) if "x" not in one else model(one["x"])
        loss(logits_of(output), y[i : i + 1]).backward()
        matrix = head.weight.grad.flatten(1)
        if head.bias is not None:
            matrix = torch.cat([matrix, head.bias.grad[:, None]], 1)
        rows.append(matrix.flatten())
    return torch.stack(rows)


def tokens(*shape: int, high: int = V) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    y = tokens(N, T)
    y[1, 3:] = y[2, :4] = y[4, 2] = -100
    return y


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LONG: dict[str, Any] = SMALL | {"intermediate_size": 16, "max_position_embeddings": 32}
TEXT = {"input_ids": tokens(N, T), "attention_mask": torch.ones(N, T, dtype=torch.int64)}
CAUSAL, TOKENS = TokenLoss("sum", shift=True), TokenLoss("sum", label_smoothing=0.1)
IMAGES = torch.randn(N, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


def pixels() -> Tensor:
    y = tokens(N, 32, 32, high=4)
    y[:, :5] = -100
    return y


def hugging_face(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, name)
        return kind(kind.config_class(**options))

    return build


def segmenter(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=4
        )

    return build


#: name → (model, inputs, targets, loss of one sample, name of the head)
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], Tensor, Any, str]] = {
    "GPT-2, tied": (
        hugging_face("GPT2LMHeadModel", vocab_size=V, n_embd=8, n_layer=1, n_head=2),
        *(TEXT, labels(), CAUSAL, "lm_head"),
    ),
    "Llama": (
        hugging_face("LlamaForCausalLM", vocab_size=V, **LONG),
        *(TEXT, labels(), CAUSAL, "lm_head"),
    ),
    "Qwen2": (
        hugging_face(
            "Qwen2ForCausalLM",
            vocab_size=V,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            **LONG,
        ),
        *(TEXT, labels(), CAUSAL, "lm_head"),
    ),
    "Gemma 2, capped logits": (
        hugging_face(
            "Gemma2ForCausalLM",
            **{"vocab_size": V, "head_dim": 4, "num_key_value_heads": 1},
            final_logit_softcapping=2.0,
            **LONG,
        ),
        *(TEXT, labels(), CAUSAL, "lm_head"),
    ),
    "BART, a bias behind the head": (
        hugging_face(
            "BartForConditionalGeneration",
            **{"vocab_size": V, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
            **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32},
            **{"bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": 2},
        ),
        {**TEXT, "decoder_input_ids": tokens(N, T)},
        *(labels(), TOKENS, "lm_head"),
    ),
    "BERT, masked": (
        hugging_face("BertForMaskedLM", vocab_size=V, **LONG),
        *(TEXT, labels(), TOKENS, "cls.predictions.decoder"),
    ),
    "BERT, tokens": (
        hugging_face("BertForTokenClassification", vocab_size=V, num_labels=V, **LONG),
        *(TEXT, labels(), TOKENS, "classifier"),
    ),
    "BERT, sequences": (
        hugging_face("BertForSequenceClassification", vocab_size=V, num_labels=4, **LONG),
        *(TEXT, torch.arange(N) % 4, nn.CrossEntropyLoss(), "classifier"),
    ),
    "T5": (
        hugging_face(
            "T5ForConditionalGeneration",
            **{"vocab_size": V, "d_model": 8, "d_kv": 4, "d_ff": 16},
            **{"num_layers": 1, "num_heads": 2},
            decoder_start_token_id=0,
        ),
        {**TEXT, "decoder_input_ids": tokens(N, T)},
        *(labels(), TOKENS, "lm_head"),
    ),
    "ViT": (
        hugging_face(
            "ViTForImageClassification",
            **SMALL,
            **{"intermediate_size": 16, "image_size": 32, "patch_size": 16, "num_labels": 4},
        ),
        {"pixel_values": IMAGES},
        *(torch.arange(N) % 4, nn.CrossEntropyLoss(), "classifier"),
    ),
    "SegFormer": (
        hugging_face(
            "SegformerForSemanticSegmentation",
            **{"num_labels": 4, "hidden_sizes": [4, 4, 8, 8], "depths": [1] * 4},
            **{"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8},
        ),
        {"pixel_values": IMAGES},
        *(pixels(), PixelLoss("sum"), "decode_head.classifier"),
    ),
    "torchvision FCN": (
        segmenter("fcn_resnet50"),
        {"x": IMAGES},
        *(pixels(), PixelLoss("sum"), "classifier.4"),
    ),
    "torchvision DeepLabV3": (
        segmenter("deeplabv3_mobilenet_v3_large"),
        {"x": IMAGES},
        *(pixels(), nn.CrossEntropyLoss(reduction="sum"), "classifier.4"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_a_loop_of_backward_calls(name: str) -> None:
    build, inputs, y, loss, head = MODELS[name]
    torch.manual_seed(0)
    model = build().double()
    for parameter in model.parameters():  # what starts at zero would hide mistakes
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    expected = looped(model, inputs, y, loss, head)
    rows = [slice(0, 2), slice(2, None)]
    if "x" in inputs:
        batches: list[Any] = [(inputs["x"][some], y[some]) for some in rows]
    else:
        batches = [{k: v[some] for k, v in inputs.items()} | {"labels": y[some]} for some in rows]
    found, _, weight = last_layer_gradients(model, batches, loss, sketch=Sketch(4096, 0))
    assert expected.abs().max() > 1e-6
    assert (weight is None) == (y.ndim > 1)
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-11)
    if y.ndim > 1:
        assert isinstance(found, DenseGradients)
        assert not found.is_estimate


class Tagger(nn.Module):
    def __init__(self, classes: int = V) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(V, 8), nn.Linear(8, 12)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x).cumsum(1)).tanh())


def tagger(classes: int = V) -> Tagger:
    torch.manual_seed(0)
    return Tagger(classes).double()


def test_batches_may_be_padded_to_lengths_of_their_own() -> None:
    x, y = tokens(N, T), labels()
    y[:2, 3:] = -100
    batches = [(x[:2, :3], y[:2, :3]), (x[2:], y[2:])]
    found, targets, _ = last_layer_gradients(tagger(), batches, TokenLoss())
    expected = looped(tagger(), {"x": x}, y, TokenLoss("sum"), "head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-12)
    assert targets.shape == (N, 0)


def test_a_first_batch_of_one_position_is_refused_where_others_follow() -> None:
    x, y = tokens(N, T), labels()
    with pytest.raises(ValueError, match="Pad the first batch to more than one position"):
        last_layer_gradients(tagger(), [(x[:2, :1], y[:2, :1]), (x[2:], y[2:])], TokenLoss())


def test_half_precision_is_refused() -> None:
    batch = [(tokens(N, T), labels())]
    with pytest.raises(ValueError, match="`storage_dtype` must be left out for a head that runs"):
        last_layer_gradients(tagger(), batch, TokenLoss(), storage_dtype=torch.float16)


def test_large_outputs_are_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_subset.gradients.backward._NUMBERS", 2 * T * V + 1)
    seen: list[int] = []
    model = tagger()
    model.head.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    found = last_layer_gradients(model, [(tokens(N, T), labels())], TokenLoss())[0]
    assert seen == [2, 4, 2, 2, 1]  # the first two find and try the head
    expected = looped(tagger(), {"x": tokens(N, T)}, labels(), TokenLoss("sum"), "head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-12)


# Slopes by their formula


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean-per-sample", "none"])
def test_slopes_of_tokens_are_those_of_autograd(
    reduction: Any, smoothing: float, weighted: bool, shift: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, T, V, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.rand(V, dtype=torch.float64, generator=generator) if weighted else None
    loss = TokenLoss(reduction, shift=shift, label_smoothing=smoothing, weight=weight)
    loss.terms(logits, labels())[0].sum().backward()
    assert logits.grad is not None
    slopes = loss.slopes(logits, labels())
    assert slopes.shape == logits.shape
    torch.testing.assert_close(slopes[:], logits.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slopes[1:3, 2:], logits.grad[1:3, 2:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_slopes_of_half_logits_take_the_weights_as_they_are(dtype: torch.dtype) -> None:
    """Their sum over many classes has no room in float16, and no digits in bfloat16."""
    classes = 70_001
    logits, y = torch.zeros(1, 2, classes, dtype=dtype), torch.zeros(1, 2, dtype=torch.int64)
    loss = TokenLoss("sum", label_smoothing=0.1, weight=torch.full((classes,), 1.1))
    slopes = loss.slopes(logits, y)[:].double()
    expected = logits.double().requires_grad_()
    loss.terms(expected, y)[0].sum().backward()
    torch.testing.assert_close(slopes, expected.grad, rtol=1e-4, atol=1e-9)


class Behind(nn.Module):
    """A tagger that does something with the output of its head."""

    def __init__(self, change: Callable[[Tensor], Tensor], classes: int = V) -> None:
        super().__init__()
        self.model, self.change = tagger(classes), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 2,
        lambda z: z.mul_(2),
        lambda z: 3 * (z / 3).tanh(),
        lambda z: z.flip(2),
        lambda z: z.view_as(z),
        lambda z: z,
    ],
    ids=["scaled", "in place", "capped", "turned", "a view", "as it is"],
)
def test_what_a_model_does_behind_its_head_is_in_the_gradient(
    change: Callable[[Tensor], Tensor],
) -> None:
    x, y, model = tokens(N, T), labels(), Behind(change)
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = last_layer_gradients(model, batches, TokenLoss(), head="model.head")[0]
    expected = looped(model, {"x": x}, y, TokenLoss("sum"), "model.head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-12)


def test_a_model_that_writes_to_its_input_is_given_it_once() -> None:
    """What it does behind its head shows in the first batch, which is then run once more."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, V)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.head(x.mul_(3))

    torch.manual_seed(0)
    model, x, y = Writing().double(), torch.randn(N, T, 4).double(), labels()
    found = GradientSource(TensorDataset(x, y)).read(model, TokenLoss()).gradients
    expected = looped(model, {"x": x.clone()}, y, TokenLoss("sum"), "head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-12)


def test_channels_of_a_convolution_may_be_what_a_loss_takes_for_positions() -> None:
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(V, 4), nn.Conv1d(4, T, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mT)  # (n, T, T)

    torch.manual_seed(0)
    model, x, y = Convolved().double(), tokens(N, T), tokens(N, T, high=T)
    found = last_layer_gradients(model, [(x, y)], TokenLoss())[0]
    expected = looped(model, {"x": x}, y, TokenLoss("sum"), "head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-9, atol=1e-12)


def test_a_loss_with_a_hook_is_differentiated() -> None:
    x, y, loss = tokens(N, T), labels(), TokenLoss("sum")
    loss.register_forward_hook(lambda _, __, value: 2 * value)
    found = last_layer_gradients(tagger(), [(x, y)], loss)[0]
    expected = 2 * looped(tagger(), {"x": x}, y, TokenLoss("sum"), "head")
    torch.testing.assert_close(dense(found), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sketch", [100, 4096])
def test_autocast_and_half_precision_round_the_model_alone(sketch: int) -> None:
    x, y, model = tokens(N, T), labels(), tagger().float()
    batch, held = [(x, y)], Sketch(sketch, 0)
    exact = last_layer_gradients(model, batch, TokenLoss(), sketch=held)[0].rows()[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = last_layer_gradients(model, batch, TokenLoss(), sketch=held)[0].rows()[0]
    half = last_layer_gradients(model.bfloat16(), batch, TokenLoss(), sketch=held)[0].rows()[0]
    for rows in (cast, half):
        assert rows.dtype == torch.float32
        assert not torch.equal(rows, rows.bfloat16().float())
        assert (rows - exact).norm() < 0.03 * exact.norm()


class Large(TorchDispatchMode):
    """Notes the operations that make as many numbers as there are logits."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.seen = numbers, set[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if any(t.numel() >= self.numbers for t in made):
            self.seen.add(function.overloadpacket.__name__)
        return result


def test_nothing_but_the_logits_has_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_subset.gradients.token_slopes._CACHED", 1)
    x, classes = tokens(16, T), 500
    with Large(15 * T * classes) as large:
        last_layer_gradients(tagger(classes), [(x, x)], TokenLoss(), sketch=Sketch(100, 0))
    assert "addmm" in large.seen
    assert large.seen <= {"addmm", "view", "_unsafe_view", "detach", "alias"}


# The sketch


def naive_sketch(sketch: TensorSketch, matrices: Tensor) -> Tensor:
    """(n, m) of (n, C, p), entry by entry."""
    out = torch.zeros(len(matrices), sketch.size, dtype=matrices.dtype)
    for c in range(matrices.shape[1]):
        turn = sketch._turns[c // sketch.size]
        for j in range(matrices.shape[2]):
            place = (c + turn + int(sketch._columns[j])) % sketch.size
            out[:, place] += matrices[:, c, j] * sketch._row_signs[c] * sketch._column_signs[j]
    return out


@pytest.mark.parametrize(("positions", "rows", "columns"), [(1, 23, 5), (4, 23, 5), (9, 3, 9)])
def test_a_sketch_is_the_same_by_both_ways(
    positions: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(3, positions, rows, dtype=torch.float64, generator=generator)
    h = torch.randn(3, positions, columns, dtype=torch.float64, generator=generator)
    sketch = TensorSketch(rows, columns, 7, torch.Generator().manual_seed(1), delta)
    expected = naive_sketch(sketch, delta.mT @ h)
    torch.testing.assert_close(sketch(delta, h), expected)
    for numbers in (1, 2 * rows, 7 * rows, 100 * rows):  # a position, two, some, all samples
        monkeypatch.setattr("adaptive_subset.gradients.token_slopes._CACHED", numbers)
        torch.testing.assert_close(sketch._convolved(delta, h), expected)


def test_inner_products_of_sketches_are_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 3, 20, dtype=torch.float64, generator=generator)
    h = torch.randn(4, 3, 6, dtype=torch.float64, generator=generator)
    matrix = (matrices.mT @ h).flatten(1)
    exact, draws, m = matrix @ matrix.T, 4000, 8
    total = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(draws):
        rows = TensorSketch(20, 6, m, generator, matrices)(matrices, h)
        total += rows @ rows.T
    error = (total / draws - exact).abs().max() / exact.abs().max()
    assert error < 4 * (2 / m / draws) ** 0.5 * 2


def test_long_gradients_are_sketched_and_said_to_be() -> None:
    x, y = tokens(N, T), labels()
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    exact = last_layer_gradients(tagger(), batches, TokenLoss())[0]
    first, again, other = (
        last_layer_gradients(tagger(), batches, TokenLoss(), sketch=Sketch(100, seed))[0]
        for seed in (3, 3, 4)
    )
    assert isinstance(first, SketchedGradients)
    assert first.dim == 100 < exact.dim == V * 13
    assert first.is_estimate
    assert first.take(slice(2)).is_estimate
    assert first.with_rows(first.rows()).is_estimate
    assert torch.equal(first.matrix, again.matrix)  # type: ignore[union-attr]
    assert not torch.equal(first.matrix, other.matrix)  # type: ignore[union-attr]
    sketch = naive_sketch(
        TensorSketch(V, 13, 100, _generator(3), first.matrix), dense(exact).view(N, V, 13)
    )
    torch.testing.assert_close(first.matrix, sketch)


def _generator(seed: int) -> torch.Generator:
    from adaptive_subset.randomness import Purpose, seeded

    return seeded(seed, 0, Purpose.SKETCH, 0)


# Losses


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean-per-sample"])
def test_the_weighted_gradient_of_tokens_is_a_sum_over_samples(
    reduction: Any, smoothing: float, shift: bool
) -> None:
    model, x, y = tagger(), tokens(N, T), labels()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5, 1.0])
    loss = TokenLoss(reduction, shift=shift, label_smoothing=smoothing)
    WeightedLoss(loss)(model(x), WeightedTarget(y, weights)).backward()
    found = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    counted = (y[:, 1:] if shift else y) != -100
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(N):
        model.zero_grad()
        logits, own = model(x[i : i + 1])[0], y[i]
        if shift:
            logits, own = logits[:-1], own[1:]
        some = counted[i]
        each = nn.functional.cross_entropy(
            logits[some], own[some], label_smoothing=smoothing, reduction="sum"
        )
        divisors = {
            "mean": counted.sum(),
            "sum": torch.tensor(1),
            "mean-per-sample": N * some.sum(),
        }
        (weights[i].double() * each / divisors[reduction]).backward()
        for total, p in zip(expected, model.parameters(), strict=True):
            total += p.grad  # type: ignore[arg-type]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_mean_is_that_of_torch_and_of_hugging_face() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, y = torch.randn(N, T, V), labels()
    found = TokenLoss(shift=True)(logits, y)
    torch.testing.assert_close(found, ForCausalLMLoss(logits, y, V))
    plain = nn.functional.cross_entropy(logits.mT, y, label_smoothing=0.1)
    torch.testing.assert_close(TokenLoss(label_smoothing=0.1)(logits, y), plain)
    assert int(TokenLoss(shift=True).count(y)) == int((y[:, 1:] != -100).sum())


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean-per-sample"])
def test_batches_without_labels_lose_nothing(reduction: Any) -> None:
    assert float(TokenLoss(reduction)(torch.randn(2, 3, V), torch.full((2, 3), -100))) == 0


@pytest.mark.parametrize("shift", [False, True])
def test_labels_in_bytes_are_labels(shift: bool) -> None:
    """Among them −100, which is ignored, is 156."""
    logits, y = torch.randn(2, 4, 200), torch.tensor([[156, 0, 7, 156], [3, 156, 199, 2]])
    loss = TokenLoss(shift=shift)
    torch.testing.assert_close(loss(logits, y.byte()), loss(logits, y))
    torch.testing.assert_close(loss.slopes(logits, y.byte())[:], loss.slopes(logits, y)[:])
    assert loss.count(y.byte()) == 2 * (4 - shift)
    images, masks = logits.view(2, 200, 2, 2), y.view(2, 2, 2)
    edged = PixelLoss(ignore_index=199)
    torch.testing.assert_close(edged(images, masks.byte()), edged(images, masks))


def test_pixels_of_another_size_are_brought_to_that_of_the_labels() -> None:
    logits, y = torch.randn(2, 4, 8, 8, dtype=torch.float64), pixels()[:2]
    large = nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    expected = nn.functional.cross_entropy(large, y)
    torch.testing.assert_close(PixelLoss()(logits, y), expected)
    turned = PixelLoss()(logits, y.mT.contiguous().mT)  # strides are no matter
    torch.testing.assert_close(turned, expected)
    assert PixelLoss("sum")(logits[:0], y[:0]) == TokenLoss("sum")(logits[:0, 0], y[:0, 0, :8]) == 0
    weight = torch.tensor([1.0, 2, 3, 4]).double()
    found = PixelLoss("sum", weight=weight)(logits, y)
    torch.testing.assert_close(
        found, nn.functional.cross_entropy(large, y, weight, reduction="sum")
    )


def test_losses_say_what_they_take() -> None:
    with pytest.raises(ValueError, match=r"must be logits \(n, T, C\) and labels \(n, T\), got"):
        TokenLoss()(torch.randn(2, V, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be logits \(n, C, h, w\) and labels"):
        PixelLoss()(torch.randn(2, V, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'`reduction` must be one of "mean", "sum".*got \'max\''):
        TokenLoss("max")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_weighted", [True, False])
def test_the_object_that_holds_the_logits_is_told_from_them(is_weighted: bool) -> None:
    output: Any = {"out": torch.randn(2, 4, 8, 8)}  # as torchvision's segmentation models return
    y: Any = torch.zeros(2, 8, 8, dtype=torch.int64)
    target: Any = WeightedTarget(y, torch.ones(2)) if is_weighted else y
    loss = WeightedLoss(PixelLoss()) if is_weighted else PixelLoss()
    with pytest.raises(TypeError, match=r"`output` must be the logits, a tensor, got dict"):
        loss(output, target)


# Selections


@pytest.mark.parametrize("sketch", [8192, 64])
@pytest.mark.parametrize(
    "strategy", [GradMatch(), GradMatchPB(batch_size=4), CRAIG(), GradientNorm()]
)
def test_strategies_choose_samples_of_tokens(strategy: Any, sketch: int) -> None:
    x = tokens(40, T)
    data = list(zip(x, x.flip(1), strict=True))
    selector = Selector(data, strategy, budget=12, criterion=TokenLoss(), sketch=sketch)
    selection = selector.select(tagger(), epoch=0)
    assert len(selection) == 12
    assert selection.is_estimate == (sketch == 64)
    assert ("(estimates)" in str(selection)) == selection.is_estimate
    if not selection.is_estimate:
        exact = looped(tagger(), {"x": x}, x.flip(1), TokenLoss("sum"), "head")
        matched = selection.weights.double() @ exact[selection.indices]
        error = (matched - exact.sum(0)).norm() / exact.sum(0).norm()
        assert selection.relative_error == pytest.approx(float(error), rel=1e-4)


def test_a_sketch_has_at_least_one_number() -> None:
    data: Any = [(torch.ones(2), 0)]
    with pytest.raises(ValueError, match="`sketch` must be at least 1, got 0"):
        Selector(data, "gradmatch", budget=1, sketch=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_causal_model_trains_by_the_trainers_divisor(tmp_path: Any, accumulate: int) -> None:
    """With all samples chosen at weight one it is the Trainer on the model's own loss."""
    from adaptive_subset.integrations.transformers_trainer import SubsetTrainer
    from transformers import Trainer, TrainingArguments

    from adaptive_subset import FreshRandom

    ids = tokens(8, T)
    items = [{"input_ids": row, "labels": own} for row, own in zip(ids, ids.clone(), strict=True)]
    items[0]["labels"][2:] = -100
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    small = {"vocab_size": V, "n_embd": 8, "n_layer": 1, "n_head": 2}
    build = hugging_face("GPT2LMHeadModel", **small, **dropout)
    plain: Any = {"use_cpu": True, "report_to": "none", "save_strategy": "no"}

    def trained(kind: Any, **options: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = build().double()
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=8 // accumulate,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=0.0,
            **plain,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = kind(
            model, arguments, train_dataset=items, optimizers=(optimizer, constant), **options
        )
        trainer.train()
        return [p.detach() for p in model.parameters()]

    ours = trained(
        SubsetTrainer, criterion=TokenLoss(shift=True), strategy=FreshRandom(), fraction=1.0
    )
    for found, expected in zip(ours, trained(Trainer), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_trainer_takes_a_mean_over_tokens() -> None:
    from adaptive_subset.integrations.transformers_trainer import _check_arguments

    with pytest.raises(ValueError, match=r'must be a TokenLoss\("mean"\).*got "sum"'):
        _check_arguments(None, [0], TokenLoss("sum"))
