"""The contract between a strategy and the rest: tensors in, a weighted choice out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import is_dataclass
from typing import ClassVar

import torch

from adaptive_subset.checks import Described, check_fields, natural, shown
from adaptive_subset.loss_record import Memory
from adaptive_subset.precision import full_precision
from adaptive_subset.strategies.candidates import Candidates, Choice, Opened


class Strategy(Described, ABC):
    """Base of all strategies; a frozen dataclass with a `select` is the usual form.

    What it is for and what it needs is said here, once; samplers, flags and examples read it.

    Attributes:
        every: R, the epochs from one selection to the next that suit it.
        needs_gradients: run the model over the candidates first, for `Candidates.gradients`.
        needs_losses: note the losses of training, for `Candidates.losses`.
        keeps: what else to keep of a sample whenever it is trained on, for `Candidates.kept`.
        batch_size: the size of the mini-batches that it chooses, None where it chooses samples.
        sizes_itself: it takes no budget; the size of its choice varies.
        size_varies: the size of its choice is another in each epoch, as `size_at` says.
        repeats: it may choose a sample more than once.
        divides: it chooses within each of the `groups` by itself, where a Selector was given some.
        needs_groups: it must be given some.
        spreads: where ranks select together, `select` is called on all of them, and asks no more
            of the candidates than their size and classes, `by_group`, `own_rows`, `solved`,
            `solved_by_batch` and `squared_norms`. Otherwise it is called on rank 0.
    """

    every: ClassVar[int] = 20
    repeats: ClassVar[bool] = False
    divides: bool = False
    needs_groups: bool = False
    spreads: bool = False
    needs_gradients: bool = False
    needs_losses: bool = False
    keeps: Memory | None = None
    sizes_itself: bool = False
    size_varies: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_fields(self)
        if self.batch_size is not None:
            natural("batch_size", self.batch_size, 1)

    @property
    def unit(self) -> int:
        """How many samples stay together: those of a mini-batch that it chooses, or one."""
        return self.batch_size or 1

    def size_at(self, n: int, budget: int, epoch: int) -> int:
        """How many of n samples it chooses for `epoch`, where the Selector was given `budget`."""
        return budget

    @abstractmethod
    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """Choose exactly `budget` of the candidates, a pure function of the arguments.

        A strategy that sizes itself chooses at least one and at most `budget`, which is n.
        """

    def check_memory(self, n: int, dim: int, budget: int) -> None:
        """Raise a ValueError where choosing `budget` of n gradients of length `dim` cannot fit."""

    def check_every(self, every: int) -> None:
        """Raise a ValueError where selections `every` so many epochs would miss what it plans."""

    def check_groups(self, *, given: bool) -> None:
        """Raise a ValueError where it takes no groups and some are `given`, or the other way."""
        if given and not self.divides:
            raise ValueError(
                "`groups` must be left out for a strategy that chooses from all samples at once, "
                f"got some for {self!r}. Use one that divides by them: GradMatch(), CRAIG() or "
                "GLISTER() without a global scope, or a PerEpoch."
            )
        if self.needs_groups and not given:
            raise ValueError(
                "`groups` must say what divides the samples where each has an equal share, got "
                f"none for {self!r}. Give the class of each: Selector(…, groups=labels)."
            )

    def choose(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """`select`, with its choice checked.

        Raises:
            TypeError, ValueError: the choice is not what `select` promises, or groups are missing.
        """
        self.check_groups(given=candidates.groups is not None)

        def select(some: Opened) -> list[Choice]:
            return [self.select(some[0](), budget, seed=seed, epoch=epoch)]

        with full_precision(candidates.device):
            whole = {0: lambda: candidates}
            (choice,) = select(whole) if self.spreads else candidates.solved(None, select)
        return self.checked(choice, candidates.n, budget)

    def checked(self, choice: Choice, n: int, budget: int) -> Choice:
        """`choice`, if it is what `select` promises of n candidates.

        Raises:
            TypeError: it is no `Choice` of tensors.
            ValueError: others, or more or fewer, than it must choose, or weights that are unfit.
        """
        if not isinstance(choice, Choice):
            raise TypeError(f"`strategy` must return a Choice, got {shown(choice)} from {self!r}.")
        positions, weights = choice.positions, choice.weights
        if any(not isinstance(part, torch.Tensor) for part in (positions, weights)):
            raise TypeError(
                f"`strategy` must choose by tensors, got {shown(positions)} as positions and "
                f"{shown(weights)} as weights from {self!r}. Convert them with torch.as_tensor."
            )
        size = len(positions) if self.sizes_itself else budget
        problem = None
        if positions.shape != (size,) or weights.shape != (size,) or not 1 <= size <= budget:
            problem = f"positions {tuple(positions.shape)} and weights {tuple(weights.shape)}"
        elif positions.dtype != torch.int64:
            problem = f"positions of {positions.dtype} where int64 is expected"
        elif int(positions.min()) < 0 or int(positions.max()) >= n:
            problem = f"positions from {int(positions.min())} to {int(positions.max())}"
        elif not self.repeats and (twice := size - len(torch.unique(positions))):
            problem = f"{twice} of them more than once"
        elif not bool(torch.isfinite(weights).all()) or not float(weights.sum()) > 0:
            problem = f"weights that are not finite or add up to {float(weights.sum()):g}"
        if problem is not None:
            raise ValueError(
                f"`strategy` must choose {'some' if self.sizes_itself else size} of {n} samples, "
                f"each once, with finite weights of positive sum, got {problem} from {self!r}."
            )
        return choice
