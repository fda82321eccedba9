"""What can be a dataset, a pool or a validation set, and what is told of other things."""

from __future__ import annotations

from collections import UserDict, UserList
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from adaptive_subset import GradMatch, Random, Selector
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.pool_checks import is_map_style
from adaptive_subset.gradients.source import GradientSource
from tests import models
from tests.test_last_layer import dense

N = 12
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)
PAIRS = [(X[i], int(Y[i])) for i in range(N)]


class Duck:
    """Map-style by what it can do."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"x": X[index], "label": int(Y[index])}


class Columns(Duck):
    """As a Hugging Face dataset: fetches several at once, and can be iterated."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]

    def __iter__(self) -> Any:
        return (self[i] for i in range(N))


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = models.mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


SAMPLES: dict[str, Any] = {
    "list of pairs": PAIRS,
    "tuple of pairs": tuple(PAIRS),
    "user's list": UserList(PAIRS),
    "list of numpy pairs": [(x.numpy(), np.int64(y)) for x, y in PAIRS],
    "duck": Duck(),
    "columns": Columns(),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_has_a_length_and_an_index_is_a_dataset(name: str) -> None:
    model, data = Keyword(), SAMPLES[name]
    options: dict[str, Any] = {"budget": 4, "criterion": nn.CrossEntropyLoss(), "batch_size": 5}
    expected = Selector(DATA, GradMatch(), **options).select(model, 0)
    roles: list[dict[str, Any]] = [
        {"dataset": data},
        {"dataset": DATA, "pool": data},
        {"dataset": data, "pool_fraction": 1.0},
    ]
    for role in roles:
        found = Selector(strategy=GradMatch(), **role, **options).select(model, 0)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.weights, expected.weights)
    half = [
        Selector(d, GradMatch(), pool_fraction=0.5, **options).select(model, 0).indices
        for d in (DATA, data)
    ]
    assert torch.equal(*half)
    matched = [
        Selector(DATA, GradMatch(), validation=d, **options).select(model, 0).weights
        for d in (DATA, data)
    ]
    torch.testing.assert_close(*matched)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(PAIRS)

    def __len__(self) -> int:
        return N


@pytest.mark.parametrize(
    "data", [Stream(), DataLoader(DATA), iter(PAIRS), {0: PAIRS[0]}, "data", 3, Dataset[Any]()]
)
def test_what_is_no_dataset_of_samples(data: Any) -> None:
    assert not is_map_style(data)
    with pytest.raises(TypeError, match=r"`dataset` must be map-style.*of a loader, pass its"):
        Selector(data, GradMatch(), budget=1)


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="`dataset` must hold at least one sample"):
        Selector([], Random(), fraction=0.5)


def test_a_stream_of_samples_can_be_a_pool() -> None:
    options: dict[str, Any] = {"budget": 4, "criterion": nn.CrossEntropyLoss(), "batch_size": 5}
    model = models.mlp()
    found = Selector(DATA, GradMatch(), pool=Stream(), **options).select(model, 0)
    assert torch.equal(
        found.indices, Selector(DATA, GradMatch(), **options).select(model, 0).indices
    )
    with pytest.raises(ValueError, match=r"access by index.*a Stream"):
        Selector(DATA, GradMatch(), pool=Stream(), pool_fraction=0.5, **options)


BATCHES: Any = [(X[:4], Y[:4]), (X[4:], Y[4:])]


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (BATCHES, ValueError, r"`{}` must hold samples.*a list.*DataLoader\(batches, batch_size="),
        ([{"x": X, "y": Y}], ValueError, r"`{}` must hold samples.*looks like ready-made batches"),
        (iter(BATCHES), TypeError, r"`{}` must be readable at every selection.*list_iterator"),
        (zip(X, Y, strict=True), TypeError, r"`{}` must be readable at every.*a zip"),
        ((b for b in BATCHES), TypeError, r"`{}` must be readable at every.*a generator"),
        ({0: PAIRS[0]}, TypeError, r"`{}` must be a dataset with a length.*got a dict"),
        (Dataset[Any](), TypeError, r"`{}` must be a dataset with a length.*got a Dataset"),
        ("images/", TypeError, r"`{}` must be a dataset with a length.*got a str"),
        (7, TypeError, r"`{}` must be a dataset with a length.*got a int"),
    ],
)
@pytest.mark.parametrize("role", ["pool", "validation"])
def test_what_is_no_pool_is_named(role: str, pool: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message.format(role)):
        Selector(DATA, GradMatch(), budget=4, **{role: pool})


