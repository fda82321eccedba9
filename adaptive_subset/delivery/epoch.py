"""One epoch of indices: in which order a selection is walked through, and by whom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from adaptive_subset.randomness import Purpose, resample, seeded


def order_of(weights: Tensor, *, by_weight: bool, seed: int, epoch: int) -> Tensor:
    """The rows of `weights` (units, unit) in the order of the epoch, each once, or `by_weight`.

    Raises:
        ValueError: negative weights, by which nothing can be repeated.
    """
    units = torch.arange(len(weights))
    if by_weight:
        if float(weights.min()) < 0:
            raise ValueError(
                'weighting="resample" needs weights of at least 0, got '
                f"{float(weights.min()):g}. Use a strategy with non-negative weights."
            )
        units = resample(weights[:, 0], len(units), seeded(seed, epoch, Purpose.RESAMPLING))
    return units[torch.randperm(len(units), generator=seeded(seed, epoch, Purpose.ORDER))]


def share_of(order: Tensor, num_replicas: int, rank: int) -> Tensor:
    """Every `num_replicas`-th of `order`, as many for each rank."""
    return order[: len(order) // num_replicas * num_replicas][rank::num_replicas]


class Epoch(Iterator[int]):
    """One pass over the indices of an epoch, resumable in the middle (torchdata's protocol).

    Args:
        epoch: which one.
        indices: of this rank, in order.
        finished: called at the end with the seconds that the pass took.
    """

    def __init__(self, epoch: int, indices: list[int], finished: Callable[[float], None]) -> None:
        self._epoch, self._indices, self._finished = epoch, indices, finished
        self._position, self._start = 0, time.perf_counter()

    def __next__(self) -> int:
        if self._position == len(self._indices):
            self._finished(time.perf_counter() - self._start)
            self._start = time.perf_counter()
            raise StopIteration
        self._position += 1
        return self._indices[self._position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["epoch"] != self._epoch:
            raise ValueError(
                f"`state` must be of the epoch that the sampler is at, got {state['epoch']} and "
                f"{self._epoch}. Load the sampler's state first."
            )
        self._position = state["position"]
