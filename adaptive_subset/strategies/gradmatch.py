"""GRAD-MATCH: gradient matching by orthogonal matching pursuit (Killamsetty et al., ICML 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adaptive_subset.checks import check_word
from adaptive_subset.gradients import Gradients
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
    machine_memory,
    warn_if_mostly_filled,
)
from adaptive_subset.strategies.solvers.atoms import Atoms, atoms_of
from adaptive_subset.strategies.solvers.batched_pursuit import Matching, omp_together
from adaptive_subset.strategies.solvers.greedy_path import PATHS, GreedyPath, OMPResult, Paths
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from adaptive_subset.strategies.strategy import Strategy


@dataclass(frozen=True)
class _Matching(Strategy):
    """The hyper-parameters that both granularities share."""

    lam: float = 0.5
    lam_is: Literal["relative", "absolute"] = "relative"
    nonnegative: bool = True
    epsilon: float = 0.0

    spreads = True
    needs_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam >= 0:
            raise ValueError(f"`lam` must be at least 0, got {self.lam}.")
        check_word("lam_is", self.lam_is, ("relative", "absolute"))
        if not 0 <= self.epsilon < 1:
            raise ValueError(
                f"`epsilon` must be in [0, 1), got {self.epsilon}. It is the share of ‖b‖² "
                "that the objective may keep."
            )

    def _match(
        self,
        gradients: Gradients,
        target: Tensor,
        budget: int,
        generator: torch.Generator,
        path: GreedyPath | None,
        fill_weight: float = 1.0,
    ) -> Choice:
        """OMP, then random atoms of weight `fill_weight` up to the budget."""
        atoms, b = atoms_of(gradients), target.numpy(force=True)
        ridge = self._ridge(atoms)
        if path is not None and path.covers(budget):
            result = path.at(atoms, b, budget, ridge)
        else:
            result = omp(
                atoms,
                b,
                budget,
                ridge=ridge,
                nonnegative=self.nonnegative,
                tolerance=self.epsilon,
                path=path,
            )
        return self._filled(result, len(atoms), budget, generator, fill_weight)

    def _match_together(
        self, problems: list[Problem], device: torch.device, paths: Paths | None
    ) -> list[Choice]:
        """The same of each problem by itself, many at a time where that is quicker."""

        def opened(problem: Problem) -> tuple[Gradients, Tensor, float]:
            given = problem.candidates()
            gradients = given.atoms.compact()
            return gradients, given.target, self._ridge(gradients)

        found: list[OMPResult | None] = [None] * len(problems)
        if device.type != "cpu":
            found = omp_together(
                [Matching(each.n, each.budget, partial(opened, each)) for each in problems],
                device,
                nonnegative=self.nonnegative,
                tolerance=self.epsilon,
            )
        choices = []
        for problem, result in zip(problems, found, strict=True):
            if result is None:
                given = problem.candidates()
                path = None if paths is None else paths[problem.place]
                choice = self._match(
                    given.atoms, given.target, problem.budget, problem.generator, path
                )
            else:
                choice = self._filled(result, problem.n, problem.budget, problem.generator)
            choices.append(choice)
        return choices

    def checked(self, choice: Choice, n: int, budget: int) -> Choice:
        """See `Strategy.checked`; raises for signed weights that have no positive sum, too."""
        total = float(choice.weights.sum())
        if not self.nonnegative and total <= 0:
            raise ValueError(
                "`nonnegative` must be True where signed weights do not add up to a positive sum, "
                f"got weights of sum {total:.3g}. Leave it out, or spread the weights more evenly "
                "with a larger `lam`."
            )
        return super().checked(choice, n, budget)

    def _ridge(self, atoms: Atoms | Gradients) -> float:
        mean = float(atoms.squared_norms().mean()) if self.lam_is == "relative" else 1.0
        return self.lam * mean

    @staticmethod
    def _filled(
        result: OMPResult,
        n: int,
        budget: int,
        generator: torch.Generator,
        fill_weight: float = 1.0,
    ) -> Choice:
        positions, weights = torch.from_numpy(result.support), torch.from_numpy(result.weights)
        rest = fill(n, positions, budget, generator)
        return Choice(
            torch.cat([positions, rest]),
            torch.cat([weights, weights.new_full((len(rest),), fill_weight)]),
            objective=result.objective,
            filled=len(rest),
        )


@dataclass(frozen=True)
class GradMatch(_Matching):
    """Match the sum of the last-layer gradients by a few weighted samples.

    ``min_w ‖Σ wᵢgᵢ − b‖² + λ‖w‖²  subject to  w ≥ 0, ‖w‖₀ ≤ k``, solved greedily and, on the chosen
    support, exactly by orthogonal matching pursuit (§3, eq. 1–3, Algorithm 2); b is the sum of all
    gradients, or of the validation gradients scaled to the same count.

    Deviations from the paper: the norm is squared in the objective, as Algorithm 2 solves it; λ is
    relative to the mean squared gradient norm, since an absolute λ takes over as gradients shrink
    in training; weights are non-negative, since a negative one trains uphill on its sample. Each
    has its switch.

    Degenerate input: a NaN or infinite gradient raises. Where OMP stops before the budget is spent
    (`epsilon` met, no gradient left that helps, gradients of zero), random candidates of the same
    problem are added with weight one, with a warning when they are most of the subset;
    `Selection.filled` counts them. Each adds its gradient to a match that was as good as it gets
    and moves it away: a budget smaller by what was filled in matches better, as a rule. λ = 0
    means the limit of small λ.

    Args:
        lam: λ, by default in units of the mean of ‖gᵢ‖²: dimensionless.
        lam_is: "relative", or "absolute" for the λ of the paper, in units of ‖g‖².
        nonnegative: False allows signed weights, as Algorithm 2 is printed; refused are those that
            do not add up to a positive sum.
        epsilon: ε, the share of ``‖b‖²`` at which matching stops.
        scope: "per-gradient" (the paper's default, §4) solves a problem for each class, with the
            budget shared in proportion to the class sizes, and matches only the row of the last
            layer that belongs to the class; "per-class" matches the whole last layer class by
            class; "global" the whole last layer of all classes at once. Where the Selector was
            given `groups`, they take the place of the classes, and have the whole last layer
            matched. Without, targets that are no class labels (regression, tokens) are always
            matched globally.
        shares: "proportional" gives each class, or group, a part of the budget by its size, "equal"
            the same.

    Examples:
        >>> GradMatch(scope="global").scope
        'global'
    """

    scope: Scope = "per-gradient"
    shares: Shares = "proportional"

    @property
    def divides(self) -> bool:  # type: ignore[override]
        return self.scope != "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scope(self.scope, self.shares)

    def check_memory(self, n: int, dim: int, budget: int) -> None:
        """See `Strategy.check_memory`; raises for one problem for all, which holds the most."""
        need, have = 8 * min(n * budget, 2 * dim**2 + budget * dim), machine_memory()
        if self.scope == "global" and need > have:
            raise ValueError(
                '`scope` must not be "global" for a problem of this size, got n = '
                f"{n}, k = {budget} and gradients of length d = {dim}: the solver would hold "
                f"8 · min(n·k, 2d² + k·d) = {need / 2**30:.1f} GiB, and this machine has "
                f"{have / 2**30:.1f}. Match class by class, or from a smaller pool_fraction."
            )

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        paths = candidates.derived.get(PATHS)
        choice = by_problem(
            candidates,
            budget,
            partial(self._match_together, device=candidates.device, paths=paths),
            scope=self.scope,
            shares=self.shares,
            seed=seed,
            epoch=epoch,
        )
        warn_if_mostly_filled(choice, "GRAD-MATCH")
        return choice


@dataclass(frozen=True)
class GradMatchPB(_Matching):
    """Match the mean gradient by a few weighted mini-batches (GRAD-MATCHPB, §3).

    The candidates are the ⌊n/B⌋ mini-batches of a fresh random partition; the k/B chosen ones are
    trained on as they are, all samples of a batch with the weight of the batch. The whole last
    layer is matched. A remainder of fewer than B samples is part of the target but of no candidate.

    Args:
        batch_size: B; give the training DataLoader the same, so that the batches stay together.
        lam, lam_is, nonnegative, epsilon: see `GradMatch`.
    """

    batch_size: int = 128

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`; `budget` is a multiple of the batch size."""
        generator = seeded(seed, epoch, Purpose.SELECTION)
        paths: Paths | None = candidates.derived.get(PATHS)
        path = None if paths is None else paths[0]

        def solve(batches: Gradients, target: Tensor) -> Choice:
            # A batch's gradient is a mean: in units of samples its weight is B times smaller.
            size, weight = budget // self.batch_size, float(self.batch_size)
            return self._match(batches, target, size, generator, path, fill_weight=weight)

        choice = by_batch(candidates, self.batch_size, generator, solve)
        warn_if_mostly_filled(choice, "GRAD-MATCH")
        return choice