def test_a_list_of_another_length_says_what_a_list_is() -> None:
    with pytest.raises(ValueError, match=r"the 12 samples.*got 2. A list is taken for samples"):
        Selector(DATA, GradMatch(), budget=4, pool=[(X[:6], X[:6]), (X[6:], X[6:])])


@pytest.mark.parametrize("batches", [BATCHES, [{"x": x, "y": y} for x, y in BATCHES]])
def test_ready_made_batches_come_through_a_loader(batches: Any) -> None:
    model, loader = Keyword(), DataLoader(batches, batch_size=None)
    selector = Selector(
        DATA, GradMatch(), budget=4, criterion=nn.CrossEntropyLoss(), pool=loader, validation=loader
    )
    for epoch in range(2):
        selector.select(model, epoch)


def test_a_sequence_with_a_label_at_each_step_is_no_batch() -> None:
    GradientSource([(torch.randn(5, 3), torch.rand(5)) for _ in range(3)])
    GradientSource([(torch.randn(5), torch.randint(2, (5,))) for _ in range(3)])


class Restarting:
    """An iterator that starts over, as DALI's loaders are."""

    def __iter__(self) -> Any:
        self.rest = list(BATCHES)
        return self

    def __next__(self) -> Any:
        if not self.rest:
            raise StopIteration
        return self.rest.pop(0)


def test_a_loader_that_starts_over_is_a_pool() -> None:
    options: dict[str, Any] = {"budget": 4, "criterion": nn.CrossEntropyLoss()}
    selector = Selector(DATA, GradMatch(), pool=Restarting(), **options)
    for epoch in range(2):
        selector.select(models.mlp(), epoch)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, shuffle=True),
        DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * N, N)),
        DataLoader(DATA, sampler=SubsetRandomSampler(range(N))),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
        DataLoader(DATA, sampler=DistributedSampler(DATA, 1, 0)),
        DataLoader(BATCHES, batch_size=None, shuffle=True),
    ],
)
def test_a_loader_that_shuffles_is_refused(loader: Any) -> None:
    with pytest.raises(ValueError, match=r"`pool` must be read in the order.*shuffle=False"):
        GradientSource(loader).read(models.mlp(), nn.CrossEntropyLoss())


def test_a_distributed_sampler_that_keeps_the_order_is_fine() -> None:
    loader = DataLoader(DATA, sampler=DistributedSampler(DATA, 1, 0, shuffle=False))
    GradientSource(loader).read(models.mlp(), nn.CrossEntropyLoss(), size=N)


