"""Tagged indices, targets and datasets, apart from any loop."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import BatchSampler, DataLoader, Dataset, TensorDataset, default_collate

from adaptive_subset import TaggedDataset, TaggedIndex, WeightedTarget
from adaptive_subset.items import split_batch

INDEX = TaggedIndex(1, 0.25)
Pair = namedtuple("Pair", "x y")
Triple = namedtuple("Triple", "x label id")


@dataclass(frozen=True)
class Item:
    x: int
    label: Any


@dataclass(frozen=True, slots=True)
class Slots:
    x: int
    label: Any


class SlotsAndMore(Slots):
    pass


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
        (Pair(5, 0), "x", lambda i: i.x),
        (Triple(0, 5, 1), None, lambda i: i.label),
        (Triple(0, 1, 5), "id", lambda i: i.id),
        (Slots(0, 5), None, lambda i: i.label),
        (SlotsAndMore(5, 0), "x", lambda i: i.x),
        (UserDict(x=0, label=5), None, lambda i: i["label"]),
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
        ((0, None), None, r"got NoneType at 1. Turn it into a number"),
        ((0, "cat"), None, r"target_transform=classes.index"),
        ((0, np.array(["cat"])), None, r"got ndarray at 1. Number the classes"),
        ((0, {"boxes": 1}), None, r"got dict at 1. Put its parts side by side"),
        ((0, (1, 2)), None, r"got tuple at 1.*WeightedTarget.like\(other, y\)"),
        ((0, []), None, r"got list at 1"),
        ((0, [[1], [2]]), None, r"got list at 1"),
        (Pair(0, 1), "label", r"target='label' for a Pair of 2"),
        (Slots(0, 1), "y", r"for a Slots with \['x', 'label'\]"),
        ((0, 1, 2), None, r"several targets pass that of one.*WeightedTarget.like"),
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


def batch() -> Any:
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
    targets = batch()
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
    targets = batch()
    again: Any = twin(targets)
    assert torch.equal(again.plain(), torch.arange(4))
    assert torch.equal(again.weights, targets.weights)
    assert torch.equal(again.sample_indices, targets.sample_indices)
    assert isinstance(again, WeightedTarget)


class Pinning(TorchFunctionMode):
    """Copies for pinning, which needs a GPU, and knows what it copied."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.pin_memory:
            return func(*args, **(kwargs or {}))
        if isinstance(args[0], WeightedTarget) and torch._C._is_torch_function_enabled():
            with self:
                return WeightedTarget.__torch_function__(func, types, args, kwargs)
        self.pinned.append(args[0].clone())
        return self.pinned[-1]


def test_tags_are_pinned_with_their_targets() -> None:
    """Otherwise their copy to a GPU, which should run beside, waits for all that is under way."""
    targets: Any = batch()
    single: Any = WeightedTarget(torch.tensor(3), 0.5, 7)
    with Pinning() as mode:
        pinned, one = targets.pin_memory(), single.pin_memory()
    labels, weights, indices, _ = mode.pinned
    assert pinned.data_ptr() == labels.data_ptr()
    assert pinned.weights is weights
    assert pinned.sample_indices is indices
    assert torch.equal(weights, targets.weights)
    assert torch.equal(indices, targets.sample_indices)
    assert one.tags == (0.5, 7)


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


def test_read_only_mappings_become_dictionaries() -> None:
    item = MappingProxyType({"x": 0, "label": 5})
    tagged = TaggedDataset([item] * 2)[INDEX]
    assert tagged["label"].weights == 0.25
    assert split_batch(Slots(1, 2)) == ((), {"x": 1}, 2)
    assert split_batch(Triple(1, 2, 3)) == ((1, 3), {}, 2)


def test_the_last_index_from_the_end_has_a_place() -> None:
    target = TaggedDataset([(0, 3)] * 4)[TaggedIndex(-1, 0.5)][1]
    assert (target.weights, target.sample_indices) == (0.5, 3)


