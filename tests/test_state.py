"""Saved states: what is damaged or of something else changes nothing; rolling back works."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.utils.data import TensorDataset

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, LossSampling, Selector, WeightedLoss
from tests import models

N = 40
DATA = TensorDataset(torch.randn(N, 6), torch.arange(N) % 4)


def make(strategy: Any = None, **options: Any) -> AdaptiveSubsetSampler:
    selector = Selector(DATA, strategy or GradMatch(), fraction=0.25)
    WeightedLoss(nn.CrossEntropyLoss(), selector)
    return AdaptiveSubsetSampler(selector, **{"every": 1, **options})


def deeper(state: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, last = path.split(".")
    for name in parents:
        state = state[name]
    return state, last


GONE = object()
DAMAGES: list[tuple[str, Any, str]] = [
    ("configuration", GONE, "AdaptiveSubsetSampler returned, got a dict without 'configuration'"),
    ("configuration", None, "got None as its 'configuration'"),
    ("epoch", GONE, "a dict without 'epoch'"),
    ("epoch", "3", "'3' as its 'epoch'"),
    ("epoch", 1.5, "1.5 as its 'epoch'"),
    ("epoch", -1, "`epoch` must be at least 0, got -1"),
    ("warm_epochs", GONE, "a dict without 'warm_epochs'"),
    ("warm_epochs", 0.5, "0.5 as its 'warm_epochs'"),
    ("warm_epochs", -1, "`warm_epochs` must be at least 0, got -1"),
    ("history", [], "a list as its 'history'"),
    ("history.selections", {}, "History returned, got a dict as its 'selections'"),
    ("history.selections", [1], "History returned, got 1"),
    ("history.selections", [{"size": 3}], "without 'forward_seconds', 'solver_seconds'"),
    ("history.train_seconds", "1", "'1' as its 'train_seconds'"),
    ("selector", GONE, "a dict without 'selector'"),
    ("selector.configuration", {}, "from a selector with the same arguments"),
    ("selector.selection", GONE, "Selector returned, got a dict without 'selection'"),
    ("selector.selection", [1, 2], "Selection returned, got a list"),
    ("selector.selection.indices", GONE, "Selection returned, got a dict without 'indices'"),
    ("selector.selection.indices", [0] * 10, "a list as its 'indices'"),
    ("selector.selection.indices", torch.ones(10), "indices of torch.float32"),
    ("selector.selection.indices", torch.arange(10) + 31, "indices from 31 to 40"),
    ("selector.selection.indices", torch.arange(10) - 1, "indices from -1 to 8"),
    ("selector.selection.indices", torch.ones(5, 2).long(), r"indices \(5, 2\) and weights"),
    ("selector.selection.weights", torch.ones(9), r"indices \(10,\) and weights \(9,\)"),
    ("selector.selection.weights", torch.full((10,), torch.nan), "not finite"),
    ("selector.selection.weights", torch.zeros(10), "no positive sum"),
    ("selector.selection.epoch", None, "None as its 'epoch'"),
    ("selector.selection.size", 3, r"that of a Selection, got it with \['size'\]"),
    ("selector.losses", None, "Selector returned, got None as its 'losses'"),
    ("selector.losses", {}, "LossRecord returned, got a dict without 'values'"),
    ("selector.losses.values", torch.ones(39), r"losses of 40 samples, got \(39,\)"),
    ("selector.losses.values", torch.ones(40).long(), r"got \(40,\) of torch.int64"),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGES)
def test_a_damaged_state_changes_nothing(path: str, value: Any, message: str) -> None:
    sampler = make(LossSampling())
    sampler.maybe_reselect(models.mlp(), 0)
    state, before = sampler.state_dict(), sampler.state_dict()
    sampler.maybe_reselect(models.mlp(), 1)
    after, selection = sampler.state_dict(), sampler.selection
    place, name = deeper(state, path)
    place[name] = value
    if value is GONE:
        del place[name]
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(state)
    assert sampler.selection is selection
    for key in ("epoch", "warm_epochs", "history", "configuration"):
        assert sampler.state_dict()[key] == after[key]
    sampler.load_state_dict(before)
    assert sampler.epoch == 0


@pytest.mark.parametrize("state", [None, [], "epoch", {}, {"net": 1}, models.mlp().state_dict()])
def test_a_state_of_something_else_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"must be what the state_dict.. of a AdaptiveSubsetSam"):
        make().load_state_dict(state)
    with pytest.raises(ValueError, match=r"must be what the state_dict.. of a Selector returned"):
        make().selector.load_state_dict(state)


def test_a_state_that_was_matched_to_other_data_is_refused() -> None:
    clean = TensorDataset(DATA.tensors[0][:8], DATA.tensors[1][:8])
    for saved, here in ((clean, None), (None, clean)):
        state = matching(validation=saved).state_dict()
        matching(validation=saved).load_state_dict(state)
        with pytest.raises(ValueError, match=r"same arguments.*'validation'"):
            matching(validation=here).load_state_dict(state)


def test_a_state_of_the_gradients_of_another_layer_is_refused() -> None:
    state = matching(head="1").state_dict()
    matching(head="1").load_state_dict(state)
    with pytest.raises(ValueError, match=r"same arguments.*'head': \(\"'1'\", None\)"):
        matching().load_state_dict(state)


def test_a_state_from_before_an_argument_was_saved_is_taken() -> None:
    state = matching().state_dict()
    del state["selector"]["configuration"]["validation"]
    matching().load_state_dict(state)
    state["selector"]["configuration"]["of a later version"] = 1
    with pytest.raises(ValueError, match=r"same arguments.*'of a later version': \(1, None\)"):
        matching().load_state_dict(state)


def matching(**options: Any) -> AdaptiveSubsetSampler:
    selector = Selector(DATA, GradMatch(), fraction=0.25, **options)
    return AdaptiveSubsetSampler(selector, every=1)


def test_a_selection_that_lost_samples_is_refused() -> None:
    sampler = make()
    sampler.maybe_reselect(models.mlp(), 0)
    state = sampler.state_dict()
    for name in ("indices", "weights"):
        state["selector"]["selection"][name] = state["selector"]["selection"][name][:9]
    with pytest.raises(ValueError, match="one finite weight each, got 9 where 10 were selected"):
        sampler.load_state_dict(state)


def unused(sampler: AdaptiveSubsetSampler) -> None:
    iter(sampler)


def half_used(sampler: AdaptiveSubsetSampler) -> Any:
    iterator = iter(sampler)
    next(iterator)
    return iterator


def used(sampler: AdaptiveSubsetSampler) -> Any:
    return list(sampler)


@pytest.mark.filterwarnings("ignore:the WeightedLoss of the selector was not called")
@pytest.mark.parametrize("use", [unused, half_used, used])
def test_rolling_back_by_hand_takes_all(use: Callable[[AdaptiveSubsetSampler], Any]) -> None:
    """At any time outside of a loader's own load, whatever was selected since."""
    sampler, net = make(every=2), models.mlp()
    sampler.maybe_reselect(net, 0)
    sampler.maybe_reselect(net, 1)
    state, order = copy.deepcopy(sampler.state_dict()), list(sampler)
    with torch.no_grad():
        next(net.parameters()).neg_()
    sampler.maybe_reselect(net, 2)
    kept = use(sampler)
    gc.collect()
    assert sorted(sampler.state_dict()["selector"]["selection"]["indices"]) != sorted(order)
    sampler.load_state_dict(state)
    assert sampler.epoch == 1
    assert len(sampler.history) == 1
    with pytest.raises(RuntimeError, match="last maybe_reselect, 2, got 1 from set_epoch or a sta"):
        list(sampler)
    assert sampler.maybe_reselect(net, 1) is None
    assert list(sampler) == order
    del kept


