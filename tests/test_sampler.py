"""The sampler: schedule, order, length, resume, existing loaders."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from adaptive_subset import (
    AdaptiveSubsetSampler,
    Candidates,
    Choice,
    FreshRandom,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    LossSampling,
    OrderDP,
    Random,
    Selector,
    Strategy,
    TaggedIndex,
    WeightedLoss,
)
from adaptive_subset.delivery.epoch import Epoch, Order
from tests import models

N = 40
costs_are_told = pytest.mark.filterwarnings("error:selections have taken")
read_often = pytest.mark.filterwarnings("ignore:the subset of epoch")


def data() -> Dataset[Any]:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 6, generator=generator), torch.arange(N) % 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return models.mlp()


def make(
    strategy: Any = None,
    fraction: float | None = 0.25,
    tolerance: float | None = None,
    weights: Literal["mean-one", "matched"] = "mean-one",
    **options: Any,
) -> AdaptiveSubsetSampler:
    criterion = nn.CrossEntropyLoss()
    selector = Selector(
        data(),
        strategy or GradMatch(),
        criterion=criterion,
        fraction=fraction,
        tolerance=tolerance,
        weights=weights,
    )
    return AdaptiveSubsetSampler(selector, **{"every": 2, **options})


def epoch_of(sampler: AdaptiveSubsetSampler) -> list[tuple[int, float]]:
    return [(int(index), index.weight) for index in sampler if isinstance(index, TaggedIndex)]


def test_the_loop_of_the_readme_runs_as_written() -> None:
    train_set, net = data(), model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    selector = Selector(train_set, GradMatch(lam=0.5), fraction=0.1)
    sampler = AdaptiveSubsetSampler(selector, every=3, epochs=8, warm_start=0.5)
    loader = DataLoader(sampler.dataset, batch_size=2, sampler=sampler)
    criterion = WeightedLoss(nn.CrossEntropyLoss(), selector)
    made = []
    for epoch in range(8):
        made.append(sampler.maybe_reselect(net, epoch) is not None)
        steps = 0
        for x, y in loader:
            loss = criterion(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        assert steps == len(loader) == 2
    assert made == [False] * 4 + [True, False, False, True]
    assert [entry["epoch"] for entry in sampler.history] == [4, 7]


def test_selects_every_r_epochs_and_once_an_epoch() -> None:
    sampler, net = make(Random(), every=3), model()
    made = [e for e in range(7) for _ in range(2) if sampler.maybe_reselect(net, e) is not None]
    assert made == [0, 3, 6]
    assert sampler.selection is sampler.selector.selection


def test_a_skipped_epoch_does_not_skip_a_selection() -> None:
    sampler, net = make(Random(), every=3), model()
    assert [sampler.maybe_reselect(net, e) is not None for e in (1, 4, 5, 6)] == [
        True,
        True,
        False,
        True,
    ]


def test_set_epoch_never_selects() -> None:
    sampler = make()
    sampler.set_epoch(5)
    assert sampler.selection is None
    with pytest.raises(RuntimeError, match=r"epoch 5 is due for a selection.*maybe_reselect"):
        next(iter(sampler))
    with pytest.raises(ValueError, match="`epoch` must be at least 0"):
        sampler.set_epoch(-1)


def test_an_epoch_that_missed_its_selection_is_not_run_on_the_old_one() -> None:
    sampler = make(every=2)
    sampler.maybe_reselect(model(), 0)
    state = sampler.state_dict()
    sampler = make(every=2)
    sampler.load_state_dict(state)  # of a run whose loop goes on with set_epoch alone
    sampler.set_epoch(1)
    assert len(list(sampler)) == 10
    sampler.set_epoch(2)
    with pytest.raises(RuntimeError, match="epoch 2 is due"):
        next(iter(sampler))


@pytest.mark.parametrize("other", [0, 2])
def test_set_epoch_never_overrules_maybe_reselect(other: int) -> None:
    """Accelerate calls it with a count of its own, which starts at 0 after a restart."""
    sampler, net = make(every=4), model()
    for epoch in range(2):
        sampler.set_epoch(epoch)  # as in loops for DistributedSampler, before or after
        sampler.maybe_reselect(net, epoch)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == 10
    sampler.set_epoch(other)
    with pytest.raises(RuntimeError, match=rf"last maybe_reselect, 1, got {other} from set_epoch"):
        next(iter(sampler))
    sampler.maybe_reselect(net, 2)
    assert len(list(sampler)) == 10


def test_an_epoch_that_is_trained_on_again_and_again_is_reported() -> None:
    sampler = make()
    sampler.maybe_reselect(model(), 0)
    for _ in range(2):  # one may train and one evaluate
        list(sampler)
    with pytest.warns(UserWarning, match="the subset of epoch 0 is read for the third time"):
        list(sampler)
    list(sampler)  # said once
    sampler.maybe_reselect(model(), 1)
    for _ in range(2):
        list(sampler)


def test_an_epoch_begins_with_its_first_index() -> None:
    """Lightning makes the iterator before its hooks run."""
    sampler, net = make(every=1), model()
    early = iter(sampler)
    selection = sampler.maybe_reselect(net, 0)
    assert selection is not None
    assert sorted(early) == sorted(selection.indices.tolist())


@read_often
def test_the_order_is_a_pure_function_of_seed_epoch_and_selection() -> None:
    first, second, other = make(every=4), make(every=4), make(every=4, seed=1)
    net = model()
    for sampler in (first, second, other):
        sampler.maybe_reselect(net, 0)
    torch.rand(3)
    assert epoch_of(first) == epoch_of(first) == epoch_of(second)
    assert epoch_of(first) != epoch_of(other)
    assert sorted(epoch_of(first)) == sorted(epoch_of(other))
    before = epoch_of(first)
    first.maybe_reselect(net, 1)
    assert before != epoch_of(first)
    assert sorted(before) == sorted(epoch_of(first))
    with pytest.warns(UserWarning, match="goes back from 1 to 0"):
        first.maybe_reselect(net, 0)
    assert before == epoch_of(first)


def test_a_second_run_with_the_sampler_of_the_first_is_told(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Its selection and losses are those of a model that is trained already."""
    sampler = make(every=4)
    start = sampler.state_dict()
    for epoch in range(2):
        sampler.maybe_reselect(model(), epoch)
        epoch_of(sampler)
    with pytest.warns(
        UserWarning, match=r"`epoch` goes back from 1 to 0, .*sampler for each run"
    ) as told:
        sampler.maybe_reselect(model(), 0)
    assert told[0].filename == __file__
    again = make(every=4)
    again.maybe_reselect(model(), 1)
    again.load_state_dict(start)
    again.maybe_reselect(model(), 0)
    assert not recwarn.list