class Batches:
    """Map-style, no subclass of Dataset; fetches a batch at once."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index

    def __getitems__(self, indices: list[int]) -> Any:
        return self.whole(torch.tensor(indices))


@pytest.mark.parametrize("rows", [[0], [2, 1], [3, 0, 1]])
@pytest.mark.parametrize(
    ("whole", "key"), [(lambda t: (t, t), 1), (lambda t: [t, t], 1), (lambda t: {"y": t}, "y")]
)
def test_a_dataset_that_collates_by_itself(rows: list[int], whole: Any, key: Any) -> None:
    data = TaggedDataset(Batches(whole))
    order = [TaggedIndex(i, 1.0 + i) for i in rows]
    (batch,) = DataLoader(data, 3, sampler=order, collate_fn=lambda batch: batch)
    assert batch[key].plain().tolist() == batch[key].sample_indices.tolist() == rows
    assert batch[key].weights.tolist() == [1.0 + i for i in rows]
    (untouched,) = DataLoader(data, 3, sampler=rows, collate_fn=lambda batch: batch)
    assert type(untouched[key]) is Tensor
    assert data[INDEX][1].weights == 0.25


@pytest.mark.parametrize("inputs", [torch.zeros(4, 3), TensorDataset(torch.zeros(4, 3))])
def test_items_without_a_target_are_told_to_bring_one(inputs: Any) -> None:
    """Such as those of an autoencoder, or of a tuple of all inputs and all labels."""
    with pytest.raises(TypeError, match=r"`target` must say .*as TensorDataset\(x, x\)"):
        TaggedDataset(inputs)[INDEX]


def test_a_batch_of_a_dict_and_labels_is_not_two_items() -> None:
    data = TaggedDataset(Batches(lambda t: ({"x": t}, t)))
    for rows in ([1], [1, 2], [1, 2, 3]):
        inputs, y = data.__getitems__([TaggedIndex(i, 0.5) for i in rows])
        assert inputs["x"].tolist() == y.sample_indices.tolist() == rows


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_read_by_a_list_of_indices(workers: int) -> None:
    """torch's way to read a whole batch at once, for tensors in memory."""
    inner = TensorDataset(torch.arange(4) * 10, torch.arange(4))
    order = [TaggedIndex(i, 1.0 + i) for i in (2, 0, 3)]
    batches: Any = BatchSampler(order, 2, drop_last=False)
    loader = DataLoader(TaggedDataset(inner), sampler=batches, batch_size=None, num_workers=workers)
    read = list(loader)
    assert [x.tolist() for x, _ in read] == [[20, 0], [30]]
    assert [y.plain().tolist() for _, y in read] == [[2, 0], [3]]
    assert [y.sample_indices.tolist() for _, y in read] == [[2, 0], [3]]
    assert [y.weights.tolist() for _, y in read] == [[3.0, 1.0], [4.0]]
    assert type(TaggedDataset(inner)[[1, 2]][1]) is Tensor


def test_what_is_set_on_the_dataset_is_set_where_it_is_read() -> None:
    class Scaled(Dataset[Any]):
        scale = 1

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.ones(1) * self.scale, index

    inner = Scaled()
    data = TaggedDataset(inner)
    data.scale = 100
    assert inner.scale == data.scale == 100
    assert float(data[INDEX][0]) == 100
    other = copy.deepcopy(data)
    other.scale = 3
    assert inner.scale == 100


def test_batches_of_other_sizes_raise() -> None:
    data = TaggedDataset(Batches(lambda t: (t[:1], t[:1])))
    with pytest.raises(ValueError, match=r"`__getitems__` of.*got 1 rows for 2 indices"):
        data.__getitems__([INDEX, INDEX])
    data = TaggedDataset(Batches(lambda t: (t, t)))
    with pytest.raises(ValueError, match="got 3 rows for 3 indices, 2 of them with weights"):
        data.__getitems__([INDEX, INDEX, 3])


@pytest.mark.parametrize(
    ("targets", "weights", "indices", "kind", "message"),
    [
        (
            torch.zeros(3),
            torch.ones(2),
            -1,
            ValueError,
            r"one number for each row.*\(3,\), got shapes",
        ),
        (torch.zeros(3), torch.ones(3, 1), -1, ValueError, "got shapes"),
        (torch.zeros(3), torch.ones(3), torch.zeros(4).long(), ValueError, "got shapes"),
        (torch.zeros(()), torch.ones(1), -1, ValueError, "got shapes"),
        (torch.zeros(3), [1.0, 1.0, 1.0], -1, TypeError, "got Tensor and list"),
        ([1, 2], torch.ones(2), -1, TypeError, r"got list and Tensor"),
    ],
)
def test_tags_that_do_not_fit_raise(
    targets: Any, weights: Any, indices: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        WeightedTarget(targets, weights, indices)


def test_targets_like_others() -> None:
    teacher = torch.rand(4, 3, requires_grad=True)
    soft: Any = WeightedTarget.like(teacher * 2, batch())
    assert torch.equal(soft.weights, batch().weights)
    assert torch.equal(soft.sample_indices, torch.arange(4))
    soft.plain().sum().backward()  # the graph goes on
    assert teacher.grad is not None
    assert torch.equal(teacher.grad, torch.full((4, 3), 2.0))
    assert WeightedTarget.like(teacher, torch.arange(4)) is teacher  # in validation
    again: Any = WeightedTarget.like(batch().flip(0), batch())
    assert torch.equal(again.weights, batch().weights)
    with pytest.raises(ValueError, match="one number for each row"):
        WeightedTarget.like(teacher[:3], batch())


def test_single_samples_become_rows() -> None:
    targets = batch()
    joined: Any = torch.cat([targets[3][None], targets[1].view(1), targets[0].reshape(1)])
    assert torch.equal(joined.weights, targets.weights[[3, 1, 0]])
    hot: Any = F.one_hot(targets[2], 4)
    assert hot.weights == targets[2].weights
    assert not isinstance(torch.stack([targets[1], targets[0].plain()]), WeightedTarget)
    soft: Any = F.one_hot(targets, 4)
    assert soft[2].weights == targets[2].weights
    stacked: Any = torch.stack([*soft][::-1])
    assert torch.equal(stacked.weights, targets.weights.flip(0))
    assert soft[2:3, 0].weights.tolist() == [targets[2].weights]
