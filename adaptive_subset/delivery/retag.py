"""Collate functions that take targets apart, such as padding ones, with the tags put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_subset.delivery.rows import tags_of
from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.gradients.snapshot import preserved_generators
from adaptive_subset.items import field, names_of, replaced, target_key
from adaptive_subset.randomness import preserved_random_state

_FIRST, _STEP = 10007, 97  # the number that stands for sample i is _FIRST + _STEP · i
_IGNORED = -100  # what torch's losses and all who pad labels for them leave out


def retag(collate_fn: Callable[[list[Any]], Any], target: int | str | None = None) -> Retagged:
    """A collate function like `collate_fn` whose targets carry the weights of their samples.

    Tags come through ``torch.stack``, ``default_collate`` and mixing by themselves. A function
    that makes new tensors (a tokenizer that pads, ``torch.tensor([…])``) gets the targets as the
    dataset made them. Which sample a row is of shows in a second run, from the same random state,
    with numbers of samples as targets: this costs the time of collating once more. The first batch
    is run a third time, with the numbers in reverse.

    Args:
        collate_fn: makes a batch of a list of samples, in any order, of some of them or with
            repetitions; its targets are those of the samples, padded or not.
        target: where the target in the batch is, as in `TaggedDataset`. By default where it was in
            the samples, or the one field with a usual name: ``label`` may become ``labels``.

    Raises:
        ValueError: on a call, where targets are changed, or the order follows from them or from a
            random state that is not found, so that their samples are not known.
        TypeError: on a call, where no target is found in the batch.

    Examples:
        >>> collate = retag(lambda samples: {"labels": torch.tensor([y for _, y in samples])})
        >>> collate([("a", WeightedTarget(torch.tensor(3), 0.5))])["labels"].weights
        tensor([0.5000])
    """
    return Retagged(collate_fn, target)


class Retagged:
    """What `retag` returns; picklable if its collate function is."""

    def __init__(
        self, collate_fn: Callable[[list[Any]], Any], target: int | str | None = None
    ) -> None:
        self.collate_fn = collate_fn
        self.target = target
        self._keeps: bool | None = None  # whether tags come through by themselves
        self._is_tried = False  # whether the order was seen to follow from nothing else

    def __call__(self, samples: Sequence[Any]) -> Any:
        keys = [_tagged_key(sample) for sample in samples]
        if not samples or any(key is None for key in keys):  # not of the training data
            return self.collate_fn(list(samples))
        if self._keeps is None:
            with self._repeatable():
                self._keeps = self._tags_come_through(list(samples), keys[0])
        if self._keeps:
            return self.collate_fn(list(samples))
        targets: list[Any] = [field(sample, key) for sample, key in zip(samples, keys, strict=True)]
        originals = [y.tolist() if y.original is None else y.original for y in targets]
        n = len(samples)
        coded = self._coded(samples, keys, originals, range(n))
        rows = _rows(coded, n)
        turned = None
        if not self._is_tried and n > 1:
            turned = self._coded(samples, keys, originals, range(n)[::-1])
        (batch, key), found = self._collated(samples, keys, originals)
        _check(found, coded, rows, originals)
        if turned is not None:
            if not torch.equal(n - 1 - _rows(turned, n), rows):
                raise ValueError(_MESSAGE.format("another order where the targets are others"))
            self._is_tried = True
        weights, indices = zip(*(target.tags for target in targets), strict=True)
        tags = (
            torch.tensor(weights, dtype=torch.float32, device=rows.device)[rows],
            torch.tensor(indices, device=rows.device)[rows],
        )
        return replaced(batch, key, WeightedTarget(found, *tags))

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        """What is drawn in here is drawn again after it."""
        with preserved_random_state(), preserved_generators(self.collate_fn):
            yield

    def _coded(
        self, samples: Sequence[Any], keys: list[Any], originals: list[Any], places: Sequence[int]
    ) -> Tensor:
        """The target of the batch where those of the samples are the numbers of `places`."""
        pairs = zip(originals, places, strict=True)
        numbers = [_numbered(value, _FIRST + _STEP * place) for value, place in pairs]
        try:
            with self._repeatable():
                return self._collated(samples, keys, numbers)[1]
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise ValueError(_MESSAGE.format(f"{type(error).__name__}: {error}")) from error

    def _tags_come_through(self, samples: list[Any], key: Any) -> bool:
        try:
            batch = self.collate_fn([replaced(s, key, field(s, key)) for s in samples])
            return tags_of(field(batch, self._key(batch, key))) is not None
        except Exception:  # it shall be raised, if at all, for the targets as the dataset made them
            return False

    def _collated(
        self, samples: Sequence[Any], keys: list[Any], targets: list[Any]
    ) -> tuple[tuple[Any, Any], Tensor]:
        """The batch of the samples with these targets, the key of its target, and the target."""
        batch = self.collate_fn(list(map(replaced, samples, keys, targets)))
        key = self._key(batch, keys[0])
        found = field(batch, key)
        if not isinstance(found, Tensor) or found.ndim == 0:
            raise TypeError(
                f"`target` must lead to a tensor in the batch, got {type(found).__name__} at "
                f"{key!r}. Pass its position, key or attribute: retag(collate_fn, target=...)."
            )
        return (batch, key), found

    def _key(self, batch: Any, key: Any) -> Any:
        if self.target is not None:
            return target_key(batch, self.target)
        return target_key(batch, key if key in names_of(batch) else None)


_MESSAGE = (
    "`collate_fn` must hand the targets on as they are, padded or in another order at most, so "
    "that it shows whose they are, got {}. Mix, one-hot code or smooth them with operations of "
    "torch on torch.stack(targets), which carry the weights along, or do it in the training loop."
)


def _tagged_key(sample: Any) -> Any:
    """Where a sample has its tagged target, None if nowhere."""
    keys = [key for key in names_of(sample) if tags_of(field(sample, key)) is not None]
    return keys[0] if keys else None


def _numbered(value: Any, number: int) -> Any:
    """A target like `value` that is `number` all over."""
    if isinstance(value, list):
        return [type(v)(number) for v in value]
    try:
        if isinstance(value, (Tensor, np.ndarray)):
            like: Any = value.clone() if isinstance(value, Tensor) else value.copy()
            like[...] = number
        else:
            like = type(value)(number)
        fits = bool(np.all(np.asarray(like) == number))
    except (OverflowError, RuntimeError):
        fits = False
    if not fits:
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(_MESSAGE.format(f"{kind}, which cannot hold numbers of samples"))
    return like


def _rows(coded: Tensor, n: int) -> Tensor:
    """Which of n samples each row is of, from targets that are numbers of samples."""
    at = (coded.detach().double().reshape(len(coded), -1) - _FIRST) / _STEP
    known = (at >= 0) & (at < n) & (at == at.round())
    first = torch.where(known, at, torch.inf).amin(1)
    if not torch.equal(first, torch.where(known, at, -1).amax(1)):
        raise ValueError(_MESSAGE.format(f"targets {coded[:4].tolist()} for numbers of samples"))
    return first.long()


def _check(found: Tensor, coded: Tensor, rows: Tensor, originals: list[Any]) -> None:
    """Raise where the two runs did different things, or targets are not those of their rows."""
    if found.shape == coded.shape:
        values, numbers = found.detach().reshape(len(rows), -1), coded.reshape(len(rows), -1)
        own = numbers == (_FIRST + _STEP * rows).to(numbers.dtype)[:, None]
        given = [torch.as_tensor(value, device=values.device) for value in originals]
        wanted = [value.flatten().to(values.dtype) for value in given]
        ignored = torch.tensor([_IGNORED], device=values.device).to(values.dtype)
        if torch.equal(values[~own], numbers[~own]) and all(
            torch.isin(row[mine], torch.cat([wanted[i], ignored])).all()
            for row, mine, i in zip(values, own, rows.tolist(), strict=True)
        ):
            return
    raise ValueError(
        _MESSAGE.format(f"other values than those of the samples, {found[:4].tolist()}")
    )
