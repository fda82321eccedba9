"""The selector: budgets, losses, pools, and how good a selection is."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from adaptive_subset import (
    CRAIG,
    GLISTER,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    OrderDP,
    PerEpoch,
    Random,
    Selection,
    Selector,
    Strategy,
    TaggedIndex,
    WeightedLoss,
)
from adaptive_subset.delivery.dataset import TaggedDataset
from adaptive_subset.gradients import GradientSource
from adaptive_subset.strategies import draws, instance_of, scores, sizes
from tests import models

N = 40
INPUTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, torch.arange(N) % 4)


def make(strategy: Any = None, **arguments: Any) -> Selector:
    options: dict[str, Any] = {"fraction": 0.25, "criterion": nn.CrossEntropyLoss(), **arguments}
    return Selector(DATA, strategy or GradMatch(), **options)


def norms_of(size: sizes.Size) -> PerEpoch:
    return PerEpoch(scores.LastLayerNorm(), draws.Proportional(), size)


def gradient(model: nn.Module, weights: Tensor, rows: Tensor) -> Tensor:
    """That of the last layer on some rows of DATA, weighted, by autograd."""
    x, y = DATA.tensors
    losses = nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")
    last = list(model.children())[-1]
    parts = torch.autograd.grad((weights * losses).sum(), list(last.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        ({"fraction": 0.25}, 10),
        ({"fraction": 1.0}, 40),
        ({"fraction": 1e-6}, 1),
        ({"fraction": None, "budget": 7}, 7),
        ({"fraction": None, "budget": 11, "strategy": GradMatchPB(batch_size=4)}, 8),
    ],
)
def test_the_budget_follows_from_fraction_or_budget(arguments: dict[str, Any], budget: int) -> None:
    selector = make(**arguments)
    assert selector.size == budget
    assert len(selector.select(models.mlp(), 0)) == budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": None}, r"exactly one of `fraction`, `budget` and `tolerance`"),
        ({"tolerance": 0.1}, r"exactly one of .* got fraction=0.25, budget=None and tolerance=0.1"),
        ({"fraction": None, "tolerance": 1.0}, r"`tolerance` must be in \(0, 1\), got 1.0"),
        (
            {"fraction": None, "tolerance": 0.1, "strategy": Random()},
            r"`tolerance` must come with a strategy that computes gradients, got Random\(\)",
        ),
        (
            {"fraction": None, "tolerance": 0.1, "strategy": norms_of(sizes.Falling(epochs=8))},
            r"`tolerance` must come with a strategy of one size, .* got PerEpoch.*Falling",
        ),
        ({"size_varies": True}, r"`size_varies` must be False for a fixed `fraction`"),
        ({"strategy": InfoBatch()}, r"none of `fraction`, .* got fraction=0.25.*for InfoBatch"),
        ({"budget": 3}, r"exactly one of.* fraction=0.25, budget=3 and"),
        ({"fraction": 0.0}, r"`fraction` must be in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"`fraction` must be in \(0, 1\], got 1.5"),
        ({"fraction": None, "budget": 0}, r"`budget` must be in \[1, 40\], got 0"),
        ({"fraction": None, "budget": 41}, r"`budget` must be in \[1, 40\], got 41"),
        ({"pool_fraction": 0.0}, r"`pool_fraction` must be in \(0, 1\], got 0.0"),
        ({"pool_fraction": 0.2}, r"at least the budget of 10 samples.*0.2, which leaves 8"),
        ({"pool_fraction": 0.5, "strategy": Random()}, r"`pool_fraction` must be 1.*Random\(\)"),
        ({"validation": DATA, "strategy": OrderDP()}, r"`validation` must be left out .*OrderDP"),
        (
            {"pool_fraction": 0.5, "strategy": norms_of(sizes.FullAtEnd(epochs=8))},
            r"`pool_fraction` must be 1 for a strategy whose sizes vary, got 0.5 for PerEpoch",
        ),
        (
            {"fraction": None, "tolerance": 0.5, "strategy": GradMatchPB(batch_size=41)},
            r"`batch_size` must be at most 40, the samples of the dataset, .* got 41\.",
        ),
        (
            {
                **{"fraction": None, "tolerance": 0.5, "strategy": GradMatchPB(batch_size=30)},
                "pool_fraction": 0.5,
            },
            r"`pool_fraction` must leave at least one mini-batch of 30 samples .* leaves 20",
        ),
        (
            {"fraction": None, "tolerance": 0.5, "pool_fraction": 0.01},
            r"`pool_fraction` must leave at least one sample to choose from, got 0.01, .* leaves 0",
        ),
        ({"pool_fraction": 0.5, "pool": DataLoader(DATA)}, r"access by index.*a DataLoader"),
        ({"strategy": GradMatchPB(batch_size=16)}, r"at least one mini-batch of 16, got 10"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, r"`num_workers` must be at least 0, got -1"),
        (
            {"storage_dtype": torch.int8},
            r"`storage_dtype` must be a floating.*torch.int8",
        ),
        ({"pool": TensorDataset(torch.zeros(3))}, r"`pool` must hold the 40 samples.*got 3"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(())


def test_a_stream_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`dataset` must be map-style.*got Stream"):
        Selector(Stream(), GradMatch(), budget=1)


@pytest.mark.parametrize(
    "strategy", [GradMatch(lam=0.01, scope="global"), GradMatchPB(batch_size=2, lam=0.01)]
)
def test_the_smallest_subset_within_a_tolerance(strategy: Any) -> None:
    net = models.mlp()
    options = {"fraction": None, "strategy": strategy}
    errors: dict[int, Any] = {}
    for size in range(strategy.batch_size or 1, N + 1, strategy.batch_size or 1):
        errors[size] = make(**options, budget=size).select(net, 0).relative_error
    for tolerance in (0.5, 0.2, 0.1):
        selection = make(**options, tolerance=tolerance).select(net, 0)
        assert selection.relative_error is not None
        assert selection.relative_error <= tolerance
        smaller = len(selection) - (strategy.batch_size or 1)
        assert smaller == 0 or errors[smaller] > tolerance
        assert selection.relative_error == pytest.approx(errors[len(selection)])


def test_a_tolerance_out_of_reach_is_reported() -> None:
    selector = make(GradMatch(lam=100), fraction=None, tolerance=1e-3)
    with pytest.raises(ValueError, match=r"`tolerance` must be within reach.*all 40 candidates"):
        selector.select(models.mlp(), 0)
    assert selector.selection is None


def test_the_first_selection_sets_the_size_unless_it_varies() -> None:
    torch.manual_seed(1)
    nets = [models.mlp(), models.mlp()]
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.no_grad():
        nets[1].get_parameter("2.weight").mul_(20)  # other gradients: another size
    options = {"strategy": GradMatch(lam=0.01), "fraction": None, "tolerance": 0.2}
    sizes = [len(make(**options).select(net, 0)) for net in nets]
    assert sizes[0] != sizes[1]
    fixed, varying = make(**options), make(**options, size_varies=True)
    assert fixed.size is None
    assert [len(fixed.select(net, 0)) for net in nets] == [sizes[0], sizes[0]]
    assert fixed.size == sizes[0]
    assert [len(varying.select(net, 0)) for net in nets] == sizes
    assert varying.size is None


def test_a_strategy_has_a_name() -> None:
    assert make("gradmatch").strategy == GradMatch()


@pytest.mark.parametrize("strategy", ["grad-match", GradMatch])
def test_what_is_no_strategy(strategy: Any) -> None:
    with pytest.raises(TypeError, match=r"`strategy` must be one of random, .*, or an instance"):
        make(strategy)


@pytest.mark.parametrize(
    ("strategy", "meant"),
    [
        (OrderDP, "OrderDP()"),
        ("OrderDP", '"order-dp"'),
        ("orderdp", '"order-dp"'),
        ("order_dp", '"order-dp"'),
        ("GradMatchPB", '"gradmatch-pb"'),
        ("grad-match", '"gradmatch"'),
        ("glistr", '"glister"'),
        ("Fresh Random", '"fresh-random"'),
        ("best", None),
        ("", None),
        (Strategy, None),
        (int, None),
        (None, None),
        (["gradmatch"], None),
    ],
)
def test_what_was_probably_meant_is_said(strategy: Any, meant: str | None) -> None:
    with pytest.raises(TypeError, match=r"`strategy` must be one of") as raised:
        instance_of(strategy)
    message = str(raised.value)
    assert ("Did you mean" in message) == (meant is not None)
    assert meant is None or message.endswith(f"Did you mean {meant}?")


def test_the_loss_comes_from_the_weighted_loss() -> None:
    given = make().select(models.mlp(), 0)
    assert given.relative_error is not None
    selector = make(criterion=None)
    with pytest.raises(RuntimeError, match=r"`criterion` must be known.*WeightedLoss"):
        selector.select(models.mlp(), 0)
    WeightedLoss(nn.CrossEntropyLoss(), selector)
    torch.manual_seed(0)
    model = models.mlp()
    bound, explicit = selector.select(model, 0), make().select(model, 0)
    assert torch.equal(bound.indices, explicit.indices)


def test_two_losses_need_an_explicit_criterion() -> None:
    selector = make(criterion=None)
    WeightedLoss(nn.CrossEntropyLoss(), selector)
    with pytest.raises(ValueError, match=r"held by two losses.*Pass criterion="):
        WeightedLoss(nn.MultiMarginLoss(), selector)
    explicit = make()
    WeightedLoss(nn.CrossEntropyLoss(), explicit)
    WeightedLoss(nn.MultiMarginLoss(), explicit)


def test_the_relative_error_is_that_of_the_whole_last_layer() -> None:
    torch.manual_seed(0)
    model = models.mlp()
    selection = make().select(model, 0)
    full = gradient(model, torch.ones(N), torch.arange(N))
    matched = gradient(model, selection.weights, selection.indices)
    expected = float((matched - full).norm() / full.norm())
    assert selection.relative_error == pytest.approx(expected, rel=1e-4)


def test_a_selection_tells_how_good_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "adaptive_subset"):
        selection = make().select(models.mlp(), 3)
    assert selection.objective is not None
    assert selection.objective > 0
    assert 1 <= selection.effective_size <= len(selection) == 10
    assert selection.filled == 0
    assert selection.forward_seconds > 0
    assert selection.solver_seconds > 0
    assert selection.seconds == selection.forward_seconds + selection.solver_seconds
    assert float(selection.loss_weights.mean()) == pytest.approx(1)
    assert "epoch 3: selected 10 of 40" in caplog.text
    summary = selection.summary()
    assert summary["size"] == 10
    assert summary["epoch"] == 3
    assert not any(isinstance(value, Tensor) for value in summary.values())


def test_effective_size_of_known_weights() -> None:
    equal = Selection(torch.arange(4), torch.full((4,), 2.5), epoch=0)
    lone = Selection(torch.arange(4), torch.tensor([0.0, 0.0, 3.0, 0.0]), epoch=0)
    assert equal.effective_size == pytest.approx(4)
    assert lone.effective_size == pytest.approx(1)


def test_random_runs_no_model() -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    selection = make(Random()).select(Fails(6, 4), 0)
    assert selection.relative_error is None


class Augmented(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return DATA[index][0] + torch.randn(6), int(DATA[index][1])


BATCHES: Any = list(DataLoader(DATA, 9))


@pytest.mark.parametrize(
    "twin", [DATA, DataLoader(DATA, batch_size=7), DataLoader(BATCHES, batch_size=None)]
)
def test_gradients_come_from_the_pool(twin: Any) -> None:
    torch.manual_seed(0)
    model = models.mlp()
    options: dict[str, Any] = {"fraction": 0.25, "criterion": nn.CrossEntropyLoss()}
    selection = Selector(Augmented(), GradMatch(), pool=twin, **options).select(model, 0)
    assert torch.equal(selection.indices, make().select(model, 0).indices)


def test_an_augmented_dataset_without_a_twin_is_reported() -> None:
    options: dict[str, Any] = {"fraction": 0.25, "criterion": nn.CrossEntropyLoss()}
    selector = Selector(Augmented(), GradMatch(), **options)
    with pytest.warns(UserWarning, match=r"another input each time.*pool="):
        selector.select(models.mlp(), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selector.select(models.mlp(), 1)  # once is enough
        make().select(models.mlp(), 0)


def test_a_progress_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    make(progress=True).select(models.mlp(), 0)
    assert "gradients" in capsys.readouterr().err


def test_a_missing_progress_bar_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"adaptive-subset\[progress\]"):
        make(progress=True).select(models.mlp(), 0)


def test_a_loader_that_drops_samples_is_no_pool() -> None:
    short = DataLoader(DATA, batch_size=7, drop_last=True)
    with pytest.raises(ValueError, match=r"each of its 40 samples.*got 35"):
        make(pool=short).select(models.mlp(), 0)


def test_a_share_of_the_pool_is_drawn_afresh_and_passed_over_alone() -> None:
    class Counted(Dataset[Any]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return DATA[index]

    pool = Counted()
    selector, net = make(pool=pool, pool_fraction=0.5), models.mlp()
    first = selector.select(net, 0)
    drawn = pool.read
    assert len(set(drawn)) == len(drawn) == 20
    assert set(first.indices.tolist()) <= set(drawn)
    share = Subset(DATA, sorted(drawn))
    alone = Selector(share, GradMatch(), budget=10, criterion=nn.CrossEntropyLoss())
    expected = alone.select(net, 0)
    assert torch.equal(first.indices, torch.tensor(share.indices)[expected.indices])
    torch.testing.assert_close(first.weights, 2 * expected.weights)  # they stand for all samples
    assert first.relative_error == expected.relative_error
    again, pool.read = selector.select(net, 0), []
    assert torch.equal(first.indices, again.indices)
    selector.select(net, 1)
    assert set(pool.read) != set(drawn)


@pytest.mark.parametrize("pool_fraction", [1.0, 0.5])
def test_validation_gradients_are_matched_at_the_count_of_the_dataset(
    pool_fraction: float,
) -> None:
    torch.manual_seed(0)
    model = models.mlp()
    few = TensorDataset(*(column[:8] for column in DATA.tensors))
    target = N / 8 * gradient(model, torch.ones(8), torch.arange(8))

    def error(selection: Selection) -> float:
        matched = gradient(model, selection.weights, selection.indices)
        return float((matched - target).norm() / target.norm())

    options: dict[str, Any] = {"pool_fraction": pool_fraction, "strategy": GradMatch(lam=0.01)}
    steered = make(validation=few, **options).select(model, 0)
    assert steered.relative_error == pytest.approx(error(steered), rel=1e-4)
    assert error(steered) < 0.6 * error(make(**options).select(model, 0))


class WithLosses(Strategy):
    """Takes all candidates and keeps the losses that it was shown."""

    needs_gradients = needs_losses = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        self.seen = candidates.losses
        return Choice(torch.arange(candidates.n), torch.ones(candidates.n))


def test_losses_are_those_of_the_share_of_the_pool() -> None:
    strategy, net = WithLosses(), models.mlp()
    selector = make(strategy, fraction=0.5, pool_fraction=0.5)
    criterion = WeightedLoss(nn.CrossEntropyLoss(), selector)
    everything = [TaggedIndex(index, 1.0) for index in range(N)]
    for x, y in DataLoader(TaggedDataset(DATA), batch_size=8, sampler=everything):
        criterion(net(x), y)
    selection = selector.select(net, 0)
    assert len(selection) == N // 2
    x, y = DATA[selection.indices]
    expected = nn.functional.cross_entropy(net(x), y, reduction="none")
    torch.testing.assert_close(strategy.seen, expected.detach())


def test_validation_needs_labels_where_the_pool_has_them() -> None:
    soft = TensorDataset(torch.randn(8, 6), torch.rand(8, 4).softmax(1))
    with pytest.raises(ValueError, match=r"`validation` must have class labels"):
        make(validation=soft).select(models.mlp(), 0)


def test_regression_is_one_problem() -> None:
    data = TensorDataset(torch.randn(N, 6), torch.randn(N, 2))
    selector = Selector(data, GradMatch(), budget=10, criterion=nn.MSELoss())
    selection = selector.select(models.mlp(6, 2), 0)
    assert selection.relative_error is not None
    assert selection.relative_error < 0.5


def test_gradients_that_are_not_finite_raise_and_leave_the_selection() -> None:
    model, selector = models.mlp(), make()
    first = selector.select(model, 0)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"`pool` must give finite gradients"):
        selector.select(model, 1)
    assert selector.selection is first


@pytest.mark.parametrize("strategy", [GradMatch(), CRAIG(), GLISTER(refreshes=1), GradientNorm()])
@pytest.mark.parametrize("scale", [3e8, 1e10])
def test_gradients_whose_inner_products_overflow_are_refused(
    strategy: Strategy, scale: float
) -> None:
    """Their errors were 0 or NaN, and CRAIG chose at random."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, size, generator=generator) for size in (6, 2))
    loss, linear = nn.MSELoss(), nn.Linear(6, 2)

    def selected(scale: float) -> Selection:
        data = TensorDataset(scale * x, 100 * scale * y)
        return Selector(data, strategy, budget=10, criterion=loss).select(linear, 0)

    with pytest.raises(ValueError, match=r"`pool` must give gradients whose inner products"):
        selected(scale)
    assert math.isfinite(selected(1e6).relative_error or math.nan)


