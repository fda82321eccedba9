"""GLISTER: samples whose step lowers the validation loss most (Killamsetty et al., AAAI 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from adaptive_subset.checks import natural
from adaptive_subset.strategies.candidates import Candidates, Choice
from adaptive_subset.strategies.division import (
    Problem,
    Shares,
    by_problem,
    check_scope,
    fill,
    warn_if_mostly_filled,
)
from adaptive_subset.strategies.strategy import Strategy


@dataclass(frozen=True)
class GLISTER(Strategy):
    """Greedy on the validation loss after one step of the last layer on the chosen samples.

    Each pick maximises ``⟨gᵢ, ∇L_V(θ_S)⟩``, the first-order gain of ``−L_V(θ_S − ηgᵢ)``, where θ_S
    is θ minus η times the mean of the chosen gⱼ (Killamsetty et al. 2021, "GLISTER: Generalization
    based Data Subset Selection for Efficient and Robust Learning", §4, GLISTER-ONLINE with the
    Taylor approximation). The validation gradient is computed anew, from the outputs that the moved
    layer gives, after every ⌈k / `refreshes`⌉ picks. Without a validation set the training loss
    takes its place. All weights are n/k.

    Deviations: the step is the mean over S, not the sum, so that it does not grow with the budget;
    each class is chosen for by itself, since with one problem for all of them most picks are of the
    class that is fitted worst. Targets that are no class labels are always one problem.

    Args:
        lr: η of the look-ahead step, which stands for all the steps until the next selection: of
            the size of the sum of their learning rates, times 1/(1 − momentum). Much smaller, and
            one pick does not change what the next one is worth.
        refreshes: how often the validation gradient is computed at most, in each class by itself,
            at least 1. With 1 no step is looked ahead: chosen are the samples whose gradients point
            most along the validation gradient as it stands, on any model, tokens and pixels too.
        scope: "per-class": each class by itself, from its own validation samples and with its own
            part of the budget; "global": the paper's.
        shares: of the classes, or of the groups of the Selector, see `GradMatch`.

    Raises:
        ValueError: more than one of `refreshes` on a model whose output is not that of its one last
            layer, or whose last layer runs at many positions: what a step of that layer changes
            cannot be followed. Or a step after which the loss has no finite gradient.
    """

    lr: float = 5.0
    refreshes: int = 20
    scope: Literal["per-class", "global"] = "per-class"
    shares: Shares = "proportional"

    spreads = True
    needs_gradients = True

    @property
    def divides(self) -> bool:  # type: ignore[override]
        return self.scope != "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lr > 0:
            raise ValueError(f"`lr` must be above 0, got {self.lr}.")
        natural("refreshes", self.refreshes, 1)
        check_scope(self.scope, self.shares, among=("per-class", "global"))

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        choice = by_problem(
            candidates,
            budget,
            lambda problems: [self._greedy(problem) for problem in problems],
            scope=self.scope,
            shares=self.shares,
            seed=seed,
            epoch=epoch,
        )
        warn_if_mostly_filled(choice, "GLISTER")
        return replace(Choice.even(choice.positions, candidates.n), filled=choice.filled)

    def _greedy(self, problem: Problem) -> Choice:
        candidates, budget = problem.candidates(), problem.budget
        atoms, count = candidates.atoms, math.ceil(budget / self.refreshes)
        step = torch.zeros(atoms.dim, dtype=atoms.dtype, device=atoms.device)
        closed = torch.zeros(candidates.n, dtype=atoms.dtype, device=atoms.device)
        chosen = torch.zeros(0, dtype=torch.int64, device=atoms.device)
        while len(chosen) < budget:
            toward = candidates.target_after(step) if len(chosen) else candidates.target
            scores = atoms.correlate(toward)
            if not bool(scores.isfinite().all()):
                raise ValueError(
                    "`lr` must be so small that the loss has a finite gradient after a step of the "
                    f"last layer, got {self.lr}. Take about the sum of the learning rates until "
                    "the next selection, or look no step ahead: GLISTER(refreshes=1)."
                )
            if not bool(scores.any()):
                break
            order = (scores + closed).argsort(descending=True, stable=True)
            chosen = torch.cat([chosen, order[: min(count, budget - len(chosen))]])
            closed[chosen] = -torch.inf
            step = atoms.sum(index=chosen) * (self.lr / len(chosen))
        positions = chosen.cpu()
        rest = fill(candidates.n, positions, budget, problem.generator)
        return Choice(torch.cat([positions, rest]), torch.ones(budget), filled=len(rest))
