"""Which epochs of a run are warm-up, and which are due for a selection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adaptive_subset.checks import natural, number, whole
from adaptive_subset.selection import Selection


@dataclass(frozen=True)
class Schedule:
    """A warm start, then a selection every R epochs.

    Args:
        every: R, epochs from one selection to the next.
        warm_epochs: those before the first selection.
        warm_start: κ, of which they are the outcome.
    """

    every: int
    warm_epochs: int
    warm_start: float

    @classmethod
    def of(cls, every: int, epochs: int | None, warm_start: float) -> Schedule:
        """What the arguments of `AdaptiveSubsetSampler` say.

        Raises:
            TypeError: one of them is no number, or no whole one.
            ValueError: one of them is out of range, or a warm start without `epochs`.
        """
        every, warm_start = whole("every", every), number("warm_start", warm_start)
        epochs = None if epochs is None else natural("epochs", epochs, 1)
        if every < 1:
            raise ValueError(f"`every` must be at least 1 epoch, got {every}.")
        if not 0 <= warm_start <= 1:
            raise ValueError(
                f"`warm_start` must be in [0, 1], got {warm_start:g}. It is a share of `epochs`."
            )
        if warm_start > 0 and epochs is None:
            raise ValueError(
                f"`epochs` must be given for a warm start of {warm_start}, got None. Pass the "
                "number of epochs of the whole run."
            )
        return cls(every, round(warm_start * (epochs or 0)), warm_start)

    def resumed(self, warm_epochs: int) -> Schedule:
        """That of a run which goes on, for more epochs perhaps: it is as warm as it was planned.

        Raises:
            ValueError: `warm_epochs` is none, of a damaged checkpoint.
        """
        return replace(self, warm_epochs=natural("warm_epochs", warm_epochs))

    def is_due(self, epoch: int, selection: Selection | None) -> bool:
        """Whether `epoch` needs a selection that `selection`, the current one, is not."""
        if epoch < self.warm_epochs:
            return False
        return selection is None or self._period(selection.epoch) != self._period(epoch)

    def current(self, epoch: int, selection: Selection | None) -> Selection:
        """`selection`, where `epoch` is not due for another one.

        Raises:
            RuntimeError: it is.
        """
        if selection is None or self.is_due(epoch, selection):
            raise RuntimeError(
                f"epoch {epoch} is due for a selection and has none. Call "
                "`sampler.maybe_reselect(model, epoch)` before iterating over the loader."
            )
        return selection

    def selected_at(self, epoch: int) -> int:
        """The epoch of the selection that is current in `epoch`; in a warm start of the first."""
        return max(0, self._period(epoch)) * self.every + self.warm_epochs

    def _period(self, epoch: int) -> int:
        return (epoch - self.warm_epochs) // self.every
