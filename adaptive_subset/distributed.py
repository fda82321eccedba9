"""The only place that knows torch.distributed: which rank this is, and one answer for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def replicas() -> tuple[int, int]:
    """Number of processes in the default group and the rank in it; (1, 0) without a group."""
    return (dist.get_world_size(), dist.get_rank()) if _initialised() else (1, 0)


def once(compute: Callable[[], T], question: Any) -> T:
    """The result of `compute` on rank 0, on every rank; the others wait.

    Ranks that computed for themselves would diverge: their BatchNorm buffers differ. An exception
    on rank 0 is raised on all of them.

    Args:
        compute: runs on rank 0 only; its result is pickled.
        question: what the ranks believe to be computing, compared between them.

    Raises:
        RuntimeError: the ranks ask different questions.
    """
    if replicas()[0] == 1:
        return compute()
    asked: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(asked, question)
    if any(other != asked[0] for other in asked):
        raise RuntimeError(
            "every rank must call `maybe_reselect` with the same epoch and the same state, got "
            f"{asked} from ranks 0 to {len(asked) - 1}. Pass the same epoch on all ranks, and load "
            "the same checkpoint on all."
        )
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = compute()
        except Exception as error:  # the other ranks are waiting for an answer
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result
