"""Candidates that ranks hold together: problems go to ranks, and choices to all."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from adaptive_subset.gradients import BatchGradients, DenseGradients, Gradients
from adaptive_subset.gradients.share import Share
from adaptive_subset.precision import full_precision
from adaptive_subset.strategies.candidates import (
    Candidates,
    Choice,
    Opened,
    Validation,
    beyond_rounding,
    errors_of,
)


@dataclass(frozen=True, eq=False)
class SpreadCandidates(Candidates):
    """Candidates of which each rank has read a stretch. All ranks ask the same, in the same order.

    Args:
        share: what was read of them. `gradients` and `last_layer` are None, `losses` and `kept` the
            same on all ranks.
        validation_share: what was read of the gradients to match; `validation` is None.
        scale: of these, see `Validation`.
    """

    share: Share = field(kw_only=True)
    validation_share: Share | None = field(default=None, kw_only=True)
    scale: float = field(default=1.0, kw_only=True)

    @property
    def device(self) -> torch.device:
        return self.share.part.gradients.device

    @property
    def is_estimate(self) -> bool:
        return self.share.part.gradients.is_estimate

    @property
    def has_validation(self) -> bool:
        return self.validation_share is not None

    @cached_property
    def target(self) -> Tensor:
        """See `Candidates.target`."""
        validation = self.validation_share
        given = self.share if validation is None else validation
        total = beyond_rounding(given.sum(), given.squared_norms())
        return total if validation is None else total * self.scale

    def relative_errors(self, choice: Choice, *factors: float) -> list[float | None]:
        """See `Candidates.relative_errors`; the figures of rank 0."""
        with full_precision(self.device):
            matched, target = self.share.sum(choice.weights, choice.positions), self.target
            return self.share.ranks.step(lambda: errors_of(matched, target, factors))[0]

    def squared_norms(self) -> Tensor:
        """See `Candidates.squared_norms`."""
        return self.share.squared_norms()

    def own_rows(self) -> SpreadCandidates:
        """See `Candidates.own_rows`."""
        if "own rows" not in self.derived:
            validation = self.validation_share
            validation = None if validation is None else validation.own_rows()
            rows = replace(self, share=self.share.own_rows(), validation_share=validation)
            self.derived["own rows"] = rows
        result: SpreadCandidates = self.derived["own rows"]
        return result

    def solved(
        self, problems: list[Tensor] | None, solve: Callable[[Opened], list[Choice]]
    ) -> list[Choice]:
        """See `Candidates.solved`: each rank solves some problems, rank 0 that of all."""
        ranks = self.share.ranks
        if problems is None:
            whole = self._dealt([torch.arange(self.n)], [0], divided=False)
            return [ranks.first(lambda: _on_cpu(solve({0: lambda: whole})[0]))]
        owners = fair_owners([len(members) ** 2 for members in problems], ranks.size)
        candidates = self._dealt(problems, owners, divided=True)

        def own() -> dict[int, Choice]:
            given, start = {}, 0
            for place, members in enumerate(problems):
                if owners[place] == ranks.rank:
                    stop = start + len(members)
                    given[place] = partial(candidates.of_group, torch.arange(start, stop))
                    start = stop
            return dict(zip(given, map(_on_cpu, solve(given)), strict=True))

        found = {place: choice for each in ranks.step(own) for place, choice in each.items()}
        return [found[place] for place in range(len(problems))]

    def solved_by_batch(
        self, members: Tensor, solve: Callable[[Gradients, Tensor], Choice]
    ) -> Choice:
        """See `Candidates.solved_by_batch`; rank 0 solves.

        It is sent the means of the mini-batches, each of which one rank makes, or all samples where
        these are fewer numbers.
        """
        known = self.derived.get("batches")
        if known is None or not torch.equal(known[0], members):
            known = self.derived["batches"] = members, self._batches(members)
        target, ranks = self.target, self.share.ranks
        return ranks.first(lambda: _on_cpu(solve(known[1](), target)))

    def _batches(self, members: Tensor) -> Callable[[], Gradients]:
        """On rank 0 the mean gradients of mini-batches, made when they are asked for first."""
        ranks, held = self.share.ranks, self.share.part.gradients
        numbers = sum(rows[:1].flatten(1).shape[1] for rows in held.rows())
        if len(members) * held.dim > self.n * numbers:
            whole = self._dealt([torch.arange(self.n)], [0], divided=False)
            return cache(lambda: BatchGradients(whole.atoms, members.to(self.device)))
        parts = torch.tensor_split(members, ranks.size)
        samples = self.share.dealt([part.flatten() for part in parts]).gradients
        count, size = parts[ranks.rank].shape
        own = torch.arange(count * size, device=self.device).view(count, size)
        matrix = ranks.exchange(
            lambda: torch.cat(list(samples.means(own)), 1),
            [count if rank == 0 else 0 for rank in range(ranks.size)],
            [len(part) if ranks.rank == 0 else 0 for part in parts],
        )
        each = torch.arange(len(matrix), device=self.device)[:, None]
        return cache(lambda: BatchGradients(DenseGradients(matrix), each))

    def _dealt(self, problems: list[Tensor], owners: list[int], *, divided: bool) -> Candidates:
        """This rank's problems, one after the other, with what is to be matched in them."""
        positions, known = torch.cat(problems), self.derived.get("dealt")
        if known is not None and known[0] == (owners, divided) and known[1].equal(positions):
            result: Candidates = known[2]
            return result
        groups = [_joined(problems, owners, rank) for rank in range(self.share.ranks.size)]
        part, own = self.share.dealt(groups), groups[self.share.ranks.rank]
        validation, dealt = self.validation_share, None
        if validation is not None:
            some = validation.dealt(self._validation_of(problems, owners, divided=divided))
            dealt = Validation(some.gradients, some.classes, self.scale, some.last_layer)
        candidates = Candidates(
            len(own),
            part.gradients,
            part.classes,
            dealt,
            None if self.losses is None else self.losses[own],
            part.last_layer,
            None if self.kept is None else self.kept[own],
            None if self.groups is None else self.groups[own],
        )
        self.derived["dealt"] = (owners, divided), positions, candidates
        return candidates

    def _validation_of(
        self, problems: list[Tensor], owners: list[int], *, divided: bool
    ) -> list[Tensor]:
        """The positions of the validation samples that each rank needs for its problems."""
        validation, classes, ranks = self.validation_share, self.classes, self.share.ranks
        assert validation is not None
        if not divided or self.groups is not None:  # all of them, for whatever is solved
            every = torch.arange(len(validation))
            return [every if rank in owners else every[:0] for rank in range(ranks.size)]
        assert classes is not None
        assert validation.classes is not None
        labels = torch.stack([classes[members[0]] for members in problems])
        near = torch.searchsorted(labels, validation.classes).clamp(max=len(labels) - 1)
        place = torch.tensor(owners)[near]
        place[labels[near] != validation.classes] = -1
        return [(place == rank).nonzero()[:, 0] for rank in range(ranks.size)]


def fair_owners(costs: list[int], ranks: int) -> list[int]:
    """The rank that solves each problem: the dearest first, always to the one with least to do.

    Examples:
        >>> fair_owners([4, 9, 1, 4, 1], 2)
        [1, 0, 1, 1, 0]
    """
    owners = [0] * len(costs)
    load = [(0, rank) for rank in range(ranks)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        total, rank = heapq.heappop(load)
        owners[place] = rank
        heapq.heappush(load, (total + costs[place], rank))
    return owners


def _joined(problems: list[Tensor], owners: list[int], rank: int) -> Tensor:
    """The positions of the problems of `rank`."""
    own = [members for members, owner in zip(problems, owners, strict=True) if owner == rank]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *own])


def _on_cpu(choice: Choice) -> Choice:
    objective = None if choice.objective is None else float(choice.objective)
    positions, weights = choice.positions.cpu(), choice.weights.detach().cpu()
    return replace(choice, positions=positions, weights=weights, objective=objective)