class Flattened(Keyword):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.reshape(len(x), -1))  # which raises for no rows


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_empty_batch_is_passed_over(place: int) -> None:
    batches = list(BATCHES)
    model = Flattened()
    expected = dense(last_layer_gradients(model, batches, nn.CrossEntropyLoss())[0])
    batches.insert(place, (X[:0], Y[:0]))
    found = dense(last_layer_gradients(model, batches, nn.CrossEntropyLoss(), size=N)[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batches", [[], [(X[:0], Y[:0])]])
def test_nothing_but_empty_batches_is_refused(batches: Any) -> None:
    with pytest.raises(ValueError, match="`validation` must yield at least one batch"):
        last_layer_gradients(models.mlp(), batches, nn.CrossEntropyLoss(), name="validation")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            ["cat"] * 4,
            TypeError,
            r"`target` must be one tensor.*batch of `validation`.*list of str",
        ),
        (("cat",) * 4, TypeError, r"`target` must be one tensor of numbers.*tuple of str"),
        ({"a": Y[:4], "b": Y[:4]}, TypeError, r"`target` must be one tensor of numbers.*a dict"),
        ([Y[:4], Y[:4]], TypeError, r"`target` must be one tensor of numbers.*list of Tensor"),
        (None, TypeError, r"`target` must be one tensor of numbers.*a NoneType"),
        (Y[0], ValueError, r"`validation` must yield batches.*without a batch dimension"),
        (3, TypeError, r"`target` must be one tensor of numbers.*a int"),
    ],
)
def test_targets_that_are_no_numbers_are_named(target: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        last_layer_gradients(
            models.mlp(), [(X[:4], target)], nn.CrossEntropyLoss(), name="validation"
        )


def with_an_auxiliary_output(output: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.logits, target) + F.cross_entropy(output.aux_logits, target)


#: what loops convert: name → (classes, loss, targets, what torch says)
UNCONVERTED: dict[str, tuple[int, Any, torch.Tensor, str]] = {
    "whole numbers": (1, nn.BCEWithLogitsLoss(), Y, r"RuntimeError.*torch.int64 of shape \(12,\)"),
    "double": (1, nn.HuberLoss(), Y.double(), r"RuntimeError.*torch.float64 of shape \(12,\)"),
    "short labels": (4, nn.CrossEntropyLoss(), Y.int(), "RuntimeError.*torch.int32"),
    "a column": (4, nn.CrossEntropyLoss(), Y[:, None], r"RuntimeError.*of shape \(12, 1\)"),
    "labels from one": (4, nn.CrossEntropyLoss(), Y + 1, "IndexError.*Target 4 is out of bounds"),
    "outputs of training": (4, with_an_auxiliary_output, Y, "AttributeError.*'logits'"),
}


@pytest.mark.parametrize("name", UNCONVERTED)
def test_what_the_loss_does_not_take_is_named(name: str) -> None:
    classes, criterion, target, message = UNCONVERTED[name]
    model = models.mlp(classes=classes)
    model = nn.Sequential(model, nn.Flatten(0)) if classes == 1 else model
    source, message = GradientSource(TensorDataset(X, target)), f"`criterion` must take.*{message}"
    with pytest.raises(ValueError, match=message):
        source.read(model, criterion)
    if name != "double":  # fails where it is differentiated
        with pytest.raises(ValueError, match=message):
            source.losses(model, criterion)


def test_a_loss_that_converts_its_targets_is_what_to_do() -> None:
    model = nn.Sequential(models.mlp(classes=1), nn.Flatten(0))
    found = GradientSource(TensorDataset(X, Y % 2)).read(
        model, lambda o, y: F.binary_cross_entropy_with_logits(o, y.float())
    )
    floating = TensorDataset(X, (Y % 2).float())
    wanted = GradientSource(floating).read(model, nn.BCEWithLogitsLoss())
    torch.testing.assert_close(dense(found.gradients), dense(wanted.gradients))


class Ragged(Dataset[Any]):
    """Sequences of several lengths."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.ones(1 + index % 3), index % 4


def test_items_that_make_no_batch_are_those_of_the_pool() -> None:
    with pytest.raises(ValueError, match=r"`pool` must hold items that torch can put into batches"):
        GradientSource(Ragged()).read(models.mlp(), nn.CrossEntropyLoss())


class Sums(nn.Module):
    """Of padded sequences; writes to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mul_(2).sum(1, keepdim=True))


def padded(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    sequences, labels = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence([*sequences], batch_first=True), torch.tensor(labels)


def test_items_are_collated_as_in_training() -> None:
    model, loss, data = Sums(), nn.CrossEntropyLoss(), Ragged()
    batches = [padded([data[i] for i in part.tolist()]) for part in torch.arange(8).split(3)]
    wanted = GradientSource(DataLoader(batches, batch_size=None)).read(model, loss)  # type: ignore[arg-type]
    source = GradientSource(data, collate_fn=padded, batch_size=3)
    assert torch.equal(dense(source.read(model, loss).gradients), dense(wanted.gradients))
    some = source.over(Ragged(), "validation").read(model, loss, torch.tensor([5, 0]))
    assert torch.equal(dense(some.gradients), dense(wanted.gradients)[[5, 0]])
    selector = Selector(
        *(data, GradMatch()), budget=2, pool_fraction=0.5, criterion=loss, collate_fn=padded
    )
    assert len(selector.select(model, 0)) == 2


def test_what_a_collate_function_hands_out_is_left_as_it_is() -> None:
    held = torch.ones(8, 3), torch.arange(8) % 4

    def views(items: list[Any]) -> Any:
        return tuple(tensor[: len(items)] for tensor in held)

    GradientSource(TensorDataset(*held), collate_fn=views).read(Sums(), nn.CrossEntropyLoss())
    assert bool((held[0] == 1).all())


@pytest.mark.parametrize("losses", [False, True])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"input": torch.ones(6), "id": 3, "label": 1}, r"0 by position and \['id', 'input'\]"),
        ((torch.ones(6), 1, 7), "2 by position"),
    ],
)
def test_what_the_model_does_not_take_is_named(item: Any, message: str, losses: bool) -> None:
    target = None if isinstance(item, dict) else 1
    source = GradientSource([item] * 4, target=target)
    with pytest.raises(TypeError, match=f"`model` must take all that an item.*{message}"):
        (source.losses if losses else source.read)(models.mlp(), nn.CrossEntropyLoss())


