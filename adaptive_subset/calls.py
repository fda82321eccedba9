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

    @property
    def are_missing(self) -> bool:
        """Whether training went through an epoch without any."""
        return self.is_held and self.are_due and not self.number

    def warn(self, weights: Tensor) -> None:
        """Say so, unless all `weights` are one."""
        if bool(((weights - 1).abs() > 1e-3).any()):
            warnings.warn(
                "the WeightedLoss of the selector was not called in a whole epoch, so training "
                "follows another gradient than the one that was selected. Train on what it "
                "returns: a loss that the model computes by itself has no weights.",
                stacklevel=3,
            )
