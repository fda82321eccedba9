"""The losses that training computes anyway, remembered by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.checks import check_state

_MOST = 1024  # batches that wait to be entered


class Memory(ABC):
    """A number that is kept of each sample beside its last loss, such as an average of them."""

    @abstractmethod
    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Tensor:
        """What is kept of the m samples of a batch after it, (m,) float32 like the arguments.

        Args:
            kept, last: what was kept and the last loss until then, NaN where there was none.
            losses: of this batch.
        """


class LossRecord:
    """The last loss that each of n samples had in training, and what a memory keeps beside it.

    A step of training only hands its tensors over; they are entered when somebody reads, so that
    no step waits for a transfer from the device.

    Args:
        n: number of samples.
        memory: what else is kept of a sample, None for nothing.

    Example:
        >>> record = LossRecord(3)
        >>> record.note(torch.tensor([2, -1]), torch.tensor([0.5, 9.0]))
        >>> record.values
        tensor([   nan,    nan, 0.5000])
    """

    def __init__(self, n: int, memory: Memory | None = None) -> None:
        self._values = torch.full((n,), torch.nan)
        self._memory = memory
        self._kept = None if memory is None else self._values.clone()
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._values)

    def note(self, indices: Tensor, losses: Tensor) -> None:
        """Remember the `losses` (m,) of the samples at `indices` (m,) int64.

        What has no index (−1), such as a mixture of several samples, is no sample's own loss and
        is left out. Of a sample that occurs more than once in a batch, as with a row for each of
        its parts, the mean counts.
        """
        self._waiting.append((indices, losses.detach()))
        if len(self._waiting) == _MOST:
            self._enter()

    @property
    def values(self) -> Tensor:
        """(n,) float32 on the CPU, NaN where no loss was noted; a copy."""
        self._enter()
        return self._values.clone()

    @property
    def kept(self) -> Tensor | None:
        """(n,) float32 on the CPU, NaN where nothing was noted; a copy. None without a memory."""
        self._enter()
        return None if self._kept is None else self._kept.clone()

    def _enter(self) -> None:
        for at, noted in self._waiting:
            indices, losses = at.cpu(), noted.float().cpu()
            known = indices >= 0
            indices, losses = _once_each(indices[known], losses[known])
            if self._memory is not None and self._kept is not None and len(indices):
                kept = self._memory.update(self._kept[indices], self._values[indices], losses)
                self._kept[indices] = kept
            self._values[indices] = losses
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Copies of the losses, and of what is kept beside them."""
        kept = self.kept
        return {"values": self.values} | ({} if kept is None else {"kept": kept})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the losses of `state`.

        Raises:
            ValueError: they are those of another number of samples, or no losses.
        """
        names = ("values",) if self._memory is None else ("values", "kept")
        check_state("LossRecord", state, dict.fromkeys(names, Tensor))
        for values in (state[name] for name in names):
            if values.shape != self._values.shape or not values.is_floating_point():
                raise ValueError(
                    f"`state` must hold the losses of {len(self)} samples, got "
                    f"{tuple(values.shape)} of {values.dtype}. Load the state of a run on the same "
                    "dataset."
                )
        loaded = {name: state[name].detach().to("cpu", torch.float32, copy=True) for name in names}
        self._waiting.clear()
        self._values, self._kept = loaded["values"], loaded.get("kept")


def _once_each(indices: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct indices, with the mean loss of each."""
    unique, place = torch.unique(indices, return_inverse=True)
    if len(unique) == len(indices):
        return indices, losses
    sums = torch.zeros(len(unique)).index_add_(0, place, losses)
    return unique, sums / torch.bincount(place)
