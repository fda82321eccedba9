"""Adapters of peft, at the head and below it, against backward calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_subset import GradMatch, Selector
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.sketch import Sketch
from tests.test_last_layer import dense
from tests.test_positions import CAUSAL, LONG, SMALL, TEXT, N, V, hugging_face, labels

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:.*merging LoRA weights won't be possible"),
]

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
VALUE = "base_model.model.model.layers.0.self_attn.v_proj"
HEAD = "base_model.model.lm_head"


def factors(layer: str) -> list[str]:
    return [f"{layer}.lora_A.default", f"{layer}.lora_B.default"]


def language_model(name: str = "LlamaForCausalLM", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return hugging_face(name, **{"vocab_size": V, **LONG, **options})()


def adapted(model: nn.Module, **options: Any) -> Any:
    """In double precision, with factors that are not zero."""
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.1, **options)).double()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def looped(model: Any, inputs: dict[str, Tensor], y: Tensor, loss: Any, heads: list[str]) -> Tensor:
    """(n, d): one backward call a sample, of the weights and biases of `heads`."""
    model, rows = model.eval(), []
    layers = [model.get_submodule(name) for name in heads]
    for i in range(len(y)):
        model.zero_grad()
        loss(model(**{k: v[i : i + 1] for k, v in inputs.items()}).logits, y[i : i + 1]).backward()
        parts = []
        for layer in layers:
            columns = [layer.weight.grad]
            if layer.bias is not None:
                columns.append(layer.bias.grad[:, None])
            parts.append(torch.cat(columns, 1).flatten())
        rows.append(torch.cat(parts))
    model.zero_grad()
    return torch.stack(rows)


#: name → (options of LoRA, head, layers whose gradients are matched)
CASES: dict[str, tuple[dict[str, Any], str | None, list[str]]] = {
    "an adapter at the head": ({"target_modules": ["q_proj", "lm_head"]}, None, factors(HEAD)),
    "with a bias and another scale": (
        {"target_modules": ["lm_head"], "lora_bias": True, "use_rslora": True},
        *(None, factors(HEAD)),
    ),
    "a trained copy of the head": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        *(None, [f"{HEAD}.modules_to_save.default"]),
    ),
    "an adapted layer below a frozen head": (
        {"target_modules": ["q_proj", "v_proj"]},
        *(VALUE, factors(VALUE)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_adapters_equal_a_loop_of_backward_calls(name: str) -> None:
    options, head, heads = CASES[name]
    model, y = adapted(language_model(), **options).train(), labels()
    expected = looped(model, TEXT, y, CAUSAL, heads)
    batches = [
        {key: value[rows] for key, value in {**TEXT, "labels": y}.items()}
        for rows in (slice(0, 2), slice(2, None))
    ]
    found = last_layer_gradients(model.train(), batches, CAUSAL, head=head, sketch=Sketch(4096, 0))
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(dense(found[0]), expected, rtol=1e-9, atol=1e-11)


def test_several_adapted_layers_are_matched_together() -> None:
    model, y = adapted(language_model(), target_modules=["q_proj", "v_proj"]), labels()
    expected = looped(model, TEXT, y, CAUSAL, [*factors(QUERY), *factors(VALUE)])
    batch, sketch = [{**TEXT, "labels": y}], Sketch(4096, 0)
    found = last_layer_gradients(model, batch, CAUSAL, head=[QUERY, VALUE], sketch=sketch)
    torch.testing.assert_close(dense(found[0]), expected, rtol=1e-9, atol=1e-11)


def test_an_adapted_classifier_of_sequences() -> None:
    torch.manual_seed(0)
    small = {"vocab_size": V, "num_labels": 4, **SMALL, "intermediate_size": 16}
    build = hugging_face("BertForSequenceClassification", **small, max_position_embeddings=32)
    model, y = adapted(build(), target_modules=["query", "classifier"]), torch.arange(N) % 4
    heads = factors("base_model.model.classifier")
    expected = looped(model, TEXT, y, nn.CrossEntropyLoss(), heads)
    batch = [{**TEXT, "labels": y}]
    found = last_layer_gradients(model, batch, nn.CrossEntropyLoss())
    torch.testing.assert_close(dense(found[0]), expected, rtol=1e-9, atol=1e-11)


def test_below_a_frozen_head_it_is_the_head_that_stands_for_the_model() -> None:
    """As it does for a model of which all is trained; the same gradients, frozen or not."""
    model, y = adapted(language_model(), target_modules=["q_proj"]), labels()
    batch, sketch = [{**TEXT, "labels": y}], Sketch(4096, 0)
    frozen = last_layer_gradients(model, batch, CAUSAL, sketch=sketch)[0]
    model.get_submodule(HEAD).requires_grad_(True)
    expected = looped(model, TEXT, y, CAUSAL, [HEAD])
    torch.testing.assert_close(dense(frozen), expected, rtol=1e-9, atol=1e-11)


def test_an_adapter_with_more_than_linear_layers_is_refused() -> None:
    batch = [{**TEXT, "labels": labels()}]
    model = adapted(language_model(), target_modules=["lm_head"], use_dora=True)
    with pytest.raises(ValueError, match=r"must be adapted by linear layers.*lora_magnitude_vect"):
        last_layer_gradients(model, batch, CAUSAL)


def test_a_selection_leaves_an_adapted_model_as_it_was() -> None:
    model = adapted(language_model(), target_modules=["q_proj", "lm_head"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    fields = {**TEXT, "labels": labels()}
    items: Any = [{key: value[i] for key, value in fields.items()} for i in range(N)]
    selector = Selector(items, GradMatch(), budget=2, criterion=CAUSAL)
    assert len(selector.select(model, 0)) == 2
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
