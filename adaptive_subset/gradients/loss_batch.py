"""The arguments of a loss for one batch: tensors with a row for each sample, however nested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Criterion = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class LossBatch:
    """What a criterion is called with, as a flat list.

    Tensors with n rows are taken to hold a row for each sample, everything else (a number, class
    weights) to be shared by all. Where that guess is wrong the criterion's value gives it away.

    Args:
        leaves: tensors and whatever else, out of their tuples and dicts.
        structure: how they are nested in ``(args, kwargs)``.
        n: number of samples.
    """

    leaves: list[Any]
    structure: TreeSpec
    n: int

    @classmethod
    def of(cls, n: int, args: Sequence[Any], kwargs: dict[str, Any]) -> LossBatch:
        return cls(*tree_flatten((tuple(args), kwargs)), n)

    def evaluate(self, criterion: Criterion) -> Any:
        """``criterion(*args, **kwargs)``."""
        args, kwargs = tree_unflatten(self.leaves, self.structure)
        return criterion(*args, **kwargs)

    @property
    def rows(self) -> list[Tensor]:
        """The tensors that hold a row for each sample."""
        return [leaf for leaf in self.leaves if self._has_rows(leaf)]

    def _has_rows(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.shape[:1] == (self.n,)

    def with_rows(self, rows: Sequence[Tensor], n: int) -> LossBatch:
        """The same with other `rows`, those of n samples."""
        new = iter(rows)
        leaves = [next(new) if self._has_rows(leaf) else leaf for leaf in self.leaves]
        return replace(self, leaves=leaves, n=n)

    def part(self, stop: int) -> LossBatch:
        """The first `stop` samples, without a graph."""
        return self.with_rows([row[:stop].detach() for row in self.rows], stop)

    def shapes(self) -> str:
        """Of the rows, for messages."""
        return " and ".join(str(tuple(row.shape)) for row in self.rows)

    def floats(self) -> list[Tensor]:
        return [
            leaf for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]

    @property
    def is_half(self) -> bool:
        """Whether a tensor is in float16, bfloat16 or below."""
        return any(leaf.dtype.itemsize < 4 for leaf in self.floats())

    def widened(self) -> LossBatch:
        """The same with float32 in the place of half precision."""
        return replace(self, leaves=[widened(leaf) for leaf in self.leaves])

    def magnitude(self) -> Tensor | float:
        """The largest number in it: a loss that is a difference of such has their rounding."""
        sizes = [leaf.detach().abs().amax().float() for leaf in self.floats() if leaf.numel()]
        return torch.stack(sizes).amax() if sizes else 0.0


def widened(value: Any) -> Any:
    """`value`, in float32 if it is a tensor in half precision."""
    half = isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
    return value.float() if half else value


@contextmanager
def explained(output: Tensor, target: Tensor) -> Iterator[None]:
    """Errors of a loss in here say what a pass calls it with.

    Loops convert targets on their way to the loss, of which a pass knows nothing.

    Raises:
        ValueError: the loss does not take `output` and `target`.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:  # is a RuntimeError, and heard of elsewhere
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            "`criterion` must take the logits of the model in eval mode and the targets as the "
            f"dataset has them, got {type(error).__name__} ({error}) for {output.dtype} of shape "
            f"{tuple(output.shape)} and {target.dtype} of shape {tuple(target.shape)}. A pass "
            "leaves out what the training loop does to them: do it in the dataset, or give the "
            "selector a loss that does, criterion=lambda o, y: loss(o, y.float()). Of tokens take "
            "TokenLoss()."
        ) from error


def name_of(criterion: Criterion) -> str:
    """For messages."""
    return str(getattr(criterion, "__name__", type(criterion).__name__))


def check_takes_two(criterion: Criterion) -> None:
    """Raise a TypeError where a loss cannot be called as ``criterion(output, target)``."""
    try:
        signature = inspect.signature(getattr(criterion, "forward", criterion))
    except (ValueError, TypeError):  # some builtins have no signature
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            "`criterion` must take outputs and targets for its gradients to be matched, got "
            f"{name_of(criterion)}{signature}. Training may use it as it is; give the selector one "
            "of two arguments: Selector(..., criterion=...)."
        ) from error
