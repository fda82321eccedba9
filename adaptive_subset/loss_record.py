"""The losses that training computes anyway, remembered by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.checks import check_state

_MOST = 1024  # batches that wait to be entered


class LossRecord:
    """The last loss that each of n samples had in training.

    A step of training only hands its tensors over; they are entered when somebody reads, so that
    no step waits for a transfer from the device.

    Args:
        n: number of samples.

    Example:
        >>> record = LossRecord(3)
        >>> record.note(torch.tensor([2, -1]), torch.tensor([0.5, 9.0]))
        >>> record.values
        tensor([   nan,    nan, 0.5000])
    """

    def __init__(self, n: int) -> None:
        self._values = torch.full((n,), torch.nan)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._values)

    def note(self, indices: Tensor, losses: Tensor) -> None:
        """Remember the `losses` (m,) of the samples at `indices` (m,) int64.

        What has no index (−1), such as a mixture of several samples, is no sample's own loss and
        is left out. Of a sample that occurs more than once the last loss counts.
        """
        self._waiting.append((indices, losses.detach()))
        if len(self._waiting) == _MOST:
            self._enter()

    @property
    def values(self) -> Tensor:
        """(n,) float32 on the CPU, NaN where no loss was noted; a copy."""
        self._enter()
        return self._values.clone()

    def _enter(self) -> None:
        values = self._values.numpy()  # torch does not say which of repeated indices wins
        for at, losses in self._waiting:
            indices = at.numpy(force=True)
            known = indices >= 0
            values[indices[known]] = losses.float().numpy(force=True)[known]
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the losses."""
        return {"values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the losses of `state`.

        Raises:
            ValueError: they are those of another number of samples, or no losses.
        """
        check_state("LossRecord", state, {"values": Tensor})
        values = state["values"]
        if values.shape != self._values.shape or not values.is_floating_point():
            raise ValueError(
                f"`state` must hold the losses of {len(self)} samples, got "
                f"{tuple(values.shape)} of {values.dtype}. Load the state of a run on the same "
                "dataset."
            )
        self._waiting.clear()
        self._values = values.detach().to("cpu", torch.float32, copy=True)
