"""Every strategy under the same laws, and what is particular to GRAD-MATCH."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaptive_subset.gradients import DenseGradients, FactoredGradients, Gradients, mini_batches
from adaptive_subset.gradients.look_ahead import LastLayer
from adaptive_subset.precision import full_precision
from adaptive_subset.strategies import (
    CRAIG,
    CRAIGPB,
    GLISTER,
    STRATEGIES,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    InfoBatchByBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    PerEpoch,
    Random,
    RandomSizes,
    SeTa,
    SeTaByBatch,
    Strategy,
    Validation,
    draws,
    scores,
    sizes,
)
from adaptive_subset.strategies.division import equal_shares, proportional_shares
from adaptive_subset.strategies.smallest import smallest_choice

EVERY: dict[str, Strategy] = {
    "random": Random(),
    "fresh random": FreshRandom(),
    "per-gradient": GradMatch(),
    "per-class": GradMatch(scope="per-class"),
    "global": GradMatch(scope="global"),
    "absolute": GradMatch(lam=0.01, lam_is="absolute"),
    "signed": GradMatch(nonnegative=False),
    "equal shares": GradMatch(shares="equal"),
    "per batch": GradMatchPB(batch_size=4),
    "craig": CRAIG(),
    "craig, own rows": CRAIG(scope="per-gradient"),
    "craig, global": CRAIG(scope="global"),
    "craig, stochastic": CRAIG(epsilon=0.1),
    "craig, nothing stored": CRAIG(memory=0),
    "craig per batch": CRAIGPB(batch_size=4),
    "gradient norm": GradientNorm(),
    "gradient norm, biased": GradientNorm(unbiased=False),
    "loss": LossSampling(),
    "loss, unbiased": LossSampling(unbiased=True),
    "glister": GLISTER(refreshes=4),
    "glister, global": GLISTER(scope="global"),
    "infobatch": InfoBatch(),
    "infobatch, by batch": InfoBatchByBatch(),
    "order-dp": OrderDP(),
    "seta": SeTa(),
    "seta, late": SeTa(ratio=0.5, epochs=1),
    "seta, by batch": SeTaByBatch(window=0.2),
    "kakurenbo": Kakurenbo(confidence=0.1),
    "random sizes": RandomSizes(epochs=100),
    "largest average": PerEpoch(scores.MovingAverage(), draws.LargestOfPool(), sizes.FullAtEnd(4)),
    "changing": PerEpoch(scores.LossChange(), draws.Proportional(), sizes.Falling(100)),
    "largest gradient norms": PerEpoch(scores.LastLayerNorm(), draws.LargestOfPool(0.9)),
    "uniform": PerEpoch(scores.Equal(), draws.LargestOfPool(1.0)),
}
GRADIENTS = [name for name, strategy in EVERY.items() if strategy.needs_gradients]
MATCHING = [name for name, s in EVERY.items() if isinstance(s, (GradMatch, GradMatchPB))]


def candidates(n: int = 48, classes: int = 3, p: int = 10, seed: int = 0) -> Candidates:
    """Gradients as a classifier has them: δ = softmax − one-hot, features positive."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    delta = logits.softmax(1) - torch.nn.functional.one_hot(labels, classes)
    centres = torch.rand(classes, p, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, p, generator=generator, dtype=torch.float64)
    features = (centres[labels] + 0.3 * noise).relu()
    # A layer that gives these logits, so that gradients and layer belong together.
    weight = torch.linalg.lstsq(features, logits).solution.T.contiguous()
    layer = LastLayer(features, weight, labels, torch.nn.CrossEntropyLoss())
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").float()
    gradients = FactoredGradients([(delta, features)])
    kept = losses * torch.rand(n, generator=generator)
    return Candidates(n, gradients, labels, losses=losses, last_layer=layer, kept=kept)


def blocks(given: Candidates) -> Sequence[tuple[Tensor, Tensor]]:
    assert isinstance(given.atoms, FactoredGradients)
    return given.atoms.blocks


