"""How much a solver may hold on an accelerator."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device) -> float:
    """What is free on `device`, with what torch holds and does not use; 0 where it is not known.

    Also 0 on a device without float64, on which nothing can be solved as on the CPU.
    """
    if device.type != "cuda":
        return 0.0
    index = torch.cuda.current_device() if device.index is None else device.index
    held = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return float(torch.cuda.mem_get_info(index)[0] + held)
