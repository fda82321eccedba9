"""The only place that knows torch.distributed: which rank this is, and one answer for all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Number of processes in the default group and the rank in it; (1, 0) without a group."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_world_size(), dist.get_rank()) if there else (1, 0)


def agree(question: dict[str, Any]) -> None:
    """Make sure that all ranks ask the same.

    Args:
        question: what this rank is about to do, by name; plain values.

    Raises:
        RuntimeError: the ranks ask different questions; on all of them.
    """
    size, _ = world()
    if size == 1:
        return
    asked: list[Any] = [None] * size
    dist.all_gather_object(asked, question)
    differing = {
        name: [other.get(name) for other in asked]
        for name in question
        if any(other.get(name) != asked[0].get(name) for other in asked)
    }
    if differing:
        raise RuntimeError(
            "every rank must call `maybe_reselect` with the same epoch, arguments and state, got "
            f"{differing} from ranks 0 to {size - 1}. Build dataset, selector and sampler with the "
            "same arguments on all ranks, pass the same epoch, and load the same checkpoint."
        )


def on_first_rank(compute: Callable[[], T]) -> T:
    """The result of `compute` on rank 0, on every rank; the others wait.

    Ranks that computed for themselves would diverge: their BatchNorm buffers differ. What rank 0
    raises ends all of them: an exception that can be pickled as it is, others (an interrupt too)
    as a RuntimeError that names it.

    Args:
        compute: runs on rank 0 only; its result is pickled.
    """
    size, rank = world()
    if size == 1:
        return compute()
    answer: list[Any] = [None, None]
    failure: BaseException | None = None
    if rank == 0:
        try:
            answer[0] = compute()
        except BaseException as error:  # the other ranks are waiting for an answer
            failure, answer[1] = error, _for_others(error)
    dist.broadcast_object_list(answer, src=0)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def _for_others(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
        except Exception:  # whatever the exception's own code raises
            pass
    return RuntimeError(f"rank 0 failed while it selected: {type(error).__name__}: {error}")
