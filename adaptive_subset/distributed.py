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


def agree(ask: Callable[[], dict[str, Any]]) -> None:
    """Make sure that all ranks ask the same, and that each share of an epoch has its rank.

    Args:
        ask: what this rank is about to do, by name; plain values, among them `num_replicas`, and
            `rank`, the one thing that differs.

    Raises:
        RuntimeError: the ranks ask different questions; on all of them. What `ask` raises on one
            rank ends all of them as well.
    """
    asked = _gathered(ask)
    ranks = sorted({question.pop("rank") for question in asked})
    differing = {
        name: [other.get(name) for other in asked]
        for name in asked[0]
        if any(other.get(name) != asked[0][name] for other in asked)
    }
    if differing:
        raise RuntimeError(
            "every rank must call `maybe_reselect` with the same epoch, arguments and state, got "
            f"{differing} from ranks 0 to {len(asked) - 1}. Build dataset, selector and sampler "
            "with the same arguments on all ranks, pass the same epoch, and load the same "
            "checkpoint."
        )
    shares = asked[0]["num_replicas"]
    if len(asked) > 1 and ranks != list(range(shares)):
        raise RuntimeError(
            f"`rank` must give each of the {shares} shares of an epoch to a process, got shares "
            f"{ranks} in a run of {len(asked)} processes. Pass num_replicas=dist.get_world_size() "
            "and rank=dist.get_rank()."
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
    answer: list[Any] = [None]
    failure: BaseException | None = None
    if rank == 0:
        answer[0], failure = _attempt(compute, rank)
    dist.broadcast_object_list(answer, src=0)
    result: T = _outcome(answer[0], failure)
    return result


def _gathered(compute: Callable[[], T]) -> list[T]:
    """What each rank computes, on every rank; what one of them raises ends all."""
    size, rank = world()
    if size == 1:
        return [compute()]
    answer, failure = _attempt(compute, rank)
    answers: list[Any] = [None] * size
    dist.all_gather_object(answers, answer)
    return [_outcome(answer, failure) for answer in answers]


_Answer = tuple[bytes | None, Exception | None]


def _attempt(compute: Callable[[], Any], rank: int) -> tuple[_Answer, BaseException | None]:
    """The result pickled, or the error for other ranks and the one for this rank."""
    try:
        return (pickle.dumps(compute()), None), None
    except BaseException as error:  # the other ranks are waiting for an answer
        return (None, _for_others(error, rank)), error


def _outcome(answer: _Answer, failure: BaseException | None) -> Any:
    result, error = answer
    if failure is not None:
        raise failure
    if error is not None:
        raise error
    assert result is not None
    return pickle.loads(result)


def _for_others(error: BaseException, rank: int) -> Exception:
    if isinstance(error, Exception):
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
        except Exception:  # whatever the exception's own code raises
            pass
    return RuntimeError(f"rank {rank} failed: {type(error).__name__}: {error}")
