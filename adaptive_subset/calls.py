"""Whether the loss that carries the weights is the one that trains."""

from __future__ import annotations

import warnings

from torch import Tensor


class Calls:
    """How often the `WeightedLoss` that holds a selector was called, and whether it should be."""

    def __init__(self) -> None:
        self.number = 0
        self.is_held = False  # by one
        self.are_due = False  # an epoch is over
        self._before = 0  # their number at the last look

    def warn_if_missing(self, weights: Tensor, *, are_learnt: bool) -> None:
        """Say so where training went through an epoch without any since the last time.

        Args:
            weights: (k,) of the loss in that epoch; where all are one, none is lost.
            are_learnt: whether the strategy goes by the losses of training. The first time that it
                learns none, `LossRecord.check` raises.
        """
        before, self._before = self._before, self.number
        are_due, self.are_due = self.are_due, False
        if not (self.is_held and are_due and self.number == before):
            return
        if bool(((weights - 1).abs() > 1e-3).any()):
            effect = "training follows another gradient than the one that was selected"
        elif are_learnt and before:
            effect = "the selection goes by losses of earlier epochs"
        else:
            return
        warnings.warn(
            f"the WeightedLoss of the selector was not called in a whole epoch, so {effect}. Train "
            "on what it returns: a loss that the model computes by itself has no weights, and a "
            "copy of the WeightedLoss, or another one, tells the selector nothing.",
            stacklevel=3,
        )
