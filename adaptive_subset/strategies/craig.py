"""CRAIG: samples that stand for their neighbours in gradient space (Mirzasoleiman et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from adaptive_subset.gradients import Gradients
from adaptive_subset.gradients.protocol import Index
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies.candidates import Candidates, Choice
from adaptive_subset.strategies.division import (
    Problem,
    Scope,
    Shares,
    by_batch,
    by_problem,
    check_scope,
    fill,
    warn_if_mostly_filled,
)
from adaptive_subset.strategies.solvers.batched_medoids import Covering, facility_location_together
from adaptive_subset.strategies.solvers.facility_location import (
    Distances,
    Medoids,
    Stored,
    facility_location,
    tiles,
)
from adaptive_subset.strategies.strategy import Strategy


@dataclass(frozen=True)
class CRAIG(Strategy):
    """Medoids of the last-layer gradients, each with the size of its cluster as its weight.

    Greedily minimises ``Σᵢ minⱼ ‖gᵢ − gⱼ‖`` over the chosen j, an upper bound of the error of the
    weighted gradient sum (Mirzasoleiman, Bilmes, Leskovec, ICML 2020, "Coresets for
    Data-efficient Training of Machine Learning Models", §3). ``Σ w = n``. With validation gradients
    it is these that the candidates must be near to; clusters are counted in validation samples,
    scaled to n.

    Degenerate input: where no further candidate is nearer to any sample before the budget is spent,
    as with equal gradients or few validation samples, it is filled up with random ones, which share
    the weight of their cluster, that of the nearest medoid. Of a class without validation samples
    all chosen ones are random and have weight zero; "global" spends its budget elsewhere.

    Args:
        scope: "per-class" (the default of CRAIG) finds medoids of the whole last layer's gradient
            in each class by itself, "per-gradient" of the row that belongs to the class, "global"
            in all classes at once. See `GradMatch`.
        shares: see `GradMatch`.
        epsilon: None for the exact greedy choice; ε in (0, 1) for stochastic greedy, which looks at
            (n/k) ln(1/ε) random candidates a step. It misses outliers, and as the exact choice
            reads each distance a few times only, it is hardly quicker unless ε is large.
        memory: GiB for the distances of one problem, n² numbers; where that is not enough they are
            computed each time that they are needed, and little more than the gradients is held.

    Examples:
        >>> CRAIG(epsilon=0.1)
        CRAIG(scope='per-class', shares='proportional', epsilon=0.1, memory=2.0)
    """

    scope: Scope = "per-class"
    shares: Shares = "proportional"
    epsilon: float | None = None
    memory: float = 2.0

    spreads = True
    needs_gradients = True

    @property
    def divides(self) -> bool:  # type: ignore[override]
        return self.scope != "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scope(self.scope, self.shares)
        if self.epsilon is not None and not 0 < self.epsilon < 1:
            raise ValueError(f"`epsilon` must be in (0, 1) or None, got {self.epsilon}.")
        if not self.memory >= 0:
            raise ValueError(f"`memory` must be at least 0 GiB, got {self.memory}.")

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `Choice.objective` is the sum of distances that is left.

        Raises:
            ValueError: validation samples of no class that is chosen from.
        """
        choice = by_problem(
            candidates,
            budget,
            partial(self._solved, device=candidates.device),
            scope=self.scope,
            shares=self.shares,
            seed=seed,
            epoch=epoch,
        )
        warn_if_mostly_filled(choice, "CRAIG")
        total = float(choice.weights.sum())  # not n where classes have no candidates, or no budget
        if not total:
            raise ValueError(
                "`validation` must have samples of a class that is chosen from, got none: there is "
                'nothing to be near to. Use CRAIG(scope="global"), or a larger budget.'
            )
        return replace(choice, weights=choice.weights * (candidates.n / total))

    def _solved(self, problems: list[Problem], device: torch.device) -> list[Choice]:
        """The medoids of each problem, all at once on an accelerator."""
        found: list[Medoids | None] = [None] * len(problems)
        if device.type != "cpu" and self.epsilon is None:
            given = [self._covering(problem) for problem in problems]
            places = [i for i, each in enumerate(given) if each.bytes <= self.memory * 2**30]
            together = facility_location_together([given[i] for i in places], device)
            for i, medoids in zip(places, together, strict=True):
                found[i] = medoids
        choices = []
        for problem, medoids in zip(problems, found, strict=True):
            own, size, generator = problem.candidates(), problem.budget, problem.generator
            if medoids is None:
                distances = gradient_distances(_covered(own), own.atoms, self.memory)
                medoids = facility_location(
                    distances, size, epsilon=self.epsilon, generator=generator
                )
            scale, near = 1.0, None
            if own.validation is not None:
                scale = own.validation.scale
                near = partial(_nearest, own.atoms, medoids.chosen)
            choices.append(_choice(medoids, own.n, size, scale, generator, near))
        return choices

    def _covering(self, problem: Problem) -> Covering:
        """The same problem, its distances not computed yet."""

        def opened() -> Distances:
            given = problem.candidates()
            return _GradientDistances(_covered(given), given.atoms)

        given = problem.candidates()
        shape = len(_covered(given)), given.n
        return Covering(shape, given.atoms.dtype, problem.budget, opened)


@dataclass(frozen=True)
class CRAIGPB(Strategy):
    """Medoids of the mean gradients of mini-batches: CRAIG with the candidates of `GradMatchPB`.

    All samples of a chosen mini-batch have the same weight; ``Σ w = n``.

    Args:
        batch_size: B; give the training DataLoader the same, so that the batches stay together.
    """

    batch_size: int = 128

    spreads = True
    needs_gradients = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `budget` is a multiple of B. Raises where there is validation."""
        generator = seeded(seed, epoch, Purpose.SELECTION)
        if candidates.has_validation:
            raise ValueError(
                "`validation` must be None for CRAIGPB: single validation samples have no distance "
                "to mini-batches. Use CRAIG, or GradMatchPB."
            )

        def solve(batches: Gradients, _: Tensor) -> Choice:
            size, scale = budget // self.batch_size, candidates.n / len(batches)
            medoids = facility_location(gradient_distances(batches, batches, math.inf), size)
            return _choice(medoids, len(batches), size, scale, generator)

        choice = by_batch(candidates, self.batch_size, generator, solve)
        warn_if_mostly_filled(choice, "CRAIG")
        return choice


def _covered(given: Candidates) -> Gradients:
    """The gradients that medoids are to be near to."""
    return given.atoms if given.validation is None else given.validation.gradients


def gradient_distances(rows: Gradients, columns: Gradients, memory: float) -> Distances:
    """``‖gᵢ − gⱼ‖``, stored where that takes at most `memory` GiB."""
    computed = _GradientDistances(rows, columns)
    m, n = computed.shape
    if m * n * computed.dtype.itemsize > memory * 2**30:
        return computed
    matrix = torch.empty(m, n, dtype=computed.dtype, device=computed.device)
    for i, j in tiles(m, n, computed.device):
        matrix[i, j] = computed.tile(i, j)
    return Stored(matrix, symmetric=rows is columns)


class _GradientDistances:
    """``‖gᵢ − gⱼ‖`` of rows i and columns j, from their inner products.

    The distance of gradients that are close is a small difference of large inner products: where
    there are such pairs, these are computed in float64.
    """

    def __init__(self, rows: Gradients, columns: Gradients) -> None:
        self._columns = _fastest(columns)
        self._rows = self._columns if rows is columns else _fastest(rows)
        self.shape = len(rows), len(columns)
        self.device, self.dtype = columns.device, columns.dtype
        self._compute_in(self.dtype)
        if self.dtype != torch.float64 and self._some_are_close():
            self._compute_in(torch.float64)

    def _compute_in(self, dtype: torch.dtype) -> None:
        self._in = dtype
        # A little less: gradients that differ by the rounding of theirs only are at distance 0.
        rounding = 32 * torch.finfo(dtype).eps
        if dtype != self.dtype:
            rounding = (8 * torch.finfo(self.dtype).eps) ** 2
        norms = _squared_norms(self._rows, dtype), _squared_norms(self._columns, dtype)
        self._norms = norms[0] * (1 - rounding), norms[1] * (1 - rounding)

    def _some_are_close(self) -> bool:
        """Whether float32 leaves less than two digits of a distance, by a sample of the rows."""
        if 0 in self.shape:
            return False
        some = torch.linspace(0, self.shape[0] - 1, min(64, self.shape[0])).long().to(self.device)
        squares = self.tile(some, slice(None)).square_()
        close = squares < 1e3 * torch.finfo(self.dtype).eps * self._norms[0][some, None]
        itself = len(some) if self._rows is self._columns else 0
        return int(close.sum()) > itself

    def column(self, j: Tensor) -> Tensor:
        return self.tile(slice(None), j)[:, 0]

    def tile(self, rows: Index, columns: Index) -> Tensor:
        inner = self._rows.pairwise(self._columns, rows, columns, self._in)
        squares = inner.mul_(-2).add_(self._norms[1][columns]).add_(self._norms[0][rows, None])
        return squares.clamp_(min=0).sqrt_().to(self.dtype)


def _fastest(gradients: Gradients) -> Gradients:
    """As they are needed time and again: in the dtype to compute in."""
    return gradients.take(slice(None)).compact()


def _squared_norms(gradients: Gradients, dtype: torch.dtype) -> Tensor:
    """``‖g‖²`` of shape (n,), in `dtype`."""
    if dtype == gradients.dtype:
        return gradients.squared_norms()
    parts = (slice(i, i + 64) for i in range(0, max(1, len(gradients)), 64))
    blocks = (gradients.pairwise(gradients, part, part, dtype) for part in parts)
    return torch.cat([block.diagonal() for block in blocks])


def _choice(
    medoids: Medoids,
    n: int,
    budget: int,
    scale: float,
    generator: torch.Generator,
    near: Callable[[Tensor], Tensor] | None = None,
) -> Choice:
    """Positions, and weights that count rows.

    Args:
        scale: what a row counts.
        near: the place of the medoid that is nearest to each of some candidates; None where the
            rows are the candidates, of which that is known.
    """
    chosen, owner = medoids.chosen, medoids.owner
    rest = fill(n, chosen, budget, generator)
    if len(chosen):
        sizes = torch.bincount(owner, minlength=len(chosen)).double() * scale
        owners = torch.cat([torch.arange(len(chosen)), owner[rest] if near is None else near(rest)])
        weights = (sizes / torch.bincount(owners))[owners]
    else:
        weights = torch.full((budget,), len(owner) * scale / budget, dtype=torch.float64)
    return Choice(torch.cat([chosen, rest]), weights, objective=medoids.cost, filled=len(rest))


def _nearest(atoms: Gradients, medoids: Tensor, some: Tensor) -> Tensor:
    """The place in `medoids` (s,) of the one nearest to each of `some` (r,), (r,) on the CPU."""
    rows, columns = (atoms.take(index.to(atoms.device)) for index in (some, medoids))
    between = _GradientDistances(rows, columns)
    parts = (slice(i, i + 64) for i in range(0, max(1, len(some)), 64))
    return torch.cat([between.tile(part, slice(None)).argmin(1).cpu() for part in parts])
