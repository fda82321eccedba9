"""What the adapters share: options, place in an epoch, states, figures in logs, the plot."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from adaptive_subset.integrations.plot import plot
from adaptive_subset.integrations.subset import OPTIONS, Subset
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, InfoBatch, OrderDP, Selector
from adaptive_subset.gradients.source import Reading
from tests.framework_recipes import N, Pairs, net


def make(ranks: int = 1, **options: Any) -> Subset:
    options = {"strategy": GradMatch(), "fraction": 0.1, "every": 2, **options}
    strategy = options.pop("strategy")
    return Subset(Pairs(), nn.CrossEntropyLoss(), strategy, num_replicas=ranks, rank=0, **options)


def batches(subset: Subset) -> DataLoader[Any]:
    return DataLoader(subset.sampler.dataset, batch_size=5, sampler=subset.sampler)


def interrupted(subset: Subset, done: int) -> dict[str, Any]:
    """Its state in epoch 1 after so many batches."""
    subset.select(net(), 0)
    subset.select(net(), 1)
    subset.enter(len(batches(subset)))
    subset.batches = done
    return subset.state_dict()


def test_options_are_those_of_selector_and_sampler() -> None:
    known = {*inspect.signature(Selector).parameters, *Reading.__annotations__}
    known |= set(inspect.signature(AdaptiveSubsetSampler).parameters)
    # Who shards, what is weighted and whose gradients are matched is said by the adapter.
    ours = {"dataset", "strategy", "selector", "criterion", "num_replicas", "rank", "weighting"}
    assert known - set(OPTIONS) == ours | {"reading", "source", "size_varies"}
    assert set(OPTIONS) <= known
    with pytest.raises(TypeError, match=r"must be some of fraction, .* got \['epoch'\]"):
        make(epoch=3)


def test_one_seed_serves_selection_and_order() -> None:
    subset = make(seed=7)
    assert (subset.sampler.seed, subset.sampler.selector.seed) == (7, 7)


def test_the_place_in_an_epoch() -> None:
    resumed = make()
    resumed.load_state_dict(interrupted(make(), 2))
    assert resumed.epoch == 1
    assert resumed.select(net(), 1) is None
    assert resumed.enter(3) == 2
    figures = resumed.select(net(), 2)
    assert figures is not None
    assert figures["subset/size"] == 12
    assert 0 < figures["subset/relative_error"] < 2
    assert resumed.enter(3) == 0, "the next epoch begins at its beginning"
    resumed.load_state_dict(interrupted(make(), 3))
    assert resumed.epoch == 2
    with pytest.raises(RuntimeError, match="`epoch` must not go back, got 0 after 1"):
        resumed.select(net(), 0)


def test_another_number_of_processes() -> None:
    """It goes on between two epochs, and says so in the middle of one."""
    two, one = make(ranks=2), make()
    one.load_state_dict(interrupted(two, 2))
    assert (two.length, one.epoch) == (2, 2)
    one.select(net(), 2)
    assert sorted(one.sampler) == sorted(one.sampler.selection.indices.tolist())
    one = make()
    one.load_state_dict(interrupted(make(ranks=2), 1))
    one.select(net(), 1)
    with pytest.raises(ValueError, match=r"an epoch of 3 batches .* got that of batch 1 of 2"):
        one.enter(3)


def test_epochs_of_several_lengths_resume_between_them() -> None:
    options: dict[str, Any] = {"strategy": InfoBatch(epochs=4), "fraction": None, "every": None}
    assert not make(**options).size_is_fixed
    with pytest.raises(ValueError, match=r"must be of the end of an epoch .* of batch 1"):
        make(**options).load_state_dict(interrupted(make(**options), 1))
    resumed = make(**options)
    resumed.load_state_dict(interrupted(make(**options), N // 5))
    assert resumed.epoch == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "got a NoneType of"),
        ({"sampler": None}, "must be what the state_dict.. of a AdaptiveSubsetSampler returned"),
        ({"batches": "1"}, "at batch 1 of 3"),
        ({"batches": 4}, "at batch 4 of 3"),
        ({"batches": -1}, "at batch -1 of 3"),
        ({"length": True}, "at batch 2 of True"),
    ],
)
def test_a_damaged_state_changes_nothing(change: Any, message: str) -> None:
    state = interrupted(make(), 2)
    subset = make()
    before = subset.state_dict()
    with pytest.raises(ValueError, match=message):
        subset.load_state_dict(change and {**state, **change})
    for name in state:
        with pytest.raises(ValueError, match="must be what the state_dict"):
            subset.load_state_dict({key: state[key] for key in state if key != name})
    with pytest.raises(ValueError, match="with the same arguments"):
        make(fraction=0.2).load_state_dict(state)
    assert subset.state_dict() == before


def test_a_loss_that_is_never_called_is_noticed() -> None:
    subset = make()
    with pytest.raises(RuntimeError, match="`criterion` must be what the training step computes"):
        subset.check_used()
    subset.select(net(), 0)
    x, y = next(iter(batches(subset)))
    subset.criterion(net()(x), y)
    subset.check_used()


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("lightning_callback", "lightning", "lightning"),
        ("transformers_trainer", "transformers", "transformers"),
        ("transformers_trainer", "accelerate", "transformers"),
        ("accelerate_loader", "accelerate", "accelerate"),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(
    module: str, framework: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"adaptive_subset.integrations.{module}"
    for adapter in (name, "adaptive_subset.integrations.accelerate_loader"):
        monkeypatch.delitem(sys.modules, adapter, raising=False)
    if framework == "transformers":
        pytest.importorskip("accelerate")
    for loaded in [m for m in sys.modules if m.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, framework, None)
    message = rf"^{framework}\S* is missing.*pip install 'adaptive-subset\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module(name)


# ---- the plot


def selected(strategy: Any = None, **options: Any) -> AdaptiveSubsetSampler:
    subset = make(strategy=strategy or GradMatch(), every=1, **options)
    for epoch in range(3):
        subset.select(net(), epoch)
    return subset.sampler


def test_a_plot_of_all_there_is() -> None:
    sampler = selected()
    seen: list[int] = []

    def image(index: int) -> Any:
        seen.append(index)
        return torch.arange(48.0).view(3, 4, 4) - 20

    figure = plot(sampler, Pairs().y, image)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["relative gradient error", "size"]
    errors, sizes, weights, classes = figure.axes[:4]
    match = errors.lines[0].get_xydata().tolist()
    history = sampler.history
    assert match == [[entry["epoch"], entry["relative_error"]] for entry in history]
    assert sizes.lines[1].get_ydata().tolist() == [e["effective_size"] for e in history]
    selection = sampler.selection
    assert selection is not None
    assert sum(bar.get_height() for bar in weights.patches) == len(selection) == 12
    counts = torch.bincount(Pairs().y[selection.indices], minlength=4)
    assert [bar.get_height() for bar in classes.patches] == counts[counts > 0].tolist()
    largest = selection.loss_weights.argsort(descending=True, stable=True)[:8]
    assert seen == selection.indices[largest].tolist()
    assert len(figure.axes) == 4 + 8


def test_a_plot_without_gradients_labels_or_images() -> None:
    figure = plot(selected(OrderDP(), weights="mean-one"))
    assert [len(axes.lines) for axes in figure.axes] == [0, 2, 0]


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (5, 6, 1), (5, 6, 3), (4, 5, 6)])
def test_images_of_all_layouts(shape: tuple[int, ...]) -> None:
    figure = plot(selected(), images=lambda index: torch.rand(shape).numpy())
    (drawn,) = figure.axes[-1].images
    assert drawn.get_array().shape[:2] == (5, 6)


def test_what_cannot_be_plotted() -> None:
    with pytest.raises(ValueError, match="must have made a selection to plot"):
        plot(make().sampler)
    with pytest.raises(ValueError, match=f"`labels` must be of all {N} samples .* got 3"):
        plot(selected(), labels=[0, 1, 2])
    with pytest.raises(ValueError, match=r"must give images, got the shape \(7, 5, 6\)"):
        plot(selected(), images=lambda index: torch.rand(7, 5, 6))


def test_a_plot_leaves_pyplot_alone() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums(), pyplot.get_backend()
    plot(selected())
    assert (pyplot.get_fignums(), pyplot.get_backend()) == before


@pytest.mark.slow  # torch is imported once more
def test_what_is_shared_imports_no_extra() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import adaptive_subset.integrations.plot, adaptive_subset.integrations.subset
assert not {"matplotlib", "lightning", "transformers", "accelerate"} & (set(sys.modules) - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
