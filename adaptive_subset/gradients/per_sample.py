"""The loss of each sample, from any loss of a batch."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Criterion = Callable[..., Tensor]


@dataclass
class _Record:
    """What is known of a criterion: batches on which it passed the check, the way to single losses.

    The check is repeated on batch 1, 2, 4, 8, …: a first batch of one class, say, would hide that a
    criterion divides by class weights.
    """

    passed: int = 0
    way: int = 0

    def is_due(self) -> bool:
        return self.passed & (self.passed - 1) == 0


_records: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()


def per_sample_losses(criterion: Criterion, output: Tensor, target: Tensor) -> Tensor:
    """ℓ of shape (n,), differentiable in `output`: what each sample adds to a summed loss.

    A criterion with a `reduction` (an attribute or an argument) is evaluated with "none", and what
    is behind the batch dimension is added up; class weights and ignored labels are in ℓ then. Any
    other one is evaluated on batches of one by `torch.func.vmap`, or in a loop where vmap cannot.
    That samples do not depend on one another is checked when a criterion is first seen.

    Args:
        criterion: ``criterion(output, target)``, a module or a function; it is left as it is.
        output: (n, …) what the model returns.
        target: (n, …).

    Raises:
        ValueError: the criterion couples samples, or divides by something else than their number
            and has no `reduction` to switch that off.
    """
    return unreduced_losses(criterion, output, target)[0]


def unreduced_losses(criterion: Criterion, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """`per_sample_losses`, and the number of terms that a mean over all of them divides by."""
    record = _record(criterion)
    record.passed += len(output) > 1
    check = len(output) > 1 and record.is_due()
    unreduced = _without_reduction(criterion)
    losses = unreduced(output, target) if unreduced is not None else None
    # Some have a `reduction` and return a scalar all the same.
    if unreduced is None or losses is None or losses.shape[:1] != output.shape[:1]:
        single = _one_by_one(criterion, record, output, target)
        if check:
            expected = single.detach()
            whole = criterion(output, target).detach()
            _check(criterion, record, whole, [expected.mean(), expected.sum()])
        return single, len(single)
    if check:
        half = len(output) // 2
        part = unreduced(output[:half].detach(), target[:half])
        _check(criterion, record, part, [losses[:half].detach()])
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses, losses.numel()


def _record(criterion: Criterion) -> _Record:
    try:
        return _records.setdefault(criterion, _Record())
    except TypeError:  # not weakly referable: checked at every call
        return _Record()


def _without_reduction(criterion: Criterion) -> Criterion | None:
    if hasattr(criterion, "reduction"):
        twin = copy.copy(getattr(criterion, "_orig_mod", criterion))
        twin.reduction = "none"
        return twin
    if not isinstance(criterion, torch.nn.Module) and "reduction" in _parameters(criterion):
        return functools.partial(criterion, reduction="none")
    return None


def _parameters(function: Criterion) -> Any:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        return ()


def _one_by_one(criterion: Criterion, record: _Record, output: Tensor, target: Tensor) -> Tensor:
    def single(o: Tensor, t: Tensor) -> Tensor:
        return criterion(o[None], t[None]).sum()

    def loop(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([single(o, t) for o, t in zip(outputs, targets, strict=True)])

    vmap = functools.partial(torch.func.vmap, randomness="different")
    # vmap stumbles over writes in place, which `functionalize` removes, and branches on values.
    ways: list[Criterion] = [vmap(single), vmap(torch.func.functionalize(single)), loop]
    for way in ways[record.way : -1]:
        try:
            return way(output, target)
        except (RuntimeError, ValueError):
            single(output[0], target[0])  # what is wrong without vmap too is the user's to see
            record.way += 1
    return loop(output, target)


def _check(criterion: Criterion, record: _Record, found: Tensor, allowed: list[Tensor]) -> None:
    tolerance = 1e-3 if found.dtype.itemsize < 4 or found.dtype == torch.float32 else 1e-6
    # A loss that is not finite says nothing about coupling; who uses it sees that for himself.
    if any(torch.allclose(found, value, tolerance, tolerance, equal_nan=True) for value in allowed):
        return
    record.passed -= 1  # so that it fails again
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise ValueError(
        "`criterion` must be a sum or mean of losses that each depend on one sample, got "
        f"{name}, whose value on a batch is another than that of its samples. A loss that couples "
        "samples cannot be weighted; one that divides by class weights or ignores labels needs a "
        "`reduction` attribute, as torch's own losses have."
    )
