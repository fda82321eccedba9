"""A selection leaves the user's model, criterion, inputs and dataset as it found them."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from adaptive_subset import GradMatch, Selector, WeightedLoss
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.snapshot import preserved_modules
from adaptive_subset.gradients.source import GradientSource
from tests import models
from tests.test_last_layer import dense

N = 12
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)


def run(model: nn.Module, criterion: Any = None) -> Tensor:
    batches = [(X[:8].clone(), Y[:8]), (X[8:].clone(), Y[8:])]
    criterion = criterion or nn.CrossEntropyLoss()
    return dense(last_layer_gradients(model, batches, criterion)[0])


def test_inputs_that_a_model_writes_to_are_copies() -> None:
    model, inputs = models.InPlace(), X.clone()
    expected = dense(
        last_layer_gradients(model.body, [((X - 1) * 0.5, Y)], nn.CrossEntropyLoss())[0]
    )
    batches = [(inputs, Y)]
    for _ in range(2):
        found = dense(last_layer_gradients(model, batches, nn.CrossEntropyLoss())[0])
        torch.testing.assert_close(found, expected)
    assert torch.equal(inputs, X)


def test_targets_that_a_criterion_writes_to_are_copies() -> None:
    def criterion(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        labels = target.remainder_(2).clone()
        return nn.functional.cross_entropy(output, labels, reduction=reduction)

    y = Y.clone()
    last_layer_gradients(models.mlp(), [(X, y)], criterion)
    assert torch.equal(y, Y)


class Memory(nn.Module):
    """Writes to all that a module can hold beside parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.calls = torch.zeros(3)  # no buffer
        self.queue: deque[int] = deque([1, 2], maxlen=4)
        self.seen = [np.array([1.0, np.nan])]
        self.nested: Any = {
            "stats": [torch.zeros(2), {"seen": {1, 2}}],
            "pair": (torch.ones(2), []),
        }
        self.generator = torch.Generator().manual_seed(3)
        self.numpy = [np.random.default_rng(3)]
        self.python = random.Random(3)
        self.teachers = [nn.Dropout()]  # no child

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.queue.append(len(x))
        self.seen[0] += len(x)
        self.nested["stats"][0].add_(1)
        self.nested["stats"][1]["seen"].add(len(x))
        self.nested["pair"][1].append(x)
        self.teachers[0].eval()
        self.nested["more"] = x
        noise = torch.rand(1, generator=self.generator)
        noise += self.numpy[0].random() + self.python.random()
        return self.fc(x)


def held(model: Memory) -> Any:
    return copy.deepcopy(
        {
            "calls": model.calls,
            "queue": list(model.queue),
            "seen": model.seen[0].tobytes(),
            "nested": model.nested,
            "generators": [
                model.generator.get_state(),
                str(model.numpy[0].bit_generator.state),
                str(model.python.getstate()),
            ],
            "training": model.teachers[0].training,
        }
    )


def test_what_a_module_holds_is_put_back_at_any_depth() -> None:
    model = Memory()
    inner = model.nested["stats"]
    before = held(model)
    run(model)
    after = held(model)
    assert after["nested"]["stats"][1] == before["nested"]["stats"][1]
    assert after["nested"].keys() == before["nested"].keys()
    torch.testing.assert_close(after["nested"]["pair"], before["nested"]["pair"], rtol=0, atol=0)
    for key in ("queue", "seen", "training"):
        assert after[key] == before[key]
    assert torch.equal(after["generators"][0], before["generators"][0])
    assert after["generators"][1:] == before["generators"][1:]
    assert torch.equal(after["calls"], before["calls"])
    assert torch.equal(after["nested"]["stats"][0], before["nested"]["stats"][0])
    assert model.nested["stats"] is inner
    assert model.queue.maxlen == 4


def test_a_tensor_that_changed_its_size_is_put_back() -> None:
    model, buffer = nn.Module(), torch.arange(3.0)
    model.register_buffer("queue", buffer)
    with preserved_modules(model):
        buffer.resize_(5).fill_(7)
    assert torch.equal(buffer, torch.arange(3.0))
    assert model.queue is buffer


