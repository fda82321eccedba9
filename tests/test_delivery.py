"""A weight reaches the loss of its own sample, or the loss raises, whatever a loop does between.

Each sample's input is its index, so the weight that belongs to it is known: a recording criterion
notes (index, weight) pairs as they arrive at the loss.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.dlpack import from_dlpack

from adaptive_subset import TaggedDataset, TaggedIndex, WeightedLoss, WeightedTarget, retag
from adaptive_subset.delivery.rows import tags_of

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


SHAPE_OPERATIONS: dict[str, Callable[[Any], Any]] = {
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
    "where": lambda y: torch.where(y > 1, 0, y),
    "masked_fill": lambda y: y.masked_fill(y == 1, 0),
    "masked_fill with a plain mask": lambda y: y.masked_fill(torch.ones(5, dtype=torch.bool), 0),
    "masked_fill_": lambda y: y.masked_fill_(y == 1, 0),
    "assignment of a number": lambda y: (y.__setitem__(y == 1, 0), y)[1],
    "in place": lambda y: y.add_(1).sub_(1),
    "bool": lambda y: (y.bool().byte()).long(),
    "log1p": lambda y: torch.log1p(y.float()).round().long(),
    "floor division": lambda y: y // 2 + 5 // (y + 3),
    "operators": lambda y: (2 - abs(-y)) % CLASSES & 1 | 0,
    "view_as": lambda y: y.view_as(torch.zeros(5, 1)).view(-1),
    "transpose": lambda y: y[:, None, None].expand(5, 2, 3).transpose(1, 2)[:, 0, 1],
    "torch.add": lambda y: torch.sub(torch.add(y, 1), other=1),
    "torch.eq": lambda y: torch.eq(y, other=2).long(),
    "clone by keyword": lambda y: torch.clone(input=y),
    "type": lambda y: (y.type(), y.type(torch.int32).type_as(y))[1],
    "read by numpy": lambda y: (y.numpy().sum(), np.asarray(y).sum(), y)[2],
    "data": lambda y: (y.data == 1).long() + 0 * y,
    "smoothing": lambda y: F.one_hot(y, CLASSES) * 0.9 + 0.1 / CLASSES,
    "a look-up of one-hot codes": lambda y: torch.eye(CLASSES)[y],
    "a look-up of other labels": lambda y: torch.tensor([2, 0, 1])[y.int()].flip(0).flip(0),
    "class weights": lambda y: F.one_hot(y, CLASSES) * torch.tensor([0.1, 0.2, 0.7]),
    "a teacher": lambda y: WeightedTarget.like(torch.rand(5, CLASSES).softmax(1), y),
    "a teacher and labels": lambda y: (
        0.3 * F.one_hot(y, CLASSES)
        + 0.7 * WeightedTarget.like(torch.rand(5, CLASSES).softmax(1), y)
    ),
}


@pytest.mark.parametrize("name", SHAPE_OPERATIONS)
def test_conversions_in_the_loop(name: str) -> None:
    net = Net()
    x, y = next(iter(loader()))
    changed = SHAPE_OPERATIONS[name](y)
    labels = changed.plain()
    agree(net, WeightedLoss(CRITERION)(net(x), changed), x, labels)


def assign_rows(y: Tensor) -> Tensor:
    y[:] = torch.tensor(y.tolist()[::-1])
    return y


def assign_data(y: Any) -> Any:
    y.data = y.plain().flip(0)
    return y


LOUD: dict[str, Callable[[Any], Any]] = {
    "mixing to more than one": lambda y: (0.3 * y + 0.8 * y.flip(0)).long(),
    "extrapolating": lambda y: (1.3 * y + -0.3 * y.flip(0)).long(),
    "mixing with plain labels": lambda y: (0.3 * y + 0.7 * y.plain().flip(0)).long(),
    "adding plain labels by keyword": lambda y: y.add(other=y.plain().flip(0)) % CLASSES,
    "comparing with labels of others": lambda y: torch.eq(y, other=y.plain().flip(0)).long(),
    "choosing labels of others": lambda y: torch.where(y > 1, y, y.flip(0)),
    "labels along columns": lambda y: (y[:, None] + y).diagonal() % CLASSES,
    "a limit by row": lambda y: y.clamp(max=torch.arange(5)),
    "other data": assign_data,
    "writing to data": lambda y: (y.data.copy_(y.plain().flip(0)), y)[1],
    "another library's memory": lambda y: (from_dlpack(y), y)[1],
    "resizing": lambda y: y.unsqueeze_(1).squeeze_(1),
    "bits": lambda y: y.view(torch.int32)[::2].long(),
    "numbers of repetitions": lambda y: torch.repeat_interleave(torch.ones_like(y) + 0 * y)[:5] % 3,
    "into a tensor of one's own": lambda y: torch.add(y, 0, out=torch.zeros(5).long()),
    "adding labels": lambda y: (y + y.flip(0)) % CLASSES,
    "a mask over others": lambda y: torch.zeros(5).long()[y < CLASSES],
    "columns of a table": lambda y: torch.zeros(5, CLASSES).long()[:, y][:, 0],
    "learned prototypes": lambda y: nn.Parameter(torch.eye(CLASSES))[y],
    "sorting": lambda y: y.sort().values,
    "through numpy": lambda y: torch.from_numpy(y.numpy()),
    "through a list": lambda y: torch.tensor(y.tolist()),
    "a new first dimension": lambda y: y.view(5, 1).expand(5, 5).T.reshape(5, 5)[0],
    "concatenating with plain labels": lambda y: torch.cat([y[:2], torch.zeros(3).long()]),
    "overwriting rows with others": lambda y: y.copy_(y.flip(0)),
    "overwriting rows with plain ones": lambda y: y.copy_(torch.tensor([0, 0, 1, 2, 1])),
    "assigning rows": assign_rows,
    "writing through a view": lambda y: (y[1:3].fill_(2), y)[1],
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
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


def test_numpy_may_not_write_to_targets() -> None:
    _, y = next(iter(loader()))
    for view in (y.numpy(), np.asarray(y), y.flip(0).numpy(), y[0].numpy()):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    y.numpy().copy()[:] = 0
    assert y.plain().tolist() != [0] * 5
    assert y.weights is not None


def masks() -> Any:
    torch.manual_seed(0)
    y = torch.randint(2, (4, 6, 6))
    return WeightedTarget(y, torch.arange(1.0, 5.0), torch.arange(4))


def test_a_box_of_other_samples_takes_the_weights_away() -> None:
    y, box = masks(), torch.zeros(6, 6, dtype=torch.bool)
    box[:2, :2] = True
    for mixed in (torch.where(~box, y, y.flip(0)), y.where(~box, y.flip(0))):
        assert tags_of(mixed) is None
    owns: list[Any] = [torch.where(~box, y, y), y.where(~box, y), y.where(~box, -100)]
    for own in owns:
        torch.testing.assert_close(own.weights, y.weights)
    named: Any = y.where(condition=~box, other=torch.tensor(0))
    torch.testing.assert_close(named.weights, y.weights)


def test_a_mask_that_turns_rows_into_columns_takes_the_weights_away() -> None:
    y = WeightedTarget(torch.arange(4), torch.arange(1.0, 5.0))
    square = torch.eye(4, dtype=torch.bool)
    for spread in (torch.where(square, y, -1), y.masked_fill(square, 0), y.where(square, 0)):
        assert tags_of(spread) is None
    filled: Any = y.masked_fill(y.plain() > 2, 0)
    torch.testing.assert_close(filled.weights, y.weights)


def test_a_mask_or_one_hot_made_of_targets_is_plain() -> None:
    _, y = next(iter(loader()))
    mask, hot = torch.zeros(5), torch.zeros(5, CLASSES)
    mask[y == 1] = 1
    hot[torch.arange(5), y] = 1
    assert torch.equal(mask, (y.plain() == 1).float())
    assert torch.equal(hot, F.one_hot(y.plain(), CLASSES).float())
    assert torch.zeros(5).to(y).dtype == torch.int64


def test_tokens_count_with_the_weight_of_their_sample() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0])
    y: Any = WeightedTarget(torch.arange(6).view(3, 2), weights, torch.arange(3))
    assert y.view(-1).weights.tolist() == [0.5, 0.5, 2.0, 2.0, 1.0, 1.0]
    assert not isinstance(y.transpose(0, 1), WeightedTarget)  # a row of it mixes samples
    assert y[y > 9].weights.tolist() == []


MIXTURES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sum of products": lambda y, lam: lam * y + (1 - lam) * y.roll(1, 0),
    "a share as a tensor": lambda y, lam: (
        torch.tensor(lam) * y + y.roll(1, 0) * (1 - torch.tensor(lam))
    ),
    "in place": lambda y, lam: y.roll(1, 0).mul_(1 - lam).add_(y.mul(lam)),
    "alpha": lambda y, lam: torch.add(lam * y, y.roll(1, 0), alpha=1 - lam),
    "indexing": lambda y, lam: lam * y + (1 - lam) * y[torch.tensor([4, 0, 1, 2, 3])],
    "sample by sample": lambda y, lam: torch.stack(
        [lam * y[i] + (1 - lam) * y[i - 1] for i in range(5)]
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_weigh_what_their_parts_weigh(name: str) -> None:
    net, lam = Net(), 0.3
    x, y = next(iter(loader()))
    weights = WEIGHTS[ids(x)]
    mixed = MIXTURES[name](F.one_hot(y, CLASSES).float(), lam)
    soft = F.one_hot(y.plain(), CLASSES).float()
    soft = lam * soft + (1 - lam) * soft.roll(1, 0)
    losses = F.cross_entropy(net(x), soft, reduction="none")
    wanted = ((lam * weights + (1 - lam) * weights.roll(1, 0)) * losses).mean()
    torch.testing.assert_close(WeightedLoss(CRITERION)(net(x), mixed), wanted)
    assert mixed.sample_indices.tolist() == [-1] * 5  # type: ignore[attr-defined]


class Own(Dataset[tuple[Tensor, int]]):
    """Each sample is a class of its own, so that soft labels say what was mixed."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), float(index)), index


