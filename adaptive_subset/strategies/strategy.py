"""The contract between a strategy and the rest: tensors in, a weighted choice out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptive_subset.checks import check_fields
from adaptive_subset.gradients import BatchGradients, Gradients
from adaptive_subset.gradients.look_ahead import LastLayer
from adaptive_subset.loss_record import Memory
from adaptive_subset.precision import full_precision


@dataclass(frozen=True, eq=False)
class Validation:
    """Gradients to match instead of the candidates' own sum.

    Args:
        gradients: of m validation samples.
        classes: (m,) int64 labels, None where targets are no labels.
        scale: n / m, which brings their sum to the count of the candidates.
        last_layer: see `Candidates`.
    """

    gradients: Gradients
    classes: Tensor | None
    scale: float
    last_layer: LastLayer | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a strategy chooses from. Positions are 0 … n − 1.

    Args:
        n: number of candidates.
        gradients: their last-layer gradients, None for a strategy that needs none.
        classes: (n,) int64 labels on the gradients' device, None where targets are no labels.
        validation: set to match validation gradients (`isValid` in the paper's Algorithm 1).
        losses: (n,) float32 on the CPU, the loss that each had when it was last trained on, NaN if
            never; None for a strategy that needs none.
        kept: (n,) float32 on the CPU, what the strategy `keeps` of each, NaN if nothing yet;
            None if it keeps nothing.
        last_layer: what the gradients were computed from; None for a model whose output is not
            that of one last layer.

    `derived` keeps what follows from them and is costly, for a search that chooses several times.
    Where ranks select together, each holds a part of them, see `SpreadCandidates`.
    """

    n: int
    gradients: Gradients | None = None
    classes: Tensor | None = None
    validation: Validation | None = None
    losses: Tensor | None = None
    last_layer: LastLayer | None = None
    kept: Tensor | None = None
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where their gradients are."""
        return torch.device("cpu") if self.gradients is None else self.gradients.device

    @property
    def is_estimate(self) -> bool:
        """Whether their gradients are sketches."""
        return self.gradients is not None and self.gradients.is_estimate

    @property
    def atoms(self) -> Gradients:
        """The gradients, for a strategy that said that it needs them; raises for others."""
        if self.gradients is None:
            raise ValueError("`candidates` must hold gradients: set needs_gradients = True.")
        return self.gradients

    @property
    def has_validation(self) -> bool:
        """Whether validation gradients are to be matched."""
        return self.validation is not None

    @cached_property
    def target(self) -> Tensor:
        """b, the gradient to match, of shape (d,): ``Σ gᵢ``, or ``n/m · Σ`` over validation."""
        if self.validation is None:
            return self.atoms.sum()
        return self.validation.gradients.sum() * self.validation.scale

    def target_after(self, step: Tensor) -> Tensor:
        """b after the last layer moved by −`step` (d,).

        Raises:
            ValueError: the model's output is not that of one last layer.
        """
        validation = self.validation
        layer = self.last_layer if validation is None else validation.last_layer
        if layer is None:
            raise ValueError(
                "`model` must return the output of its one last layer as it is, to tell what a "
                "step of that layer does; got a model that changes it, has several, or applies it "
                "at many positions. Use another strategy."
            )
        return layer.gradient_after(step) * (1.0 if validation is None else validation.scale)

    def relative_error(self, choice: Choice) -> float | None:
        """``‖Σ wᵢgᵢ − b‖ / ‖b‖`` over the whole last layer; None without gradients, or b = 0."""
        return self.relative_errors(choice, 1.0)[0]

    def relative_errors(self, choice: Choice, *factors: float) -> list[float | None]:
        """`relative_error` of the weights times each of the `factors`."""
        if self.gradients is None:
            return [None] * len(factors)
        with full_precision(self.device):
            target, place = self.target, self.device
            matched = self.gradients.sum(choice.weights.to(place), choice.positions.to(place))
            return errors_of(matched, target, factors)

    def squared_norms(self) -> Tensor:
        """``‖gᵢ‖²`` of all, (n,) on the CPU."""
        return self.atoms.squared_norms().cpu()

    def solved(
        self, problems: list[Tensor] | None, solve: Callable[[Opened], list[Choice]]
    ) -> list[Choice]:
        """What `solve` chooses in each of the problems, in their order.

        These are the positions of each class, see `by_class`; None is one problem of all.
        """
        if problems is None:
            return solve({0: lambda: self})
        return solve({i: partial(self.of_class, each) for i, each in enumerate(problems)})

    def solved_by_batch(
        self, members: Tensor, solve: Callable[[Gradients, Tensor], Choice]
    ) -> Choice:
        """What `solve` chooses, given the mean gradients of mini-batches (m, B), and b."""
        known = self.derived.get("batches")
        if known is None or not torch.equal(known[0], members):
            known = members, BatchGradients(self.atoms, members.to(self.device))
            self.derived["batches"] = known
        return solve(known[1], self.target)

    def own_rows(self) -> Candidates:
        """Each gradient reduced to the row of its class, see `Gradients.own_rows`."""
        assert self.classes is not None
        validation = self.validation
        if validation is not None:
            assert validation.classes is not None
            rows = validation.gradients.own_rows(validation.classes)
            validation = replace(validation, gradients=rows)
        rows = self.atoms.own_rows(self.classes)
        return replace(self, gradients=rows, validation=validation)

    def by_class(self) -> list[Tensor]:
        """The positions of each class that occurs, in the order of the labels, on the CPU."""
        assert self.classes is not None
        order = torch.argsort(self.classes, stable=True)
        counts = torch.unique_consecutive(self.classes[order], return_counts=True)[1]
        return list(torch.split(order.cpu(), counts.tolist()))

    def of_class(self, members: Tensor) -> Candidates:
        """Those of one class, at the positions `members`, with the validation samples of it."""
        assert self.classes is not None
        place = members.to(self.classes.device)
        validation = self.validation
        if validation is not None:
            assert validation.classes is not None
            chosen = (validation.classes == self.classes[place[0]]).nonzero()[:, 0]
            layer = validation.last_layer
            validation = replace(
                validation,
                gradients=validation.gradients.take(chosen),
                classes=validation.classes[chosen],
                last_layer=None if layer is None else layer[chosen],
            )
        return replace(
            self,
            n=len(members),
            gradients=self.atoms.take(place),
            classes=self.classes[place],
            validation=validation,
            losses=None if self.losses is None else self.losses[members],
            last_layer=None if self.last_layer is None else self.last_layer[place],
            kept=None if self.kept is None else self.kept[members],
        )


Opened = Mapping[int, Callable[[], Candidates]]  # problems by place; a call copies one's candidates


@dataclass(frozen=True, eq=False)
class Choice:
    """What a strategy chose.

    Args:
        positions: (k,) int64, distinct.
        weights: (k,), with ``Σ wᵢ gᵢ ≈ b``.
        objective: value of the strategy's objective, if it has one.
        filled: how many were drawn at random because the strategy stopped early.
        batch_size: set where whole mini-batches were chosen, then positions come in such groups.
    """

    positions: Tensor
    weights: Tensor
    objective: float | None = None
    filled: int = 0
    batch_size: int | None = None


class Strategy(ABC):
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
        spreads: where ranks select together, `select` is called on all of them, and asks no more
            of the candidates than their size and classes, `by_class`, `own_rows`, `solved`,
            `solved_by_batch` and `squared_norms`. Otherwise it is called on rank 0.
    """

    every: ClassVar[int] = 20
    repeats: ClassVar[bool] = False
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

    def size_at(self, n: int, budget: int, epoch: int) -> int:
        """How many of n samples it chooses for `epoch`, where the Selector was given `budget`."""
        return budget

    @abstractmethod
    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """Choose exactly `budget` of the candidates, a pure function of the arguments.

        A strategy that sizes itself chooses at least one and at most `budget`, which is n.
        """

    def check_memory(self, n: int, dim: int, budget: int) -> None:  # noqa: B027
        """Raise a ValueError where choosing `budget` of n gradients of length `dim` cannot fit."""

    def choose(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """`select`, with its choice checked.

        Raises:
            ValueError: the choice is not what `select` promises.
        """

        def select(some: Opened) -> list[Choice]:
            return [self.select(some[0](), budget, seed=seed, epoch=epoch)]

        with full_precision(candidates.device):
            whole = {0: lambda: candidates}
            (choice,) = select(whole) if self.spreads else candidates.solved(None, select)
        positions, weights, n = choice.positions, choice.weights, candidates.n
        size = len(positions) if self.sizes_itself else budget
        problem = None
        if positions.shape != (size,) or weights.shape != (size,) or not 1 <= size <= budget:
            problem = f"positions {tuple(positions.shape)} and weights {tuple(weights.shape)}"
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


def errors_of(matched: Tensor, target: Tensor, factors: tuple[float, ...]) -> list[float | None]:
    """``‖f · matched − b‖ / ‖b‖`` for each of the `factors`; None where b = 0."""
    norm = float(target.norm())
    return [float((f * matched - target).norm()) / norm if norm else None for f in factors]
