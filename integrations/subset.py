"""What the adapters share: the sampler and the weighted loss of a run, by the same few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adaptive_subset import AdaptiveSubsetSampler, Selection, Selector, Strategy, WeightedLoss

# What every adapter takes beside the strategy, as of `Selector` and `AdaptiveSubsetSampler`; `seed`
# is that of both.
OPTIONS = (
    *("fraction", "budget", "tolerance"),
    *("every", "epochs", "warm_start"),
    *("pool", "pool_fraction", "validation", "groups", "weights", "seed"),
    *("head", "target", "batch_size", "num_workers", "collate_fn"),
    *("storage_dtype", "storage_dir", "sketch", "progress"),
)
_OF_SAMPLER = ("every", "epochs", "warm_start")


def check_names(options: Mapping[str, Any]) -> None:
    """Raise a TypeError where `options` hold what is none of `OPTIONS`."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(f"`options` must be some of {', '.join(OPTIONS)}, got {unknown}.")


def extra_is_missing(error: ImportError, extra: str) -> ImportError:
    """The error for a framework that is not installed."""
    return ImportError(
        f"{error.name} is missing, which this adapter is for. Install it: "
        f"pip install 'adaptive-subset[{extra}]'",
        name=error.name,
    )


class Subset:
    """A sampler and a loss that belong together, and how far in an epoch training is.

    Args:
        dataset: what is trained on.
        criterion: the loss to weight.
        strategy: how to choose.
        num_replicas, rank: of the run; the sampler gives each process its share.
        options: see `OPTIONS`.

    Attributes:
        sampler: delivers the subset; `sampler.history` has the figures of each selection.
        criterion: the weighted loss.
        batches: how many of the current epoch this process has trained on.
        length: how many it has.
    """

    def __init__(
        self,
        dataset: Any,
        criterion: Any,
        strategy: Strategy | str,
        *,
        num_replicas: int,
        rank: int,
        **options: Any,
    ) -> None:
        check_names(options)
        ours = {name: options.pop(name) for name in _OF_SAMPLER if name in options}
        selector = Selector(dataset, strategy, **options)
        self.sampler = AdaptiveSubsetSampler(
            selector, seed=selector.seed, num_replicas=num_replicas, rank=rank, **ours
        )
        self.criterion = WeightedLoss(criterion, selector)
        self.batches = self.length = 0

    @property
    def epoch(self) -> int:
        """The epoch to go on with."""
        is_over = 0 < self.length == self.batches
        return self.sampler.epoch + is_over

    @property
    def size_is_fixed(self) -> bool:
        """Whether all epochs are of one length, known in advance."""
        return self.sampler.selector.size is not None

    def select(self, model: nn.Module, epoch: int) -> dict[str, float] | None:
        """Select if `epoch` is due for it.

        Returns:
            The figures of the new selection for a logger, None where there is none.

        Raises:
            RuntimeError: an epoch before that of the state that was loaded.
        """
        if epoch < self.sampler.epoch:
            raise RuntimeError(
                f"`epoch` must not go back, got {epoch} after {self.sampler.epoch}. Resume model, "
                "optimizer and subset from the same checkpoint, and train anew with new objects."
            )
        if epoch > self.sampler.epoch:
            self.batches = 0
        selection = self.sampler.maybe_reselect(model, epoch)
        return None if selection is None else figures(selection)

    def enter(self, length: int) -> int:
        """Begin the current epoch of `length` batches.

        Returns:
            How many of them a run that was interrupted has done.

        Raises:
            ValueError: it was one of another length.
        """
        if self.batches and length != self.length:
            raise ValueError(
                f"`state` must be of an epoch of {length} batches a process to go on in its "
                f"middle, got that of batch {self.batches} of {self.length}. Resume with the same "
                "batch size and number of processes, or from the end of an epoch."
            )
        self.length = length
        return self.batches

    def check_used(self) -> None:
        """Raise a RuntimeError where training goes on and the loss was never called."""
        if self.sampler.selector.calls.number == 0:
            raise RuntimeError(
                "`criterion` must be what the training step computes its loss with, got a step "
                "that did not call it, so that no weight counts. A loss that the model computes by "
                "itself cannot be weighted: take the model's outputs, and the targets of the batch."
            )

    def state_dict(self) -> dict[str, Any]:
        """Of the sampler, and the place in the epoch; plain values and copies of tensors.

        All processes call it, at the same step: one state then holds the losses of them all.
        """
        self.sampler.selector.exchange_losses()
        place = {"batches": self.batches, "length": self.length}
        return {"sampler": self.sampler.state_dict(), **place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; a state that does not fit changes nothing.

        Raises:
            ValueError: it is corrupt, or of a run with other arguments.
        """
        names = sorted(state) if isinstance(state, Mapping) else []
        place = [state[name] if name in names else None for name in ("batches", "length")]
        batches, length = (n if type(n) is int else -1 for n in place)
        if not 0 <= batches <= length or "sampler" not in names:
            raise ValueError(
                "`state` must be what the state_dict() of this adapter returned, got a "
                f"{type(state).__name__} of {names} at batch {place[0]} of {place[1]}. The "
                "checkpoint is damaged, or that of something else."
            )
        if 0 < batches < length and not self.size_is_fixed:
            raise ValueError(
                f"`state` must be of the end of an epoch where epochs differ in length, got that "
                f"of batch {batches}. Resume from a checkpoint that was saved between two epochs."
            )
        self.sampler.load_state_dict(state["sampler"])
        self.batches, self.length = batches, length


def figures(selection: Selection) -> dict[str, float]:
    """The figures of a selection under the names that they have in logs."""
    summary = {**selection.summary(), "seconds": selection.seconds}
    names = ("size", "effective_size", "relative_error", "trained_error", "filled", "seconds")
    return {f"subset/{name}": float(summary[name]) for name in names if summary[name] is not None}