class Mixing:
    """The collate function of torchvision's reference scripts."""

    def __init__(self, kind: str) -> None:
        from torchvision.transforms import v2

        self.mix = getattr(v2, kind)(num_classes=N)

    def __call__(self, samples: list[Any]) -> Any:
        return self.mix(*default_collate(samples))


@WORKERS
@pytest.mark.parametrize("wrap", [lambda collate: collate, retag], ids=["plain", "retag"])
@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
def test_torchvision_mixes_in_the_collate_function(workers: int, wrap: Any, kind: str) -> None:
    batches = DataLoader(
        TaggedDataset(Own()), 6, sampler=Order(), num_workers=workers, collate_fn=wrap(Mixing(kind))
    )
    for x, y in batches:
        soft = y.plain()
        assert (soft > 0).sum() > 6 or kind == "CutMix"  # it did mix
        torch.testing.assert_close(x.mean((1, 2, 3)), soft @ torch.arange(float(N)))
        torch.testing.assert_close(y.weights, soft @ WEIGHTS)


class Texts(Dataset[dict[str, Any]]):
    """Items as tokenizers make them: lists of unequal length, one label or a label for each."""

    def __init__(self, label: Callable[[int], Any]) -> None:
        self.label = label

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": index, "length": index * 7 % 5, "label": self.label(index)}


