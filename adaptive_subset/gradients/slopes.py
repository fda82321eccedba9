"""∂ℓ/∂z where z is what the model returns: for several batches at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adaptive_subset.gradients.loss_batch import explained
from adaptive_subset.gradients.model_io import copied_to
from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses
from adaptive_subset.gradients.torch_losses import torch_losses

_NUMBERS = 1 << 18  # outputs that wait: as many as stay in a cache


class Slopes:
    """∂ℓ/∂z (n, C) of outputs z, in the order they came in.

    A small network spends a tenth of its pass on the operations of loss and ∂ℓ/∂z, which are no
    more for many batches than for one.

    Args:
        criterion: one whose losses of single samples are known not to depend on their batch.
        keep: is called with the slopes (m, C) of some samples.
    """

    @classmethod
    def of(
        cls, criterion: Criterion, output: Tensor, target: Tensor, keep: Callable[[Tensor], None]
    ) -> Slopes | None:
        """None for a criterion whose losses, on such a batch, are not known to be independent."""
        arguments = output.detach(), copied_to(output.device, target)
        with explained(*arguments):
            known = torch_losses(criterion, arguments, {}) is not None
        return cls(criterion, keep) if known else None

    def __init__(self, criterion: Criterion, keep: Callable[[Tensor], None]) -> None:
        self._criterion, self._keep = criterion, keep
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._waiting = 0

    @staticmethod
    def takes(output: Tensor) -> bool:
        """Whether to wait with a batch: not where its own operations are long, and fill memory."""
        return output.ndim == 2 and 2 * output.numel() <= _NUMBERS

    def add(self, output: Tensor, target: Tensor) -> None:
        """Those of a batch: output (n, C), which nobody writes to any more, and target (n, …)."""
        target = copied_to(output.device, target)
        if self._targets and (
            target.shape[1:] != self._targets[0].shape[1:]
            or target.dtype != self._targets[0].dtype
            or output.shape[1:] != self._outputs[0].shape[1:]
            or output.dtype != self._outputs[0].dtype
        ):
            self.flush()
        self._outputs.append(output)
        self._targets.append(target)
        self._waiting += output.numel()
        if self._waiting >= _NUMBERS:
            self.flush()

    def flush(self) -> None:
        """Hand over the slopes of all outputs that wait."""
        if not self._outputs:
            return
        outputs, targets = torch.cat(self._outputs), torch.cat(self._targets)
        self._outputs, self._targets, self._waiting = [], [], 0
        with torch.autocast(outputs.device.type, enabled=False), explained(outputs, targets):
            outputs.requires_grad_()
            losses = per_sample_losses(self._criterion, outputs, targets, wait=False)
            (slopes,) = torch.autograd.grad(losses, outputs, torch.ones_like(losses))
        self._keep(slopes)
