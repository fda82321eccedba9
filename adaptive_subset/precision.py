"""Full float32, whatever the caller set up for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from adaptive_subset.default_device import on_cpu


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Outside autocast and without TF32 or bfloat16 products, as solvers need it; see `on_cpu` too.

    Greedy choices are differences of large numbers: the three digits of TF32 and bfloat16 are not
    enough for them.
    """
    # torch >= 2.9 has a setting for each backend, and refuses to be asked for the one of all.
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    each = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    before = [backend.fp32_precision for backend in each]
    of_all = None if each else torch.get_float32_matmul_precision()
    with ExitStack() as stack, on_cpu():
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            for backend in each:
                backend.fp32_precision = "ieee"
            if of_all is not None:
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            for backend, precision in zip(each, before, strict=True):
                backend.fp32_precision = precision
            if of_all is not None:
                torch.set_float32_matmul_precision(of_all)
