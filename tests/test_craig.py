"""CRAIG: the greedy choice, the clusters that weights count, and distances from factors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from adaptive_subset import CRAIG, CRAIGPB, Candidates, Selector, Validation
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.protocol import Index
from adaptive_subset.strategies.craig import _GradientDistances, gradient_distances
from adaptive_subset.strategies.solvers.facility_location import Medoids, Stored, facility_location


def points(n: int, seed: int, d: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(m, n), from the definition."""
    return np.linalg.norm(rows[:, None] - columns[None], axis=2)


def naive(matrix: np.ndarray, budget: int) -> tuple[list[int], float]:
    """Greedy facility location as it is defined: all gains anew in every step."""
    similarity = matrix.max() - matrix
    chosen: list[int] = []
    for _ in range(budget):
        values = [
            similarity[:, [*chosen, j]].max(1).sum() if j not in chosen else -np.inf
            for j in range(matrix.shape[1])
        ]
        chosen.append(int(np.argmax(values)))
    return chosen, float(matrix[:, chosen].min(1).sum())


def solve(matrix: np.ndarray, budget: int, **options: Any) -> Medoids:
    return facility_location(Stored(torch.from_numpy(matrix)), budget, **options)


def small_tiles(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    """Tiles of a few numbers, so that small problems have many."""

    def cut(rows: int, columns: int, device: torch.device) -> list[tuple[slice, slice]]:
        return [
            (slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
            for i in range(0, rows, height)
            for j in range(0, columns, width)
        ]

    monkeypatch.setattr("adaptive_subset.strategies.solvers.facility_location.tiles", cut)
    monkeypatch.setattr("adaptive_subset.strategies.craig.tiles", cut)


@settings(max_examples=60)
@given(
    n=st.integers(2, 30),
    m=st.integers(1, 30),
    share=st.floats(0.01, 1),
    cut=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_choice_is_that_of_naive_greedy(
    n: int, m: int, share: float, cut: bool, seed: int
) -> None:
    matrix, budget = distances(points(m, seed + 1), points(n, seed)), max(1, round(share * n))
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            small_tiles(patch, 3, 7)
        found = solve(matrix, budget)
    chosen, cost = naive(matrix, len(found.chosen))
    assert found.chosen.tolist() == chosen
    assert found.cost == pytest.approx(cost)
    assert found.owner.tolist() == matrix[:, chosen].argmin(1).tolist()
    if len(found.chosen) < budget:  # every row has its own medoid, or shares it
        assert naive(matrix, len(chosen) + 1)[1] == pytest.approx(cost)


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_costs_as_little_over_hundreds_of_choices(seed: int) -> None:
    """Costs are kept by differences: their rounding must not add up, nor where scales differ."""
    cloud = points(600, seed) * np.geomspace(1e-3, 10, 600)[:, None]
    matrix = distances(cloud, cloud).astype(np.float32)
    exact = solve(matrix.astype(np.float64), 400)
    assert solve(matrix, 400).cost == pytest.approx(exact.cost, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_near_the_best_of_all_subsets(seed: int) -> None:
    matrix = distances(points(11, seed), points(11, seed))
    found = solve(matrix, 4)
    subsets = itertools.combinations(range(11), 4)
    best = min(matrix[:, list(subset)].min(1).sum() for subset in subsets)
    covered, best_covered = (11 * matrix.max() - cost for cost in (found.cost, best))
    assert covered >= (1 - 1 / np.e) * best_covered
    assert found.cost <= 1.3 * best


def test_stochastic_greedy_is_nearly_as_good() -> None:
    matrix = distances(points(400, 0), points(400, 0))
    exact = solve(matrix, 40).cost
    costs = []
    for seed in range(5):
        found, again = (
            solve(matrix, 40, epsilon=0.1, generator=torch.Generator().manual_seed(seed))
            for _ in range(2)
        )
        assert torch.equal(found.chosen, again.chosen)
        assert len(set(found.chosen.tolist())) == 40
        assert found.cost == pytest.approx(matrix[:, found.chosen].min(1).sum())
        assert found.owner.tolist() == matrix[:, found.chosen].argmin(1).tolist()
        costs.append(found.cost)
    assert 0.99 * exact < np.mean(costs) < 1.1 * exact


def test_of_equal_columns_the_first_is_chosen() -> None:
    matrix = np.array([[3.0, 0.0, 0.0, 5.0], [5.0, 2.0, 2.0, 0.0], [3.0, 0.0, 0.0, 5.0]])
    assert solve(matrix, 4).chosen.tolist() == [1, 3]  # and nothing that gains nothing


@pytest.mark.parametrize("epsilon", [None, 0.3])
@pytest.mark.parametrize("shape", [(0, 5), (4, 5)])
def test_where_all_is_at_distance_zero_there_is_nothing_to_choose(
    shape: tuple[int, int], epsilon: float | None
) -> None:
    found = solve(np.zeros(shape), 3, epsilon=epsilon, generator=torch.Generator())
    assert len(found.chosen) == found.cost == 0


def test_the_only_candidate_is_no_random_one() -> None:
    few = Candidates(1, gradients(1))
    choice = CRAIG().select(few, 1, seed=0, epoch=0)
    assert (choice.positions.tolist(), choice.weights.tolist(), choice.filled) == ([0], [1.0], 0)


class Counted(Stored):
    """Counts the numbers that are read, and notes the largest tile."""

    read, largest = 0, 0

    def tile(self, rows: Index, columns: Index) -> Tensor:
        tile = super().tile(rows, columns)
        Counted.read += tile.numel()
        Counted.largest = max(Counted.largest, tile.numel())
        return tile


def test_what_is_read_grows_with_the_logarithm_of_the_budget() -> None:
    cloud = points(3000, 0)
    matrix = torch.from_numpy(distances(cloud, cloud))
    Counted.read = Counted.largest = 0
    facility_location(Counted(matrix, symmetric=True), 300)
    assert Counted.read < (2 + np.log(300)) * matrix.numel()  # naive greedy: 300 times all
    assert Counted.largest <= 2**18


def gradients(n: int, seed: int = 0, dtype: Any = torch.float64) -> FactoredGradients:
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        (torch.randn(n, c, generator=generator), torch.randn(n, p, generator=generator))
        for c, p in ((4, 6), (3, 5))
    ]
    return FactoredGradients([(d.to(dtype), h.to(dtype)) for d, h in blocks])


def dense(given: FactoredGradients) -> np.ndarray:
    return torch.stack([given.dense(i) for i in range(len(given))]).numpy()


@pytest.mark.parametrize("memory", [0.0, 1.0])
@pytest.mark.parametrize("one_row", [False, True])
def test_distances_come_from_the_factors(
    memory: float, one_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, 4, 5)
    columns, rows = gradients(9), gradients(7, seed=1)
    if one_row:
        heads = (FactoredGradients([(d[:, :3], h) for d, h in g.blocks]) for g in (columns, rows))
        columns, rows = (g.own_rows(torch.arange(len(g)) % 3) for g in heads)
    between = gradient_distances(rows, columns, memory)
    expected = distances(dense(rows), dense(columns))
    few, everything = torch.tensor([4, 1]), slice(None)
    assert between.shape == (7, 9)
    for found, wanted in (
        (between.tile(everything, slice(0, 9)), expected),
        (between.tile(everything, few), expected[:, [4, 1]]),
        (between.tile(few, slice(2, 6)), expected[[4, 1], 2:6]),
        (between.column(few[:1]), expected[:, 4]),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    within = gradient_distances(columns, columns, memory)
    assert (within.tile(slice(2, 6), slice(2, 6)).diagonal() == 0).all()
    assert within.column(torch.tensor([5]))[5] == 0
    np.testing.assert_allclose(
        within.column(few[:1]), distances(dense(columns), dense(columns))[:, 4], atol=1e-12
    )
    assert isinstance(within, Stored) == (memory > 0)


@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_without_memory_nothing_of_size_n_squared_is_made(
    epsilon: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    asked = _GradientDistances.tile

    def noted(self: _GradientDistances, rows: Any, columns: Any) -> Tensor:
        tile = asked(self, rows, columns)
        seen.append(tile.numel())
        return tile

    small_tiles(monkeypatch, 40, 100)
    monkeypatch.setattr(_GradientDistances, "tile", noted)
    given = Candidates(400, gradients(400))
    stored = CRAIG(epsilon=epsilon).select(given, 20, seed=0, epoch=0)
    seen.clear()
    computed = CRAIG(memory=0, epsilon=epsilon).select(given, 20, seed=0, epoch=0)
    assert max(seen) <= 40 * 100
    assert sum(seen) < (2 + np.log(20)) * 400 * 400
    assert torch.equal(stored.positions, computed.positions)
    assert torch.equal(stored.weights, computed.weights)


def clusters(order: Tensor) -> tuple[Candidates, Tensor]:
    """Forty tight clusters of unequal size, shuffled; and the cluster of each candidate."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.arange(40) % 5 + 1
    label = torch.repeat_interleave(torch.arange(40), sizes)
    centre = 5 * torch.randn(40, 3, 4, generator=generator)
    spread = 1e-3 * torch.randn(len(label), 3, 4, generator=generator)
    flat = (centre[label] + spread).flatten(1).double()[order]
    return Candidates(len(label), FactoredGradients([(flat, torch.ones(len(flat), 1).double())])), (
        label[order]
    )


@pytest.mark.parametrize("strategy", [CRAIG(), CRAIG(memory=0)])
def test_every_planted_cluster_is_found_and_counted(strategy: CRAIG) -> None:
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    given, label = clusters(order)
    choice = strategy.select(given, 40, seed=0, epoch=0)
    assert sorted(label[choice.positions].tolist()) == list(range(40))
    assert torch.equal(choice.weights, torch.bincount(label)[label[choice.positions]].double())


def test_weights_count_the_samples() -> None:
    labels = torch.arange(90) % 3
    given = Candidates(90, gradients(90), labels)
    for strategy in (CRAIG(), CRAIG(scope="global"), CRAIG(epsilon=0.2), CRAIGPB(batch_size=7)):
        choice = strategy.select(given, 21, seed=0, epoch=0)
        assert float(choice.weights.sum()) == pytest.approx(90)


def test_copies_share_the_weight_of_their_cluster() -> None:
    few = gradients(4).take(torch.tensor([0, 0, 0, 1, 2, 3, 3, 0]))
    choice = CRAIG().select(Candidates(8, few), 8, seed=0, epoch=0)
    assert choice.filled == 4
    assert torch.equal(choice.weights, torch.ones(8).double())


def test_medoids_are_near_to_the_validation_samples() -> None:
    pool, wanted = gradients(60), gradients(25, seed=3)
    given = Candidates(60, pool, validation=Validation(wanted, None, 60 / 25))
    choice = CRAIG().select(given, 6, seed=0, epoch=0)
    matrix = distances(dense(wanted), dense(pool))
    chosen, cost = naive(matrix, 6)
    assert choice.positions.tolist() == chosen
    assert choice.objective == pytest.approx(cost)
    counts = np.bincount(matrix[:, chosen].argmin(1), minlength=6) * 60 / 25
    np.testing.assert_allclose(choice.weights.numpy(), counts)
    with pytest.raises(ValueError, match="`validation` must be None for CRAIGPB"):
        CRAIGPB(batch_size=6).select(given, 6, seed=0, epoch=0)


mostly_filled = pytest.mark.filterwarnings("ignore:CRAIG chose")


def guided(wanted: list[int]) -> Candidates:
    """Sixty candidates of three classes, and validation samples of the `wanted` ones."""
    labels, m = torch.arange(60) % 3, len(wanted)
    target = Validation(gradients(m, seed=3), torch.tensor(wanted), 60 / m)
    return Candidates(60, gradients(60), labels, validation=target)


@mostly_filled
@pytest.mark.parametrize("scope", ["per-class", "global"])
@pytest.mark.parametrize("budget", [2, 6, 30, 60])
@pytest.mark.parametrize(
    "wanted", [[0] * 20, [0, 1, 2] * 2, [0, 0, 0, 1], [0, 1, 2, 7], [2, 1, 0, 0] * 15]
)
def test_weights_count_the_validation_samples(wanted: list[int], budget: int, scope: Any) -> None:
    """However few there are, of whatever classes; a class of none of them counts nothing."""
    given = guided(wanted)
    choice = CRAIG(scope=scope).choose(given, budget, seed=0, epoch=0)
    assert float(choice.weights.sum()) == pytest.approx(60)
    if scope == "per-class" and budget > 2:
        assert given.classes is not None
        total = torch.zeros(3, dtype=torch.float64)
        total.index_add_(0, given.classes[choice.positions], choice.weights)
        counts = [wanted.count(label) for label in range(3)]
        assert total.tolist() == pytest.approx([60 * c / sum(counts) for c in counts])


@mostly_filled
def test_what_is_filled_in_shares_the_weight_of_the_nearest_medoid() -> None:
    pool, wanted = gradients(60), gradients(5, seed=3)
    given = Candidates(60, pool, validation=Validation(wanted, None, 60 / 5))
    choice = CRAIG().select(given, 30, seed=0, epoch=0)
    found = 30 - choice.filled
    assert 1 < found <= 5
    matrix, chosen = distances(dense(wanted), dense(pool)), choice.positions[:found].numpy()
    counts = np.bincount(matrix[:, chosen].argmin(1), minlength=found) * 60 / 5
    members = dense(pool)[choice.positions.numpy()]
    owner = distances(members, dense(pool)[chosen]).argmin(1)
    expected = (counts / np.bincount(owner))[owner]
    np.testing.assert_allclose(choice.weights.numpy(), expected)


@mostly_filled
def test_validation_samples_of_other_classes_only_are_refused() -> None:
    with pytest.raises(ValueError, match="`validation` must have samples of a class that is chos"):
        CRAIG().select(guided([7] * 5), 12, seed=0, epoch=0)


@pytest.mark.parametrize("budget", [2, 30])
def test_weights_count_all_samples_where_classes_go_without(budget: int) -> None:
    given = Candidates(60, gradients(60), torch.arange(60) % 3)
    choice = CRAIG().select(given, budget, seed=0, epoch=0)
    assert float(choice.weights.sum()) == pytest.approx(60)


@mostly_filled
@pytest.mark.parametrize(("n", "budget"), [(32, 8), (34, 8), (34, 32)])
def test_equal_mini_batches_stand_for_all_samples(n: int, budget: int) -> None:
    same = gradients(1).take(torch.zeros(n, dtype=torch.int64))
    given = Candidates(n, same)
    choice = CRAIGPB(batch_size=4).choose(given, budget, seed=0, epoch=0)
    assert choice.filled == budget
    assert choice.weights.tolist() == pytest.approx([n / budget] * budget)
    assert given.relative_error(choice) == pytest.approx(0, abs=1e-9)


def test_mini_batches_are_compared_by_their_mean_gradient() -> None:
    given = Candidates(40, gradients(40))
    choice = CRAIGPB(batch_size=4).select(given, 12, seed=0, epoch=0)
    assert isinstance(given.gradients, FactoredGradients)
    means = dense(given.gradients)[choice.positions.numpy()].reshape(3, 4, -1).mean(1)
    assert len(np.unique(means.round(9), axis=0)) == 3
    assert (choice.weights.view(3, 4) == choice.weights.view(3, 4)[:, :1]).all()


def test_regression_has_medoids_too() -> None:
    data = TensorDataset(torch.randn(40, 6), torch.randn(40, 2))
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    selection = Selector(data, "craig", budget=8, criterion=nn.MSELoss()).select(net, 0)
    assert float(selection.weights.sum()) == pytest.approx(40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "class"}, r"`scope` must be .*\"global\", got 'class'"),
        ({"shares": "fair"}, r"`shares` must be \"proportional\" or \"equal\", got 'fair'"),
        ({"epsilon": 1.0}, r"`epsilon` must be in \(0, 1\) or None, got 1.0"),
        ({"memory": -1}, r"`memory` must be at least 0 GiB, got -1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRAIG(**arguments)


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("scope", ["per-class", "per-gradient"])
def test_gradients_that_are_close_are_told_apart_in_single_precision(
    spread: float, scope: Any
) -> None:
    """Distances are small differences of large inner products, for which float32 has no digits."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        delta = 1 + spread * rng.normal(size=(40, 3))
        features = 1 + spread * rng.normal(size=(40, 8))
        factors = torch.from_numpy(delta).float(), torch.from_numpy(features).float()
        classes = torch.arange(40) % 2
        single = Candidates(40, FactoredGradients([factors]), classes)
        double = Candidates(
            40, FactoredGradients([(factors[0].double(), factors[1].double())]), classes
        )
        choice = CRAIG(scope=scope).choose(single, 12, seed=0, epoch=0)
        expected = CRAIG(scope=scope).choose(double, 12, seed=0, epoch=0)
        assert choice.filled == expected.filled == 0
        assert choice.objective == pytest.approx(expected.objective, rel=1e-3)
