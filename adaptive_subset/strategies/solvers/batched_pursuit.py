"""Matching pursuit for many problems at once, on an accelerator: what `omp` chooses, in lockstep.

Symbols: B problems of at most N atoms, Gram matrices G (B, N, N), targets b, ridges λ, correlations
c (B, N); the fit is the dual one of `ridge_fit.py`, with A Paⱼ/√s appended to V (B, T, N).

A *tick* adds or drops one atom in every problem that is not finished. Nothing in it waits for the
device, whose state alone decides; the host looks every 64 ticks whether all are finished. A product
with one column of G or V is too little work to be worth a start on a CPU: there `omp` is quicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_subset.gradients import Gradients
from adaptive_subset.strategies.solvers.device_memory import batches
from adaptive_subset.strategies.solvers.facility_location import tiles
from adaptive_subset.strategies.solvers.greedy_path import OMPResult
from adaptive_subset.strategies.solvers.matching_pursuit import (
    least_correlation,
    raised_ridge,
    small,
)
from adaptive_subset.strategies.solvers.recorded import LOOK, Recorded

_TINY, _HUGE = 1e-200, 1e300  # instead of 0 and ∞, where these would give NaN or not compare


@dataclass(frozen=True)
class Matching:
    """One problem, see `omp`; its gradients are asked for when it is its turn.

    Args:
        n: atoms.
        budget: k.
        opened: makes the gradients, the target b (d,) and the ridge λ >= 0.
    """

    n: int
    budget: int
    opened: Callable[[], tuple[Gradients, Tensor, float]]


def omp_together(
    problems: Sequence[Matching],
    device: torch.device,
    *,
    nonnegative: bool = True,
    tolerance: float = 0.0,
    room: float | None = None,
) -> list[OMPResult | None]:
    """What `omp` finds in each problem, all of them in lockstep; equal up to rounding.

    Memory: n² numbers of the atoms' dtype and n·k (more where many atoms are dropped) in float64
    for each problem of a batch; problems of like size make a batch, as many as there is room for.

    Args:
        problems: any number, of any sizes.
        device: where their gradients are.
        nonnegative, tolerance: see `omp`.
        room: bytes to use at most, by default most of what is free on the device.

    Returns:
        A result each, and None for what is left to `omp`: a problem too large for the memory, one
        of a `small` ridge with weights that may be dropped or with float32 atoms, what is not
        finite, and all of them on a device without float64.
    """
    results: list[OMPResult | None] = [None] * len(problems)
    sizes = [(each.n, min(each.budget, each.n)) for each in problems]
    for places in batches(sizes, _bytes, device, room):
        batch = [problems[place] for place in places]
        pursuit = _Pursuit(batch, nonnegative, tolerance)
        pursuit.run()
        found = pursuit.found()
        del pursuit
        for place, problem, own in zip(places, batch, found, strict=True):
            results[place] = None if own is None else _result(problem, *own)
    return results


def _bytes(n: int, k: int) -> float:
    # G as if in float64, and V, which grows by a half where many atoms are dropped: both are held
    # while one is copied.
    return 8.0 * (n + 1) * (n + 2.5 * (k + LOOK) + 40)


def _result(problem: Matching, support: Tensor, weights: Tensor, dropped: int) -> OMPResult:
    gradients, target, ridge = problem.opened()
    weights = weights.to(gradients.dtype)
    rounded = weights.double()
    rest = target.double() - gradients.sum(rounded, support).double()
    residual, size = torch.stack([rest @ rest, rounded @ rounded]).tolist()
    return OMPResult(
        support.numpy(force=True),
        weights.numpy(force=True),
        residual + ridge * size,
        residual,
        dropped,
    )


class _Pursuit:
    """The state of a batch. A number for each problem is (B, 1), to be broadcast as it is."""

    def __init__(self, problems: list[Matching], nonnegative: bool, tolerance: float) -> None:
        self.nonnegative = nonnegative
        # One atom of zero more than there are: so there is always one outside of the support.
        count, n = len(problems), max(problem.n for problem in problems) + 1
        budgets = [min(problem.budget, problem.n) for problem in problems]
        energies, ridges, leasts, noises = [], [], [], []
        self.taken = []  # whether it is solved here
        for i, problem in enumerate(problems):
            gradients, target, asked = problem.opened()
            dtype, device, size = gradients.dtype, gradients.device, len(gradients)
            if i == 0:
                gram = torch.zeros(count, n, n, dtype=dtype, device=device)
                self.c = torch.zeros(count, n, dtype=torch.float64, device=device)
            norms, b = gradients.squared_norms().double(), target.double()
            total, longest, energy = torch.stack([norms.sum(), norms.max(), b @ b]).tolist()
            ridge, margin = raised_ridge(asked, total / size)
            # What `omp` computes in float64, or has a way to drop an atom for.
            hard = small(ridge, longest) and (nonnegative or dtype != torch.float64)
            self.taken.append(math.isfinite(total + energy) and not hard)
            if self.taken[-1]:
                self.c[i, :size] = gradients.correlate(target.to(dtype))
                for rows, columns in tiles(size, size, device):
                    gram[i, rows, columns] = gradients.pairwise(gradients, rows, columns)
            energies.append(energy if self.taken[-1] else 0.0)
            ridges.append(ridge if self.taken[-1] and ridge else 1.0)
            leasts.append(least_correlation(longest, energy) if self.taken[-1] else math.inf)
            noises.append(margin)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        self.gram = gram.view(count * n, n)
        self.first = torch.arange(count, device=device)[:, None] * n  # the rows of each in it
        self.ridge, self.least, self.budget = column(ridges), column(leasts), column(budgets)
        self.noise = column(noises) if any(noises) else None
        energy = column(energies)
        self.inf, self.minus = energy + torch.inf, torch.full_like(energy, -1)
        # It goes on while these are above their limits: minus the size of the support, the
        # objective, and what an addition and the drops after it have lowered that by.
        self.figures = torch.cat([torch.zeros_like(energy), energy, self.inf], 1)
        self.limits = torch.cat([-self.budget, tolerance * energy, 1e-15 * energy], 1)
        self.fewness, self.objective, self.progress = torch.split(self.figures, 1, 1)
        self.before = energy.clone()  # the objective when an atom was added last
        self.alive = torch.ones_like(energy)  # 0 where finished
        self.inside = torch.zeros(count, n, dtype=torch.bool, device=device)  # the support
        self.leaving = torch.zeros_like(self.inside)  # atoms of it that are to be dropped
        self.old = torch.full_like(self.c, _TINY)  # feasible weights, times λ
        self.order = torch.zeros(count, n, dtype=torch.int64, device=device)
        held = _rounded(max(budgets))
        self.images = self.c.new_zeros(count, held, n)  # V
        self.signs = self.c.new_zeros(count, held, 1)  # σ
        self.place = torch.zeros(1, dtype=torch.int64, device=device)  # the column of a tick
        self.ticks = self.stop = 0
        # From then on a problem may have had its 4k + 100 additions.
        self.many = min(7 * budget + 200 for budget in budgets)

    def run(self) -> None:
        """Until all problems are finished."""
        tick = self.tick
        while bool(self.alive.any()):
            if self.ticks == self.stop:
                self._widen()
                tick = Recorded(self.tick) if self.c.is_cuda else self.tick
            if self.ticks >= self.many:
                past = self.ticks - 200 - 8 * self.budget
                torch.maximum(-self.budget, past, out=self.limits[:, :1])
            for _ in range(LOOK):
                tick()
            self.ticks += LOOK

    def _widen(self) -> None:
        """Let ticks read more columns of V: few at first, since the empty ones are read too."""
        self.stop = _rounded(self.ticks + self.ticks // 2 + 1)
        if self.stop > self.images.shape[1]:
            more = (0, 0, 0, self.stop - self.images.shape[1])
            self.images = torch.nn.functional.pad(self.images, more)
            self.signs = torch.nn.functional.pad(self.signs, more)

    def tick(self) -> None:
        """One atom more or less in each problem."""
        c, inside, leaving = self.c, self.inside, self.leaving
        if self.nonnegative:
            self._walk()
            score = c.masked_fill(inside, -torch.inf).masked_fill_(leaving, torch.inf)
        else:
            score = c.abs().masked_fill_(inside, -torch.inf)
        best, j = score.max(1, keepdim=True)
        goes_on = (self.figures > self.limits).all(1, keepdim=True)
        # A drop, which is infinitely good, is never the end.
        self.alive.mul_(best > self._least().masked_fill(~goes_on, _HUGE))
        if self.nonnegative:
            drop = best == torch.inf
            sign = torch.where(drop, self.minus, self.alive)
            self.before.copy_(torch.where(sign > 0, self.objective, self.before))
        else:
            sign = self.alive
        step = self._update(j, sign)
        self.objective.addcmul_(step.square(), sign, value=-1)
        self.fewness.sub_(sign)
        inside.scatter_(1, j, sign > 0)
        self.order.scatter_(1, j, self.place.expand_as(j))
        if self.nonnegative:
            leaving.scatter_(1, j, False)
            torch.where(drop, self.before - self.objective, self.inf, out=self.progress)
        self.place.add_(1)

    def _walk(self) -> None:
        """From the old weights towards the new, to the first that turns negative: it leaves.

        All the way, if none does; not at all, while there are others that leave. The weight of i
        reaches zero after 1/(1 − q), q = newᵢ/oldᵢ <= 0, of the way.
        """
        ratio = torch.where(self.inside, self.c, 1.0).div_(self.old)
        least = ratio.amin(1, keepdim=True).clamp_(max=0)
        least.masked_fill_(self.leaving.any(1, keepdim=True), -torch.inf)
        self.leaving.logical_or_(ratio <= least)
        self.old.lerp_(self.c, (1 - least).reciprocal_())
        self.old.mul_(self.inside).clamp_(min=_TINY)

    def _least(self) -> Tensor:
        """The correlation (B, 1) that an atom must have more of."""
        if self.noise is None:
            return self.least
        held = self.old if self.nonnegative else self.c.abs().mul_(self.inside)
        return torch.maximum(held.amax(1, keepdim=True).mul_(self.noise), self.least)

    def _update(self, j: Tensor, sign: Tensor) -> Tensor:
        """See `RidgeFit`: v = Paⱼ in its products with all atoms, s = λ ± aⱼ·v. Returns cⱼ/√s.

        Where rounding makes s negative the problem ends, in numbers that are none, see `found`.
        """
        used, signs = self.images[:, : self.stop], self.signs[:, : self.stop]
        here = j[:, :, None].expand(-1, self.stop, 1)
        past = torch.bmm(used.gather(2, here).mul_(signs).mT, used)[:, 0]
        image = self.gram.index_select(0, (j + self.first).flatten()) - past
        scale = torch.addcmul(self.ridge, sign, image.gather(1, j)).rsqrt_()
        image.mul_(scale)
        self.images.index_copy_(1, self.place, image[:, None])
        self.signs.index_copy_(1, self.place, sign[:, None])
        step = self.c.gather(1, j).mul_(scale)
        self.c.addcmul_(image, step * sign, value=-1)
        return step

    def found(self) -> list[tuple[Tensor, Tensor, int] | None]:
        """Support, in the order of choice, weights, and drops of each problem that is solved."""
        place = self.order.masked_fill(~self.inside, self.ticks).argsort(1)
        weights = (self.c / self.ridge).gather(1, place)
        sizes, drops = self.inside.sum(1, keepdim=True), (self.signs < 0).sum(1)
        counts = torch.cat([sizes, drops, self.c.isfinite().all(1, keepdim=True)], 1)
        return [
            (place[i, :size], weights[i, :size], drops) if self.taken[i] and finite else None
            for i, (size, drops, finite) in enumerate(counts.tolist())
        ]


def _rounded(columns: int) -> int:
    """At least so many, in whole looks."""
    return LOOK * max(1, -(-columns // LOOK))
