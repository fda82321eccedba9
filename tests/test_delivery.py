"""A weight reaches the loss of its own sample, or the loss raises, whatever a loop does between.

Each sample's input is its index, so the weight that belongs to it is known: a recording criterion
notes (index, weight) pairs as they arrive at the loss.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from adaptive_subset import TaggedDataset, TaggedIndex, WeightedLoss

N, CLASSES = 24, 3
WEIGHTS = torch.linspace(0.1, 1.9, N)  # mean one, all different
CRITERION = nn.CrossEntropyLoss()
IN_ORDER = pytest.mark.skipif(
    "in_order" not in inspect.signature(DataLoader).parameters, reason="needs torch ≥ 2.6"
)
WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Numbers(Dataset[tuple[Tensor, int]]):
    """Inputs are the index; labels repeat, so they cannot tell samples apart."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index // 2 % CLASSES


class Order(Sampler[int]):
    """A sampler as the library's is seen from outside: indices with their weights."""

    def __init__(self, indices: list[int] | None = None) -> None:
        self.indices = list(range(N)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.indices), generator=torch.Generator().manual_seed(3))
        for i in order.tolist():
            yield TaggedIndex(self.indices[i], float(WEIGHTS[self.indices[i]]))


def loader(workers: int = 0, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": 5, **options}
    return DataLoader(TaggedDataset(Numbers()), sampler=Order(), num_workers=workers, **options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x / N)


def expected(net: nn.Module, indices: Tensor, targets: Tensor | None = None) -> Tensor:
    """The weighted mean loss of the samples with these indices, written out."""
    labels = torch.as_tensor(indices // 2 % CLASSES) if targets is None else targets
    losses = F.cross_entropy(net(indices[:, None].float()), labels, reduction="none")
    return (WEIGHTS[indices] * losses).mean()


def ids(x: Tensor) -> Tensor:
    return x[:, 0].long()


def agree(net: nn.Module, loss: Tensor, x: Tensor, targets: Tensor | None = None) -> None:
    torch.testing.assert_close(loss, expected(net, ids(x), targets))


@WORKERS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"persistent_workers": True},
        pytest.param({"in_order": False}, marks=IN_ORDER),
        {"drop_last": True},
        {"prefetch_factor": 4},
    ],
    ids=lambda o: next(iter(o), "plain"),
)
def test_loaders(workers: int, options: dict[str, Any]) -> None:
    if workers == 0:
        options = {k: v for k, v in options.items() if k in ("drop_last", "in_order")}
    net, criterion, batches = Net(), WeightedLoss(CRITERION), loader(workers, **options)
    for _ in range(2):
        seen = []
        for x, y in batches:
            agree(net, criterion(net(x), y), x)
            seen += ids(x).tolist()
        assert len(seen) == len(set(seen)) == (20 if options.get("drop_last") else N)


@WORKERS
def test_weights_are_bound_when_the_sampler_yields(workers: int) -> None:
    """Persistent workers hold an old copy of the dataset, and still get a new selection."""
    batches = loader(workers, persistent_workers=workers > 0)
    list(batches)
    batches.sampler.indices = [5, 6, 7]  # type: ignore[attr-defined]
    net = Net()
    for x, y in batches:
        agree(net, WeightedLoss(CRITERION)(net(x), y), x)
        assert set(ids(x).tolist()) <= {5, 6, 7}


@WORKERS
def test_a_break_and_an_exception_in_mid_epoch(workers: int) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    batches = loader(workers, persistent_workers=workers > 0)
    for _ in batches:
        break
    with contextlib.suppress(KeyError):
        for _ in batches:
            raise KeyError
    for x, y in batches:
        agree(net, criterion(net(x), y), x)


@WORKERS
def test_a_skipped_batch(workers: int) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    for i, (x, y) in enumerate(loader(workers)):
        if i % 2:
            agree(net, criterion(net(x), y), x)


@WORKERS
def test_gradient_accumulation(workers: int) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    for x, y in loader(workers, batch_size=6):
        (criterion(net(x), y) / 4).backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    wanted = torch.autograd.grad(expected(net, torch.arange(N)), list(net.parameters()))
    torch.testing.assert_close(found, list(wanted))


@WORKERS
@pytest.mark.parametrize("cut", [torch.chunk, torch.tensor_split, lambda t, n: t.split(2)])
def test_chunks_of_a_batch(workers: int, cut: Callable[..., Any]) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    for x, y in loader(workers):
        for part, labels in zip(cut(x, 2), cut(y, 2), strict=True):
            agree(net, criterion(net(part), labels), part)


