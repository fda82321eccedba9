"""The methods, one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from adaptive_subset import (
    CRAIG,
    GLISTER,
    Borderline,
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
    SeTa,
    SeTaByBatch,
    Strategy,
)
from adaptive_subset.strategies.draws import LargestOfPool, Proportional
from adaptive_subset.strategies.scores import Equal, MovingAverage
from adaptive_subset.strategies.sizes import falling_factor


@dataclass(frozen=True)
class Plan:
    """What a strategy may know of a run: subsets of `fraction` in `epochs` epochs."""

    epochs: int
    fraction: float
    batch_size: int


@dataclass(frozen=True)
class Method:
    """How to choose the data.

    Args:
        strategy: its strategy for a plan; None trains on all data, for as many steps.
        selections: how many there are in a run; None for one in each epoch.
        pool_fraction, warm_start, weights: see `Selector` and `AdaptiveSubsetSampler`.
        reference: match the gradient of the task's clean reference set, where it has one.
        by_class: draw as many of each class, by scores within it.
        within: choose in each step, of a batch of this many times the size from all data.
    """

    strategy: Callable[[Plan], Strategy] | None
    selections: int | None = None
    pool_fraction: float = 1.0
    warm_start: float = 0.0
    weights: Literal["mean-one", "matched"] = "mean-one"
    reference: bool = False
    by_class: bool = False
    within: int = 1

    def every(self, plan: Plan) -> int:
        return 1 if self.selections is None else max(1, plan.epochs // self.selections)

    def settings(self, plan: Plan) -> dict[str, Any]:
        """What a run depends on, as plain values."""
        if self.strategy is None:
            return {}
        names = ("pool_fraction", "warm_start", "reference")
        fixed = {name: getattr(self, name) for name in names}
        if self.weights != "mean-one":  # earlier runs do not name what was the only way
            fixed["weights"] = self.weights
        if self.by_class:
            fixed["by_class"] = True
        if self.within > 1:
            fixed["within"] = self.within
        strategy = self.strategy(plan)
        name = repr(strategy)
        if isinstance(strategy, PerEpoch):  # nor the shares that `by_class` sets
            name = name.replace(", shares='proportional')", ")")
        return {"strategy": name, "every": self.every(plan), **fixed}


@dataclass(frozen=True)
class RandomSizes(Strategy):
    """As the library's: γᵗ·n samples, `fraction`·n on average, but never less than two batches.

    Whole batches only are trained on here, so that all methods make steps of one size.
    """

    fraction: float
    epochs: int
    sizes_itself = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        gamma = falling_factor(self.epochs, self.fraction)
        # What rounding to whole batches leaves over is trained on in epochs of the last size.
        size = max(round(gamma ** min(epoch, self.epochs) * candidates.n), min(256, candidates.n))
        positions = _shuffled(candidates.n, seed, epoch)[:size]
        return Choice.even(positions, candidates.n)


def _shuffled(n: int, seed: int, epoch: int) -> torch.Tensor:
    state = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(state)))


def _unsized_epochs(plan: Plan, kept: float) -> int:
    """Epochs of a strategy that takes no budget but keeps about such a share, in as many steps."""
    return max(1, round(plan.fraction * plan.epochs / kept))


METHODS = {
    "full-short": Method(None),
    "fresh-random": Method(lambda plan: FreshRandom()),
    "order-dp": Method(lambda plan: OrderDP()),
    "borderline": Method(lambda plan: Borderline()),
    "loss-sampling": Method(lambda plan: LossSampling()),
    "gradmatch": Method(lambda plan: GradMatch(), selections=20, pool_fraction=0.25),
    "infobatch": Method(lambda plan: InfoBatch(epochs=_unsized_epochs(plan, 0.7))),
    "infobatch-by-batch": Method(lambda plan: InfoBatchByBatch(epochs=_unsized_epochs(plan, 0.7))),
    "seta": Method(lambda plan: SeTa(epochs=_unsized_epochs(plan, 0.72))),
    "seta-by-batch": Method(lambda plan: SeTaByBatch(epochs=_unsized_epochs(plan, 0.72))),
    "kakurenbo": Method(lambda plan: Kakurenbo(epochs=_unsized_epochs(plan, 0.8))),
    "random-sizes": Method(lambda plan: RandomSizes(plan.fraction, plan.epochs)),
    "order-dp-trimmed": Method(lambda plan: OrderDP(trim=0.2)),
    "order-dp-average": Method(lambda plan: PerEpoch(MovingAverage(0.5), LargestOfPool(0.6))),
    "order-dp-half": Method(lambda plan: OrderDP(0.5)),
    "gradmatch-paper": Method(lambda plan: GradMatch(), selections=5),
    "craig": Method(lambda plan: CRAIG(), selections=20, pool_fraction=0.25),
    "glister": Method(lambda plan: GLISTER(), selections=20, pool_fraction=0.25),
    "gradient-norm": Method(lambda plan: GradientNorm(), selections=20, pool_fraction=0.25),
    "gradmatch-pb": Method(lambda plan: GradMatchPB(batch_size=plan.batch_size), selections=5),
}
METHODS["balanced"] = Method(lambda plan: PerEpoch(Equal(), Proportional()), by_class=True)
METHODS["borderline-balanced"] = replace(METHODS["borderline"], by_class=True)
METHODS["order-dp-balanced"] = replace(METHODS["order-dp"], by_class=True)
METHODS["order-dp-trimmed-balanced"] = replace(METHODS["order-dp-trimmed"], by_class=True)
METHODS["in-batch-loss"] = Method(lambda plan: PerEpoch(draw=LargestOfPool(0.5)), within=2)
METHODS["in-batch-gradmatch"] = Method(lambda plan: GradMatch(scope="global"), within=2)
METHODS["gradmatch-matched"] = replace(METHODS["gradmatch"], weights="matched")
METHODS["gradmatch-reference"] = replace(METHODS["gradmatch"], reference=True)
METHODS |= {
    f"{name}-warm": replace(METHODS[name], warm_start=0.5)
    for name in ("gradmatch-paper", "gradmatch-pb", "craig", "glister")
}
BASELINES = ("full-short", "fresh-random", "random-sizes")