def test_weights_have_mean_one_and_belong_to_their_samples() -> None:
    sampler = make()
    selection = sampler.maybe_reselect(model(), 0)
    assert selection is not None
    expected = dict(zip(selection.indices.tolist(), selection.loss_weights.tolist(), strict=True))
    found = dict(epoch_of(sampler))
    assert found == expected
    assert sum(found.values()) / len(found) == pytest.approx(1)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_the_warm_start_walks_through_all_data_in_shards(fraction: float) -> None:
    sampler = make(fraction=fraction, epochs=20, warm_start=0.5)
    net, seen = model(), []
    for epoch in range(10):
        assert sampler.maybe_reselect(net, epoch) is None
        indices = epoch_of(sampler)
        assert len(indices) == len(sampler) == round(fraction * N)
        assert all(weight == 1 for _, weight in indices)
        seen += [index for index, _ in indices]
    counts = torch.bincount(torch.tensor(seen), minlength=N)
    assert int(counts.max() - counts.min()) <= 1
    assert sampler.maybe_reselect(net, 10) is not None
    assert len(epoch_of(sampler)) == len(sampler)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_warm_starts_of_nothing_and_all(share: float) -> None:
    sampler, net = make(Random(), epochs=3, warm_start=share), model()
    made = [sampler.maybe_reselect(net, e) is not None for e in range(3)]
    assert made == ([True, False, True] if share == 0 else [False] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be at least 1 epoch, got 0"),
        ({"warm_start": 1.5, "epochs": 3}, r"`warm_start` must be in \[0, 1\], got 1.5"),
        ({"warm_start": 0.5}, r"`epochs` must be given for a warm start of 0.5"),
        ({"weighting": "sum"}, r"`weighting` must be \"loss\" or \"resample\", got 'sum'"),
        (
            {"weighting": "resample", "strategy": OrderDP()},
            r"`weighting` must be \"loss\" for .* the losses of training, got \"resample\" for Ord",
        ),
        (
            {"weighting": "resample", "strategy": GradMatch(), "weights": "matched"},
            r"`weighting` must be \"loss\" for weights=\"matched\", got \"resample\": samples",
        ),
        ({"num_replicas": 2, "rank": 2}, r"`rank` must be in \[0, 1\], got 2"),
        ({"num_replicas": 11, "rank": 0}, r"`budget` must give each of 11 ranks"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_chosen_batches_stay_together_in_the_loader() -> None:
    sampler = make(GradMatchPB(batch_size=4), fraction=0.5)
    selection = sampler.maybe_reselect(model(), 0)
    assert selection is not None
    chosen = {tuple(batch) for batch in selection.indices.view(-1, 4).tolist()}
    loader: DataLoader[int] = DataLoader(range(N), 4, sampler=sampler)  # type: ignore[arg-type]
    orders = []
    for epoch in range(2):
        sampler.maybe_reselect(model(), epoch)
        orders.append([tuple(batch.tolist()) for batch in loader])
        assert set(orders[-1]) == chosen
    assert orders[0] != orders[1]


def test_resampling_repeats_samples_in_proportion_to_their_weight() -> None:
    sampler = make(weighting="resample", every=100)
    net = model()
    selection = sampler.maybe_reselect(net, 0)
    assert selection is not None
    expected = dict(zip(selection.indices.tolist(), selection.loss_weights.tolist(), strict=True))
    total = torch.zeros(N)
    for epoch in range(50):
        sampler.maybe_reselect(net, epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        assert not any(isinstance(index, TaggedIndex) for index in drawn)
        counts = torch.bincount(torch.tensor(drawn), minlength=N)
        total += counts
        for index, weight in expected.items():
            assert abs(int(counts[index]) - weight) < 1 + 1e-6
    for index, weight in expected.items():
        assert float(total[index]) / 50 == pytest.approx(weight, abs=0.35)


class OneHeavy(Strategy):
    """The first samples; one of them has half of all weight."""

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        weights = torch.ones(budget)
        weights[3] = budget - 1.0
        return Choice(torch.arange(budget), weights)


def test_resampling_spreads_repeats_over_the_epoch() -> None:
    sampler, net = make(OneHeavy(), fraction=0.5, weighting="resample", every=100), model()
    for epoch in range(20):
        sampler.maybe_reselect(net, epoch)
        places = [place for place, index in enumerate(sampler) if index == 3]
        assert 9 <= len(places) <= 11
        assert places != list(range(places[0], places[-1] + 1))


def test_resampling_refuses_negative_weights() -> None:
    sampler = make(weighting="resample")
    selection = sampler.maybe_reselect(model(), 0)
    assert selection is not None
    selection.weights[0] = -0.1
    with pytest.raises(ValueError, match='`weighting` must be "loss" for negative weights'):
        next(iter(sampler))


@pytest.mark.parametrize(
    "options",
    [
        {"every": 3, "epochs": 12, "warm_start": 0.25},
        {"every": 3, "fraction": None, "tolerance": 0.2, "strategy": GradMatch(lam=0.01)},
        {"every": 1, "fraction": None, "strategy": InfoBatch(epochs=12)},
        {"every": 1, "strategy": LossSampling()},
    ],
    ids=["warm", "tolerance", "infobatch", "losses"],
)
def test_a_killed_run_resumes_exactly(options: dict[str, Any]) -> None:
    def train(net: nn.Module, sampler: AdaptiveSubsetSampler, epochs: range) -> list[Any]:
        criterion = WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
        optimizer = torch.optim.SGD(net.parameters(), 0.5)
        loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler)
        seen: list[Any] = []
        for epoch in epochs:
            sampler.maybe_reselect(net, epoch)
            seen.append(epoch_of(sampler))
            for x, y in loader:
                loss = criterion(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return seen

    whole_net, whole_sampler = model(), make(**options)
    whole = train(whole_net, whole_sampler, range(12))

    net, sampler = model(), make(**options)
    start = train(net, sampler, range(8))  # in the middle of a period
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "sampler": sampler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    net, sampler = model(), make(**options)
    net.load_state_dict(saved["net"])
    sampler.load_state_dict(saved["sampler"])
    rest = train(net, sampler, range(8, 12))
    assert start + rest == whole
    assert [e["epoch"] for e in sampler.history] == [e["epoch"] for e in whole_sampler.history]
    for a, b in zip(net.parameters(), whole_net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_saved_state_is_a_snapshot() -> None:
    sampler, net = make(FreshRandom(), every=1), model()
    sampler.maybe_reselect(net, 0)
    state = sampler.state_dict()
    before = copy.deepcopy(state)
    sampler.maybe_reselect(net, 1)
    assert state["history"] == before["history"]
    assert len(state["history"]["selections"]) == 1
    saved, earlier = state["selector"]["selection"], before["selector"]["selection"]
    assert torch.equal(saved["indices"], earlier["indices"])
    assert sampler.selection is not None
    sampler.selection.indices.fill_(0)
    sampler.load_state_dict(state)
    assert torch.equal(sampler.selection.indices, earlier["indices"])


def test_saved_losses_are_a_snapshot() -> None:
    """Rolling back to a state in memory draws the same again, though training went on."""
    sampler = make(LossSampling(), every=1)
    record, net = sampler.selector.losses, model()
    assert record is not None
    WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
    record.note(torch.arange(N), torch.linspace(0, 1, N))
    state = sampler.state_dict()
    first = sampler.maybe_reselect(net, 0)
    record.note(torch.arange(N), torch.linspace(1, 0, N) ** 4)
    sampler.load_state_dict(state)
    again = sampler.maybe_reselect(net, 0)
    assert first is not None
    assert again is not None
    assert torch.equal(first.indices, again.indices)


def test_a_damaged_state_changes_nothing() -> None:
    sampler = make(every=1)
    selection = sampler.maybe_reselect(model(), 0)
    state = sampler.state_dict()
    for name, value, message in (
        ("indices", torch.full((10,), N), "indices from 40 to 40"),
        ("weights", torch.ones(9), r"indices \(10,\) and weights \(9,\)"),
        ("weights", torch.full((10,), torch.nan), "not finite"),
    ):
        broken = copy.deepcopy(state)
        broken["selector"]["selection"][name] = value
        broken["epoch"] = 7
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict(broken)
        assert sampler.selection is selection
        assert sampler.epoch == 0


def test_a_selector_serves_one_sampler() -> None:
    sampler = make()
    with pytest.raises(ValueError, match="`selector` must serve one sampler"):
        AdaptiveSubsetSampler(sampler.selector)


def test_the_strategy_says_how_often_it_selects() -> None:
    assert make(FreshRandom(), every=None).every == 1
    assert make(GradMatch(), every=None).every == 20


def test_state_of_another_configuration_is_refused() -> None:
    state = make(every=2).state_dict()
    with pytest.raises(ValueError, match=r"same arguments.*'every': \(2, 5\)"):
        make(every=5).load_state_dict(state)
    with pytest.raises(ValueError, match=r"'budget': \(10, 20\)"):
        make(fraction=0.5).load_state_dict(state)


@read_often
def test_an_epoch_resumes_in_the_middle() -> None:
    sampler = make()
    sampler.maybe_reselect(model(), 0)
    iterator = iter(sampler)
    head = [next(iterator) for _ in range(4)]
    state = iterator.state_dict()
    resumed = iter(sampler)
    resumed.load_state_dict(state)
    assert head + list(resumed) == list(sampler)
    sampler.maybe_reselect(model(), 1)
    other = iter(sampler)
    other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"index 4 of 10 in epoch 0, and 10 .* in epoch 1"):
        next(other)
    with pytest.raises(ValueError, match="`state` must hold a position in"):
        other.load_state_dict({**state, "position": 11})
    with pytest.raises(ValueError, match=r"sampler's iterator returned, got a dict without 'size'"):
        other.load_state_dict({"epoch": 0, "position": 4})


@pytest.mark.parametrize("workers", [0, 2])
def test_an_existing_loader_is_kept(workers: int) -> None:
    sampler = make()
    calls: list[int] = []

    def collate(items: list[Any]) -> Any:
        calls.append(len(items))
        return torch.utils.data.default_collate(items)

    loader = DataLoader(
        sampler.selector.dataset,
        batch_size=3,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    list(loader)  # also when it has been used
    attached = sampler.attach(loader)
    assert type(attached) is DataLoader
    assert (attached.collate_fn, attached.num_workers) == (collate, workers)
    assert len(loader) == 13  # as it was
    sampler.maybe_reselect(model(), 0)
    assert len(attached) == 3
    batches = list(attached)
    assert [len(y) for _, y in batches] == [3, 3, 3]
    x, y = sampler.selector.dataset[:]
    weights = dict(epoch_of(sampler))
    for inputs, targets in batches:
        for i in range(3):
            index = int((x == inputs[i]).all(1).nonzero()[0, 0])
            assert int(targets[i]) == int(y[index])
            assert float(targets.weights[i]) == pytest.approx(weights[index])


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


def test_loaders_that_cannot_be_steered_are_refused() -> None:
    sampler = make()
    with pytest.raises(ValueError, match=r"`loader` must read the dataset of the selector"):
        sampler.attach(DataLoader(data()))
    own = sampler.selector.dataset
    for loader in (
        DataLoader(own, batch_size=None),
        DataLoader(own, batch_sampler=[[0, 1], [2]]),
    ):
        with pytest.raises(ValueError, match=r"`loader` must form batches by `batch_size`"):
            sampler.attach(loader)


@pytest.mark.parametrize("is_batch_sampler", [False, True])
@pytest.mark.parametrize(
    "chosen", [SubsetRandomSampler(range(N // 2)), WeightedRandomSampler([1.0] * N, N)]
)
def test_a_loader_that_chooses_by_itself_is_refused(chosen: Any, is_batch_sampler: bool) -> None:
    """What a SubsetRandomSampler holds out, for validation say, would be trained on."""
    sampler = make()
    how: Any = {"batch_size": 4, "sampler": chosen}
    if is_batch_sampler:
        how = {"batch_sampler": BatchSampler(chosen, 4, drop_last=False)}
    kind = type(chosen).__name__
    with pytest.raises(ValueError, match=rf"`loader` must leave it to .*, got a {kind}.*Subset\("):
        sampler.attach(DataLoader(sampler.selector.dataset, **how))


def own_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As of a model that computes its loss, with operations that leave the weights behind."""
    labels = nn.functional.pad(y, (0, 1), value=-100)[:-1].contiguous().view(-1)
    return nn.functional.cross_entropy(net(x), labels)


@pytest.mark.parametrize("weighting", ["loss", "resample"])
@pytest.mark.parametrize("strategy", [GradMatch(), Random()])
def test_training_by_another_loss_than_the_weighted_one_is_told(
    strategy: Strategy, weighting: Any, recwarn: pytest.WarningsRecorder
) -> None:
    sampler, net = make(strategy, every=4, weighting=weighting), model()
    WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
    loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler)
    sampler.maybe_reselect(net, 0)
    for x, y in loader:
        own_loss(net, x, y).backward()
    assert not recwarn.list
    if weighting == "loss" and isinstance(strategy, GradMatch):
        with pytest.warns(UserWarning, match="was not called in a whole epoch") as told:
            sampler.maybe_reselect(net, 1)
        assert told[0].filename == __file__
    else:
        sampler.maybe_reselect(net, 1)  # without weights nothing is lost


@pytest.mark.parametrize(
    ("strategy", "effect"), [(GradMatch(), "follows another"), (OrderDP(), "goes by losses of")]
)
def test_a_loss_that_is_no_longer_called_is_told(strategy: Strategy, effect: str) -> None:
    """As where the loop goes on with a copy of it, or with another loss in its last epochs."""
    sampler, net = make(strategy, every=1), model()
    criterion = WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
    loader = DataLoader(sampler.dataset, batch_size=4, sampler=sampler)

    def train(epoch: int, loss: WeightedLoss) -> None:
        sampler.maybe_reselect(net, epoch)
        for x, y in loader:
            loss(net(x), y).backward()

    for epoch in range(2):
        train(epoch, criterion)
    train(2, copy.deepcopy(criterion))
    with pytest.warns(UserWarning, match=f"was not called in a whole epoch, so .*{effect}") as told:
        sampler.maybe_reselect(net, 3)
    assert told[0].filename == __file__
    train(3, criterion)
    sampler.maybe_reselect(net, 4)


def test_an_epoch_that_was_over_when_it_was_saved_misses_no_loss() -> None:
    def at(epoch: int) -> tuple[AdaptiveSubsetSampler, Any]:
        sampler = make(every=4)
        WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
        sampler.maybe_reselect(model(), epoch)
        return sampler, iter(sampler)

    first, rest = at(0)
    assert len(list(rest)) == len(first)
    resumed, rest_again = at(0)
    rest_again.load_state_dict(rest.state_dict())
    assert not list(rest_again)
    resumed.maybe_reselect(model(), 1)  # without a warning


def test_a_loader_that_would_drop_its_only_batch_is_refused() -> None:
    sampler = make()
    size = len(sampler)

    def loader(batch_size: int, drop_last: bool = True) -> DataLoader[Any]:
        return DataLoader(sampler.selector.dataset, batch_size=batch_size, drop_last=drop_last)

    message = rf"`loader` must have batches.*batch_size={size + 1} and drop_last=True.* {size} samp"
    with pytest.raises(ValueError, match=message):
        sampler.attach(loader(size + 1))
    for whole in (loader(size), loader(size + 1, drop_last=False)):
        assert len(sampler.attach(whole)) == 1
    found = make(GradMatch(), fraction=None, tolerance=0.5)  # the first selection tells its length
    found.attach(DataLoader(found.selector.dataset, batch_size=N, drop_last=True))


class EveryOther(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(0, N, 2))


def test_a_loader_with_a_sampler_of_ones_own_is_attached_with_a_warning() -> None:
    sampler = make()
    own = sampler.selector.dataset
    with pytest.warns(UserWarning, match="sampler of its own, EveryOther, whose order") as told:
        sampler.attach(DataLoader(own, sampler=EveryOther()))
    assert told[0].filename == __file__
    for chosen in (RandomSampler(own, replacement=True), RandomSampler(own, num_samples=N // 2)):  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="sampler of its own, RandomSampler, whose order and"):
            sampler.attach(DataLoader(own, sampler=chosen))
    sampler.attach(sampler.attach(DataLoader(own, shuffle=True)))


class Clock:
    """Stands still but where the test moves it on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Strategy):
    """Takes a number of seconds for a selection."""

    needs_gradients = True

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        self.clock.now += self.seconds
        return Choice(torch.arange(budget), torch.ones(budget))


class SlowWithoutGradients(Slow):
    needs_gradients = False


@costs_are_told
@pytest.mark.parametrize(
    ("kind", "seconds", "wasteful"),
    [(Slow, 1.4, False), (Slow, 1.6, True), (SlowWithoutGradients, 1.6, False)],
)
def test_selections_that_cost_more_than_they_save_are_reported(
    monkeypatch: pytest.MonkeyPatch, kind: type[Slow], seconds: float, wasteful: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    sampler, net = make(kind(clock, seconds), every=1), model()
    sampler.maybe_reselect(net, 0)  # nothing is known yet of what training costs
    for _ in sampler:
        clock.now += 0.1  # 1 s for a quarter of the data, 3 s less than for all
    if wasteful:
        message = r"have taken 3\.2 s so far, more than the 3 s that the smaller epochs saved"
        with pytest.warns(UserWarning, match=message):
            sampler.maybe_reselect(net, 1)
        sampler.maybe_reselect(net, 2)  # once is enough
    else:
        sampler.maybe_reselect(net, 1)  # a warning would be an error


def test_a_weighted_loss_of_resampled_indices_names_the_bare_one() -> None:
    sampler = make(weighting="resample")
    net = model()
    sampler.maybe_reselect(net, 0)
    x, y = next(iter(DataLoader(sampler.dataset, batch_size=5, sampler=sampler)))
    loss = WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)
    with pytest.raises(RuntimeError, match=r'`weighting="resample"` has none, .* bare loss'):
        loss(net(x), y)


@costs_are_told
def test_nothing_is_said_of_costs_where_no_epoch_was_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    sampler, net = make(Slow(clock, 1.6), every=1), model()
    for epoch in range(3):  # what the smaller epochs saved is not known; a warning is an error
        sampler.maybe_reselect(net, epoch)
        for _ in zip(range(len(sampler)), sampler, strict=False):  # leaves at the last index
            clock.now += 0.1


@pytest.mark.parametrize("strategy", [GradMatch(), GradMatchPB(batch_size=4)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_ranks_get_disjoint_shares_of_one_selection(strategy: Any, epoch: int) -> None:
    samplers = [
        make(strategy, fraction=0.5, epochs=4, warm_start=0.5, num_replicas=2, rank=rank)
        for rank in range(2)
    ]
    net = model()
    for sampler in samplers:
        sampler.maybe_reselect(net, epoch)
    shares = [epoch_of(sampler) for sampler in samplers]
    assert len(shares[0]) == len(shares[1]) == len(samplers[0])
    indices = [{index for index, _ in share} for share in shares]
    assert not indices[0] & indices[1]
    if epoch == 2 and strategy.batch_size is None:
        assert samplers[0].selection is not None
        assert indices[0] | indices[1] == set(samplers[0].selection.indices.tolist())


def test_items_reach_the_model_with_their_weight() -> None:
    sampler = make()
    sampler.maybe_reselect(model(), 0)
    x, y = next(iter(DataLoader(sampler.dataset, batch_size=5, sampler=sampler)))
    assert isinstance(x, Tensor)
    assert y.weights.shape == (5,)


@pytest.mark.parametrize("weighting", ["loss", "resample"])
def test_indices_become_objects_a_stretch_at_a_time(
    weighting: Literal["loss", "resample"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def epoch(stop: int | None = None, state: dict[str, Any] | None = None) -> list[Any]:
        selector = Selector(TensorDataset(torch.arange(50)), FreshRandom(), budget=23)
        sampler = AdaptiveSubsetSampler(selector, weighting=weighting)
        sampler.maybe_reselect(nn.Linear(1, 1), 0)
        walk = iter(sampler)
        if state is not None:
            walk.load_state_dict(state)
        found = [(int(i), getattr(i, "weight", None)) for i in islice(walk, stop)]
        return [found, walk.state_dict()]

    whole, _ = epoch()
    assert len(whole) == 23
    monkeypatch.setattr(Order, "STRETCH", 5)
    assert epoch()[0] == whole
    for stop in (1, 5, 7, 22):
        first, state = epoch(stop)
        assert first + epoch(state=state)[0] == whole
    made = Order(torch.arange(50), torch.ones(50))
    assert len(made) == 50
    assert len(made.stretch(10)) == 5
    assert made.stretch(48) == [48, 49]


def test_indices_are_gone_before_the_garbage_collector_looks_for_them() -> None:
    """It comes when there are a thousand more, and looks at all of the program's at times."""
    order, phases = Order(torch.arange(50_000), torch.ones(50_000)), []
    gc.collect()
    gc.callbacks.append(lambda phase, _: phases.append(phase))
    try:
        for _ in BatchSampler(Epoch(lambda: (0, order), lambda seconds: None), 128, True):
            pass
    finally:
        gc.callbacks.pop()
    assert phases.count("start") < 10


@pytest.mark.parametrize(
    ("strategy", "options", "arguments", "selector", "rest"),
    [
        (
            OrderDP(),
            {"budget": 6},
            {},
            "6 of 30 samples, OrderDP(share=0.6, trim=0.0)",
            ", every=1",
        ),
        (InfoBatch(), {}, {"every": 2}, f"some of 30 samples, {InfoBatch()!r}", ", every=2"),
        (
            GradMatchPB(batch_size=5),
            {"fraction": 0.2},
            {"epochs": 8, "warm_start": 0.5, "num_replicas": 1, "rank": 0},
            f"5 of 30 samples, {GradMatchPB(batch_size=5)!r}",
            ", every=20, 4 of a warm start, rank 0 of 1",
        ),
        (
            GradMatch(),
            {"tolerance": 0.05},
            {},
            f"some of 30 samples with a tolerance of 0.05, {GradMatch()!r}",
            ", every=20",
        ),
    ],
)
def test_it_is_written_as_what_it_is(
    strategy: Any, options: Any, arguments: Any, selector: str, rest: str
) -> None:
    data = TensorDataset(torch.randn(30, 2), torch.arange(30) % 3)
    sampler = AdaptiveSubsetSampler(Selector(data, strategy, **options), **arguments)
    assert repr(sampler.selector) == f"Selector({selector})"
    assert repr(sampler) == f"AdaptiveSubsetSampler(Selector({selector}){rest})"
