"""``∂ℓ/∂z`` of a cross-entropy of tokens, by its formula and a few positions at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CACHED = 1 << 20  # numbers that stay in the cache of a core, from one operation to the next
_ON_DEVICE = 1 << 25


def numbers_at_once(device: torch.device) -> int:
    """How many numbers to work on at once: memory is what passes over wide logits wait for."""
    return _CACHED * torch.get_num_threads() if device.type == "cpu" else _ON_DEVICE


class TokenSlopes:
    """δ of shape (n, T, C) of logits z that are the loss' own: ``δ = a·softmax(z) − b·e_y − c``.

    An index over samples and positions gives those δ as a tensor, which is all that is made of
    them: beside the logits nothing has their size.

    Args:
        logits: (n, T, C) z.
        labels: (n, T) y; that of a position without label is any.
        hit: (n, T) b.
        rest: (n, T) of c, in all classes alike or times `weight`; None without label smoothing.
        weight: (C,) of the classes.

    The δ have the dtype of b.
    """

    ndim = 3

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        hit: Tensor,
        rest: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        self.shape, self.dtype, self.device = logits.shape, hit.dtype, logits.device
        self._logits, self._labels, self._weight = logits, labels.unsqueeze(-1), weight
        self._hit, self._rest = hit.unsqueeze(-1), None if rest is None else rest.unsqueeze(-1)

    def __getitem__(self, index: Any) -> Tensor:
        """Those of samples and positions, (…, C)."""
        hit, weight = self._hit[index], self._weight
        rest = None if self._rest is None else self._rest[index]
        delta = self._logits[index].softmax(-1, dtype=self.dtype)
        if rest is None:
            delta.mul_(hit)
        else:
            total = delta.shape[-1] if weight is None else weight.sum()
            delta.mul_(hit + rest * total).sub_(rest if weight is None else rest * weight)
        return delta.scatter_add_(-1, self._labels[index], -hit)
