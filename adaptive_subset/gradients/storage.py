"""Rows that arrive batch by batch, written in place where their number is known."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class Rows:
    """One tensor (n, …), filled from the front.

    Args:
        size: n; None where it is not known, the rows are then joined at the end.
        dtype: what they are kept in; None for that of the first rows.
        ones: whether rows (m, p) are kept as (m, p + 1), with a constant 1 at the end.
        folder: for a file that they are kept in, on the CPU, in place of memory, see `in_file`.
    """

    def __init__(
        self,
        size: int | None,
        dtype: torch.dtype | None = None,
        *,
        ones: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._size, self._dtype, self._ones, self._folder = size, dtype, ones, folder
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
            whole = self._empty(n, shape, like)
            return whole, whole
        whole = self._empty(n, torch.Size([shape[0] + 1]), like)
        whole[:, -1] = 1
        return whole[:, :-1], whole

    def _empty(self, n: int, shape: torch.Size, like: Tensor) -> Tensor:
        dtype = self._dtype or like.dtype
        if self._folder is None:
            return like.new_empty(n, *shape, dtype=dtype)
        return in_file(torch.Size([n, *shape]), dtype, self._folder)

    def join(self) -> Tensor:
        """All of them, (n, …)."""
        if self._size is not None:
            return self._parts[0]
        if self._folder is None:
            return torch.cat(self._parts)
        first = self._parts[0]
        whole = in_file(torch.Size([len(self), *first.shape[1:]]), first.dtype, self._folder)
        return torch.cat(self._parts, out=whole)


def in_file(shape: torch.Size, dtype: torch.dtype, folder: Path) -> Tensor:
    """An empty tensor on the CPU whose memory is a file in `folder`.

    The system writes to it what has no room in memory. It has no name, so that it goes with the
    tensor, and has all its room from the start where the system can see to that.

    Raises:
        OSError: there is no room for it, or no such folder.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: a file that takes its room as it is written
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"`storage_dir` must have room for {size / 2**30:.2f} GiB of gradients, got "
                f"{folder}: {error.strerror}. Give a folder on another disk, or keep half of that "
                "by storage_dtype=torch.float16.",
            ) from None
        return torch.from_file(file.name, True, math.prod(shape), dtype=dtype).view(shape)
