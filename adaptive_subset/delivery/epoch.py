"""One epoch of indices: in which order it is walked through, by whom, and from where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.checks import check_state, check_word
from adaptive_subset.default_device import on_cpu
from adaptive_subset.randomness import Purpose, resample, seeded
from adaptive_subset.selector import Selector


class TaggedIndex(int):
    """An index with the weight of its sample; an ordinary int to everyone else.

    Examples:
        >>> index = TaggedIndex(7, 0.5)
        >>> index + 1, index.weight
        (8, 0.5)
    """

    weight: float

    def __new__(cls, index: int, weight: float) -> TaggedIndex:
        tagged = super().__new__(cls, index)
        tagged.weight = weight
        return tagged

    def __getnewargs__(self) -> tuple[int, float]:  # type: ignore[override]
        return int(self), self.weight


@on_cpu()
def in_order(
    indices: Tensor,
    weights: Tensor,
    *,
    resampled: bool,
    seed: int,
    epoch: int,
    shares: tuple[int, int],
) -> Order:
    """The indices of one process in an epoch, each with its weight.

    Args:
        indices: (units, unit) int64; the samples of a unit stay together.
        weights: of the same shape.
        resampled: whether units are repeated in proportion to their weight, and indices have none.
        seed, epoch: of the order.
        shares: how many processes there are, and which one this is; each gets as many units.

    Raises:
        ValueError: negative weights, by which nothing can be repeated.
    """
    units = torch.arange(len(weights))
    if resampled:
        if float(weights.min()) < 0:
            raise ValueError(
                '`weighting` must be "loss" for negative weights, got "resample" and a weight of '
                f"{float(weights.min()):g}. Use a strategy with weights of at least 0."
            )
        units = resample(weights[:, 0], len(units), seeded(seed, epoch, Purpose.RESAMPLING))
    order = units[torch.randperm(len(units), generator=seeded(seed, epoch, Purpose.ORDER))]
    processes, rank = shares
    share = order[: len(order) // processes * processes][rank::processes]
    chosen = indices[share].flatten()
    return Order(chosen, None if resampled else weights[share].flatten())


def check_weighting(weighting: str, selector: Selector) -> None:
    """Raise a ValueError for what is no weighting, or none that `selector` can go with."""
    check_word("weighting", weighting, ("loss", "resample"))
    strategy = selector.strategy
    if weighting == "resample" and selector.weights == "matched":
        raise ValueError(
            '`weighting` must be "loss" for weights="matched", got "resample": samples are '
            "repeated in proportion to their weights, so that the length of the matched gradient "
            'would be lost. Give the Selector weights="mean-one", or wrap the loss.'
        )
    if weighting == "resample" and strategy.needs_losses:
        raise ValueError(
            '`weighting` must be "loss" for a strategy that goes by the losses of training, got '
            f'"resample" for {strategy!r}: indices without a weight tell no loss whose it is. Use '
            "a strategy that goes by gradients, or FreshRandom()."
        )


class Order:
    """The indices of one process, which become Python objects a stretch at a time.

    A short one, which is gone before the garbage collector takes its objects for long-lived ones:
    from their number follows how often it walks over all of the program's.

    Args:
        indices: (k,) int64.
        weights: (k,) float32, None for indices without.
    """

    STRETCH = 256

    def __init__(self, indices: Tensor, weights: Tensor | None) -> None:
        self._indices, self._weights = indices, weights

    def __len__(self) -> int:
        return len(self._indices)

    def stretch(self, start: int) -> Sequence[int]:
        """Those from `start` on, at most `STRETCH`, each with its weight."""
        rows = slice(start, start + self.STRETCH)
        chosen: list[int] = self._indices[rows].tolist()
        if self._weights is None:
            return chosen
        tagged = list(map(int.__new__, repeat(TaggedIndex), chosen))  # quicker than one by one
        for index, weight in zip(tagged, self._weights[rows].tolist(), strict=True):
            index.weight = weight
        return tagged


class Epoch(Iterator[int]):
    """One pass over the indices of an epoch, resumable in the middle (torchdata's protocol).

    It begins with the first index that is asked for, so that what loops and loaders do between
    making an iterator and using it (select, load a state) still counts.

    Args:
        begin: tells which epoch it is and the indices of this rank, in order.
        finished: called at the end with the seconds that the pass took.
    """

    def __init__(
        self, begin: Callable[[], tuple[int, Order]], finished: Callable[[float], None]
    ) -> None:
        self._begin, self._finished = begin, finished
        self._epoch: int | None = None
        self._order = Order(torch.empty(0, dtype=torch.int64), None)
        self._stretch: Iterator[int] = iter(())  # from the position on
        self._read, self._start = 0, 0.0  # how many indices it ends at, and when it all began
        self._has_read = False  # anything, since it was last over
        self._saved: dict[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether an index was asked for."""
        return self._epoch is not None

    @property
    def _position(self) -> int:
        return self._read - length_hint(self._stretch)

    def __next__(self) -> int:
        for index in self._stretch:  # quicker than next(), once for every sample
            return index
        return self._further()

    def _further(self) -> int:
        """The first index of another stretch."""
        if self._epoch is None:
            self._enter()
        if self._read == len(self._order):
            if self._has_read:  # else it was over when its state was saved
                self._finished(time.perf_counter() - self._start)
            self._has_read = False
            raise StopIteration
        stretch = self._order.stretch(self._read)
        self._read, self._stretch = self._read + len(stretch), iter(stretch)
        self._has_read = True
        return next(self._stretch)

    def _enter(self) -> None:
        epoch, order = self._begin()
        saved, position = self._saved, 0
        if saved is not None:
            same = saved["epoch"] == epoch and saved["size"] == len(order)
            # At the end of an epoch a loader that resumes goes on with a fresh iterator.
            over = saved["epoch"] < epoch and saved["position"] == saved["size"]
            if not same and not over:
                raise RuntimeError(
                    f"`state` must be of the epoch that the sampler is at, got that of index "
                    f"{saved['position']} of {saved['size']} in epoch {saved['epoch']}, and "
                    f"{len(order)} indices in epoch {epoch}. Load sampler.state_dict() and call "
                    "maybe_reselect(model, epoch) with the epoch that was interrupted; to start "
                    "another one, do not load the loader's state."
                )
            position = saved["position"] if same else len(order)
        self._epoch, self._order, self._read = epoch, order, position
        self._start, self._has_read = time.perf_counter(), False

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position in it and its length; before it began what was loaded."""
        if not self.has_begun:
            return self._saved or {"epoch": -1, "position": 0, "size": 0}
        return {"epoch": self._epoch, "position": self._position, "size": len(self._order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: it is corrupt. Whether it is of the epoch that the sampler is at is seen
                when the epoch begins, a RuntimeError.
        """
        check_state("sampler's iterator", state, dict.fromkeys(("epoch", "position", "size"), int))
        if not 0 <= state["position"] <= state["size"]:
            raise ValueError(
                f"`state` must hold a position in [0, {state['size']}], got {state['position']}. "
                "The checkpoint is damaged."
            )
        self._saved = dict(state) if state["position"] > 0 else None
        self._epoch, self._stretch = None, iter(())
