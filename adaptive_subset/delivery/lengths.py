"""How many samples a process gets in an epoch: in the current one, and in advance."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive_subset.checks import natural
from adaptive_subset.delivery.schedule import Schedule
from adaptive_subset.delivery.sharding import Sharding
from adaptive_subset.selector import Selector


@dataclass(frozen=True)
class Lengths:
    """The lengths of epochs.

    Args:
        selector: knows the sizes of selections.
        schedule: which epochs a selection is for.
        sharding: how many processes share them.

    Raises:
        ValueError: a warm start before selections that differ in size, or a share of nothing.
    """

    selector: Selector
    schedule: Schedule
    sharding: Sharding

    def __post_init__(self) -> None:
        if self.selector.size is None and self.schedule.warm_epochs:
            raise ValueError(
                "`warm_start` must be 0 where epochs differ in size or the first selection sets "
                f"it, got one of {self.schedule.warm_epochs} epochs. Take a strategy of one size, "
                "and a `fraction` or `budget`."
            )
        if self.sharding.said is not None and self.selector.size is not None:
            self.sharding.check(self.selector.strategy, self.selector.size)

    def at(self, epoch: int) -> int:
        """Samples of the current `epoch`.

        Raises:
            TypeError: the first selection will tell.
        """
        selection = self.selector.selection
        is_warm = epoch < self.schedule.warm_epochs
        if selection is not None and not is_warm and not self.schedule.is_due(epoch, selection):
            return self._share(len(selection))  # made later than planned, if epochs were skipped
        if (size := self._planned(epoch)) is not None:
            return self._share(size)
        if selection is None:
            raise TypeError(
                "the length of an epoch follows from the first selection, and there is none yet. "
                "Call `sampler.maybe_reselect(model, epoch)` before `len`."
            )
        return self._share(len(selection))

    def planned(self, epochs: int) -> list[int]:
        """Samples of each of the first `epochs` epochs.

        Raises:
            TypeError: each selection finds its own size, or the first one does and is not made yet.
        """
        sizes = [self._planned(epoch) for epoch in range(natural("epochs", epochs))]
        known = [self._share(size) for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise TypeError(
                "the sizes of epochs must follow from a `fraction` or a `budget` to be known in "
                f"advance, got selections of {self.selector.strategy!r} that find their own. Count "
                "the samples of each epoch by `len(sampler)`."
            )
        return known

    def _planned(self, epoch: int) -> int | None:
        return self.selector.size_at(self.schedule.selected_at(epoch))

    def _share(self, size: int) -> int:
        unit = self.selector.strategy.unit
        return size // unit // self.sharding.shares()[0] * unit