@WORKERS
def test_two_losses_a_batch(workers: int) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    squared = WeightedLoss(nn.MSELoss())
    for x, y in loader(workers):
        agree(net, criterion(net(x), y), x)
        agree(net, criterion(net(x), y), x)
        out = net(x)
        wanted = (WEIGHTS[ids(x)] * (out[:, 0] - y.plain()).square()).mean()
        torch.testing.assert_close(squared(out[:, 0], y.float()), wanted)


def test_closures_that_call_the_loss_again() -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
    for x, y in loader():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            agree(net, loss, x)
            loss.backward()
            return loss

        optimizer.step(closure)


def test_sharpness_aware_steps() -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    for x, y in loader():
        criterion(net(x), y).backward()
        with torch.no_grad():
            for p in net.parameters():
                assert p.grad is not None
                p.add_(0.05 * p.grad)
        agree(net, criterion(net(x), y), x)


@WORKERS
def test_two_iterators_in_parallel(workers: int) -> None:
    net, criterion, batches = Net(), WeightedLoss(CRITERION), loader(workers)
    for (x1, y1), (x2, y2) in zip(batches, batches, strict=True):
        agree(net, criterion(net(x2), y2), x2)
        agree(net, criterion(net(x1), y1), x1)


@WORKERS
def test_nested_loops(workers: int) -> None:
    net, criterion, batches = Net(), WeightedLoss(CRITERION), loader(workers, batch_size=12)
    for x, y in batches:
        for inner_x, inner_y in batches:
            agree(net, criterion(net(inner_x), inner_y), inner_x)
        agree(net, criterion(net(x), y), x)


@WORKERS
def test_a_list_of_the_loader(workers: int) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    for x, y in reversed(list(loader(workers))):
        agree(net, criterion(net(x), y), x)


@WORKERS
def test_a_prefetcher_that_reads_ahead(workers: int) -> None:
    def ahead(batches: Any) -> Iterator[Any]:
        held = None
        for batch in batches:
            if held is not None:
                yield held
            held = batch
        yield held

    net, criterion = Net(), WeightedLoss(CRITERION)
    for x, y in ahead(loader(workers)):
        agree(net, criterion(net(x), y), x)


@WORKERS
def test_timm_s_multi_epochs_loader(workers: int) -> None:
    from timm.data.loader import MultiEpochsDataLoader

    batches = MultiEpochsDataLoader(
        TaggedDataset(Numbers()), sampler=Order(), batch_size=5, num_workers=workers
    )
    net, criterion = Net(), WeightedLoss(CRITERION)
    for _ in range(2):
        for x, y in batches:
            agree(net, criterion(net(x), y), x)


ROW_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "shuffling": lambda t: t[torch.tensor([4, 2, 0, 1, 3])],
    "index_select": lambda t: t.index_select(0, torch.tensor([1, 1, 3])),
    "flipping": lambda t: t.flip(0),
    "rolling": lambda t: t.roll(2, 0),
    "masking": lambda t: t[torch.tensor([True, False, True, True, False])],
    "slicing": lambda t: t[1:4],
    "a list of rows": lambda t: t[[0, 3]],
    "one row as a batch": lambda t: t[2:3],
    "concatenating": lambda t: torch.cat([t[3:], t[:2], t]),
    "repeating": lambda t: t.repeat_interleave(2, 0),
    "narrowing": lambda t: t.narrow(0, 1, 2),
    "unbinding and stacking": lambda t: torch.stack(t.unbind(0)[::-1]),
    "iterating and stacking": lambda t: torch.stack(list(t)[1:]),
    "a shallow copy": copy.copy,
    "a deep copy": copy.deepcopy,
}


@pytest.mark.parametrize("name", ROW_OPERATIONS)
def test_row_operations_in_the_loop(name: str) -> None:
    change, net = ROW_OPERATIONS[name], Net()
    x, y = next(iter(loader()))
    agree(net, WeightedLoss(CRITERION)(net(change(x)), change(y)), change(x))


SHAPE_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "one_hot": lambda y: F.one_hot(y, CLASSES).float(),
    "one_hot of a permutation": lambda y: F.one_hot(y.flip(0).flip(0), CLASSES).float(),
    "dtype": lambda y: y.to(torch.int32).long(),
    "device": lambda y: y.to("cpu", non_blocking=True).cpu(),
    "clone": lambda y: y.clone().detach().contiguous(),
    "view": lambda y: y.view(-1, 1).reshape(-1),
    "unsqueeze": lambda y: y.unsqueeze(1).squeeze(1),
    "flatten": lambda y: y[:, None].flatten(),
    "counting from one": lambda y: (y + 1) - 1,
    "one class against the rest": lambda y: (y == 2).long(),
    "reversed labels": lambda y: 2 - y,
}


