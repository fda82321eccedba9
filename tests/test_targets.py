"""A few samples of a target to match, in place of the pool: `validation` at positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptive_subset import CRAIG, GLISTER, GradMatch, GradMatchPB, Selection, Selector, TokenLoss
from tests.test_positions import T, V, looped, tagger

N, M = 60, 6
LOSS = TokenLoss("sum")


def sequences(domain: int, n: int, seed: int) -> Tensor:
    """Each token decides the next, in each domain by another rule, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randperm(V, generator=torch.Generator().manual_seed(10 + domain))
    rows = [torch.randint(V, (n,), generator=generator)]
    for _ in range(T):
        noise = torch.randint(V, (n,), generator=generator)
        kept = torch.rand(n, generator=generator) < 0.9
        rows.append(torch.where(kept, rule[rows[-1]], noise))
    return torch.stack(rows, 1)


def pairs(rows: Tensor) -> Any:
    """Inputs and the tokens that follow; lengths differ, and what is behind them is padding."""
    x, y = rows[:, :-1].clone(), rows[:, 1:].clone()
    y[::3, 4:] = -100
    return list(zip(x, y, strict=True))


DOMAINS = torch.arange(N) % 3
POOL = pairs(
    torch.stack([sequences(domain, 1, seed)[0] for seed, domain in enumerate(DOMAINS.tolist())])
)
TARGET = pairs(sequences(2, M, seed=1000))


def gradients(data: Any) -> Tensor:
    x, y = (torch.stack(each) for each in zip(*data, strict=True))
    return looped(tagger(), {"x": x}, y, LOSS, "head")


def selected(strategy: Any, budget: int, **options: Any) -> Selection:
    selector = Selector(POOL, strategy, budget=budget, criterion=TokenLoss(), **options)
    return selector.select(tagger(), epoch=0)


def error(selection: Selection, own: Tensor, target: Tensor) -> float:
    """By hand: how far the weighted sum is from the target's, scaled to the size of the pool."""
    matched, wanted = selection.weights.double() @ own[selection.indices], target.sum(0) * (N / M)
    return float((matched - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("groups", [None, DOMAINS], ids=["at once", "by group"])
@pytest.mark.parametrize("strategy", [GradMatch(), CRAIG(), GradMatchPB(batch_size=3)])
def test_the_gradient_of_the_target_is_matched(strategy: Any, groups: Any) -> None:
    if isinstance(strategy, GradMatchPB) and groups is not None:
        return  # which takes none
    own, target = gradients(POOL), gradients(TARGET)
    found = selected(strategy, 9, validation=TARGET, groups=groups)
    assert found.relative_error == pytest.approx(error(found, own, target), rel=1e-4)
    plain = selected(strategy, 9, groups=groups)
    assert error(found, own, target) < error(plain, own, target)


def test_sketches_of_pool_and_target_are_of_one_draw() -> None:
    """Else what is matched would be noise, and the true error near one or above."""
    own, target = gradients(POOL), gradients(TARGET)
    exact = selected(GradMatch(), 9, validation=TARGET)
    sketched = selected(GradMatch(), 9, validation=TARGET, sketch=96)
    assert sketched.is_estimate
    assert error(exact, own, target) <= error(sketched, own, target) < 0.85
    assert sketched.relative_error == pytest.approx(error(sketched, own, target), abs=0.15)


@pytest.mark.parametrize("sketch", [8192, 96])
@pytest.mark.parametrize("strategy", [GradMatch(), GLISTER(refreshes=1)])
def test_samples_of_the_targets_domain_are_found(strategy: Any, sketch: int) -> None:
    found = selected(strategy, 9, validation=TARGET, sketch=sketch)
    counts = torch.bincount(DOMAINS[found.indices], found.weights.double(), minlength=3)
    assert counts[2] > 1.5 * counts[:2].max()


@pytest.mark.parametrize("validated", [True, False])
def test_without_a_look_ahead_those_along_the_gradient_are_taken(validated: bool) -> None:
    own = gradients(POOL)
    along = own @ (gradients(TARGET) if validated else own).sum(0)
    expected = along.sort(descending=True).values[:9]
    options = {"validation": TARGET} if validated else {}
    found = selected(GLISTER(refreshes=1), 9, **options)
    torch.testing.assert_close(along[found.indices], expected)  # a pair of samples is the same
    assert torch.equal(found.weights, torch.full((9,), N / 9))


def test_a_look_ahead_over_positions_is_refused() -> None:
    message = r"at many positions, of which no features are kept.*GLISTER\(refreshes=1\)"
    with pytest.raises(ValueError, match=message):
        selected(GLISTER(), 9, validation=TARGET)


def test_a_target_of_one_position_does_not_fit_sketches_of_many() -> None:
    short = [(x[:1], y[:1]) for x, y in TARGET]
    with pytest.raises(ValueError, match="`validation` must run the head at several positions"):
        selected(GradMatch(), 9, validation=short, sketch=96)
    assert len(selected(GradMatch(), 9, validation=short)) == 9  # which are exact


def test_a_target_may_have_labels_of_another_kind_with_groups() -> None:
    """Without groups they would say which class a sample is of."""
    x = torch.randn(20, 6)
    data = torch.utils.data.TensorDataset(x, torch.arange(20) % 4)
    soft = torch.utils.data.TensorDataset(x[:5], torch.rand(5, 4).softmax(1))
    options: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "validation": soft, "budget": 4}
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="`validation` must have class labels exactly where"):
        Selector(data, GradMatch(), **options).select(model, 0)
    grouped = Selector(data, GradMatch(), groups=[0, 1] * 10, **options).select(model, 0)
    assert int((grouped.indices % 2).sum()) == 2
