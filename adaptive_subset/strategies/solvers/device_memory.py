"""How much a solver may hold on an accelerator, and which problems go there together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_ALIKE = 0.75  # the smallest problem of a batch is no smaller than this share of its largest
_SMALL = 256  # … or all have at most so many candidates


def free_bytes(device: torch.device) -> float:
    """What is free on `device`, with what torch holds and does not use; 0 where it is not known.

    Also 0 on a device without float64, on which nothing can be solved as on the CPU.
    """
    if device.type != "cuda":
        return 0.0
    index = torch.cuda.current_device() if device.index is None else device.index
    held = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return float(torch.cuda.mem_get_info(index)[0] + held)


def batches(
    sizes: Sequence[tuple[int, int]],
    needs: Callable[[int, int], float],
    device: torch.device,
    room: float | None,
) -> list[list[int]]:
    """The places of problems that are solved together; those left out have no room, or are empty.

    Args:
        sizes: of each problem, its candidates and a second number that its memory depends on.
        needs: bytes of one problem in a batch whose largest sizes are these.
        device: where they are solved.
        room: bytes that a batch may take; None for most of what is free there.
    """
    room = 0.8 * free_bytes(device) if room is None else room
    found: list[list[int]] = []
    n = k = 0  # the largest sizes in the last batch
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        own_n, own_k = sizes[place]
        if not own_n or not own_k:
            continue
        if found and (own_n >= _ALIKE * n or n <= _SMALL):
            most = max(k, own_k)
            if (len(found[-1]) + 1) * needs(n, most) <= room:
                found[-1].append(place)
                k = most
                continue
        if needs(own_n, own_k) <= room:
            n, k = own_n, own_k
            found.append([place])
    return found
