"""What a selection chooses from: all of a pool or a fresh part of it, and what it is to match."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.checks import check_share, digest, group_of_each, number, shown
from adaptive_subset.distributed import Ranks
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.pool_checks import is_map_style
from adaptive_subset.gradients.share import read_shares, state_of_first_rank
from adaptive_subset.gradients.source import GradientSource, Pool, PoolGradients, Reading
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies import Candidates, Strategy, Validation
from adaptive_subset.strategies.spread import SpreadCandidates


class CandidatePool:
    """A pool of n samples as candidates for a strategy that needs gradients.

    Args:
        n: samples of the dataset.
        source: reads their gradients.
        strategy: that is to choose from them.
        budget: k, None where it is not known.
        fraction: in (0, 1], the share of them that a selection looks at.
        validation: what is to be matched instead of their own gradient, read in the same way.
        groups: of the n samples, see `Selector`.

    Raises:
        TypeError: groups that are no whole numbers.
        ValueError: a pool or groups of another length, groups or `validation` for a strategy that
            knows no use for them, or a fraction that is not in range, or does not suit strategy
            and budget.
    """

    def __init__(
        self,
        n: int,
        source: GradientSource,
        strategy: Strategy,
        budget: int | None,
        *,
        fraction: float,
        validation: Pool | None,
        groups: Any,
    ) -> None:
        if source.size not in (None, n):
            raise ValueError(
                f"`pool` must hold the {n} samples of `dataset` in the same order, got "
                f"{source.size}. A list is taken for samples: pass ready-made batches as "
                "DataLoader(batches, batch_size=None)."
            )
        if validation is not None and not strategy.needs_gradients:
            raise ValueError(
                "`validation` must be left out for a strategy that looks at no gradient, got some "
                f"for {strategy!r}: nothing would be matched. Use one that does, GradMatch() say."
            )
        self.groups = groups_of(groups, n, strategy)
        self.n = n
        self.strategy = strategy
        self.budget = budget
        self.source = source
        self.fraction = fraction_of(fraction, n, source, strategy, budget)
        self.validation = None if validation is None else source.over(validation, "validation")

    def check_size(self, n: int) -> None:
        """Raise a ValueError where the dataset has other than its samples, as one that grows."""
        if n != self.n:
            raise ValueError(
                f"`dataset` must keep its {self.n} samples for the whole run, got {n} by now: "
                "budget, groups and losses are of those. Build Selector, sampler and WeightedLoss "
                "anew when it has changed."
            )

    def configuration(self) -> dict[str, Any]:
        """What is chosen from, and what is matched, see `Selector.configuration`."""
        validation, head = self.validation, self.source.head
        is_named = self.strategy.needs_gradients and head is not None
        return {
            "head": repr(head) if is_named else None,
            "pool_fraction": self.fraction,
            "groups": None if self.groups is None else digest(self.groups),
            "validation": None if validation is None else validation.size or "batches",
        }

    def reading(self) -> dict[str, Any]:
        """How a pass reads it, which ranks must do alike; plain values, none without a pass."""
        if not self.strategy.needs_gradients:
            return {}
        source = self.source
        return {
            "pool": "batches" if source.size is None else source.size,
            **{name: getattr(source, name) for name in ("batch_size", "sketch")},
            **{name: repr(getattr(source, name)) for name in ("target", "storage_dtype")},
        }

    def candidates(
        self,
        ranks: Ranks,
        model: nn.Module,
        criterion: Criterion,
        losses: Tensor | None,
        kept: Tensor | None,
        *,
        seed: int,
        epoch: int,
    ) -> tuple[Tensor, Candidates]:
        """The candidates of one selection, and the indices in the dataset (m,) they stand for.

        Args:
            ranks: that read the pool together; all of them call this.
            model, criterion: see `GradientSource.read`; on several ranks with rank 0's buffers.
            losses, kept: (n,) of training, see `Candidates`.
            seed, epoch: of the draw of a part of the pool.

        Raises:
            ValueError: the validation set has labels and the pool none, or the other way round;
                see also `GradientSource.read`.
        """
        indices, m, some, groups = torch.arange(self.n, device="cpu"), self.n, None, self.groups
        if self.fraction < 1:
            m = round(self.fraction * self.n)
            generator = seeded(seed, epoch, Purpose.POOL)
            order = torch.randperm(self.n, generator=generator, device="cpu")
            indices = some = order[:m].sort().values
            losses = None if losses is None else losses[indices]
            kept = None if kept is None else kept[indices]
            groups = None if groups is None else groups[indices]
        expect = partial(self._check_memory, m)
        if ranks.size > 1:
            candidates = self._spread(ranks, model, criterion, some, m, expect, seed)
            return indices, replace(candidates, losses=losses, kept=kept, groups=groups)
        pool = self.source.read(model, criterion, some, m, expect, seed)
        validation = None
        if self.validation is not None:
            other = self.validation.read(model, criterion, None, self.validation.size, seed=seed)
            self._check_fits(pool, other)
            scale = m / len(other.gradients)
            validation = Validation(other.gradients, other.classes, scale, other.last_layer)
        return indices, Candidates(
            m, pool.gradients, pool.classes, validation, losses, pool.last_layer, kept, groups
        )

    def _spread(
        self,
        ranks: Ranks,
        model: nn.Module,
        criterion: Criterion,
        some: Tensor | None,
        m: int,
        expect: Callable[[int], None],
        seed: int,
    ) -> Candidates:
        """The same of which each rank reads and holds a part."""
        validation, scale = None, 1.0
        with state_of_first_rank(ranks, model, criterion):
            pool = read_shares(ranks, self.source, model, criterion, some, m, expect, seed)
            if self.validation is not None:
                size = self.validation.size
                validation = read_shares(
                    ranks, self.validation, model, criterion, None, size, seed=seed
                )
                self._check_fits(pool.part, validation.part)
                scale = m / len(validation)
        return SpreadCandidates(
            m,
            classes=pool.classes,
            share=pool,
            validation_share=validation,
            scale=scale,
        )

    def _check_memory(self, m: int, dim: int) -> None:
        if self.budget is not None:
            self.strategy.check_memory(m, dim, self.budget)

    def _check_fits(self, pool: PoolGradients, validation: PoolGradients) -> None:
        by_class = self.groups is None
        if by_class and (validation.classes is None) != (pool.classes is None):
            raise ValueError(
                "`validation` must have class labels exactly where the pool has them, got targets "
                f"of shape {tuple(validation.targets.shape)} and {tuple(pool.targets.shape)}."
            )
        if (found := validation.gradients.dim) != (expected := pool.gradients.dim):
            raise ValueError(
                "`validation` must run the head at several positions of a sample exactly where the "
                f"pool does, got gradients of {found} numbers for {expected}. Pad it to more than "
                "one position."
            )

    def warn_if_augmented(self) -> None:
        """Say so once where the pool is what training sees, and that is augmented at random."""
        if self.source.is_augmented():
            warnings.warn(
                "`dataset` gives another input each time an index is read, so selections match the "
                "gradients of augmented samples that training will not see again. Pass the same "
                "data without random transforms: Selector(..., pool=...).",
                stacklevel=2,
            )


def size_of(dataset: Any) -> int:
    """n, the samples of a dataset to choose from.

    Raises:
        TypeError: it has no length, or no access by index.
        ValueError: it is empty.
    """
    if not is_map_style(dataset):
        raise TypeError(
            "`dataset` must be map-style, with a length and access by index, got "
            f"{type(dataset).__name__}. Subsets of a stream cannot be chosen; of a loader, "
            "pass its dataset."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one sample to choose, got none.")
    return len(dataset)


def fraction_of(
    fraction: float, n: int, source: GradientSource, strategy: Strategy, budget: int | None
) -> float:
    """The share of n samples that a selection looks at; see `CandidatePool` for the arguments.

    Raises:
        TypeError: it is no number.
        ValueError: it is not in (0, 1], less than one for a pool or strategy that needs all, or
            leaves less than the budget.
    """
    fraction = number("pool_fraction", fraction)
    check_share("pool_fraction", fraction)
    if fraction < 1 and source.size is None:
        raise ValueError(
            f"`pool` must be a dataset with access by index to draw a `pool_fraction` of "
            f"{fraction} from, got a {type(source.pool).__name__}. Pass its dataset."
        )
    if fraction < 1 and not strategy.needs_gradients:
        raise ValueError(
            "`pool_fraction` must be 1 for a strategy that makes no pass over the pool, got "
            f"{fraction} for {strategy!r}."
        )
    if fraction < 1 and budget is not None and strategy.size_varies:
        raise ValueError(
            "`pool_fraction` must be 1 for a strategy whose sizes vary, got "
            f"{fraction} for {strategy!r}: some epochs may take more samples than it leaves. "
            "Take a strategy of one size."
        )
    if round(fraction * n) < (budget or strategy.unit):
        unit = "one sample" if strategy.unit == 1 else f"one mini-batch of {strategy.unit} samples"
        least = unit if budget is None else f"the budget of {budget} samples"
        raise ValueError(
            f"`pool_fraction` must leave at least {least} to choose from, got {fraction}, "
            f"which leaves {round(fraction * n)}."
        )
    return fraction


def groups_of(groups: Any, n: int, strategy: Strategy) -> Tensor | None:
    """The groups of n samples, (n,) int64 on the CPU, or None; see `Selector`.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: not one for each sample, some for a strategy that does not divide by them, or
            none for one that must.
    """
    strategy.check_groups(given=groups is not None)
    return None if groups is None else group_of_each(groups, n)


def source_of(
    dataset: Pool, pool: Pool | None, source: GradientSource | None, reading: Reading
) -> GradientSource:
    """The `source` given to a Selector, or one that reads its `pool`, or `dataset`, as it says.

    Raises:
        TypeError: a `source` that is none, or an unknown argument.
        ValueError: a `source` and what it replaces.
    """
    if source is not None and (pool is not None or reading):
        raise ValueError(
            "`source` must come alone, since it says what is read and how, got "
            f"{', '.join([*(['pool'] if pool is not None else []), *reading])} beside it. "
            "Give those to the GradientSource."
        )
    if unknown := sorted(set(reading) - set(Reading.__annotations__)):
        raise TypeError(
            f"`reading` must be {', '.join(Reading.__annotations__)}, got {unknown}. What is "
            "none of a Selector's arguments may be one of AdaptiveSubsetSampler."
        )
    if source is not None and not isinstance(source, GradientSource):
        raise TypeError(f"`source` must be a GradientSource, got {shown(source)}.")
    return source or GradientSource(dataset if pool is None else pool, **reading)
