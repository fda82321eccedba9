"""The selector: when a selection is asked for, pool → gradients → strategy → Selection."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from adaptive_subset.calls import Calls
from adaptive_subset.candidate_pool import CandidatePool, size_of, source_of
from adaptive_subset.checks import check_configuration, check_state, check_word, loss, natural
from adaptive_subset.distributed import Ranks
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.source import GradientSource, Reading
from adaptive_subset.loss_record import LossRecord
from adaptive_subset.outcome import as_selection
from adaptive_subset.selection import Selection
from adaptive_subset.sizing import sizing
from adaptive_subset.strategies import Candidates, Strategy, instance_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("adaptive_subset")


class Selector:
    """Chooses a weighted subset of a dataset for the model as it stands.

    Owns what a run chooses by: the current `selection` and the losses that training noted. One
    sampler asks it for selections, whose sizes `sizing` knows; a `WeightedLoss` tells it the loss,
    its `calls`, and the `losses` of training where the strategy needs them.

    Args:
        dataset: training set of n samples, anything with a length and access by index.
        strategy: how to choose, for instance ``GradMatch()``, or the name of a strategy with its
            default arguments, such as "gradmatch".
        fraction: k / n in (0, 1]; or
        budget: k in [1, n]; or
        tolerance: the relative gradient error in (0, 1) for which the smallest subset is sought.
            The first selection sets the size for the whole run, unless `size_varies`. A strategy
            that chooses mini-batches rounds k down to whole ones; one that sizes itself takes none
            of the three.
        size_varies: with a `tolerance`, let each selection find its own size, so that epochs differ
            in length: for loops and schedules that count steps, not epochs.
        criterion: the loss whose gradients are matched; by default that in its `WeightedLoss`.
        pool: what gradients are computed on, sample by sample the same as `dataset`: a twin
            without random augmentation, or any iterable of batches in its order (a DataLoader,
            timm's loader; see `GradientSource`). By default `dataset`, with a warning if augmented.
        pool_fraction: share of the pool that a selection looks at, drawn afresh at each one. The
            pass costs that much less, or can come that much more often.
        validation: a dataset or iterable of batches whose gradient is matched instead of that of
            the pool (`isValid` in the paper's Algorithm 1), for imbalanced or noisy training data,
            or to train for a few samples of a target.
        groups: (n,) whole numbers, the group of each sample: a domain, class or length. Each group
            is chosen from by itself, in the place of each class, with its part of the budget (the
            `shares` of a strategy). All of `validation` is what each is to match.
        weights: "mean-one" makes the weights of the loss have mean one over the subset, so that a
            learning rate found without it stays about right; "matched" keeps the length of the
            matched gradient, so that an epoch's steps add up to those of an epoch on all data. They
            differ where ``Σ w`` is not n, as for GRAD-MATCH (see `Selection.trained_error`).
        seed: of everything random in a selection.
        source: a `GradientSource` of your own in place of the one that `pool` and the following
            describe.
        reading: how the pool is read: head, target, batch_size, num_workers, collate_fn,
            storage_dtype, storage_dir, sketch, progress; see `GradientSource`.

    Raises:
        ValueError: a budget that is not in range, both or neither of `fraction` and `budget`, a
            pool of another length, no samples.
        TypeError: a dataset or pool without a length or random access, groups that are no numbers.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        strategy: Strategy | str,
        *,
        fraction: float | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        size_varies: bool = False,
        criterion: Criterion | None = None,
        pool: Dataset[Any] | Iterable[Any] | None = None,
        pool_fraction: float = 1.0,
        validation: Dataset[Any] | Iterable[Any] | None = None,
        groups: Sequence[int] | np.ndarray[Any, Any] | Tensor | None = None,
        weights: Literal["mean-one", "matched"] = "mean-one",
        seed: int = 0,
        source: GradientSource | None = None,
        **reading: Unpack[Reading],
    ) -> None:
        n, strategy = size_of(dataset), instance_of(strategy)
        check_word("weights", weights, ("mean-one", "matched"))
        source = source_of(dataset, pool, source, reading)
        self.dataset: Dataset[Any] = dataset  # type: ignore[assignment]  # as it will be read
        self.strategy: Strategy = strategy
        self.sizing = sizing(
            n,
            strategy,
            fraction=fraction,
            budget=budget,
            tolerance=tolerance,
            size_varies=size_varies,
        )
        k = self.sizing.budget
        self.pool = CandidatePool(
            n, source, strategy, k, fraction=pool_fraction, validation=validation, groups=groups
        )
        self.weights = weights
        self.seed = natural("seed", seed)
        self.selection: Selection | None = None
        self.losses = LossRecord(n, strategy.keeps) if strategy.needs_losses else None
        self._criterion = None if criterion is None else loss(criterion)
        self._bound: Criterion | None = None
        self.calls = Calls()
        self._is_driven = False

    def __len__(self) -> int:
        """n, the samples to choose from."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Selector({self.sizing}, {self.strategy!r})"

    @property
    def size(self) -> int | None:
        """k of every selection, None where they differ or only the first will tell."""
        return None if self.sizing.varies else self.size_at(0)

    def size_at(self, epoch: int) -> int | None:
        """k of a selection for `epoch`, None where only that selection will tell."""
        return self.sizing.at(epoch, None if self.selection is None else len(self.selection))

    @property
    def criterion(self) -> Criterion | None:
        """The loss whose gradients are matched, None where none is known yet."""
        return self._bound if self._criterion is None else self._criterion

    def bind_criterion(self, criterion: Criterion) -> None:
        """Take `criterion` as the loss of training; what `WeightedLoss(criterion, selector)` calls.

        Its gradients are matched, unless the selector was given another criterion for that.

        Raises:
            ValueError: another one is bound already and none was given.
        """
        if self._criterion is None and self._bound not in (None, criterion):
            raise ValueError(
                "`selector` is held by two losses and cannot tell which one's gradients to match, "
                "got a second WeightedLoss. Pass criterion= to the Selector."
            )
        self._bound = loss(criterion)

    def drive(self) -> None:
        """Say that a sampler asks for the selections from now on; `AdaptiveSubsetSampler` calls it.

        Raises:
            ValueError: another sampler does already. Two of them would share one selection.
        """
        if self._is_driven:
            raise ValueError(
                "`selector` must serve one sampler, got a second one, which would train on the "
                "selections and losses of the first. Build a Selector for each."
            )
        self._is_driven = True

    def select(self, model: nn.Module, epoch: int) -> Selection:
        """Make a new selection for `model` and keep it as `selection`.

        Model, hooks, gradients and global random state are as before afterwards, and where this
        raises the selection too. Several processes all call it, and go by rank 0's buffers.

        Raises:
            RuntimeError: no criterion is known, no `WeightedLoss` notes losses for a strategy that
                needs them, or mostly those of mixed samples, or a rank has ended.
            ValueError: gradients are not finite; the dataset has another length than at first;
                head or loss do not fit, see `GradientSource.read`.
        """
        self.exchange_losses()
        ranks = Ranks.of_run()
        with ranks.together():
            selection = self._select(ranks, model, epoch)
        if ranks.rank == 0:
            sizes = len(selection), len(self)
            logger.info("epoch %d: selected %d of %d samples, %s", epoch, *sizes, selection)
        self.selection = selection
        return selection

    @torch.inference_mode(False)  # what is kept outlives the caller's mode
    def _select(self, ranks: Ranks, model: nn.Module, epoch: int) -> Selection:
        start = time.perf_counter()
        indices, candidates = self._candidates(ranks, model, epoch)
        forward_seconds = time.perf_counter() - start

        def chosen() -> Selection:
            size = self.size_at(epoch)
            choice = self.sizing.choice(candidates, size, seed=self.seed, epoch=epoch)
            return as_selection(
                choice,
                candidates,
                indices,
                len(self),
                matched=self.weights == "matched",
                epoch=epoch,
                forward_seconds=forward_seconds,
                solver_seconds=time.perf_counter() - start - forward_seconds,
            )

        if not self.strategy.needs_gradients:
            return ranks.first(chosen)
        selection = chosen()  # by all ranks; should they differ, that of rank 0 counts
        return ranks.first(lambda: selection)

    def end_epoch(self) -> None:
        """Say that an epoch was read to its end; `AdaptiveSubsetSampler` calls it."""
        self.calls.are_due = True
        if self.losses is not None:
            self.losses.expect()

    def exchange_losses(self) -> None:
        """Make the losses of training known to all ranks; all of them call it, at the same step.

        `maybe_reselect` does so. Without it a state that one rank saves for all before that lacks
        the others' latest losses, and raises when it is loaded.
        """
        if self.losses is not None:
            self.losses.exchange(Ranks.of_run())

    def _candidates(self, ranks: Ranks, model: nn.Module, epoch: int) -> tuple[Tensor, Candidates]:
        """What to choose from, and the indices in the dataset that its positions stand for."""
        self.pool.check_size(len(self))
        losses = kept = None
        if self.losses is not None:
            self.losses.check(type(self.strategy).__name__, is_held=self.calls.is_held)
            losses, kept = self.losses.values, self.losses.kept
        if not self.strategy.needs_gradients:
            everything = Candidates(len(self), losses=losses, kept=kept, groups=self.pool.groups)
            return torch.arange(len(self), device="cpu"), everything
        if self.criterion is None:
            raise RuntimeError(
                "`criterion` must be known to compute gradients, got none. Pass criterion= to the "
                "Selector, or wrap the training loss: WeightedLoss(criterion, selector)."
            )
        if ranks.rank == 0 and self.selection is None and self.pool.source.pool is self.dataset:
            self.pool.warn_if_augmented()
        return self.pool.candidates(
            ranks, model, self.criterion, losses, kept, seed=self.seed, epoch=epoch
        )

    def configuration(self) -> dict[str, Any]:
        """What a run must have in common with the one that it goes on with; plain values."""
        return {
            "samples": len(self),
            "budget": self.sizing.budget,
            "tolerance": self.sizing.tolerance,
            "size_varies": self.sizing.varies,
            "strategy": repr(self.strategy),
            **self.pool.configuration(),
            "weights": self.weights,
            "seed": self.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """The selection and the losses of training: copies, tensors and plain values only."""
        return {
            "configuration": self.configuration(),
            "selection": None if self.selection is None else self.selection.state_dict(),
            "losses": None if self.losses is None else self.losses.state_dict(),
        }

    def saved_selection(self, state: Mapping[str, Any]) -> Selection | None:
        """The selection in what `state_dict` returned; raises as `load_state_dict` does."""
        check_state("Selector", state, {"configuration": Mapping, "selection": object})
        check_configuration("selector", self.configuration(), state["configuration"])
        if state["selection"] is None:
            return None
        return Selection.from_state_dict(state["selection"], len(self), self.sizing.at)

    def depends_on(self, saved: Selection | None, *, is_due: bool) -> bool:
        """Whether the next selection depends on a state (losses, the size found) with `saved`."""
        return self.losses is not None or (is_due and self.sizing.is_found and saved is not None)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; a state that does not fit changes nothing.

        Raises:
            ValueError: it is that of a selector with other arguments, or is corrupt.
        """
        selection = self.saved_selection(state)
        if self.losses is not None:
            check_state("Selector", state, {"losses": Mapping})
            self.losses.load_state_dict(state["losses"])
        self.selection = selection
