"""CRAIG: samples that stand for their neighbours in gradient space (Mirzasoleiman et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_subset.gradients import BatchGradients, FactoredGradients
from adaptive_subset.randomness import seeded
from adaptive_subset.strategies.facility import (
    BLOCK,
    Distances,
    Medoids,
    facility_location,
    stochastic_facility_location,
)
from adaptive_subset.strategies.problems import (
    Scope,
    Shares,
    by_problem,
    check_scope,
    fill,
    mini_batches,
    warn_if_mostly_filled,
)
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CRAIG(Strategy):
    r"""Medoids of the last-layer gradients, each with the size of its cluster as its weight.

    Greedily minimises :math:`\sum_i \min_{j \in S} \|g_i - g_j\|`, an upper bound of the error
    of the weighted gradient sum (Mirzasoleiman, Bilmes, Leskovec, ICML 2020, "Coresets for
    Data-efficient Training of Machine Learning Models", §3). ``Σ w = n``. With validation gradients
    it is these that the candidates must be near to; clusters are counted in validation samples,
    scaled to n.

    Degenerate input: where every sample coincides with a chosen one before the budget is spent, it
    is filled up with random ones, which share the weight of their cluster.

    Args:
        scope: "per-class" (the default of CRAIG) finds medoids of the whole last layer's gradient
            in each class by itself, "per-gradient" of the row that belongs to the class, "global"
            in all classes at once. See `GradMatch`.
        shares: see `GradMatch`.
        epsilon: None for the exact greedy choice; ε in (0, 1) for stochastic greedy, which looks at
            (n/k) ln(1/ε) random candidates a step, for classes of very many samples.
        memory: GiB for the distances of one problem, n² numbers; where that is not enough they are
            computed each time that they are needed, in blocks of 64 MiB.

    Example:
        >>> CRAIG(epsilon=0.1)
        CRAIG(scope='per-class', shares='proportional', epsilon=0.1, memory=2.0)
    """

    scope: Scope = "per-class"
    shares: Shares = "proportional"
    epsilon: float | None = None
    memory: float = 2.0

    needs_gradients = True

    def __post_init__(self) -> None:
        check_scope(self.scope, self.shares)
        if self.epsilon is not None and not 0 < self.epsilon < 1:
            raise ValueError(f"`epsilon` must be in (0, 1) or None, got {self.epsilon}.")
        if not self.memory >= 0:
            raise ValueError(f"`memory` must be at least 0 GiB, got {self.memory}.")

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `Choice.objective` is the sum of distances that is left."""
        generator = seeded(seed, epoch)

        def solve(problem: Candidates, size: int) -> Choice:
            validation = problem.validation
            rows = problem.atoms if validation is None else validation.gradients
            distances = _GradientDistances(problem.atoms, rows, self.memory)
            medoids = self._locate(distances, len(rows), problem.n, size, generator)
            scale = 1.0 if validation is None else validation.scale
            covers_itself = validation is None
            return _choice(medoids, problem.n, size, scale, generator, covers_itself)

        choice = by_problem(candidates, budget, solve, scope=self.scope, shares=self.shares)
        warn_if_mostly_filled(choice, "CRAIG")
        return choice

    def _locate(
        self,
        distances: _GradientDistances,
        rows: int,
        columns: int,
        budget: int,
        generator: torch.Generator,
    ) -> Medoids:
        if self.epsilon is None:
            together = 1 if distances.stored is not None else 16
            return facility_location(distances, rows, columns, budget, together=together)
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return stochastic_facility_location(
            distances, rows, columns, budget, epsilon=self.epsilon, draw=draw
        )


@dataclass(frozen=True)
class CRAIGPB(Strategy):
    """Medoids of the mean gradients of mini-batches: CRAIG with the candidates of `GradMatchPB`.

    All samples of a chosen mini-batch have the same weight; ``Σ w = n``.

    Args:
        batch_size: B; give the training DataLoader the same, so that the batches stay together.
    """

    batch_size: int = 128

    needs_gradients = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `budget` is a multiple of the batch size."""
        generator = seeded(seed, epoch)
        members, batches = mini_batches(candidates, self.batch_size, generator)
        size, validation = budget // self.batch_size, candidates.validation
        if validation is not None:
            raise ValueError(
                "`validation` must be None for CRAIGPB: single validation samples have no distance "
                "to mini-batches. Use CRAIG, or GradMatchPB."
            )
        distances = _batch_distances(batches)
        medoids = facility_location(distances, len(members), len(members), size)
        scale = candidates.n / len(members)
        choice = _choice(medoids, len(members), size, scale, generator, covers_itself=True)
        warn_if_mostly_filled(choice, "CRAIG")
        return Choice(
            members[choice.positions].flatten(),
            choice.weights.repeat_interleave(self.batch_size) / self.batch_size,
            objective=choice.objective,
            filled=choice.filled * self.batch_size,
            batch_size=self.batch_size,
        )


class _GradientDistances:
    """``‖gᵢ − gⱼ‖`` from the factors; stored as a whole where memory allows."""

    def __init__(self, columns: FactoredGradients, rows: FactoredGradients, memory: float) -> None:
        self._columns, self._rows = _folded(columns), _folded(rows)
        # A little less than the norms: what differs by rounding only is at distance 0, as is every
        # gradient from itself.
        less = 1 - 32 * torch.finfo(columns.dtype).eps
        self._norms = columns.squared_norms() * less, rows.squared_norms() * less
        self.stored: Array | None = None
        n, m = len(columns), len(rows)
        if n * m * columns.dtype.itemsize <= memory * 2**30:
            dtype = np.dtype(str(columns.dtype).removeprefix("torch."))
            stored, step = np.empty((n, m), dtype), max(1, BLOCK // max(1, m))
            for start in range(0, n, step):
                stored[start : start + step] = self(slice(start, min(start + step, n)))
            self.stored = stored

    def __call__(self, index: slice | Array) -> Array:
        if self.stored is not None:
            distances: Array = self.stored[index]
            return distances
        place = self._norms[0].device
        at: Any = index if isinstance(index, slice) else torch.from_numpy(index).to(place)
        squares = self._norms[0][at, None] + self._norms[1]
        for (delta, h), (other_delta, other_h) in zip(self._columns, self._rows, strict=True):
            inner = h[at] @ other_h.T
            if delta is not None and other_delta is not None:
                inner *= delta[at] @ other_delta.T
            squares.sub_(inner, alpha=2)
        return squares.clamp_(min=0).sqrt_().numpy(force=True)


def _folded(gradients: FactoredGradients) -> list[tuple[Tensor | None, Tensor]]:
    """The factors, with a δ of one column multiplied into h."""
    return [(None, d * h) if d.shape[1] == 1 else (d, h) for d, h in gradients.blocks]


def _batch_distances(batches: BatchGradients) -> Distances:
    gram = batches.gram.numpy(force=True)
    norms = gram.diagonal() * (1 - 32 * np.finfo(gram.dtype).eps)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * gram, 0))
    return lambda index: distances[index]


def _choice(
    medoids: Medoids,
    n: int,
    budget: int,
    scale: float,
    generator: torch.Generator,
    covers_itself: bool,
) -> Choice:
    """Positions and weights; `covers_itself` says that the rows are the candidates."""
    chosen = torch.from_numpy(medoids.chosen)
    rest = fill(n, chosen, budget, generator)
    weights = np.zeros(budget)
    if len(chosen):
        owner = medoids.owner
        weights[: len(chosen)] = np.bincount(owner, minlength=len(chosen)) * scale
        if covers_itself and len(rest):  # random ones share the weight of their cluster
            owners = np.concatenate([np.arange(len(chosen)), owner[rest.numpy()]])
            members = np.bincount(owners, minlength=len(chosen))
            weights = (weights[: len(chosen)] / members)[owners]
        elif len(rest):
            weights[len(chosen) :] = 1.0
    else:
        weights[:] = n / budget
    positions = torch.cat([chosen, rest])
    return Choice(positions, torch.from_numpy(weights), objective=medoids.cost, filled=len(rest))