def permuted(given: Candidates, order: Tensor) -> Candidates:
    assert given.gradients is not None
    assert given.classes is not None
    assert given.last_layer is not None
    return replace(
        given,
        gradients=given.gradients.take(order),
        classes=given.classes[order],
        losses=None if given.losses is None else given.losses[order],
        last_layer=given.last_layer[order],
        kept=None if given.kept is None else given.kept[order],
    )


def error(given: Candidates, choice: Choice) -> float:
    target = given.target
    matched = given.atoms.sum(choice.weights, choice.positions)
    return float((matched - target).norm() / target.norm())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("budget", [1, 4, 12, 48])
def test_a_choice_is_distinct_in_range_and_finite(name: str, budget: int) -> None:
    given, strategy = candidates(), EVERY[name]
    budget = max(budget, strategy.batch_size or 1)
    choice = strategy.select(given, budget, seed=0, epoch=0)
    size = len(choice.positions)
    assert len(choice.weights) == len(choice.positions.unique()) == size
    assert 1 <= size <= given.n if strategy.sizes_itself else size == budget
    assert 0 <= int(choice.positions.min()) <= int(choice.positions.max()) < given.n
    assert choice.weights.isfinite().all()
    assert choice.weights.sum() > 0
    assert name == "signed" or (choice.weights >= 0).all()
    assert choice.batch_size == strategy.batch_size
    assert not choice.positions.is_floating_point()


@pytest.mark.parametrize("name", EVERY)
def test_a_choice_is_a_pure_function_of_seed_and_epoch(name: str) -> None:
    state = torch.get_rng_state()
    first, again = (EVERY[name].select(candidates(), 12, seed=1, epoch=2) for _ in range(2))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in MATCHING if name != "per batch"])
def test_a_choice_follows_a_permutation_of_the_candidates(name: str) -> None:
    given = candidates()
    order = torch.randperm(given.n, generator=torch.Generator().manual_seed(5))
    straight = EVERY[name].select(given, 12, seed=0, epoch=0)
    shuffled = EVERY[name].select(permuted(given, order), 12, seed=0, epoch=0)
    assert set(order[shuffled.positions].tolist()) == set(straight.positions.tolist())
    dense = [torch.zeros(given.n, dtype=torch.float64) for _ in range(2)]
    dense[0][straight.positions] = straight.weights
    dense[1][order[shuffled.positions]] = shuffled.weights
    torch.testing.assert_close(*dense)


@pytest.mark.parametrize("name", ["craig", "craig, own rows", "craig, global"])
def test_medoids_of_permuted_candidates_are_as_good(name: str) -> None:
    """Either of two neighbours may stand for both: medoids, and what follows them, can differ."""
    given = candidates()
    order = torch.randperm(given.n, generator=torch.Generator().manual_seed(5))
    straight, shuffled = (
        EVERY[name].select(some, 12, seed=0, epoch=0) for some in (given, permuted(given, order))
    )
    assert straight.objective == pytest.approx(shuffled.objective, rel=0.01)


@pytest.mark.parametrize("name", MATCHING)
def test_matching_beats_random_subsets(name: str) -> None:
    given, budget = candidates(n=240), 24
    chosen = error(given, EVERY[name].select(given, budget, seed=0, epoch=0))
    random = [error(given, Random().select(given, budget, seed=s, epoch=0)) for s in range(20)]
    assert chosen < sorted(random)[5]


@pytest.mark.parametrize("name", [name for name in GRADIENTS if "norm" not in name])
def test_zero_gradients_fill_up_at_random_with_a_warning(name: str) -> None:
    given = candidates()
    zero = FactoredGradients([(0 * d, h) for d, h in blocks(given)])
    with pytest.warns(UserWarning, match=r"filled up with (12|3) random ones"):
        choice = EVERY[name].select(replace(given, gradients=zero), 12, seed=0, epoch=0)
    assert choice.filled == 12
    assert (choice.weights == choice.weights[0]).all()


