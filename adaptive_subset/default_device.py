"""What the library makes for itself is on the CPU, whatever `torch.set_default_device` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def on_cpu() -> Iterator[None]:
    """New tensors are on the CPU in here, where the generators of `seeded` are too.

    Not for code of the user's, which may count on the default device.
    """
    # A context doubles the time of every operation, so that there is none without need.
    elsewhere = torch.empty(0).device.type != "cpu"
    with torch.device("cpu") if elsewhere else nullcontext():
        yield
