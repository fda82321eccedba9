"""Which operations of torch a piece of code runs."""

from __future__ import annotations

import collections
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

#: Those that would wait for a GPU, beside ``_local_scalar_dense``, which reads one number.
WAITS = ("nonzero", "item", "masked_select", "unique", "_unique2", "equal", "_to_copy")


class Counting(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})
