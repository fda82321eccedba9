"""What the batches that a criterion was evaluated on say of it: whether it couples samples."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.gradients.loss_batch import Criterion, name_of


@dataclass
class Known:
    """What is known of a criterion.

    Args:
        batches: how many it was seen on. Samples are checked for coupling on batch 1, 2, 4, 8, ….
        way: to the losses of single samples.
        lasts: whether there will be a next call that finds it.
        failed: whether a batch was another number than its samples, on the GPU.
        heard: the same in pinned memory. Nobody waits for the copy: it is read at the next call,
            and only ever changes to True.
        shapes: of the last batch that was noted.
    """

    batches: int = 0
    way: int = 0
    lasts: bool = True
    failed: Tensor | None = None
    heard: Tensor | None = None
    shapes: str = ""

    def is_due(self) -> bool:
        """Whether to check on this batch."""
        self.batches += 1
        return self.batches & (self.batches - 1) == 0

    def note(self, agrees: Tensor, shapes: str) -> None:
        """Remember whether a batch on a GPU agrees with its samples."""
        failed, self.shapes = ~agrees, shapes
        self.failed = failed if self.failed is None else self.failed.to(failed.device) | failed
        if self.heard is None:
            self.heard = torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=failed.is_cuda)
        self.heard.copy_(self.failed, non_blocking=True)


_known: weakref.WeakKeyDictionary[Any, Known] = weakref.WeakKeyDictionary()


def what_is_known(criterion: Criterion) -> Known:
    """The same at every call, if it can be."""
    try:
        return _known.setdefault(criterion, Known())
    except TypeError:  # not weakly referable: checked at every call
        return Known(lasts=False)


def raise_what_was_found(criterion: Criterion) -> None:
    """Raise for the batches on a GPU that nobody has waited for; waits for it once.

    Raises:
        ValueError: the criterion couples samples.
    """
    try:
        record = _known.get(criterion)
    except TypeError:  # checked at every call
        return
    if record is not None and record.failed is not None:
        failed, record.failed, record.heard = bool(record.failed), None, None
        if failed:
            record.batches = 0  # so that it fails again
            raise coupled(criterion, record.shapes)


def coupled(criterion: Criterion, shapes: str) -> ValueError:
    """The error for a criterion that couples samples, with the shapes of its arguments."""
    return ValueError(
        "`criterion` must be a sum or mean of losses that each depend on one sample, got "
        f"{name_of(criterion)}, whose value on a batch is another than that of its samples (for "
        f"arguments of shapes {shapes}). A loss that couples samples cannot be weighted; one that "
        "divides by class weights or ignores labels needs a `reduction` attribute, as torch's own "
        "losses, TokenLoss and PixelLoss have; a penalty on something else is added outside: "
        "criterion(output, target) + penalty."
    )


def fails_alone(criterion: Criterion, shapes: str, error: Exception) -> ValueError:
    """The error for a criterion that raises on some of the samples of a batch that it takes."""
    return ValueError(
        "`criterion` must take any of the samples of a batch, as losses are told apart by, got "
        f"{name_of(criterion)}, which takes the batch but raises {type(error).__name__} ({error}) "
        f"on arguments of shapes {shapes}. Use squeeze(1) for a squeeze() that takes the rows "
        "away too, and bind what has no row for each sample, such as class weights: "
        "functools.partial(criterion, weight=...)."
    )
