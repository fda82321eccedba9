"""What a strategy chooses from, and what it chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.gradients import BatchGradients, Gradients
from adaptive_subset.gradients.look_ahead import LastLayer
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
        groups: (n,) int64 on the CPU, what the Selector was told to divide them by.
        validation: set to match validation gradients (`isValid` in the paper's Algorithm 1).
        losses: (n,) float32 on the CPU, the loss that each had when it was last trained on, NaN if
            never; None for a strategy that needs none.
        kept: (n,) float32 on the CPU, what the strategy `keeps` of each, NaN if nothing yet;
            None if it keeps nothing.
        last_layer: what the gradients were computed from; None for a model whose output is not
            that of one last layer.

    `derived` keeps what follows from them and is costly, for a search that chooses several times.
    Where ranks select together, each holds a part of them, see `Strategy.spreads`.
    """

    n: int
    gradients: Gradients | None = None
    classes: Tensor | None = None
    validation: Validation | None = None
    losses: Tensor | None = None
    last_layer: LastLayer | None = None
    kept: Tensor | None = None
    groups: Tensor | None = None
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
        """b, the gradient to match, of shape (d,): ``Σ gᵢ``, or ``n/m · Σ`` over validation.

        Zero where the gradients cancel up to rounding: there is nothing to match.
        """
        validation = self.validation
        given = self.atoms if validation is None else validation.gradients
        total = beyond_rounding(given.sum(), given.squared_norms())
        return total if validation is None else total * validation.scale

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
                "at many positions, of which no features are kept. Look at the gradient as it "
                "stands, GLISTER(refreshes=1), or use another strategy."
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

        These are the positions of each group, see `by_group`; None is one problem of all.
        """
        if problems is None:
            return solve({0: lambda: self})
        return solve({i: partial(self.of_group, each) for i, each in enumerate(problems)})

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

    @property
    def divisions(self) -> Tensor | None:
        """(n,) what problems are divided by: `groups`, else `classes`; None without either."""
        return self.classes if self.groups is None else self.groups

    def by_group(self) -> list[Tensor]:
        """The positions of each group, or class, that occurs, in their order, on the CPU."""
        divisions = self.divisions
        assert divisions is not None
        order = torch.argsort(divisions, stable=True)
        counts = torch.unique_consecutive(divisions[order], return_counts=True)[1]
        return list(torch.split(order.cpu(), counts.tolist()))

    def of_group(self, members: Tensor) -> Candidates:
        """Those of one group, or class, at the positions `members`, and what they are to match.

        A class matches the validation samples of it; a group all of them, scaled to its own size,
        so that what the groups match adds up to what all candidates match.
        """
        place = members.to(self.device)
        validation = self.validation
        if validation is not None and self.groups is not None:
            scale = len(members) / len(validation.gradients)
            validation = replace(validation, scale=scale)
        elif validation is not None:
            assert self.classes is not None
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
            classes=None if self.classes is None else self.classes[place],
            validation=validation,
            losses=None if self.losses is None else self.losses[members],
            last_layer=None if self.last_layer is None else self.last_layer[place],
            kept=None if self.kept is None else self.kept[members],
            groups=None if self.groups is None else self.groups[members],
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

    @classmethod
    def even(cls, positions: Tensor, n: int) -> Choice:
        """`positions` (k,) of n candidates, each with the weight n/k."""
        k = len(positions)
        weights = torch.full((k,), n / max(1, k), dtype=torch.float32, device="cpu")
        return cls(positions, weights)


def beyond_rounding(total: Tensor, squared_norms: Tensor) -> Tensor:
    """`total`, ``Σ gᵢ`` (d,), or zeros where it is no longer than what rounding makes of it.

    Each gᵢ is known to about ε‖gᵢ‖, and their errors are of all directions.
    """
    noise = 8 * torch.finfo(total.dtype).eps * squared_norms.sum().sqrt()
    return torch.where(total.norm() <= noise, 0.0, total)


def errors_of(matched: Tensor, target: Tensor, factors: tuple[float, ...]) -> list[float | None]:
    """``‖f · matched − b‖ / ‖b‖`` for each of the `factors`; None where b = 0."""
    norm = float(target.norm())
    return [float((f * matched - target).norm()) / norm if norm else None for f in factors]