class Wrong(Strategy):
    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def select(self, candidates: Any, budget: int, *, seed: int, epoch: int) -> Choice:
        return self.choice


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(torch.arange(3), torch.ones(3)), r"positions \(3,\) and weights \(3,\)"),
        (Choice(torch.arange(10) + 35, torch.ones(10)), "positions from 35 to 44"),
        (Choice(torch.arange(10), torch.full((10,), float("nan"))), "not finite"),
        (Choice(torch.arange(10), torch.zeros(10)), "add up to 0"),
        (Choice(torch.arange(10) // 2, torch.ones(10)), "5 of them more than once"),
        (Choice(torch.arange(10)[:, None], torch.ones(10)), r"positions \(10, 1\)"),
    ],
)
def test_a_strategy_that_breaks_the_contract_is_named(choice: Choice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Wrong(choice)).select(models.mlp(), 0)


class Plain(Strategy):
    """No dataclass: `choice` is what it returns."""

    def __init__(self, choice: Any = None) -> None:
        self.choice = choice
        self._calls = object()

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Any:
        return self.choice


def test_a_strategy_that_is_no_dataclass_is_known_by_its_attributes() -> None:
    first, second, other = (make(Plain(n)) for n in (1, 1, 2))
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"`state` must come from.*Plain\(choice=1\)"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (([0, 1], [1.0, 1.0]), r"`strategy` must return a Choice, got a tuple from Plain"),
        (Choice([0, 1], torch.ones(2)), "`strategy` must choose by tensors, got a list"),  # type: ignore[arg-type]
    ],
)
def test_what_a_strategy_returns_is_a_choice_of_tensors(choice: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(Plain(choice)).select(models.mlp(), 0)


def test_the_result_does_not_depend_on_batch_size_or_workers() -> None:
    torch.manual_seed(0)
    model = models.mlp()
    first = make(batch_size=40).select(model, 0)
    other = make(batch_size=7, num_workers=2).select(model, 0)
    assert torch.equal(first.indices, other.indices)
    torch.testing.assert_close(first.weights, other.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", [GradMatch(), GradMatch(scope="global"), FreshRandom()])
def test_weights_have_mean_one_or_the_length_of_the_match(strategy: Strategy) -> None:
    """``(n/k) Σ uᵢgᵢ`` with the loss weights u, against the gradient of all data."""
    net = models.mlp()
    pool = GradientSource(DATA).read(net, nn.CrossEntropyLoss()).gradients
    errors = {}
    for weights in ("mean-one", "matched"):
        selection = make(strategy=strategy, weights=weights).select(net, 0)
        given = selection.loss_weights * (N / len(selection))
        difference = pool.sum(given, selection.indices) - pool.sum()
        errors[weights] = float(difference.norm() / pool.sum().norm())
        if strategy.needs_gradients:
            assert selection.trained_error == pytest.approx(errors[weights], rel=1e-4)
        if weights == "mean-one":
            assert float(selection.loss_weights.mean()) == pytest.approx(1)
        elif strategy.needs_gradients:
            assert selection.relative_error == pytest.approx(errors[weights], rel=1e-4)
    if strategy.needs_gradients:
        assert errors["matched"] < 0.8 * errors["mean-one"]
    else:
        assert errors["matched"] == pytest.approx(errors["mean-one"], rel=1e-4)


def test_a_problem_that_cannot_fit_is_refused_early_in_the_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    criterion = nn.CrossEntropyLoss()

    def counted(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(output))
        return criterion(output, target)

    def make_global() -> Selector:
        strategy = GradMatch(scope="global")
        return make(strategy, fraction=None, budget=30, criterion=counted, batch_size=4)

    memory = "adaptive_subset.strategies.gradmatch.machine_memory"
    monkeypatch.setattr(memory, lambda: 8 * 40 * 30)
    assert len(make_global().select(models.mlp(), 0)) == 30
    everything = sum(seen)
    seen.clear()
    monkeypatch.setattr(memory, lambda: 8 * 40 * 30 - 1)
    with pytest.raises(ValueError, match=r"`scope` must not be \"global\".*min\(n·k, 2d² \+ k·d\)"):
        make_global().select(models.mlp(), 0)
    assert sum(seen) < everything / 4


@pytest.mark.parametrize("strategy", [GradMatch(), GLISTER(refreshes=2)])
def test_a_selection_in_inference_mode_is_the_usual_one(strategy: Strategy) -> None:
    net = models.mlp()
    with torch.inference_mode():
        selection = make(strategy=strategy).select(net, 0)
    assert not selection.weights.is_inference()
    expected = make(strategy=strategy).select(net, 0)
    assert torch.equal(selection.indices, expected.indices)


@pytest.mark.parametrize("criterion", [nn.CosineEmbeddingLoss(), lambda output: output.sum()])
def test_a_loss_of_other_arguments_cannot_be_matched(criterion: Any) -> None:
    with pytest.raises(TypeError, match=r"`criterion` must take outputs and targets.*, got \S+\("):
        make(criterion=criterion).select(models.mlp(), 0)


@pytest.mark.parametrize("strategy", [FreshRandom(), OrderDP(), GradMatch()])
@pytest.mark.parametrize("change", [lambda data: data.pop(), lambda data: data.append(data[0])])
def test_a_dataset_that_grows_or_shrinks_is_refused(strategy: Strategy, change: Any) -> None:
    """Samples that came were never chosen, and a strategy was blamed for those that went."""
    data = [DATA[i] for i in range(N)]
    selector = Selector(data, strategy, fraction=0.25)
    WeightedLoss(nn.CrossEntropyLoss(), selector)
    selector.select(models.mlp(), 0)
    change(data)
    with pytest.raises(ValueError, match=rf"`dataset` must keep its {N} samples.*got {len(data)}"):
        selector.select(models.mlp(), 1)


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1)])
def test_a_single_logit_is_matched_class_by_class(labels: tuple[int, int]) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    y = torch.tensor(labels).repeat(20)

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.softplus(-output[:, 0] * (2 * (target > 0) - 1)).mean()

    def chosen(strategy: GradMatch) -> Selection:
        selector = Selector(TensorDataset(x, y), strategy, budget=10, criterion=criterion)
        torch.manual_seed(0)
        return selector.select(nn.Linear(5, 1), 0)

    own, whole = chosen(GradMatch()), chosen(GradMatch(scope="per-class"))
    assert torch.equal(own.indices, whole.indices)
    torch.testing.assert_close(own.weights, whole.weights)
    assert torch.bincount(y[own.indices] + 1)[labels[0] + 1] == 5