@pytest.mark.parametrize(
    "strategy", [GradMatch(nonnegative=False), GradMatchPB(nonnegative=False, batch_size=4)]
)
def test_signed_weights_of_no_positive_sum_are_refused(strategy: Strategy) -> None:
    given = candidates()
    uphill = FactoredGradients([(-d, h) for d, h in blocks(given)])  # every sample leads away
    given = replace(given, validation=Validation(uphill, given.classes, 1.0))
    with pytest.raises(ValueError, match=r"`nonnegative` must be True.* got weights of sum -"):
        strategy.choose(given, 12, seed=0, epoch=0)


@pytest.mark.parametrize("name", ["per-class", "global", "per batch"])
@pytest.mark.parametrize("validated", [False, True])
def test_gradients_that_cancel_up_to_rounding_are_not_matched(name: str, validated: bool) -> None:
    # As at the optimum of a last layer: what the sum leaves is rounding, which no weights match.
    n, labels = 480, torch.arange(480) % 3
    matrix = torch.randn(n, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for label in range(3):
        matrix[labels == label] -= matrix[labels == label].mean(0)
    given = Candidates(n, DenseGradients(matrix.float()), labels)
    assert given.atoms.sum().norm() > 0
    if validated:
        moved = DenseGradients(matrix.float() + 1)
        given = Candidates(n, moved, labels, Validation(given.atoms, labels, 1.0))
    strategy = EVERY[name]
    with pytest.warns(UserWarning, match=r"filled up with (48|12) random ones"):
        choice = strategy.select(given, 48, seed=0, epoch=0)
    assert (choice.weights == choice.weights[0]).all()
    assert given.relative_error(choice) is None
    # A gradient that is small beside them, and no rounding, is matched.
    small = replace(given, gradients=DenseGradients((matrix + 1e-4).float()), validation=None)
    assert error(small, strategy.select(small, 240, seed=0, epoch=0)) < 0.5


@pytest.mark.parametrize("name", GRADIENTS)
def test_duplicate_candidates_are_no_obstacle(name: str) -> None:
    given = candidates(n=24)
    twice = torch.arange(24).repeat(2)
    choice = EVERY[name].select(permuted(replace(given, n=48), twice), 12, seed=0, epoch=0)
    assert len(choice.positions.unique()) == 12


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_class_of_one_and_more_classes_than_budget(name: str) -> None:
    given = candidates(n=48)
    labels = torch.zeros(48, dtype=torch.long)
    labels[0] = 2
    lone = replace(given, classes=labels)
    assert (
        0 in EVERY[name].select(lone, 12, seed=0, epoch=0).positions
        or "batch" in name
        or getattr(EVERY[name], "scope", "global") == "global"
    )
    assert len(EVERY[name].select(given, 4, seed=0, epoch=0).positions) == 4


@pytest.mark.parametrize("name", [*MATCHING, *(name for name in GRADIENTS if "craig" in name)])
def test_float32_agrees_with_float64(name: str) -> None:
    given = candidates()
    single = FactoredGradients([(d.float(), h.float()) for d, h in blocks(given)])
    exact = EVERY[name].select(given, 12, seed=0, epoch=0)
    rounded = EVERY[name].select(replace(given, gradients=single), 12, seed=0, epoch=0)
    assert exact.objective is not None
    assert rounded.objective is not None
    assert rounded.objective == pytest.approx(exact.objective, rel=1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
def test_without_classes_there_is_one_problem(name: str) -> None:
    choice = EVERY[name].select(replace(candidates(), classes=None), 12, seed=0, epoch=0)
    assert len(choice.positions.unique()) == 12


def test_validation_gradients_steer_the_choice() -> None:
    given = candidates(n=96)
    other = candidates(n=30, seed=9)
    assert other.gradients is not None
    validation = Validation(other.gradients, other.classes, 96 / 30)
    steered = replace(given, validation=validation)
    torch.testing.assert_close(steered.target, other.target * 96 / 30)
    for name in MATCHING:
        strategy = EVERY[name]
        plain = strategy.select(given, 12, seed=0, epoch=0)
        matched = strategy.select(steered, 12, seed=0, epoch=0)
        assert error(steered, matched) < error(steered, plain)


def test_validation_restores_the_balance_of_the_classes() -> None:
    """An imbalanced pool with a balanced validation set: class totals follow the latter."""
    given = candidates(n=60)
    assert given.classes is not None
    keep = torch.cat([(given.classes == 0).nonzero()[:3, 0], (given.classes != 0).nonzero()[:, 0]])
    pool = replace(permuted(given, keep), n=len(keep))
    assert given.gradients is not None
    assert pool.classes is not None
    validation = Validation(given.gradients, given.classes, len(keep) / 60)
    choice = GradMatch(lam=0.01).select(replace(pool, validation=validation), 20, seed=0, epoch=0)
    totals = torch.zeros(3, dtype=choice.weights.dtype)
    totals.index_add_(0, pool.classes[choice.positions], choice.weights)
    assert totals[0] / totals.sum() > 0.2  # 3 of 43 samples stand for about a third


def test_a_relative_lambda_makes_the_choice_independent_of_the_scale() -> None:
    given = candidates()
    small = FactoredGradients([(1e-4 * d, h) for d, h in blocks(given)])
    choices = [
        GradMatch().select(replace(given, gradients=g), 12, seed=0, epoch=0)
        for g in (given.gradients, small)
    ]
    assert torch.equal(choices[0].positions, choices[1].positions)
    torch.testing.assert_close(choices[0].weights, choices[1].weights)


@pytest.mark.parametrize(
    "strategy",
    [
        GradMatch(lam=1e-3, epsilon=0.3, scope="global"),
        GradMatchPB(lam=1e-3, epsilon=0.3, batch_size=4),
    ],
)
def test_the_tolerance_ends_the_matching_early(strategy: GradMatch | GradMatchPB) -> None:
    given = candidates()
    with pytest.warns(UserWarning, match="epsilon"):
        choice = strategy.select(given, 40, seed=0, epoch=0)
    assert choice.objective is not None
    assert choice.objective <= 0.3 * float(given.target.square().sum())
    assert 0 < choice.filled < 40
    assert (choice.weights[-choice.filled :] == 1).all()


def test_per_batch_keeps_batches_together() -> None:
    choice = GradMatchPB(batch_size=4).select(candidates(n=50), 12, seed=0, epoch=3)
    weights = choice.weights.view(3, 4)
    assert (weights == weights[:, :1]).all()
    other = GradMatchPB(batch_size=4).select(candidates(n=50), 12, seed=0, epoch=4)
    assert not torch.equal(choice.positions, other.positions)  # a fresh partition


def test_fresh_random_sees_every_sample_equally_often() -> None:
    given = Candidates(10)
    draws = [FreshRandom().select(given, 4, seed=3, epoch=e).positions for e in range(5)]
    assert torch.bincount(torch.cat(draws)).tolist() == [2] * 10


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), share=st.floats(0.001, 1.0))
def test_equal_shares_add_up_fit_and_are_equal_where_they_can(
    sizes: list[int], share: float
) -> None:
    budget = max(1, int(share * sum(sizes)))
    shares = equal_shares(sizes, budget)
    assert sum(shares) == budget
    assert all(0 <= k <= n for k, n in zip(shares, sizes, strict=True))
    assert all(k == n or k >= max(shares) - 1 for k, n in zip(shares, sizes, strict=True))


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), share=st.floats(0.001, 1.0))
def test_shares_add_up_fit_and_are_proportional(sizes: list[int], share: float) -> None:
    budget = max(1, int(share * sum(sizes)))
    shares = proportional_shares(sizes, budget)
    assert sum(shares) == budget
    assert all(0 <= k <= n for k, n in zip(shares, sizes, strict=True))
    if budget >= len(sizes):
        assert min(shares) >= 1
    exact = [budget * n / sum(sizes) for n in sizes]
    assert all(k <= max(1, e + 1) for k, e in zip(shares, exact, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1}, r"`lam` must be at least 0, got -1"),
        ({"lam": float("nan")}, r"`lam` must be finite, got nan"),
        ({"lam_is": "big"}, r"`lam_is` must be \"relative\" or \"absolute\", got 'big'"),
        ({"epsilon": 1.0}, r"`epsilon` must be in \[0, 1\), got 1.0"),
        ({"scope": "class"}, r"`scope` must be .* got 'class'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradMatch(**arguments)  # type: ignore[arg-type]


def test_a_batch_has_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        GradMatchPB(batch_size=0)


def test_names_lead_to_strategies() -> None:
    assert all(isinstance(strategy(), Strategy) for strategy in STRATEGIES.values())


@pytest.mark.parametrize("sizes", [[70, 25, 5], [1] * 7, [3, 3, 3, 1], [1, 900, 2, 40, 7]])
def test_shares_are_those_that_move_one_by_one(sizes: list[int]) -> None:
    def one_by_one(budget: int) -> list[int]:
        least = min(1, budget // len(sizes))
        exact = [budget * size / sum(sizes) for size in sizes]
        shares = [max(least, int(share)) for share in exact]
        while missing := budget - sum(shares):
            step = 1 if missing > 0 else -1
            movable = [i for i, s in enumerate(shares) if (s < sizes[i] if step > 0 else s > least)]
            shares[max(movable, key=lambda i: step * (exact[i] - shares[i]))] += step
        return shares

    for budget in range(1, min(sum(sizes), 60) + 1):
        assert proportional_shares(sizes, budget) == one_by_one(budget)


def test_shares_of_many_classes_take_no_time_squared() -> None:
    start = time.process_time()
    assert sum(proportional_shares([5 + i % 7 for i in range(20_000)], 31_234)) == 31_234
    assert time.process_time() - start < 2  # one by one over all classes it was most of a minute


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_precision_of_training_does_not_reach_a_choice(name: str) -> None:
    given = candidates()
    assert isinstance(given.gradients, FactoredGradients)
    (block,) = given.gradients.blocks
    single = replace(given, gradients=FactoredGradients([(block[0].float(), block[1].float())]))
    plain = EVERY[name].choose(single, 12, seed=0, epoch=0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            choice = EVERY[name].choose(single, 12, seed=0, epoch=0)
            assert single.relative_error(choice) == single.relative_error(plain)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(choice.positions, plain.positions)
    assert torch.equal(choice.weights, plain.weights)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch < 2.9")
def test_an_inherited_precision_is_inherited_afterwards() -> None:
    everything: Any = torch.backends
    products = everything.cuda.matmul, everything.mkldnn.matmul
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "none"
        everything.fp32_precision = "tf32"
        with full_precision(torch.device("cpu")):
            assert [product.fp32_precision for product in products] == ["ieee", "ieee"]
        everything.fp32_precision = "ieee"
        assert [product.fp32_precision for product in products] == ["ieee", "ieee"]
        everything.fp32_precision = "none"
        assert [product.fp32_precision for product in products] == ["none", "none"]
        everything.cuda.matmul.fp32_precision = "tf32"
        with full_precision(torch.device("cpu")):
            pass
        everything.fp32_precision = "ieee"
        assert [product.fp32_precision for product in products] == ["tf32", "ieee"]  # one is set
    finally:
        everything.fp32_precision = "none"
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


def test_a_search_for_a_size_builds_the_gram_of_batches_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[int] = []
    gram = mini_batches._gram

    def counted(gradients: Gradients, members: Tensor) -> Tensor:
        built.append(len(members))
        return gram(gradients, members)

    monkeypatch.setattr(mini_batches, "_gram", counted)
    given, strategy = candidates(n=96), GradMatchPB(batch_size=4, lam=1e-3)
    found = smallest_choice(strategy, given, 0.2, seed=0, epoch=0)
    assert len(built) == 1
    alone = strategy.choose(candidates(n=96), len(found.positions), seed=0, epoch=0)
    assert torch.equal(alone.positions, found.positions)
