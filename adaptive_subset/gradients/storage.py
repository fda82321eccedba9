"""Rows that arrive batch by batch, written in place where their number is known."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """One tensor (n, …), filled from the front.

    Args:
        size: n; None where it is not known, the rows are then joined at the end.
        dtype: what they are kept in; None for that of the first rows.
    """

    def __init__(self, size: int | None, dtype: torch.dtype | None = None) -> None:
        self._size, self._dtype = size, dtype
        self._parts: list[Tensor] = []
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def append(self, rows: Tensor) -> None:
        """Add `rows` (m, …). Those beyond the size are counted, not kept."""
        if self._size is None:
            self._parts.append(rows.to(self._dtype or rows.dtype))
        else:
            if not self._parts:
                self._parts = [rows.new_empty(self._size, *rows.shape[1:], dtype=self._dtype)]
            room = self._parts[0][self._filled : self._filled + len(rows)]
            room.copy_(rows[: len(room)])
        self._filled += len(rows)

    def join(self) -> Tensor:
        """All of them, (n, …)."""
        return self._parts[0] if self._size is not None else torch.cat(self._parts)
