"""Tagged indices, targets and datasets, apart from any loop."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from adaptive_subset import TaggedDataset, TaggedIndex, WeightedTarget
from adaptive_subset.items import split_batch

INDEX = TaggedIndex(1, 0.25)
Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Item:
    x: int
    label: Any


class Thing:
    def __init__(self, x: int, label: Any) -> None:
        self.x, self.label = x, label


def test_an_index_is_an_int_and_survives_pickling() -> None:
    assert [10, 20, 30][INDEX] == 20
    for twin in (pickle.loads(pickle.dumps(INDEX)), copy.deepcopy(INDEX)):
        assert (twin, twin.weight, type(twin)) == (1, 0.25, TaggedIndex)


def weight_of(item: Any, target: Any) -> float:
    assert isinstance(target, WeightedTarget)
    assert isinstance(target.weights, float)
    return target.weights


@pytest.mark.parametrize(
    ("item", "key", "read"),
    [
        ((0, 5), None, lambda i: i[1]),
        ([0, 5], None, lambda i: i[1]),
        (Pair(0, 5), None, lambda i: i.y),
        ((5, 0), 0, lambda i: i[0]),
        ((0, 5, 7), 1, lambda i: i[1]),
        ((0, 7, 5), -1, lambda i: i[2]),
        ({"x": 0, "label": 5}, None, lambda i: i["label"]),
        ({"x": 0, "digit": 5}, "digit", lambda i: i["digit"]),
        (Item(0, 5), None, lambda i: i.label),
        (Thing(0, 5), None, lambda i: i.label),
        (Thing(0, 5), "x", lambda i: i.x),
    ],
)
def test_items_of_any_kind_are_tagged_where_their_target_is(item: Any, key: Any, read: Any) -> None:
    before = read(item)
    data = TaggedDataset([item, item], key)
    assert data[0] is item
    tagged = data[INDEX]
    assert type(tagged) is type(item)
    assert int(read(tagged)) == before
    assert weight_of(tagged, read(tagged)) == 0.25
    assert read(item) == before  # the dataset's own item is as it was
    assert not isinstance(read(item), WeightedTarget)


@pytest.mark.parametrize(
    "target",
    [
        5,
        True,
        1.5,
        np.int64(5),
        np.float32(1.5),
        np.array([0.25, 0.75]),
        torch.tensor(5),
        torch.tensor([0.25, 0.75]),
    ],
)
def test_targets_collate_as_they_did_without_tags(target: Any) -> None:
    data = TaggedDataset([(0, target)] * 2)
    plain = default_collate([data[0], data[1]])[1]
    tagged = default_collate([data[TaggedIndex(0, 0.5)], data[TaggedIndex(1, 1.5)]])[1]
    assert torch.equal(tagged.plain(), plain)
    assert tagged.plain().dtype == plain.dtype
    assert tagged.weights.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("item", "key", "message"),
    [
        ((0, 1, 2), None, r"`target` must say where.*target=None for a tuple of 3"),
        ((0, 1), 2, r"target=2 for a tuple of 2"),
        ({"a": 1}, None, r"for a dict with \['a'\]"),
        ({"label": 1, "y": 2}, None, r"a dict with \['label', 'y'\]"),
        ({"label": 1}, "name", r"target='name'"),
        (3, None, r"target=None for a int"),
        ((0, "cat"), None, r"`target` must lead to a number.*got str at 1"),
        ((0, None), None, r"got NoneType"),
        ((0, {"boxes": 1}), None, r"got dict"),
    ],
)
def test_a_target_that_cannot_be_tagged_raises(item: Any, key: Any, message: str) -> None:
    data = TaggedDataset([item, item], key)
    with pytest.raises(TypeError, match=message):
        data[INDEX]


class Fetching:
    classes = ("a", "b")

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index

    def __getitems__(self, indices: list[int]) -> list[tuple[int, int]]:
        self.calls.append(indices)
        assert all(type(index) is int for index in indices)
        return [self[index] for index in indices]


def test_batched_fetching_and_attributes_are_those_of_the_dataset() -> None:
    inner = Fetching()
    data = TaggedDataset(inner)
    items = data.__getitems__([TaggedIndex(2, 0.5), 3])
    assert inner.calls == [[2, 3]]
    assert weight_of(items[0], items[0][1]) == 0.5
    assert items[1] == (3, 3)
    assert (len(data), data.classes) == (4, ("a", "b"))
    with pytest.raises(AttributeError, match="nothing"):
        data.nothing  # noqa: B018
    assert pickle.loads(pickle.dumps(data)).classes == ("a", "b")


def batch() -> WeightedTarget:
    return WeightedTarget(torch.arange(4), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.arange(4))


@pytest.mark.parametrize(
    "move",
    [
        lambda t: t[[3, 1]],
        lambda t: t.flip(0),
        lambda t: t.repeat(2),
        lambda t: t.chunk(2)[1],
        lambda t: torch.cat([t, t[1:3]]),
        lambda t: torch.stack([t[2], t[0]]),
        lambda t: F.one_hot(t),
        lambda t: t.float() + 1,
        lambda t: t.clone(),
    ],
)
def test_indices_move_with_the_weights(move: Any) -> None:
    targets: Any = batch()
    moved = move(targets)
    assert torch.equal(targets.weights[moved.sample_indices], moved.weights)


def test_a_target_without_an_index() -> None:
    several = WeightedTarget(torch.zeros(3), torch.ones(3)).sample_indices
    assert isinstance(several, Tensor)
    assert several.tolist() == [-1, -1, -1]
    assert WeightedTarget(torch.zeros(()), 1.0).sample_indices == -1


def test_loaded_targets_know_their_indices() -> None:
    data = TaggedDataset(TensorDataset(torch.arange(6.0), torch.arange(6) % 2))
    order = [TaggedIndex(i, 1.0 + i) for i in (4, 0, 5, 2)]
    for x, y in DataLoader(data, 2, sampler=order):
        assert torch.equal(y.sample_indices, x.long())
        assert torch.equal(y.weights, 1 + x)


@pytest.mark.parametrize(
    "twin", [lambda t: pickle.loads(pickle.dumps(t)), copy.copy, copy.deepcopy]
)
def test_copies_keep_their_weights(twin: Any) -> None:
    targets: Any = batch()
    again: Any = twin(targets)
    assert torch.equal(again.plain(), torch.arange(4))
    assert torch.equal(again.weights, targets.weights)
    assert torch.equal(again.sample_indices, targets.sample_indices)
    assert isinstance(again, WeightedTarget)


def test_ordinary_uses_see_an_ordinary_tensor() -> None:
    targets = batch()
    for result in (
        targets == torch.arange(4),
        targets.max(),
        targets.sum(),
        targets.float().mean(),
    ):
        assert type(result) is Tensor
    assert targets.tolist() == [0, 1, 2, 3]
    assert targets.numpy().sum() == 6
    assert "[0, 1, 2, 3]" in repr(targets)
    assert int(targets[2]) == 2
    assert (torch.arange(4) == targets).all()
    assert [int(t) for t in targets] == [0, 1, 2, 3]


def test_soft_targets_keep_one_weight_a_row() -> None:
    soft: Any = WeightedTarget(torch.rand(4, 3), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert torch.equal(soft[:, 1].weights, soft.weights)
    assert torch.equal(soft[[2, 0]].weights, soft.weights[[2, 0]])
    assert torch.equal(soft.flip(1).weights, soft.weights)
    assert torch.equal(soft.flip(0).weights, soft.weights.flip(0))
    assert not isinstance(soft.T, WeightedTarget)
    assert not isinstance(soft.reshape(3, 4), WeightedTarget)


def test_a_batch_is_split_into_inputs_and_target() -> None:
    assert split_batch((1, 2)) == ((1,), {}, 2)
    assert split_batch([1, 2, 3], 0) == ((2, 3), {}, 1)
    assert split_batch((1, 2, 3), -1) == ((1, 2), {}, 3)
    assert split_batch(Thing(1, 2)) == ((), {"x": 1}, 2)
    with pytest.raises(TypeError, match="`target` must say where"):
        split_batch((1, 2, 3))
