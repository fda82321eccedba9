"""The only place that knows torch.distributed: which rank this is, and what ranks do together."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

#: How long ranks wait for one another in a selection, whatever the timeout of the run's own group:
#: for the slowest share of the pass over the pool, or for the one rank that solves a problem of
#: all. A rank that ends is noticed at once; this is for one that hangs.
TIMEOUT = timedelta(hours=2)

_beside: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by default group: ours, of `TIMEOUT`


def world() -> tuple[int, int]:
    """Number of processes in the default group and the rank in it; (1, 0) without a group."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_world_size(), dist.get_rank()) if there else (1, 0)


class Ranks:
    """The processes of a run, as far as they do something together; one process is rank 0 of 1.

    All of them call the same methods in the same order. They meet in `step`s: what one rank raises
    in a step ends all, and what it raises between two of them does so in `together`. Tensors travel
    through gloo and main memory, also where the run's own group is NCCL's. Steps are not nested.

    Attributes:
        size, rank: how many there are, and which one this is.
    """

    def __init__(self, size: int, rank: int, group: Any = None) -> None:
        self.size, self.rank = size, rank
        self._group = group
        self._ended: BaseException | None = None  # what all of them know of already

    @classmethod
    def of_run(cls) -> Ranks:
        """Those of the default group. The first call makes the group beside it, on all ranks."""
        size, rank = world()
        if size == 1:
            return cls(1, 0)
        default: Any = dist.group.WORLD
        if default not in _beside:
            _beside[default] = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return cls(size, rank, _beside[default])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one rank raises in here, between two steps too, ends all of them."""
        try:
            yield
        except BaseException as error:
            if self.size > 1 and error is not self._ended:
                self.step(partial(_raise, error))  # where the others are, or will come
            raise
        self.step(lambda: None)

    def step(self, compute: Callable[[], T]) -> list[T]:
        """What each rank computes, in the order of ranks, on every rank.

        What one of them raises ends all: an exception that can be pickled as it is, others (an
        interrupt too) as a RuntimeError that names it.

        Args:
            compute: its result is pickled, and padded to the length of the longest.

        Raises:
            RuntimeError: a rank has ended, or does not come within `TIMEOUT`.
        """
        if self.size == 1:
            return [compute()]
        answer, failure = _attempt(compute, self.rank)
        answers: list[Any] = [None] * self.size
        with self._meeting():
            dist.all_gather_object(answers, answer, group=self._group)
        try:
            return [_outcome(answer, failure) for answer in answers]
        except BaseException as error:
            if any(told is not None for _, told in answers):
                self._ended = error
            raise

    def first(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes, on every rank; the others wait. See `step`."""
        if self.size == 1:
            return compute()
        packed = bytearray()

        def pack() -> int:
            if self.rank == 0:
                packed.extend(pickle.dumps(compute()))
            return len(packed)

        length = self.step(pack)[0]
        buffer = torch.frombuffer(packed or bytearray(length), dtype=torch.uint8)
        with self._meeting():
            dist.broadcast(buffer, src=0, group=self._group)
        result: T = pickle.loads(buffer.numpy().tobytes())
        return result

    def total(self, compute: Callable[[], Tensor]) -> Tensor:
        """The sum of what all ranks compute, tensors of the same shape; added in float64."""
        if self.size == 1:
            return compute()
        own: list[Tensor] = []
        self.step(lambda: own.append(compute()))
        sums = own[0].double().cpu()
        with self._meeting():
            dist.all_reduce(sums, group=self._group)
        return sums.to(own[0])

    def exchange(
        self, compute: Callable[[], Tensor], sent: Sequence[int], received: Sequence[int]
    ) -> Tensor:
        """The rows that all ranks have for this one, in the order of ranks.

        Args:
            compute: (Σ sent, …), first the rows for rank 0, then those for rank 1, …
            sent, received: how many rows go to each rank and come from it.

        Returns:
            (Σ received, …) on the device of what was computed.
        """
        if self.size == 1:
            return compute()
        own: list[Tensor] = []
        self.step(lambda: own.append(compute()))
        (rows,) = own
        if not math.prod(rows.shape[1:]):  # rows of no numbers, and none to send
            return rows.new_empty(sum(received), *rows.shape[1:])
        flat = rows.cpu().contiguous().view(len(rows), math.prod(rows.shape[1:]))
        packed = flat.view(torch.uint8)
        arrived = packed.new_empty(sum(received), packed.shape[1])
        with self._meeting():
            dist.all_to_all_single(arrived, packed, [*received], [*sent], group=self._group)
        return arrived.view(rows.dtype).view(-1, *rows.shape[1:]).to(rows.device)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._ended = RuntimeError(
                f"all {self.size} ranks must take part in a selection, and one of them has ended, "
                f"or did not come within {TIMEOUT}, while rank {self.rank} waited for it. Look for "
                f"what it said last. ({error})"
            )
            raise self._ended from error


def agree(ranks: Ranks, ask: Callable[[], dict[str, Any]]) -> None:
    """Make sure that all ranks ask the same, and that each share of an epoch has its rank.

    Args:
        ranks: of the run.
        ask: what this rank is about to do, by name; plain values, among them `num_replicas`, and
            `rank`, the one thing that differs.

    Raises:
        RuntimeError: the ranks ask different questions; on all of them. What `ask` raises on one
            rank ends all of them as well.
    """
    asked = ranks.step(ask)
    found = sorted({question["rank"] for question in asked})
    differing = {
        name: [other.get(name) for other in asked]
        for name in asked[0]
        if name != "rank" and any(other.get(name) != asked[0][name] for other in asked)
    }
    if differing:
        raise RuntimeError(
            "every rank must call `maybe_reselect` with the same epoch, arguments and state, got "
            f"{differing} from ranks 0 to {len(asked) - 1}. Build dataset, selector and sampler "
            "with the same arguments on all ranks, pass the same epoch, and load the same "
            "checkpoint."
        )
    shares = asked[0]["num_replicas"]
    if len(asked) > 1 and found != list(range(shares)):
        raise RuntimeError(
            f"`rank` must give each of the {shares} shares of an epoch to a process, got shares "
            f"{found} in a run of {len(asked)} processes. Pass num_replicas=dist.get_world_size() "
            "and rank=dist.get_rank()."
        )


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


def _raise(error: BaseException) -> None:
    raise error