def test_arrays_are_put_back_in_their_shape_and_none_that_are_read_only_are_written_to() -> None:
    model: Any = nn.Module()
    model.grown, model.fixed = np.arange(3), np.arange(4)
    model.fixed.flags.writeable = False
    grown = model.grown
    with preserved_modules(model):
        grown.resize(5, refcheck=False)
        grown += 7
    assert model.grown is grown
    assert grown.tolist() == [0, 1, 2]
    assert model.fixed.tolist() == [0, 1, 2, 3]


class Weighty(nn.Module):
    """Writes to its own parameters in a forward pass, as normalised weights are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.body.weight.div_(self.body.weight.norm(dim=1, keepdim=True) / 2)
        return self.fc(self.body(x))


def test_parameters_that_a_forward_pass_writes_to_are_copies() -> None:
    model = Weighty()
    state = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    found = run(model)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [p._version for p in model.parameters()] == versions
    model(X)  # from now on it changes nothing but roundings
    torch.testing.assert_close(found, run(model))


class WrittenByData(Weighty):
    """Writes to its parameters past autograd, in the way called `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.body.weight, self.fc.weight):
            if self.how == "clamp":
                weight.data.clamp_(-0.2, 0.2)
            elif self.how == "copy":
                weight.data.copy_(nn.functional.normalize(weight.data, dim=1))
            else:
                weight.data = nn.functional.normalize(weight.data, dim=1)
        return self.fc(self.body(x))


@pytest.mark.parametrize("how", ["clamp", "copy", "assign"])
def test_parameters_that_are_written_to_by_data_are_copies(how: str) -> None:
    model = WrittenByData(how)
    state = copy.deepcopy(model.state_dict())
    places = [p.data_ptr() for p in model.parameters()]
    found = run(model)
    assert last_layer_gradients(model, [(X, Y)], nn.CrossEntropyLoss())[2] is None
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [p.data_ptr() for p in model.parameters()] == places
    model(X)  # from now on it changes nothing but roundings
    torch.testing.assert_close(found, run(model))


def test_a_head_that_is_written_to_is_no_last_layer_to_look_ahead_with() -> None:
    class Head(Weighty):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.fc.weight.mul_(0.5)
            return self.fc(self.body(x))

    batches, loss = [(X, Y)], nn.CrossEntropyLoss()
    assert last_layer_gradients(Head(), batches, loss)[2] is None
    assert last_layer_gradients(Weighty(), batches, loss)[2] is not None


class Module(models.TwoInputs):
    """A model that holds its loss, as a LightningModule does."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_criterion_inside_the_model_keeps_its_flags(training: bool, weighted: bool) -> None:
    plain = nn.CrossEntropyLoss().train(training)
    selector = Selector(DATA, GradMatch(), budget=4, criterion=None if weighted else plain)
    wrapped = WeightedLoss(plain, selector) if weighted else plain
    wrapped.train(training)
    model = Module(wrapped)
    model.train()
    plain.training = training
    wrapped.training = training
    selector.select(model, 0)
    assert (plain.training, wrapped.training) == (training, training)
    assert all(m.training for m in model.modules() if m not in (plain, wrapped))


class Noisy(nn.Module):
    """Drops half of its input, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)  # type: ignore[operator]
        return self.drop(x)


@pytest.mark.parametrize("training", [True, False])
def test_scripted_parts_of_a_model_are_put_back(training: bool) -> None:
    part = torch.jit.script(nn.Sequential(Noisy(), nn.ReLU()))
    model = nn.Sequential(part, nn.Linear(6, 4)).train()
    next(part.children()).train(training)
    before = [m.training for m in part.modules()]
    assert before == [True, training, training, True]
    GradientSource(DATA).losses(model, nn.CrossEntropyLoss())
    assert [m.training for m in part.modules()] == before
    assert float(part[0].seen) == 0


class Counting(nn.CrossEntropyLoss):
    """A loss with a running mean, as centred ones have."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.calls: list[int] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.centre += 1
        self.calls.append(len(output))
        return super().forward(output, target)


def test_the_state_of_a_criterion_is_put_back() -> None:
    criterion = Counting()
    run(models.mlp(), criterion)
    assert float(criterion.centre) == 0
    assert criterion.calls == []


class Jitter:
    """A transform with generators of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.old = np.random.RandomState(1)
        self.python = random.Random(1)

    def __call__(self, x: Tensor) -> Tensor:
        noise = self.numpy.random() + self.old.rand() + self.python.random()
        return x + noise + torch.rand(1, generator=self.generator)

    def state(self) -> list[str]:
        return [
            str(self.generator.get_state().tolist()),
            str(self.numpy.bit_generator.state),
            str(self.old.get_state()),
            str(self.python.getstate()),
        ]


class Transformed(Dataset[Any]):
    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x = X[index]
        for transform in self.transforms:
            x = transform(x)
        return x, Y[index]


@pytest.mark.filterwarnings("ignore:`dataset` gives another input")
@pytest.mark.parametrize("pool", ["dataset", "subset", "loader"])
@pytest.mark.parametrize(
    "hold",
    [lambda j: [j], lambda j: (partial(j),), lambda j: [j.__call__]],
    ids=["list", "partial", "method"],
)
def test_a_dataset_s_own_generators_are_put_back(pool: str, hold: Callable[[Jitter], Any]) -> None:
    jitter = Jitter()
    data: Any = Transformed(hold(jitter))
    before = jitter.state()
    assert GradientSource(data).is_augmented()
    assert jitter.state() == before
    pools = {"dataset": None, "subset": Subset(data, range(N)), "loader": DataLoader(data, 5)}
    criterion = nn.CrossEntropyLoss()
    selector = Selector(data, GradMatch(), budget=4, criterion=criterion, pool=pools[pool])
    selector.select(models.mlp(), 0)
    assert jitter.state() == before
    data[0]
    assert all(a != b for a, b in zip(jitter.state(), before, strict=True))


class Opening(Dataset[Any]):
    """Opens its file when it is first read, as readers of HDF5 do."""

    def __init__(self) -> None:
        self.file: object | None = None

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.file = self.file or object()
        return X[index], Y[index]


@pytest.mark.parametrize("pool_fraction", [1.0, 0.5])
def test_with_workers_nothing_is_read_that_later_workers_would_share(pool_fraction: float) -> None:
    data, model, criterion = Opening(), models.mlp(), nn.CrossEntropyLoss()
    options: Any = {"budget": 4, "criterion": criterion, "pool_fraction": pool_fraction}
    Selector(data, GradMatch(), num_workers=2, **options).select(model, 0)
    assert data.file is None
    Selector(data, GradMatch(), **options).select(model, 0)
    assert data.file is not None


def test_a_generator_of_the_dataset_s_own_is_seen_to_augment_in_a_worker() -> None:
    """Forked with the dataset, it draws the same in each worker."""
    source = GradientSource(Transformed([Jitter()]), num_workers=2)
    assert source.is_augmented()
    assert not GradientSource(Transformed([]), num_workers=2).is_augmented()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_augmentation_shows_in_arrays_of_objects_that_no_worker_can_send(num_workers: int) -> None:
    words: Any = np.array(["of", "which"])
    data: Any = [SimpleNamespace(x=np.zeros(2), words=words, y=0, of=lambda: 0)]
    assert not GradientSource(data, num_workers=num_workers).is_augmented()

    class Noisy(Opening):
        def __getitem__(self, index: int) -> Any:
            return SimpleNamespace(x=np.random.rand(2), y=0, of=lambda: 0)

    assert GradientSource(Noisy(), num_workers=num_workers).is_augmented()


def test_the_generator_of_a_loader_is_put_back() -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(DATA, batch_size=5, generator=generator)
    before = generator.get_state()
    GradientSource(loader).read(models.mlp(), nn.CrossEntropyLoss())
    assert torch.equal(generator.get_state(), before)
    next(iter(loader))
    assert not torch.equal(generator.get_state(), before)  # iterating draws a seed


def test_a_long_list_is_not_searched() -> None:
    class Counts:
        looked = 0

        def __getattribute__(self, name: str) -> Any:
            Counts.looked += name == "__dict__"
            return object.__getattribute__(self, name)

    data = Transformed([])
    data.samples = [Counts() for _ in range(1000)]  # type: ignore[attr-defined]
    GradientSource(data).read(models.mlp(), nn.CrossEntropyLoss())
    assert Counts.looked == 0


def test_generators_are_put_back_after_an_exception() -> None:
    jitter = Jitter()

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("broken sample")

    before = jitter.state()
    with pytest.raises(RuntimeError, match="broken sample"):
        GradientSource(Transformed([jitter, fails])).read(models.mlp(), nn.CrossEntropyLoss())
    assert jitter.state() == before