@pytest.mark.filterwarnings("ignore:the subset of epoch 0 is read for the third time")
def test_a_sampler_in_use_can_be_copied_and_pickled() -> None:
    sampler = make()
    sampler.maybe_reselect(models.mlp(), 0)
    iterator = iter(sampler)
    next(iterator)
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert list(twin) == list(sampler)


def test_states_moved_to_another_device_or_dtype_come_back() -> None:
    sampler = make()
    sampler.maybe_reselect(models.mlp(), 0)
    state, order = sampler.state_dict(), [(int(i), i.weight) for i in sampler]  # type: ignore[attr-defined]
    saved = state["selector"]["selection"]
    saved["weights"] = saved["weights"].double()
    sampler.load_state_dict(state)
    assert [(int(i), i.weight) for i in sampler] == order  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:the WeightedLoss of the selector was not called")
def test_a_run_goes_on_for_more_epochs_than_planned() -> None:
    """As warm as it was planned: four epochs with two of them warm become six with two."""
    net, warm = models.mlp(), {"every": 1, "warm_start": 0.5}

    def orders(sampler: AdaptiveSubsetSampler, epochs: range) -> list[Any]:
        return [(sampler.maybe_reselect(net, epoch), list(sampler))[1] for epoch in epochs]

    for saved_at in (1, 2):  # in the warm start, and behind it
        short, long = make(epochs=4, **warm), make(epochs=6, **warm)
        orders(short, range(saved_at + 1))
        long.load_state_dict(short.state_dict())
        assert (long.warm_epochs, len(long.sizes(6))) == (2, 6)
        assert orders(long, range(saved_at + 1, 6)) == orders(short, range(saved_at + 1, 6))
        again = make(epochs=6, **warm)
        again.load_state_dict(long.state_dict())
        assert again.warm_epochs == 2
    other = make(epochs=4, every=1, warm_start=0.75)
    with pytest.raises(ValueError, match=r"'warm_start': \(0.5, 0.75\)"):
        other.load_state_dict(short.state_dict())
    assert other.warm_epochs == 3


def test_a_loader_brings_no_other_warm_start() -> None:
    """By then an epoch was asked for by the schedule that is here."""
    net = models.mlp()
    short = make(epochs=4, warm_start=0.5)
    short.maybe_reselect(net, 1)
    late = make(epochs=6, warm_start=0.5)
    late.maybe_reselect(net, 1)
    loading = iter(late)  # as a loader does that resumes
    with pytest.raises(RuntimeError, match="must be loaded before maybe_reselect"):
        late.load_state_dict(short.state_dict())
    assert late.warm_epochs == 3
    del loading


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_sharded_checkpoint_holds_a_state_in_one_piece(tmp_path: Path) -> None:
    """As docs/distributed.md has it."""
    sampler, new = make(), make()
    sampler.maybe_reselect(models.mlp(), 0)
    buffer = io.BytesIO()
    torch.save(sampler.state_dict(), buffer)
    state_dict_saver.save({"sampler": buffer.getvalue()}, checkpoint_id=tmp_path)
    state = {"sampler": b""}
    state_dict_loader.load(state, checkpoint_id=tmp_path)
    new.load_state_dict(torch.load(io.BytesIO(state["sampler"]), weights_only=True))
    assert sampler.selection is not None
    assert new.selection is not None
    assert new.selection.fingerprint() == sampler.selection.fingerprint()
    assert new.history == sampler.history