@pytest.mark.parametrize("name", SHAPE_OPERATIONS)
def test_conversions_in_the_loop(name: str) -> None:
    net = Net()
    x, y = next(iter(loader()))
    changed = SHAPE_OPERATIONS[name](y)
    labels = changed.plain()  # type: ignore[attr-defined]
    agree(net, WeightedLoss(CRITERION)(net(x), changed), x, labels)


def assign_rows(y: Tensor) -> Tensor:
    y[:] = torch.tensor(y.tolist()[::-1])
    return y


LOUD: dict[str, Callable[[Tensor], Tensor]] = {
    "mixing labels": lambda y: 0.3 * F.one_hot(y, CLASSES) + 0.7 * F.one_hot(y.flip(0), CLASSES),
    "adding labels": lambda y: (y + y.flip(0)) % CLASSES,
    "sorting": lambda y: y.sort().values,
    "through numpy": lambda y: torch.from_numpy(y.numpy()),
    "through a list": lambda y: torch.tensor(y.tolist()),
    "a new first dimension": lambda y: y.view(5, 1).expand(5, 5).T.reshape(5, 5)[0],
    "concatenating with plain labels": lambda y: torch.cat([y[:2], torch.zeros(3).long()]),
    "overwriting rows with others": lambda y: y.copy_(y.flip(0)),
    "overwriting rows with plain ones": lambda y: y.copy_(torch.tensor([0, 0, 1, 2, 1])),
    "assigning rows": assign_rows,
    "writing through a view": lambda y: (y[1:3].fill_(2), y)[1],
    "where": lambda y: torch.where(y > 1, 0, y),
}


@pytest.mark.parametrize("name", LOUD)
def test_what_cannot_be_followed_is_loud(name: str) -> None:
    net = Net()
    x, y = next(iter(loader()))
    changed = LOUD[name](y)
    with pytest.raises(RuntimeError, match="`target` must carry the weights"):
        WeightedLoss(CRITERION)(net(x), changed)


def test_ignoring_some_labels_keeps_the_weights() -> None:
    net = Net()
    x, y = next(iter(loader()))
    y[y == 1] = -100
    losses = F.cross_entropy(net(x), y.plain(), reduction="none")
    wanted = (WEIGHTS[ids(x)] * losses).sum() / (y.plain() >= 0).sum()
    torch.testing.assert_close(WeightedLoss(CRITERION)(net(x), y), wanted)


def test_an_item_of_a_batch_keeps_its_weight() -> None:
    x, y = next(iter(loader()))
    assert y[3].weights == pytest.approx(float(WEIGHTS[ids(x)[3]]))


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_losses(whole: bool) -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return criterion(net(x), y)

    compiled = torch.compile(step if whole else criterion, backend="eager")
    for x, y in loader():
        agree(net, compiled(x, y) if whole else compiled(net(x), y), x)


def test_validation_through_the_same_criterion() -> None:
    net, criterion = Net(), WeightedLoss(CRITERION)
    validation = DataLoader(Numbers(), batch_size=4)
    training = iter(loader())
    for x, y in validation:
        with torch.no_grad():
            torch.testing.assert_close(criterion(net(x), y), F.cross_entropy(net(x), y))
        with pytest.raises(RuntimeError, match="`target` must carry the weights"):
            criterion(net(x), y)
        torch.testing.assert_close(criterion.criterion(net(x), y), F.cross_entropy(net(x), y))
    x, y = next(training)
    agree(net, criterion(net(x), y), x)


def test_the_plain_dataset_by_mistake_is_loud() -> None:
    batches = DataLoader(Numbers(), sampler=Order(), batch_size=5)
    net = Net()
    for x, y in batches:
        with pytest.raises(RuntimeError, match=r"got a Tensor without any.*sampler.dataset"):
            WeightedLoss(CRITERION)(net(x), y)


def test_a_collate_function_that_drops_the_tags_is_loud() -> None:
    def collate(items: list[Any]) -> Any:
        return torch.stack([x for x, _ in items]), torch.tensor([int(y) for _, y in items])

    net = Net()
    for x, y in loader(collate_fn=collate):
        with pytest.raises(RuntimeError, match="`target` must carry the weights"):
            WeightedLoss(CRITERION)(net(x), y)


def test_rows_that_do_not_match_raise() -> None:
    net = Net()
    x, y = next(iter(loader()))
    with pytest.raises(ValueError, match="one weight for each of the 5 outputs, got 3"):
        WeightedLoss(CRITERION)(net(x), y[:3])
