"""What strategies share to divide a selection into smaller ones.

By group or class, with a part of the budget each, and the choices put together again (`by_problem`,
with `shared`); by mini-batch (`by_batch`); and what is done where such a problem spends less than
its part (`fill`, `warn_if_mostly_filled`).
"""

from __future__ import annotations

import heapq
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adaptive_subset.checks import check_word
from adaptive_subset.gradients import Gradients
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies.candidates import Candidates, Choice, Opened

Scope = Literal["per-gradient", "per-class", "global"]
Shares = Literal["proportional", "equal"]


@dataclass(frozen=True)
class Problem:
    """One of those that a selection is divided into.

    Args:
        n: candidates.
        budget: k, at least 1.
        place: of it among all, whatever their budgets.
        generator: its own, so that ranks can solve problems apart.
        candidates: makes them, see `Candidates.solved`.
    """

    n: int
    budget: int
    place: int
    generator: torch.Generator
    candidates: Callable[[], Candidates]


def by_problem(
    candidates: Candidates,
    budget: int,
    solve: Callable[[list[Problem]], list[Choice]],
    *,
    scope: Scope,
    shares: Shares,
    seed: int,
    epoch: int,
) -> Choice:
    """The choices of each problem that `scope` divides the candidates into, put together.

    Args:
        candidates: to be divided by group, or by class; without either they are one problem.
        budget: k, to be shared between the problems.
        solve: makes the choice of each problem, all of them or those of this rank.
        scope, shares: see `GradMatch`.
        seed, epoch: see `Strategy.select`.
    """
    divided = scope != "global" and candidates.divisions is not None
    problems = candidates.by_group() if divided else [torch.arange(candidates.n)]
    sizes = shared([len(members) for members in problems], budget, shares)
    places = [place for place, size in enumerate(sizes) if size]
    solved = [(problems[place], sizes[place]) for place in places]
    if divided and scope == "per-gradient" and candidates.groups is None:
        candidates = candidates.own_rows()

    def choose(some: Opened) -> list[Choice]:
        each = []
        for i, opened in some.items():
            members, size = solved[i]
            generator = seeded(seed, epoch, Purpose.SELECTION, i)
            each.append(Problem(len(members), size, places[i], generator, opened))
        return solve(each)

    parts = candidates.solved([members for members, _ in solved] if divided else None, choose)
    objectives: list[Any] = [part.objective for part in parts]
    return Choice(
        torch.cat(
            [members[part.positions] for (members, _), part in zip(solved, parts, strict=True)]
        ),
        torch.cat([part.weights for part in parts]),
        objective=None if None in objectives else sum(objectives),
        filled=sum(part.filled for part in parts),
    )


def by_batch(
    candidates: Candidates,
    batch_size: int,
    generator: torch.Generator,
    solve: Callable[[Gradients, Tensor], Choice],
) -> Choice:
    """What `solve` chooses of the ⌊n/B⌋ mini-batches of a random partition, sample by sample.

    Args:
        candidates: n of them; a remainder of fewer than B is in no mini-batch.
        batch_size: B.
        generator: of the partition.
        solve: given the mean gradients of the mini-batches, and b.
    """
    batches = candidates.n // batch_size
    order = torch.randperm(candidates.n, generator=generator)
    members = order[: batches * batch_size].view(batches, batch_size)
    choice = candidates.solved_by_batch(members, solve)
    return replace(
        choice,
        positions=members[choice.positions].flatten(),
        weights=choice.weights.repeat_interleave(batch_size) / batch_size,
        filled=choice.filled * batch_size,
        batch_size=batch_size,
    )


def check_scope(scope: str, shares: str, among: tuple[str, ...] = get_args(Scope)) -> None:
    """Raise a ValueError for what is no `Scope`, or not `among` those allowed, or no `Shares`."""
    check_word("scope", scope, among)
    check_shares(shares)


def check_shares(shares: str) -> None:
    """Raise a ValueError for what is no `Shares`."""
    check_word("shares", shares, get_args(Shares))


def fill(n: int, positions: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Random ones of the n that are not in `positions` yet, so that there are `budget` in all."""
    free = torch.ones(n, dtype=torch.bool)
    free[positions] = False
    rest = free.nonzero()[:, 0]
    return rest[torch.randperm(len(rest), generator=generator)[: budget - len(positions)]]


def warn_if_mostly_filled(choice: Choice, name: str) -> None:
    """Say so when a strategy chose less than half of its subset itself."""
    budget = len(choice.positions)
    if 2 * choice.filled > budget:
        warnings.warn(
            f"{name} chose {budget - choice.filled} of {budget} candidates and filled up with "
            f"{choice.filled} random ones: gradients are zero or equal, validation samples few, "
            "or `epsilon` is met early. Choose a smaller budget.",
            stacklevel=4,
        )


def shared(sizes: list[int], budget: int, shares: Shares) -> list[int]:
    """Share `budget` between classes or groups of these `sizes`."""
    share = {"proportional": proportional_shares, "equal": equal_shares}[shares]
    return share(sizes, budget)


def equal_shares(sizes: list[int], budget: int) -> list[int]:
    """Share `budget` equally; what is too much for a small class goes to the others.

    Examples:
        >>> equal_shares([70, 25, 5], 30)
        [13, 12, 5]
    """
    shares = [0] * len(sizes)
    left = budget
    for place, i in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], -i))):
        shares[i] = min(sizes[i], left // (len(sizes) - place))
        left -= shares[i]
    return shares


def proportional_shares(sizes: list[int], budget: int) -> list[int]:
    """Share `budget` in proportion to `sizes` by largest remainders, at least one each if it can.

    Examples:
        >>> proportional_shares([70, 25, 5], 10)
        [7, 2, 1]
    """
    total = sum(sizes)
    least = min(1, budget // max(1, len(sizes)))
    exact = [budget * size / total for size in sizes]
    shares = [max(least, int(share)) for share in exact]
    missing = budget - sum(shares)
    step, ends = (1, sizes) if missing > 0 else (-1, [least] * len(sizes))
    movable = [
        (-step * (exact[i] - share), i) for i, share in enumerate(shares) if share != ends[i]
    ]
    heapq.heapify(movable)
    for _ in range(abs(missing)):  # the one furthest on the wrong side of its exact value moves
        gap, i = movable[0]
        shares[i] += step
        if shares[i] == ends[i]:
            heapq.heappop(movable)
        else:
            heapq.heapreplace(movable, (gap + 1, i))
    return shares


def machine_memory() -> float:
    """Bytes of memory that this machine has; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
