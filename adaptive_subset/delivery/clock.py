"""Which epoch it is, and who said so."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from adaptive_subset.checks import natural
from adaptive_subset.delivery.epoch import Epoch

_MANY = 3  # passes over one epoch, of which one trains and one may evaluate


class Clock:
    """The epoch of a sampler. What `maybe_reselect` was last called with is never overruled.

    Others say it too: `set_epoch` (DDP loops, Lightning, Accelerate by a count of its own) and
    states that are loaded. torchdata's loader loads the sampler's state each time that it resumes,
    inside its ``__iter__``: after `maybe_reselect`, and as old as its prefetching is ahead.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._asked: int | None = None
        self._knows_past = False  # a state was loaded, or an epoch was begun
        self._latest: weakref.ref[Epoch] | None = None
        self._passes = 0, 0  # an epoch, and how often it was begun

    def set(self, epoch: int) -> None:
        """What `set_epoch` or a state says."""
        self.epoch = natural("epoch", epoch)

    def ask(self, epoch: int) -> None:
        """What `maybe_reselect` says; warns where that is earlier than what is known here."""
        epoch = natural("epoch", epoch)
        if epoch < self.epoch:
            warnings.warn(
                f"`epoch` goes back from {self.epoch} to {epoch}, but the selection, the losses of "
                "training and the history stay those of the epochs between. Build a Selector and a "
                "sampler for each run; to repeat a part of one, load the state of that epoch.",
                stacklevel=3,
            )
        self.epoch = self._asked = epoch

    def check(self) -> None:
        """Raise a RuntimeError where the epoch is not that of the last `maybe_reselect`."""
        if self._asked not in (None, self.epoch):
            raise RuntimeError(
                f"`epoch` must be that of the last maybe_reselect, {self._asked}, got {self.epoch} "
                "from set_epoch or a state that was loaded since. Call maybe_reselect(model, "
                "epoch) for every epoch, after loading a state too, and pass the same epoch to a "
                "loader that counts by itself: loader.set_epoch(epoch)."
            )

    def begin(self) -> None:
        """Say that the first index of the epoch was asked for; warn where it was thrice.

        Twice it may be: to train, and to see what was learned.
        """
        self.knows_past()
        epoch, times = self._passes
        self._passes = self.epoch, times + 1 if epoch == self.epoch else 1
        if self._passes[1] == _MANY:
            warnings.warn(
                f"the subset of epoch {self.epoch} is read for the third time, in the same order. "
                "Call sampler.maybe_reselect(model, epoch) at the start of every epoch, or it "
                "stays the same for the whole run.",
                stacklevel=2,
            )

    def knows_past(self) -> None:
        """Say that from now on what is known here is newer than what a loader may have saved."""
        self._knows_past = True

    def watch(self, iterator: Epoch) -> Epoch:
        """`iterator`, known as the one that a loader has just made."""
        self._latest = weakref.ref(iterator)
        return iterator

    @property
    def is_in_loader(self) -> bool:
        """Whether somebody holds an iterator and took nothing from it: a loader that resumes."""
        latest = None if self._latest is None else self._latest()
        return latest is not None and not latest.has_begun

    def takes(self, epoch: int, *, same: bool, depends: bool) -> bool:
        """Whether what a loader has saved in `epoch` is news, as it is where nothing else is known.

        Args:
            epoch: of the state.
            same: it holds the selection that is current here.
            depends: what was selected since could depend on what it holds.

        Raises:
            RuntimeError: it contradicts what is known, or comes too late.
        """
        if self._knows_past:
            fits = epoch < self.epoch or (epoch == self.epoch and same)
        else:
            fits = not depends and (self._asked is None or epoch <= self._asked)
        if not fits:
            raise RuntimeError(
                f"`state` must be loaded before maybe_reselect, got that of epoch {epoch} out of "
                f"the loader at epoch {self.epoch}. Load sampler.state_dict() of the same moment "
                "by itself, then call maybe_reselect(model, epoch)."
            )
        return not self._knows_past

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_latest": None}  # a weak reference cannot be pickled
