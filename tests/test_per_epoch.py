"""Per-epoch strategies: their scores, draws and sizes, and the methods that combine them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    STRATEGIES,
    AdaptiveSubsetSampler,
    Borderline,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    InfoBatch,
    InfoBatchByBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    PerEpoch,
    Random,
    RandomSizes,
    Selector,
    SeTa,
    SeTaByBatch,
    Strategy,
    WeightedLoss,
)
from adaptive_subset.loss_record import LossRecord, Memory
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies import draws, scores, sizes
from adaptive_subset.strategies.per_epoch import Combination
from adaptive_subset.strategies.solvers.k_means import group_edges
from tests import reference

N, BUDGET = 60, 12
DATA = TensorDataset(torch.arange(float(N))[:, None], torch.zeros(N, 1))


def losses(seed: int = 0, unknown: int = 0) -> Tensor:
    """Cross-entropies of which most are small; `unknown` of them were not seen."""
    generator = torch.Generator().manual_seed(seed)
    values = (1.5 * torch.randn(N, generator=generator) - 1).exp()
    values[torch.randperm(N, generator=generator)[:unknown]] = torch.nan
    return values


def shuffled(seed: int, epoch: int) -> list[int]:
    """The random order that a selection starts from."""
    order = torch.randperm(N, generator=seeded(seed, epoch, Purpose.SELECTION))
    return [int(i) for i in order]


def chosen(strategy: Strategy, known: Tensor, epoch: int, budget: int = N) -> dict[int, float]:
    """The weight of each of the chosen."""
    given_losses = Candidates(N, losses=known, kept=known)
    choice = strategy.choose(given_losses, budget, seed=3, epoch=epoch)
    return dict(zip(choice.positions.tolist(), choice.weights.tolist(), strict=True))


# ---- methods, against slow transcriptions of their rules


@pytest.mark.parametrize("unknown", [0, 20, N])
@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_order_dp_trains_on_the_largest_of_a_pool(unknown: int, share: float) -> None:
    for epoch in range(4):
        known = losses(epoch, unknown)
        found = chosen(OrderDP(share), known, epoch, BUDGET)
        order = shuffled(3, epoch)
        assert set(found) == reference.largest_of_pool(known.tolist(), order, BUDGET, share)
        assert set(found.values()) == {N / BUDGET}


@pytest.mark.parametrize("method", [InfoBatch, InfoBatchByBatch])
@pytest.mark.parametrize("unknown", [0, 20])
def test_infobatch_leaves_out_some_below_the_mean(method: type[InfoBatch], unknown: int) -> None:
    for epoch in range(8):
        known = losses(epoch, unknown)
        found = chosen(method(0.3, epochs=8), known, epoch)
        out, weight, below = reference.below_mean_dropped(known.tolist(), 0.3)
        if epoch == 7:
            assert found == dict.fromkeys(range(N), 1.0)
        else:
            assert len(found) == N - out
            assert set(range(N)) - set(found) <= below
            expected = {i: weight if i in below else 1.0 for i in found}
            assert found == pytest.approx(expected)


@pytest.mark.parametrize("method", [SeTa, SeTaByBatch])
@pytest.mark.parametrize("unknown", [0, 20, N])
@pytest.mark.parametrize(("ratio", "groups", "window"), [(0.1, 5, 0.9), (0.0, 5, 0.6), (0.3, 4, 0)])
def test_seta_cycles_over_groups_from_easy_to_hard(
    method: type[SeTa], unknown: int, ratio: float, groups: int, window: float
) -> None:
    strategy = method(ratio, groups, window or 0.01, epochs=16)
    for epoch in range(14):
        known = losses(epoch, unknown)
        # What is kept is walked through in the order of the data.
        kept = sorted(shuffled(3, epoch)[: round((1 - ratio) * N)])
        kept += sorted(set(range(N)) - set(kept))
        expected = reference.window_of_groups(
            known.tolist(), kept, epoch, ratio, groups, window or 0.01
        )
        found = chosen(strategy, known, epoch)
        assert set(found) == expected
        assert len(set(found.values())) == 1
    for epoch in (14, 15):
        assert set(chosen(strategy, known, epoch)) == set(
            shuffled(3, epoch)[: round((1 - ratio) * N)]
        )


def test_the_window_moves_from_the_easy_to_the_hard_and_round_again() -> None:
    known = torch.arange(N) // 12 * 1.0
    strategy = PerEpoch(scores.LastLoss(), draws.Window(0.0, 5, 0.6))
    groups = [sorted({i // 12 for i in chosen(strategy, known, epoch)}) for epoch in range(4)]
    assert groups == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 1, 2]]
    assert len(chosen(strategy, torch.full((N,), torch.nan), 2)) == N  # nothing to go by


@pytest.mark.parametrize("unknown", [0, 20, N])
@pytest.mark.parametrize(("epoch", "fall"), [(0, 1), (24, 1), (25, 0.8), (50, 0.6), (130, 0.4)])
def test_kakurenbo_hides_what_is_easy_and_sure(unknown: int, epoch: int, fall: float) -> None:
    for share, confidence in ((0.3, 0.7), (0.9, 0.5), (0.0, 0.7)):
        known = losses(epoch, unknown)
        found = chosen(Kakurenbo(share, confidence, epochs=100), known, epoch)
        hidden = reference.lowest_hidden(known.tolist(), share * fall, confidence)
        assert set(found) == set(range(N)) - hidden
        assert len(set(found.values())) == 1


@pytest.mark.parametrize(
    ("draw", "budget"),
    [
        (draws.LowestHidden(0.29, 0.5), 100),
        (draws.BelowMeanDropped(0.29), 100),
        (draws.LargestOfPool(0.71, 0.29), 71),
    ],
)
def test_a_share_that_floating_point_rounds_down_is_whole(draw: draws.Draw, budget: int) -> None:
    assert int(0.29 * 100) == 28
    # As many are below the mean as there are to hide, and lowest or highest of all are 29.
    known = torch.linspace(0, 0.1, 100)
    if isinstance(draw, draws.BelowMeanDropped):
        known = torch.cat([known, torch.ones(100)])
    choice = draw.draw(known, budget, epoch=0, generator=torch.Generator().manual_seed(0))
    assert len(choice.positions) == len(known) - 29
    if isinstance(draw, draws.LargestOfPool):
        assert choice.positions.max() == 70


def test_random_sizes_know_nothing_and_have_the_budget_as_their_mean() -> None:
    strategy = RandomSizes(epochs=20)
    assert not strategy.needs_losses
    planned = [strategy.size_at(N, BUDGET, epoch) for epoch in range(20)]
    assert planned[0] == N
    assert planned == sorted(planned, reverse=True)
    assert sum(planned) == pytest.approx(20 * BUDGET, abs=10)
    ratios = [b / a for a, b in pairwise(planned[:6])]
    assert max(ratios) - min(ratios) < 0.03
    seen = torch.zeros(N)
    for epoch in range(4000):
        seen[list(chosen(strategy, torch.zeros(N), epoch, BUDGET))] += 1
    torch.testing.assert_close(seen / 4000, torch.full((N,), BUDGET / N), atol=0.03, rtol=0)


def test_the_table_is_what_the_methods_are() -> None:
    last, batch, equal = scores.LastLoss(), scores.BatchLoss(0.7), scores.Equal()
    half = draws.BelowMeanDropped(0.5)
    window = draws.Window(0.1, 5, 0.9)
    assert {name: kind().parts() for name, kind in STRATEGIES.items()
            if issubclass(kind, Combination)} == {
        "gradient-norm": PerEpoch(scores.LastLayerNorm(), draws.Proportional(0.1, True)),
        "loss-sampling": PerEpoch(last, draws.Proportional(0.5)),
        "order-dp": PerEpoch(last, draws.LargestOfPool(0.6)),
        "borderline": PerEpoch(scores.ThresholdCloseness(), draws.LargestOfPool(0.6)),
        "balanced": PerEpoch(equal, draws.Proportional(), shares="equal"),
        "infobatch": PerEpoch(last, half, sizes.FullAtEnd(None)),
        "infobatch-by-batch": PerEpoch(batch, half, sizes.FullAtEnd(None)),
        "seta": PerEpoch(last, window, sizes.FullAtEnd(None, fraction=0.9)),
        "seta-by-batch": PerEpoch(batch, window, sizes.FullAtEnd(None, fraction=0.9)),
        "kakurenbo": PerEpoch(last, draws.LowestHidden(0.3, 0.7, None)),
        "random-sizes": PerEpoch(equal, draws.Proportional(), sizes.Falling(None)),
    }  # fmt: skip


def test_every_method_is_in_the_table_of_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    methods = {kind for kind in STRATEGIES.values() if issubclass(kind, Combination)}
    assert {kind.__name__ for kind in methods} <= rows
    parts = {
        name
        for module in (scores, draws, sizes)
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, (scores.Score, draws.Draw, sizes.Size))
        and kind.__module__ == module.__name__
        and not (name.startswith("_") or name in ("Score", "Draw", "Size"))
    }
    assert len(parts) == 17
    assert [name for name in parts if f"`{name}" not in page] == []


def test_a_method_says_what_its_parts_need() -> None:
    assert all(kind().every == 1 for kind in STRATEGIES.values() if issubclass(kind, Combination)
               and kind is not GradientNorm)  # fmt: skip
    assert GradientNorm().needs_gradients
    assert not GradientNorm().needs_losses
    assert LossSampling().needs_losses
    assert LossSampling().keeps is None
    assert InfoBatch(score=scores.MovingAverage(0.2)).keeps == scores.MovingAverage(0.2)
    assert SeTa().sizes_itself
    assert not SeTa().needs_gradients
    assert RandomSizes(epochs=4).size_varies
    assert not OrderDP().size_varies


# ---- scores, and the record that they come from


def batches(epochs: int = 6, size: int = 7) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(epochs):
        for part in torch.randperm(N, generator=generator)[: N // 2].split(size):
            part = torch.where(torch.rand(len(part), generator=generator) < 0.1, -1, part)
            found.append((part, torch.rand(len(part), generator=generator)))
    return found


@pytest.mark.parametrize("read_each", [False, True])
@pytest.mark.parametrize(
    "score", [scores.MovingAverage(0.7), scores.BatchLoss(0.7), scores.LossChange()]
)
def test_scores_are_those_of_a_loop_over_the_samples(score: scores.Score, read_each: bool) -> None:
    assert isinstance(score, Memory)
    record = LossRecord(N, score)
    history: list[list[float]] = [[] for _ in range(N)]
    means: list[list[float]] = [[] for _ in range(N)]
    for indices, noted in batches():
        record.note(indices, noted)
        pairs = [(i, x) for i, x in zip(indices.tolist(), noted.tolist(), strict=True) if i >= 0]
        for i, loss in pairs:
            history[i].append(loss)
            means[i].append(sum(x for _, x in pairs) / len(pairs))
        if read_each:
            assert record.kept is not None
    found = score.of(Candidates(N, losses=record.values, kept=record.kept))
    for i in range(N):
        news = means[i] if isinstance(score, scores.BatchLoss) else history[i]
        expected = news[0] if news else float("nan")
        if isinstance(score, scores.LossChange):
            expected = abs(news[-1] - news[-2]) if len(news) > 1 else float("nan")
        else:
            for loss in news[1:]:
                expected = 0.7 * expected + 0.3 * loss
        assert float(found[i]) == pytest.approx(expected, rel=1e-5, nan_ok=True)
        last = history[i][-1] if history[i] else float("nan")
        assert float(record.values[i]) == pytest.approx(last, nan_ok=True)
    assert found.isnan().any()
    assert not found.isnan().all()


@pytest.mark.parametrize("least", [0.0, 0.5])  # the smallest loss with label smoothing is not 0
def test_what_is_between_learned_and_wrong_scores_highest(least: float) -> None:
    p = torch.tensor([1.0, 0.99, 0.9, 0.5, 0.2, 0.01, 1e-30])
    known = torch.cat([least - p.log(), torch.tensor([torch.nan])])
    found = scores.ThresholdCloseness().of(Candidates(8, losses=known))
    assert found[:7].tolist() == pytest.approx((p * (1 - p)).tolist(), abs=1e-6)
    assert bool(found[7].isnan())
    nothing = torch.full((8,), torch.nan)
    assert bool(scores.ThresholdCloseness().of(Candidates(8, losses=nothing)).isnan().all())


@pytest.mark.parametrize("unknown", [0, 20, N])
def test_borderline_trains_on_what_is_nearest_to_the_threshold_of_a_pool(unknown: int) -> None:
    known = losses(2, unknown)
    found = chosen(Borderline(0.5), known, 1, BUDGET)
    least = min((float(loss) for loss in known if not loss.isnan()), default=0.0)

    def closeness(i: int) -> float:
        p = math.exp(least - float(known[i]))
        return math.inf if math.isnan(p) else p * (1 - p)

    pool = shuffled(3, 1)[: 2 * BUDGET]
    assert set(found) == set(sorted(pool, key=lambda i: -closeness(i))[:BUDGET])


def test_of_a_sample_that_comes_twice_in_a_batch_the_mean_loss_counts_once() -> None:
    record = LossRecord(2, scores.MovingAverage(0.5))
    record.note(torch.tensor([0]), torch.tensor([1.0]))
    record.note(torch.tensor([0, 0]), torch.tensor([9.0, 3.0]))
    record.note(torch.tensor([-1, -1]), torch.tensor([5.0, 5.0]))
    assert record.kept is not None
    torch.testing.assert_close(record.kept, torch.tensor([3.5, torch.nan]), equal_nan=True)


def test_the_state_holds_what_is_needed_and_nothing_else() -> None:
    noted = batches()
    for memory, names in ((None, {"values"}), (scores.MovingAverage(), {"values", "kept"})):
        through, first = LossRecord(N, memory), LossRecord(N, memory)
        for some in noted:
            through.note(*some)
        for some in noted[:9]:
            first.note(*some)
        state = first.state_dict()
        assert set(state) == names
        resumed = LossRecord(N, memory)
        resumed.note(torch.arange(N), torch.ones(N))  # forgotten
        resumed.load_state_dict(state)
        for some in noted[9:]:
            resumed.note(*some)
        for name, expected in through.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], expected, equal_nan=True)


def test_a_state_without_what_is_kept_changes_nothing() -> None:
    record = LossRecord(N, scores.MovingAverage())
    record.note(torch.arange(N), torch.ones(N))
    for kept, message in (
        ({}, "got a dict without 'kept'"),
        ({"kept": torch.ones(3)}, rf"`state` must hold the losses of {N} samples, got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            record.load_state_dict({"values": torch.zeros(N), **kept})
    assert (record.values == 1).all()


def test_training_keeps_what_the_score_asks_for() -> None:
    strategy = PerEpoch(scores.BatchLoss(0.7), draws.LargestOfPool(0.6))
    selector = Selector(DATA, strategy, budget=BUDGET)
    sampler = AdaptiveSubsetSampler(selector)
    criterion = WeightedLoss(nn.L1Loss(), selector)
    kept = torch.full((N,), torch.nan)
    for epoch in range(30):
        selection = sampler.maybe_reselect(nn.Linear(1, 1), epoch)
        assert selection is not None
        order = torch.randperm(N, generator=seeded(0, epoch, Purpose.SELECTION))
        expected = reference.largest_of_pool(kept.tolist(), order.tolist(), BUDGET, 0.6)
        assert set(selection.indices.tolist()) == expected
        for x, y in DataLoader(sampler.dataset, 5, sampler=sampler):
            criterion(1.0 * x.requires_grad_(), y)  # a loss of i for sample i
            at = x[:, 0].long()
            mean = x.detach().mean()
            kept[at] = torch.where(kept[at].isnan(), mean, 0.7 * kept[at] + 0.3 * mean)
    assert selector.losses is not None
    torch.testing.assert_close(selector.losses.kept, kept, equal_nan=True)


# ---- draws


@given(
    values=st.lists(st.floats(0, 10).map(lambda x: round(x, 2)), min_size=1, max_size=30),
    groups=st.integers(1, 6),
)
def test_groups_are_those_of_lloyd(values: list[float], groups: int) -> None:
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    edges = group_edges(ordered, groups)
    assert edges[0] == 0
    assert edges[-1] == len(values)
    parts = [ordered[a:b] for a, b in pairwise(edges)]
    assert 1 <= len(parts) <= groups
    assert all(len(part) for part in parts)
    means = torch.stack([part.mean() for part in parts])
    for number, part in enumerate(parts):  # each belongs to the nearest mean: nothing to improve
        distances = (part[:, None] - means).abs()
        assert (distances[:, number] <= distances.min(1).values + 1e-9).all()


def test_many_equal_scores_are_one_group() -> None:
    known = torch.zeros(N)
    known[7] = 5.0
    strategy = PerEpoch(scores.LastLoss(), draws.Window(0.0, 5, 0.2))
    assert [len(chosen(strategy, known, epoch)) for epoch in (0, 1)] in ([N - 1, 1], [N, N])
    assert len(chosen(strategy, torch.ones(N), 3)) == N


def test_a_pool_makes_the_largest_less_certain() -> None:
    known = torch.arange(float(N))
    for share, certain in ((1.0, 0), (0.6, 0), (BUDGET / N, BUDGET)):
        found = [set(chosen(OrderDP(share), known, epoch, BUDGET)) for epoch in range(60)]
        assert len(set.intersection(*found)) == certain


@pytest.mark.parametrize("unknown", [0, 20, N - 3, N])
@pytest.mark.parametrize(("share", "trim"), [(0.6, 0.2), (0.25, 0.5), (0.2, 0.8), (0.5, 0.0)])
def test_a_trimmed_pool_leaves_out_the_highest_that_are_known(
    unknown: int, share: float, trim: float
) -> None:
    known = losses(1, unknown)
    found = chosen(OrderDP(share, trim), known, 2, BUDGET)
    pool = shuffled(3, 2)[: round(BUDGET / share)]
    out = sorted((i for i in pool if not known[i].isnan()), key=lambda i: -float(known[i]))
    pool = [i for i in pool if i not in out[: min(int(trim * len(pool)), len(pool) - BUDGET)]]
    pool.sort(key=lambda i: -float(known[i].nan_to_num(torch.inf)))
    assert set(found) == set(pool[:BUDGET])


def test_a_pool_of_all_the_data_leaves_the_budget() -> None:
    strategy = PerEpoch(draw=draws.LargestOfPool(0.2, 0.8))
    assert len(chosen(strategy, losses(), 0, N)) == N


def test_scores_that_do_not_fit_raise() -> None:
    for strategy in (OrderDP(), InfoBatch(), SeTa(), Kakurenbo()):
        with pytest.raises(ValueError, match="`losses` must be finite, got infinity"):
            chosen(strategy, torch.full((N,), torch.inf), 0, BUDGET)


@pytest.mark.parametrize("score", [scores.ThresholdCloseness(), scores.LossChange()])
@pytest.mark.parametrize("few", [True, False])
def test_losses_that_are_infinite_raise_where_the_score_is_not(
    score: scores.Score, few: bool
) -> None:
    known = torch.full((N,), torch.inf)
    if few:
        known[3:] = losses()[3:]
    with pytest.raises(ValueError, match="`losses` must be finite, got infinity"):
        chosen(PerEpoch(score, draws.LargestOfPool()), known, 0, BUDGET)
    proxy = PerEpoch(scores.Given(losses()), draws.LargestOfPool())
    assert len(chosen(proxy, known, 0, BUDGET)) == BUDGET  # which asks for no losses


def test_a_draw_may_write_to_the_scores() -> None:
    class Smallest(draws.Draw):
        def draw(
            self, scores: Tensor, budget: int, *, epoch: int, generator: torch.Generator
        ) -> Choice:
            return Choice.even(scores.neg_().topk(budget).indices.sort().values, len(scores))

    strategy = PerEpoch(scores.Given(losses()), Smallest())
    assert chosen(strategy, losses(), 0, BUDGET) == chosen(strategy, losses(), 1, BUDGET)


# ---- sizes


@given(n=st.integers(1, 5000), part=st.floats(0.01, 1), epochs=st.integers(1, 300))
def test_falling_sizes_have_the_budget_as_their_mean(n: int, part: float, epochs: int) -> None:
    budget, falling = max(1, round(part * n)), sizes.Falling(epochs)
    if epochs * budget < n:
        with pytest.raises(ValueError, match=rf"`epochs` must be at least {-(-n // budget)} for"):
            falling.at(n, budget, 0)
        return
    planned = [falling.at(n, budget, epoch) for epoch in range(epochs)]
    assert planned[0] == n
    assert planned == sorted(planned, reverse=True)
    assert planned[-1] >= 1
    least = planned.count(1)  # these would be smaller
    assert sum(planned) == pytest.approx(epochs * budget, abs=epochs / 2 + least + 1)
    assert falling.at(n, budget, epochs + 5) == planned[-1]


def test_the_end_is_full() -> None:
    size = sizes.FullAtEnd(epochs=8, full=0.25)
    assert [size.at(N, BUDGET, epoch) for epoch in (0, 5, 6, 7)] == [BUDGET, BUDGET, N, N]
    assert [size.at(N, None, epoch) for epoch in (5, 6)] == [None, N]
    assert sizes.FullAtEnd(epochs=8, fraction=0.5).at(N, BUDGET, 7) == N // 2
    assert sizes.FullAtEnd().at(N, BUDGET, 999) == BUDGET


def test_the_end_starts_at_the_very_epoch_that_is_asked_for() -> None:
    """Whole per cents, and what divides the run evenly, in exact arithmetic."""
    for epochs in range(1, 101):
        shares = {Fraction(cent, 100) for cent in range(101)}
        shares |= {Fraction(last, epochs) for last in range(epochs + 1)}
        for full in shares:
            size = sizes.FullAtEnd(epochs, float(full))
            first = math.ceil((1 - full) * epochs)
            assert size.at(N, BUDGET, first - 1) == BUDGET
            assert size.at(N, BUDGET, first) == N


def planned(strategy: Strategy, **arguments: Any) -> AdaptiveSubsetSampler:
    selector = Selector(DATA, strategy, budget=BUDGET)
    WeightedLoss(nn.MSELoss(), selector)
    return AdaptiveSubsetSampler(selector, **arguments)


@pytest.mark.parametrize(
    "strategy",
    [RandomSizes(epochs=10), PerEpoch(size=sizes.FullAtEnd(10, 0.2)), OrderDP(), FreshRandom()],
)
@pytest.mark.parametrize("arguments", [{}, {"every": 3}, {"num_replicas": 1, "rank": 0}])
def test_sizes_are_known_in_advance(strategy: Strategy, arguments: dict[str, int]) -> None:
    sampler = planned(strategy, **arguments)
    sizes_known = sampler.sizes(10)
    assert len(sizes_known) == 10
    for epoch in range(10):
        sampler.set_epoch(epoch)
        before = len(sampler)
        sampler.maybe_reselect(nn.Linear(1, 1), epoch)
        assert before == len(sampler) == len(list(sampler)) == sizes_known[epoch]
        if (losses := sampler.selector.losses) is not None:  # as if it had been trained on
            losses.note(torch.arange(3), torch.ones(3))
        assert len(DataLoader(sampler.dataset, 7, sampler=sampler)) == -(-sizes_known[epoch] // 7)
    assert (len(set(sizes_known)) > 1) == strategy.size_varies


def test_the_length_is_that_of_a_selection_made_between_two_due_epochs() -> None:
    sampler = planned(PerEpoch(size=sizes.Falling(epochs=10)), every=4)
    sampler.maybe_reselect(nn.Linear(1, 1), 6)
    assert len(sampler) == len(list(sampler)) == sampler.selector.size_at(6)
    resumed = planned(PerEpoch(size=sizes.Falling(epochs=10)), every=4)
    resumed.load_state_dict(sampler.state_dict())
    assert len(resumed) == len(sampler)


def test_sizes_are_those_of_a_rank() -> None:
    shares = planned(RandomSizes(epochs=10), num_replicas=4, rank=1).sizes(10)
    assert shares == [size // 4 for size in planned(RandomSizes(epochs=10)).sizes(10)]


def test_a_resumed_run_goes_on_with_the_sizes() -> None:
    def lengths(sampler: AdaptiveSubsetSampler, epochs: range) -> list[list[int]]:
        found = []
        for epoch in epochs:
            sampler.maybe_reselect(nn.Linear(1, 1), epoch)
            found.append(list(sampler))
        return found

    through = planned(RandomSizes(epochs=8))
    expected = lengths(through, range(8))
    first = planned(RandomSizes(epochs=8))
    lengths(first, range(4))
    resumed = planned(RandomSizes(epochs=8))
    resumed.load_state_dict(first.state_dict())
    assert len(resumed) == len(expected[3])
    damaged = first.state_dict()
    for name in ("indices", "weights"):
        kept = damaged["selector"]["selection"][name]
        damaged["selector"]["selection"][name] = kept[1:]
    with pytest.raises(ValueError, match=rf"got {len(kept) - 1} where {len(kept)} were selected"):
        planned(RandomSizes(epochs=8)).load_state_dict(damaged)
    assert lengths(resumed, range(4, 8)) == expected[4:]
    with pytest.raises(ValueError, match="same arguments"):
        planned(RandomSizes(epochs=9)).load_state_dict(first.state_dict())


def test_what_sizes_itself_has_no_sizes_in_advance() -> None:
    selector = Selector(DATA, InfoBatch(epochs=4))
    WeightedLoss(nn.MSELoss(), selector)
    sampler = AdaptiveSubsetSampler(selector)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"sizes of epochs must follow from a `fraction`.*Info"):
            sampler.sizes(4)
        sampler.maybe_reselect(nn.Linear(1, 1), 0)


@pytest.mark.parametrize(
    ("strategy", "every", "message"),
    [
        (SeTa(), 2, "have no divisor in common with the 2 places of the window.* got 2 for Window"),
        (SeTa(groups=9, window=0.5), 9, ".*with the 6 places"),  # of six it comes to two
        (SeTaByBatch(epochs=20), 4, ".*with the 2 places"),
        (InfoBatch(epochs=16), 3, None),
        (InfoBatch(epochs=16), 5, None),
        (InfoBatch(epochs=16), 6, r"leave a selection .* that of epoch 12\. Leave"),
        (PerEpoch(size=sizes.FullAtEnd(10, 0.2)), 5, ".*got 5 for FullAtEnd.* of epoch 5"),
        (PerEpoch(size=sizes.FullAtEnd(10, 0)), 5, None),
        (InfoBatch(), 6, None),
        (InfoBatch(epochs=7), 6, None),  # which has no last epochs
        (SeTa(), 3, None),
        (SeTa(window=1), 2, None),
        (Kakurenbo(epochs=16), 6, None),
        (RandomSizes(epochs=10), 4, None),
    ],
)
def test_selections_so_far_apart_that_they_miss_what_is_planned_raise(
    strategy: Strategy, every: int, message: str | None
) -> None:
    selector = Selector(DATA, strategy, budget=None if strategy.sizes_itself else BUDGET)
    if message is None:
        assert AdaptiveSubsetSampler(selector, every=every).every == every
    else:
        with pytest.raises(ValueError, match=f"`every` must {message}"):
            AdaptiveSubsetSampler(selector, every=every)


def test_a_warm_start_needs_one_size() -> None:
    selector = Selector(DATA, RandomSizes(epochs=10), budget=BUDGET)
    with pytest.raises(
        ValueError, match=r"`warm_start` must be 0 where epochs differ in size .* one of 5 epochs"
    ):
        AdaptiveSubsetSampler(selector, epochs=10, warm_start=0.5)


# ---- arguments


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (OrderDP, {"share": 0.0}, r"`share` must be in \(0, 1\], got 0.0"),
        (draws.LargestOfPool, {"share": 1.1}, r"`share` must be in \(0, 1\], got 1.1"),
        (
            draws.LargestOfPool,
            {"trim": 0.5},
            r"`trim` must be in \[0, 1 − share\], which ends at",
        ),
        (LossSampling, {"uniform": 1.5}, r"`uniform` must be in \(0, 1\], got 1.5"),
        (InfoBatchByBatch, {"ratio": 1.0}, r"`ratio` must be in \[0, 1\), got 1.0"),
        (SeTa, {"ratio": -0.1}, r"`ratio` must be in \[0, 1\), got -0.1"),
        (SeTa, {"ratio": 1.0}, r"`ratio` must be in \[0, 1\), got 1.0"),
        (SeTa, {"groups": 0}, r"`groups` must be at least 1, got 0"),
        (SeTa, {"window": 0.0}, r"`window` must be in \(0, 1\], got 0.0"),
        (SeTa, {"epochs": 0}, r"`epochs` must be at least 1, got 0"),
        (SeTa, {"full": 1.5}, r"`full` must be in \[0, 1\], got 1.5"),
        (Kakurenbo, {"share": 1.0}, r"`share` must be in \[0, 1\), got 1.0"),
        (Kakurenbo, {"confidence": 0.0}, r"`confidence` must be in \(0, 1\], got 0.0"),
        (Kakurenbo, {"epochs": 0}, r"`epochs` must be at least 1, got 0"),
        (RandomSizes, {"epochs": 0}, r"`epochs` must be at least 1, got 0"),
        (sizes.FullAtEnd, {"fraction": 0.0}, r"`fraction` must be in \(0, 1\], got 0.0"),
        (scores.MovingAverage, {"factor": 1.0}, r"`factor` must be in \[0, 1\), got 1.0"),
        (scores.BatchLoss, {"factor": -0.5}, r"`factor` must be in \[0, 1\), got -0.5"),
        (
            PerEpoch,
            {"draw": draws.Window(), "size": sizes.Falling(9)},
            r"`size` must leave the size to a draw that sizes itself, got Falling\(epochs=9\) for",
        ),
    ],
)
def test_arguments_are_checked(kind: type, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (OrderDP, {"share": "0.6"}, "`share` must be a number, got '0.6'"),
        (SeTa, {"groups": 5.0}, "`groups` must be a whole number, got 5.0"),
        (LossSampling, {"unbiased": 1}, "`unbiased` must be True or False, got 1"),
        (scores.MovingAverage, {"factor": None}, "`factor` must be a number, got None"),
        (draws.LargestOfPool, {"share": True}, "`share` must be a number, got True"),
        (sizes.Falling, {"epochs": 9.5}, "`epochs` must be a whole number, got 9.5"),
        (InfoBatch, {"score": "last"}, "`score` must be one of .* got 'last'"),
    ],
)
def test_arguments_are_of_their_kind(
    kind: type, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("name", ["score", "draw", "size"])
def test_a_part_is_an_instance_of_its_kind(name: str) -> None:
    for wrong in (scores.LastLoss if name == "score" else scores.LastLoss(), draws.Proportional):
        with pytest.raises(TypeError, match=rf"`{name}` must be one of .*{name}s, .* an instance"):
            PerEpoch(**{name: wrong})  # type: ignore[arg-type]


def test_falling_sizes_need_the_number_of_epochs() -> None:
    with pytest.raises(ValueError, match=r"`epochs` must be the number of epochs .* got None"):
        Selector(DATA, "random-sizes", budget=BUDGET)
    with pytest.raises(ValueError, match=r"`epochs` must be at least 5 for a mean of 12 of 60"):
        Selector(DATA, RandomSizes(epochs=4), budget=BUDGET)


def test_named_methods_can_be_changed_like_data() -> None:
    assert replace(OrderDP(), share=0.5) == OrderDP(0.5)
    assert repr(OrderDP(0.5)) == "OrderDP(share=0.5, trim=0.0)"
    with pytest.raises(ValueError, match="`share`"):
        replace(OrderDP(), share=2.0)


def test_what_is_kept_follows_the_part_of_the_pool_that_is_looked_at() -> None:
    seen: list[Candidates] = []

    class Watching(Random):
        needs_gradients, needs_losses, keeps = True, True, scores.MovingAverage()

        def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
            seen.append(candidates)
            return super().select(candidates, budget, seed=seed, epoch=epoch)

    labelled = TensorDataset(DATA.tensors[0], torch.arange(N) % 3)
    selector = Selector(labelled, Watching(), budget=BUDGET, pool_fraction=0.5)
    WeightedLoss(nn.CrossEntropyLoss(), selector)
    assert selector.losses is not None
    selector.losses.note(torch.arange(N), torch.arange(float(N)))
    selector.select(nn.Linear(1, 3), 0)
    (found,) = seen
    assert found.losses is not None
    assert found.kept is not None
    assert len(found.kept) == N // 2
    assert torch.equal(found.kept, found.losses)
    members = found.by_group()[1]
    assert torch.equal(found.of_group(members).kept, found.losses[members])  # type: ignore[arg-type]


# ---- parts of one's own


class Own(scores.Score, Memory):
    """A score of which a test says what it gives, and what it keeps."""

    needs_losses = False  # what it keeps needs them all the same

    def __init__(self, of: Any, update: Any = None) -> None:
        self._of, self._update = of, update

    def of(self, candidates: Candidates) -> Any:
        return self._of(candidates)

    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Any:
        return losses if self._update is None else self._update(losses)


class Planned(sizes.Size):
    def __init__(self, size: Any) -> None:
        self.size = size

    def at(self, n: int, budget: int | None, epoch: int) -> Any:
        return self.size if epoch else budget


class Drawn(draws.Draw):
    def __init__(self, choose: Any, *, itself: bool = False) -> None:
        self._choose = choose
        self.sizes_itself = itself  # type: ignore[misc]

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Any) -> Any:
        return self._choose(len(scores), budget)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda c: torch.ones(c.n - 1), r"one number for each of the 60 candidates, got shape"),
        (lambda c: torch.ones(c.n, 1), r"got shape \(60, 1\) from Own\(\)\. NaN stands for"),
        (lambda c: None, r"got None from Own"),
        (lambda c: torch.zeros(c.n).log(), r"infinity from Own\(\)\. Bound it"),
    ],
)
@pytest.mark.parametrize("draw", [draws.Proportional(), draws.BelowMeanDropped()])
def test_a_score_of_other_numbers_raises(of: Any, message: str, draw: draws.Draw) -> None:
    with pytest.raises(ValueError, match=f"`score` must .*{message}"):
        chosen(PerEpoch(Own(of), draw), losses(), 0, N if draw.sizes_itself else BUDGET)


@pytest.mark.parametrize("draw", [draws.Proportional(), draws.LargestOfPool(), draws.Window()])
def test_a_score_may_be_of_any_number(draw: draws.Draw) -> None:
    budget = N if draw.sizes_itself else BUDGET
    wanted = chosen(PerEpoch(Own(lambda c: torch.arange(float(c.n))), draw), losses(), 1, budget)
    for values in (torch.arange(N), torch.arange(float(N), requires_grad=True) * 1):
        found = chosen(PerEpoch(Own(lambda c, v=values: v), draw), losses(), 1, budget)
        assert found == wanted


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (7.5, TypeError, "`size` must be a whole number, got 7.5"),
        (-1, ValueError, r"`size` must plan at least 1 and at most 60 .*, got -1 for epoch 1 from"),
        (N + 1, ValueError, "got 61 for epoch 1 from Planned"),
    ],
)
@pytest.mark.parametrize("draw", [draws.Proportional(), draws.BelowMeanDropped()])
def test_a_schedule_that_plans_no_size_raises(
    size: Any, error: type[Exception], message: str, draw: draws.Draw
) -> None:
    strategy = PerEpoch(scores.Equal(), draw, Planned(size))
    selector = Selector(DATA, strategy, budget=None if draw.sizes_itself else BUDGET)
    selector.select(nn.Linear(1, 1), 0)
    with pytest.raises(error, match=message):
        selector.select(nn.Linear(1, 1), 1)


@pytest.mark.parametrize("groups", [None, torch.arange(N) % 2])
@pytest.mark.parametrize(
    ("choose", "error", "message"),
    [
        (lambda n, k: [*range(k)], TypeError, "`strategy` must return a Choice, got a list"),
        (
            lambda n, k: Choice(*cast("Any", ([*range(k)], [1.0] * k))),
            TypeError,
            "must choose by tensors",
        ),
        (lambda n, k: Choice.even(torch.arange(k) + n, n), ValueError, "got positions from"),
        (lambda n, k: Choice.even(torch.arange(k - 1), n), ValueError, r"got positions \("),
    ],
)
def test_a_draw_of_something_else_raises(
    choose: Any, error: type[Exception], message: str, groups: Tensor | None
) -> None:
    candidates = Candidates(N, losses=losses(), groups=groups)
    with pytest.raises(error, match=message):
        PerEpoch(draw=Drawn(choose)).choose(candidates, BUDGET, seed=0, epoch=0)


def test_a_draw_that_sizes_itself_to_nothing_raises() -> None:
    nothing = Drawn(lambda n, k: Choice.even(torch.arange(0), n), itself=True)
    with pytest.raises(ValueError, match=r"must choose some of 60 samples.*got positions \(0,\)"):
        chosen(PerEpoch(draw=nothing), losses(), 0)


def test_what_keeps_something_of_losses_needs_them() -> None:
    assert PerEpoch(Own(lambda c: c.kept)).needs_losses

    class Keeping(FreshRandom):
        keeps = scores.MovingAverage()

    with pytest.raises(ValueError, match=r"`strategy` must say needs_losses = True where it keeps"):
        Selector(DATA, Keeping(), budget=BUDGET)


@pytest.mark.parametrize("kept", [None, torch.ones(1), torch.ones(2, 1)])
def test_a_memory_of_other_numbers_raises(kept: Any) -> None:
    record = LossRecord(N, Own(None, lambda losses: kept))
    record.note(torch.tensor([3, 4]), torch.ones(2))
    with pytest.raises(ValueError, match="`update` must return one number for each of the 2"):
        _ = record.kept


def test_a_memory_may_be_of_any_number() -> None:
    record = LossRecord(N, Own(None, lambda losses: losses.double().round().long()))
    record.note(torch.tensor([3, 4]), torch.tensor([1.2, 2.0]))
    assert record.kept is not None
    assert record.kept[3:5].tolist() == [1, 2]