def repeating(index: int) -> int:
    return index // 2 % CLASSES


def by_token(index: int) -> list[int]:
    return [repeating(index)] * (1 + index % 4)


def by_token_in_arrays(index: int) -> np.ndarray:
    return np.array(by_token(index))


def padded(samples: list[Any], left: bool = False) -> dict[str, Tensor]:
    most = max(len(s["label"]) for s in samples)
    rows = [(list(s["label"]), [-100] * (most - len(s["label"]))) for s in samples]
    labels = [pad + own if left else own + pad for own, pad in rows]
    return {"id": torch.tensor([s["id"] for s in samples]), "labels": torch.tensor(labels)}


def collated(samples: list[Any], key: str = "labels", dtype: Any = None) -> dict[str, Tensor]:
    ids = torch.tensor([s["id"] for s in samples])
    return {"id": ids, key: torch.tensor([s.pop("label") for s in samples], dtype=dtype)}


COLLATORS: dict[str, tuple[Callable[[int], Any], Callable[[list[Any]], Any]]] = {
    "new tensors": (repeating, lambda s: collated(s, "label")),
    "label becomes labels": (repeating, collated),
    "another dtype": (repeating, lambda s: collated(s, dtype=torch.float32)),
    "floats": (lambda i: repeating(i) / 2, collated),
    "sorted by length": (repeating, lambda s: collated(sorted(s, key=lambda i: i["length"]))),
    "shuffled": (repeating, lambda s: collated([s[i] for i in torch.randperm(len(s))])),
    "filtered": (repeating, lambda s: collated([i for i in s if i["length"] > 1])),
    "twice": (repeating, lambda s: collated([dict(i) for i in s * 2])),
    "padded on the right": (by_token, padded),
    "padded on the left": (by_token, lambda s: padded(s, left=True)),
    "padded arrays": (by_token_in_arrays, padded),
    "stacked": (repeating, lambda s: default_collate([{**i, "id": i["id"]} for i in s])),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_retagged_collate_functions(name: str) -> None:
    label, collate = COLLATORS[name]
    data = TaggedDataset(Texts(label))
    for batch in DataLoader(data, 6, sampler=Order(), collate_fn=retag(collate)):
        y = batch["labels"] if "labels" in batch else batch["label"]
        torch.testing.assert_close(y.weights, WEIGHTS[batch["id"]])
        assert torch.equal(y.sample_indices, batch["id"])
    torch.manual_seed(0)
    wanted = list(DataLoader(Texts(label), 6, collate_fn=collate))
    torch.manual_seed(0)
    plain = list(DataLoader(data, 6, collate_fn=retag(collate)))  # validation: nothing is tagged
    for one, two in zip(plain, wanted, strict=True):
        assert all(type(one[k]) is Tensor and torch.equal(one[k], two[k]) for k in two)


def test_retagging_changes_neither_batches_nor_random_state() -> None:
    def noisy(samples: list[Any]) -> Any:
        batch = collated(samples)
        return {**batch, "noise": torch.rand(len(samples)) + np.random.rand()}

    order = list(Order())
    results = []
    for collate, indices in ((noisy, [int(i) for i in order]), (retag(noisy), order)):
        torch.manual_seed(1)
        np.random.seed(1)
        data = TaggedDataset(Texts(repeating))
        results.append([collate(data.__getitems__(indices[i : i + 6])) for i in (0, 6)])
        results[-1].append(torch.rand(()))
    (*batches, after), (*retagged, after_retagged) = results
    assert torch.equal(after, after_retagged)
    for one, two in zip(batches, retagged, strict=True):
        assert torch.equal(one["noise"], two["noise"])
        assert torch.equal(one["labels"], two["labels"].plain())
        assert two["labels"].weights is not None


class Shuffling:
    """A collate function with a generator of its own."""

    def __init__(self, kind: type[Any]) -> None:
        self.rng = kind(0) if kind is random.Random else np.random.default_rng(0)
        self.noise: list[float] = []

    def __call__(self, samples: list[Any]) -> dict[str, Tensor]:
        samples = [dict(sample) for sample in samples]
        self.rng.shuffle(samples)
        self.noise.append(self.rng.random())
        return collated(samples)


@pytest.mark.parametrize("kind", [random.Random, np.random.Generator])
def test_a_collate_function_draws_from_its_own_generator_as_without(kind: type[Any]) -> None:
    order = list(Order())
    data, texts = TaggedDataset(Texts(lambda i: i % 2)), Texts(lambda i: i % 2)
    wrapped, plain = Shuffling(kind), Shuffling(kind)
    collate = retag(wrapped)
    for start in range(0, 12, 4):
        some = order[start : start + 4]
        batch, wanted = collate([data[i] for i in some]), plain([texts[int(i)] for i in some])
        assert torch.equal(batch["id"], wanted["id"])
        assert torch.equal(batch["labels"].sample_indices, batch["id"])
        assert wrapped.noise[-1] == plain.noise[-1]


@pytest.mark.parametrize("falling", [False, True])
def test_an_order_by_the_targets_is_loud_where_they_are_equal(falling: bool) -> None:
    def by_label(samples: list[Any]) -> dict[str, Tensor]:
        return collated(sorted(samples, key=lambda s: s["label"], reverse=falling))

    data = TaggedDataset(Texts(lambda i: 1))
    with pytest.raises(ValueError, match="got another order where the targets are others"):
        retag(by_label)([data[i] for i in list(Order())[:4]])


RNG = np.random.default_rng(0)
LOST: dict[str, tuple[Callable[[int], Any], Callable[[list[Any]], Any], str]] = {
    "one-hot of numbers": (
        repeating,
        lambda s: {"labels": F.one_hot(collated(s)["labels"], CLASSES)},
        "must hand the targets on as they are.*RuntimeError",
    ),
    "counting from one": (
        repeating,
        lambda s: {"labels": collated(s)["labels"] + 1},
        r"must hand the targets on.*\[10008, 10105",
    ),
    "mixing numbers": (
        repeating,
        lambda s: {"labels": 0.4 * (y := collated(s)["labels"]) + 0.6 * y.flip(0)},
        "must hand the targets on.*carry the weights along",
    ),
    "an order of its own generator": (
        repeating,
        lambda s: collated([s[i] for i in RNG.permutation(len(s))]),
        "got other values than those of the samples",
    ),
    "bits": (lambda i: torch.tensor(i > 3), collated, "torch.bool, which cannot hold"),
    "bytes": (np.uint8, collated, "uint8, which cannot hold numbers of samples"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_collate_function_that_changes_targets_is_loud(name: str) -> None:
    label, collate, message = LOST[name]
    with pytest.raises(ValueError, match=message):
        list(
            DataLoader(TaggedDataset(Texts(label)), 12, sampler=Order(), collate_fn=retag(collate))
        )


def test_where_the_target_of_a_batch_is_can_be_said() -> None:
    def lengths(samples: list[Any]) -> Any:
        labels = torch.tensor([y for _, y in samples])
        return torch.stack([x for x, _ in samples]), torch.zeros(len(samples)), labels

    def batch(target: Any) -> Any:
        return next(iter(loader(collate_fn=retag(lengths, target))))

    x, _, y = batch(2)
    torch.testing.assert_close(y.weights, WEIGHTS[ids(x)])
    with pytest.raises(ValueError, match="must hand the targets on"):
        batch(None)
    with pytest.raises(TypeError, match="target=5 for a tuple of 3"):
        batch(5)
    with pytest.raises(TypeError, match="must lead to a tensor in the batch, got list at 1"):
        next(iter(loader(collate_fn=retag(lambda s: ([x for x, _ in s], [y for _, y in s])))))


def test_hugging_face_s_default_collator() -> None:
    transformers = pytest.importorskip("transformers")
    collate = retag(transformers.default_data_collator)
    data = TaggedDataset(Texts(repeating))
    for batch in DataLoader(data, 6, sampler=Order(), collate_fn=collate):
        torch.testing.assert_close(batch["labels"].weights, WEIGHTS[batch["id"]])


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_subset.delivery.tags._warned", False)


PLAIN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a module": lambda out, y: CRITERION(out, y),
    "by keyword": lambda out, y: F.cross_entropy(input=out, target=y, reduction="sum"),
    "mse": lambda out, y: F.mse_loss(out[:, 0], y.float()),
    "bce": lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], (y > 1).float()),
    "kl": lambda out, y: nn.KLDivLoss(reduction="batchmean")(
        out.log_softmax(1), F.one_hot(y, CLASSES).float()
    ),
    "nll": lambda out, y: nn.NLLLoss()(out.log_softmax(1), y),
    "one sample": lambda out, y: F.cross_entropy(out[0], y[0]),
}


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize("name", PLAIN)
def test_a_forgotten_weighted_loss_is_said_once(name: str) -> None:
    net = Net()
    x, y = next(iter(loader()))
    with pytest.warns(UserWarning, match=r"other than one.*WeightedLoss\(criterion\)"):
        PLAIN[name](net(x), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PLAIN[name](net(x), y)


SILENT: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "weighted": lambda net, x, y: WeightedLoss(CRITERION)(net(x), y),
    "accuracy": lambda net, x, y: (net(x).argmax(1) == y).float().mean(),
    "validation": lambda net, x, y: torch.no_grad()(lambda: CRITERION(net(x), y))(),
    "a metric": lambda net, x, y: F.mse_loss(net(x).detach()[:, 0], y.float()),
    "weights by hand": lambda net, x, y: (
        F.cross_entropy(net(x), y, reduction="none") * y.weights  # type: ignore[attr-defined]
    ),
    "plain": lambda net, x, y: CRITERION(net(x), y.plain()),  # type: ignore[attr-defined]
    "a warm start": lambda net, x, y: CRITERION(
        net(x),
        WeightedTarget(y.plain(), torch.ones(5)),  # type: ignore[attr-defined]
    ),
}


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize("name", SILENT)
def test_no_warning_where_weights_are_not_forgotten(name: str) -> None:
    x, y = next(iter(loader()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SILENT[name](Net(), x, y)


COMPILED: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda y: y[:],
    "arithmetic": lambda y: (y + 1) % CLASSES,
    "mask": lambda y: y.masked_fill(y == 0, 1),
    "conversion": lambda y: y.to(torch.int32).long(),
}


@pytest.mark.parametrize("name", COMPILED)
def test_targets_inside_a_compiled_step(name: str) -> None:
    net, criterion, change = Net(), WeightedLoss(CRITERION), COMPILED[name]
    torch.compiler.reset()

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, hot = net(x), torch.zeros(len(x), CLASSES)
        hot[torch.arange(len(x)), y] = 1
        return criterion(out, change(y)), (out.argmax(1) == y).float().mean(), hot

    compiled = torch.compile(step, backend="eager")
    for x, y in loader():
        loss, accuracy, hot = compiled(x, y)
        agree(net, loss, x, change(y.plain()))
        assert accuracy == (net(x).argmax(1) == y.plain()).float().mean()
        assert torch.equal(hot.argmax(1), y.plain())


class Shifting(Sampler[int]):
    """A sampler around another that calculates with its indices."""

    def __init__(self, inner: Sampler[int], change: Callable[[int], Any]) -> None:
        self.inner, self.change = inner, change

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return map(self.change, self.inner)


@pytest.mark.parametrize("change", [lambda i: i + 0, int, np.int64, lambda i: i % 7, lambda i: -i])
def test_samplers_that_calculate_with_indices_are_loud(change: Any) -> None:
    data = TaggedDataset(Numbers())
    for x, y in DataLoader(data, 5, sampler=Shifting(Order(), change)):
        with pytest.raises(RuntimeError, match="`target` must carry the weights"):
            WeightedLoss(CRITERION)(Net()(x), y)


@pytest.mark.parametrize("change", [lambda i: i, copy.copy, lambda i: sorted([i])[0]])
def test_samplers_that_hand_indices_on_are_exact(change: Any) -> None:
    net = Net()
    for x, y in DataLoader(TaggedDataset(Numbers()), 5, sampler=Shifting(Order(), change)):
        agree(net, WeightedLoss(CRITERION)(net(x), y), x)
