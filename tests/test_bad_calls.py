"""Bad and odd calls of the public API: each gets an error of ours that names the argument."""

from __future__ import annotations

import math
import re
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    STRATEGIES,
    AdaptiveSubsetSampler,
    GradMatch,
    Selector,
)
from tests import models

N = 40
DATA = TensorDataset(torch.randn(N, 6), torch.arange(N) % 4)
NAN, INF = math.nan, math.inf


def selector(**arguments: Any) -> Selector:
    options = {"strategy": GradMatch(), "criterion": nn.CrossEntropyLoss(), **arguments}
    if not {"fraction", "budget", "tolerance"} & set(arguments):
        options["fraction"] = 0.25
    return Selector(options.pop("dataset", DATA), options.pop("strategy"), **options)


def sampler(**arguments: Any) -> AdaptiveSubsetSampler:
    return AdaptiveSubsetSampler(arguments.pop("selector", None) or selector(), **arguments)


def shown(value: Any) -> str:
    """The same in every process: no addresses."""
    return re.sub(r" at 0x\w+", "", repr(value))[:30]


def table(call: Any, cases: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(call, name, value, id=f"{call.__name__}-{name}-{shown(value)}")
        for name, values in cases.items()
        for value in values
    ]


WHOLE = ["3", 2.0, NAN, None, [2], torch.tensor(1.5), torch.ones(2, dtype=torch.int64), True]
NUMBER = ["0.5", NAN, INF, -1, [0.5], True, torch.tensor(0.5)]
SELECTOR: dict[str, list[Any]] = {
    "dataset": [None, 7, iter(range(3))],
    "strategy": [None, "gradmtach", GradMatch, 3, nn.Linear(1, 1)],
    "fraction": [*NUMBER, 0, 1.5, 10],
    "budget": [w for w in WHOLE if w is not None] + [0, -3, 41, 0.5],
    "tolerance": [*NUMBER, 0, 1, 2.0],
    "pool_fraction": [*NUMBER, None, 0, 2],
    "size_varies": ["no", 1, None, True],
    "criterion": ["cross_entropy", nn.CrossEntropyLoss, 3, [nn.CrossEntropyLoss()]],
    "seed": [*WHOLE, -1],
    "source": [3, DATA],
    "weights": [None, "matching", True],
    "groups": [3, "ab", [0.5] * N, [0] * 7, [True] * N, {"a": 1}],
    "size_vary": [True],  # no argument of this name
}
SAMPLER: dict[str, list[Any]] = {
    "selector": [DATA, "gradmatch", GradMatch(), DataLoader(DATA)],
    "every": [w for w in WHOLE if w is not None] + [0, -1, 1.5, INF],
    "epochs": [w for w in WHOLE if w is not None] + [0, -5],
    "warm_start": [*NUMBER, None, 2],
    "weighting": [None, "Loss", True, "none"],
    "seed": [*WHOLE, -1],
    "num_replicas": [*WHOLE, 0, -2],
    "rank": [*WHOLE, -1, 2],
}
EPOCH: dict[str, list[Any]] = {"epoch": [*WHOLE, -1, INF, nn.Linear(1, 1)]}


def make_selector(name: str, value: Any) -> None:
    selector(**{name: value})


def make_sampler(name: str, value: Any) -> None:
    other = {"num_replicas": {"rank": 0}, "rank": {"num_replicas": 2}, "warm_start": {"epochs": 4}}
    sampler(**{name: value, **other.get(name, {})})


def reselect(name: str, value: Any) -> None:
    sampler().maybe_reselect(models.mlp(), value)


def set_epoch(name: str, value: Any) -> None:
    sampler().set_epoch(value)


def select(name: str, value: Any) -> None:
    selector().select(value, 0)


def attach(name: str, value: Any) -> None:
    sampler().attach(value)


CALLS = [
    *table(make_selector, SELECTOR),
    *table(make_sampler, SAMPLER),
    *table(reselect, EPOCH),
    *table(set_epoch, EPOCH),
    *table(select, {"model": [None, "resnet18", models.mlp, lambda x: x]}),
    *table(attach, {"loader": [None, DATA, [1, 2]]}),
]


@pytest.mark.parametrize(("call", "name", "value"), CALLS)
def test_a_bad_argument_is_named(call: Any, name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(name, value)
    message, frames = str(caught.value), traceback.extract_tb(caught.value.__traceback__)
    assert re.search(rf"`({name}|reading)` .*must .*, got ", message, re.DOTALL), message
    assert "adaptive_subset" in Path(frames[-1].filename).parts, frames[-1]


def bad_fields(kind: Any) -> list[Any]:
    """Each field of a dataclass with values that its annotation rules out."""
    calls = []
    for field in fields(kind):
        kinds = str(field.type).split(" | ")
        values = next(
            values
            for part, values in (
                ("bool", ["no", 1, None]),
                ("int", [*WHOLE, 2.5]),
                ("float", [*NUMBER[:3], *NUMBER[4:]]),
                (kinds[0], ["nonsense", 7]),
            )
            if part in kinds
        )
        calls += [(field.name, v) for v in values if v is not None or "None" not in kinds]
    names = [f"{kind.__name__}-{name}-{shown(value)}" for name, value in calls]
    return [pytest.param(kind, *call, id=i) for call, i in zip(calls, names, strict=True)]


@pytest.mark.parametrize(
    ("kind", "name", "value"), [call for kind in STRATEGIES.values() for call in bad_fields(kind)]
)
def test_a_bad_argument_of_a_strategy_is_named(kind: Any, name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"`{name}` must be .*, got "):
        kind(**{name: value})