def test_a_field_too_many_is_left_out_by_a_pool_as_is_said() -> None:
    numbered = [(i, X[i], int(Y[i])) for i in range(N)]
    options: dict[str, Any] = {"budget": 4, "criterion": nn.CrossEntropyLoss()}
    with pytest.raises(TypeError, match=r"\(target=-1 for the last\).*pool=") as said:
        Selector(numbered, GradMatch(), target=2, **options).select(models.mlp(), 0)
    assert "2 by position" in str(said.value)
    model = models.mlp()
    found = Selector(numbered, GradMatch(), target=-1, pool=DATA, **options).select(model, 0)
    assert torch.equal(
        found.indices, Selector(DATA, GradMatch(), **options).select(model, 0).indices
    )


class Encoding(UserDict[str, Any]):
    """As tokenizers return: a mapping whose fields are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


class ByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = models.mlp()

    def forward(self, encoding: Any) -> torch.Tensor:
        return self.body(encoding.x)


def test_a_mapping_stays_of_its_kind() -> None:
    items = [(Encoding(x=X[i]), int(Y[i])) for i in range(N)]
    model, loss = ByAttribute(), nn.CrossEntropyLoss()
    found = GradientSource(items, batch_size=5).read(model, loss)
    torch.testing.assert_close(
        dense(found.gradients), dense(GradientSource(DATA).read(model.body, loss).gradients)
    )
    assert all(torch.equal(item.x, x) for (item, _), x in zip(items, X, strict=True))


def test_an_error_of_the_model_s_own_is_left_as_it_is() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + None)  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        GradientSource([(torch.ones(6), 1)] * 4).read(Broken(6, 4), nn.CrossEntropyLoss())


def test_targets_may_be_arrays_or_lists_of_numbers() -> None:
    model, loss = models.mlp(), nn.CrossEntropyLoss()
    expected = dense(last_layer_gradients(model, [(X, Y)], loss)[0])
    for targets in (Y.tolist(), Y.numpy()):
        found = dense(last_layer_gradients(model, [(X, targets)], loss)[0])
        torch.testing.assert_close(found, expected)


NOTHING: Any = []


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (DataLoader(DATA, shuffle=True), ValueError, r"`validation` must be read in the order"),
        (
            TensorDataset(torch.full((4, 6), torch.nan), Y[:4]),
            ValueError,
            r"`validation` must give finite gradients",
        ),
        ([(X[0], "cat")], TypeError, r"batch of `validation`, got a"),
        (DataLoader(NOTHING, batch_size=None), ValueError, r"`validation` must yield at least one"),
        (DataLoader(DATA, batch_size=None), ValueError, r"`validation` must yield batches"),
    ],
)
def test_errors_of_the_validation_set_say_so(validation: Any, error: Any, message: str) -> None:
    options: dict[str, Any] = {"budget": 4, "criterion": nn.CrossEntropyLoss()}
    with pytest.raises(error, match=message):
        Selector(DATA, GradMatch(), validation=validation, **options).select(models.mlp(), 0)


def test_a_regression_head_of_one_output_is_matched() -> None:
    data = TensorDataset(X, torch.randn(N, 1))
    selector = Selector(data, GradMatch(), budget=6, criterion=nn.MSELoss())
    selection = selector.select(models.mlp(6, 1), 0)
    assert selection.relative_error is not None
    assert selection.relative_error < 1
