"""How many operations and kernels a piece of code starts, and how often it waits for a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

#: Launches by name of the runtime's call.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
#: Where the host stands still until a GPU has come so far.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
#: Operations that read values of a tensor, and so would wait for a GPU.
READS = (
    *("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"),
    *("aten::masked_select", "aten::_unique2"),
)


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """What `run` starts and waits for.

    Returns:
        Operations that reach a backend of torch (views included); reads of values, which would
        wait for a GPU; and of a GPU what it saw: launches, waits, and copies to the host.
    """
    with _Operations() as operations:
        run()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as seen:
        run()
    names: Counter[str] = Counter()
    for event in seen.key_averages():
        names[event.key] += event.count
    found = {"operations": operations.number, "reads": sum(names[name] for name in READS)}
    if device.type == "cuda":
        found["launches"] = sum(names[name] for name in LAUNCHES)
        found["waits"] = sum(names[name] for name in WAITS)
        found["to host"] = sum(n for name, n in names.items() if name.startswith("Memcpy DtoH"))
    return found


def per_unit(
    run: Callable[[int], Any], few: int, many: int, device: torch.device
) -> dict[str, float]:
    """Of one unit (a batch, a step, an atom), from what `many` take beyond `few`.

    So what happens once, at the beginning or the end, and the profiler's own waits do not count.
    """
    run(few)
    less, more = (counted(partial(run, units), device) for units in (few, many))
    return {name: (more[name] - less[name]) / (many - few) for name in more}
