"""Rows that arrive batch by batch, written in place where their number is known."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """One tensor (n, …), filled from the front.

    Args:
        size: n; None where it is not known, the rows are then joined at the end.
        dtype: what they are kept in; None for that of the first rows.
        ones: whether rows (m, p) are kept as (m, p + 1), with a constant 1 at the end.
    """

    def __init__(
        self, size: int | None, dtype: torch.dtype | None = None, *, ones: bool = False
    ) -> None:
        self._size, self._dtype, self._ones = size, dtype, ones
        self._parts: list[Tensor] = []
        self._room = torch.empty(0)  # of them all, without the ones
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def append(self, rows: Tensor) -> None:
        """Add `rows` (m, …). Those beyond the size are counted, not kept."""
        if self._size is None:
            room, whole = self._place(len(rows), rows)
            room.copy_(rows)
            self._parts.append(whole)
        else:
            if not self._parts:
                self._room, whole = self._place(self._size, rows)
                self._parts = [whole]
            room = self._room[self._filled : self._filled + len(rows)]
            room.copy_(rows if len(room) == len(rows) else rows[: len(room)])
        self._filled += len(rows)

    def _place(self, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Room for n rows, and the tensor (n, …) that it is in."""
        shape = like.shape[1:]
        if not self._ones:
            whole = like.new_empty(n, *shape, dtype=self._dtype)
            return whole, whole
        whole = like.new_empty(n, shape[0] + 1, dtype=self._dtype)
        whole[:, -1] = 1
        return whole[:, :-1], whole

    def join(self) -> Tensor:
        """All of them, (n, …)."""
        return self._parts[0] if self._size is not None else torch.cat(self._parts)
