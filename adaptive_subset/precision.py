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
    backends = [(torch.backends.cuda.matmul, torch.backends.cudnn)]
    if hasattr(torch.backends.mkldnn, "matmul"):
        backends.append((torch.backends.mkldnn.matmul, torch.backends.mkldnn))
    each: list[tuple[Any, str]] = []
    for products, parent in backends:
        if (set_to := getattr(products, "fp32_precision", None)) is not None:
            # What is the same above is taken for inherited, to follow it again.
            inherits = set_to == getattr(parent, "fp32_precision", None)
            each.append((products, "none" if inherits else set_to))
    of_all = None if each else torch.get_float32_matmul_precision()
    with ExitStack() as stack, on_cpu():
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            for products, _ in each:
                products.fp32_precision = "ieee"
            if of_all is not None:
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            for products, before in each:
                products.fp32_precision = before
            if of_all is not None:
                torch.set_float32_matmul_precision(of_all)
