"""The loss of each sample, from any loss of a batch."""

from __future__ import annotations

import functools
import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptive_subset.gradients.coupling import Known, coupled, fails_alone, what_is_known
from adaptive_subset.gradients.loss_batch import Criterion, LossBatch, name_of
from adaptive_subset.gradients.torch_losses import torch_losses
from adaptive_subset.gradients.twin import twin

__all__ = ["Criterion", "losses_and_divisor", "per_sample_losses", "sums_of_rows"]


_YES = torch.tensor(True, device="cpu")
_LOOP = 2  # the last of the ways of `_one_by_one`


class _NoNumpy(TorchFunctionMode):
    """In here numpy is refused: of what `functionalize` hands out it would read foreign memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__):
            raise RuntimeError("There are no numbers in here.")
        return func(*args, **(kwargs or {}))


def per_sample_losses(
    criterion: Criterion, output: Tensor, target: Tensor, *, wait: bool = True
) -> Tensor:
    """ℓ of shape (n,), differentiable in `output`: what each sample adds to a summed loss.

    A criterion with a `reduction` (an attribute or an argument) is evaluated with "none", and what
    is behind the batch dimension is added up; class weights and ignored labels are in ℓ then. That
    samples do not depend on one another is checked on batches 1, 2, 4, 8, …, unless the criterion
    is one of torch's own. Any other criterion is evaluated on batches of one by
    `torch.func.vmap`, or in a loop where vmap cannot or gives other values, and the value of every
    batch is compared with theirs. Outputs in half precision are taken to float32 first, outside
    autocast.

    Args:
        criterion: ``criterion(output, target)``, a module or a function; it is left as it is, its
            buffers and counters too.
        output: (n, …) what the model returns.
        target: (n, …).
        wait: see `losses_and_divisor`; after a pass without, call `raise_what_was_found`.

    Raises:
        ValueError: the criterion couples samples, or divides by something else than their number
            and has no `reduction` to switch that off; it takes the batch and not a part of it; or
            targets would broadcast.
    """
    if (known := torch_losses(criterion, (output, target), {})) is not None:
        return sums_of_rows(known[0])
    if len(output) == 0:
        return output.flatten(1).sum(1)
    batch = LossBatch.of(len(output), (output, target), {})
    snapshot = twin(criterion)
    with torch.no_grad():
        value = batch.evaluate(twin(snapshot)).sum()
    losses, _ = losses_and_divisor(criterion, snapshot, batch, value, wait=wait)
    return losses


def losses_and_divisor(
    criterion: Criterion, snapshot: Criterion, batch: LossBatch, value: Tensor, *, wait: bool
) -> tuple[Tensor, Tensor]:
    """ℓ of shape (n,) and the Z of ``criterion = Σ ℓᵢ / Z``, for a criterion that nobody knows.

    Args:
        criterion: the loss.
        snapshot: a `twin` of it, of before it was evaluated on `batch`.
        batch: what it was evaluated on.
        value: what came out, without a graph.
        wait: raise at once for a criterion that couples samples. Otherwise, on a GPU, Z is NaN and
            the next call raises, so that no step waits for the device.
    """
    record = what_is_known(criterion)
    if record.heard is not None and record.heard.item():
        record.failed = record.heard = None
        raise coupled(criterion, record.shapes)

    def later(agrees: Tensor) -> bool:
        return agrees.is_cuda and record.lasts and not wait

    autocast = _autocast_device(batch)
    with nullcontext() if autocast is None else torch.autocast(autocast, enabled=False):
        if batch.is_half or autocast is not None:
            batch = batch.widened()
            value = _in_float32(criterion, snapshot, batch)
        check = batch.n > 1 and record.is_due()
        if (each := _unreduced(snapshot, batch)) is None:
            losses = _one_by_one(snapshot, record, batch)
            divisor, agrees = _divisor_of_samples(value, losses.detach(), batch)
            if record.way < _LOOP and not agrees.is_meta and not later(agrees) and not agrees:
                # vmap may be what was wrong: the loop is what the criterion says itself.
                losses = _one_by_one(snapshot, Known(way=_LOOP), batch)
                divisor, agrees = _divisor_of_samples(value, losses.detach(), batch)
                record.way = _LOOP if agrees else record.way
        else:
            losses = sums_of_rows(each)
            divisor = _divisor(value, each.detach(), snapshot)
            agrees = _is_sum_of_samples(snapshot, batch, losses.detach()) if check else _YES
    if agrees.is_meta:
        return losses, divisor
    if later(agrees):
        record.note(agrees, batch.shapes())
    elif not agrees:
        record.batches = 0  # so that it fails again
        raise coupled(criterion, batch.shapes())
    return losses, divisor


def sums_of_rows(each: Tensor) -> Tensor:
    """(n,) from (n, …), in float32 at least."""
    each = each.to(torch.promote_types(each.dtype, torch.float32))
    return each.flatten(1).sum(1) if each.ndim > 1 else each


def _autocast_device(batch: LossBatch) -> str | None:
    """Where autocast is at work, None where it is not."""
    device = batch.rows[0].device.type
    available = torch.amp.is_autocast_available(device)
    return device if available and torch.is_autocast_enabled(device) else None


def _in_float32(criterion: Criterion, snapshot: Criterion, batch: LossBatch) -> Tensor:
    try:
        with torch.no_grad():
            value: Tensor = batch.evaluate(twin(snapshot, wide=True)).sum()
    except RuntimeError as error:
        raise ValueError(
            "`criterion` must take float32 outputs, since losses are compared in float32, got "
            f"{name_of(criterion)}, which fails on them. Keep its own tensors in float32 and call "
            "it on output.float(), or make it a module."
        ) from error
    return value


def _unreduced(snapshot: Criterion, batch: LossBatch) -> Tensor | None:
    """The losses with ``reduction="none"``, None for a criterion without."""
    if isinstance(getattr(snapshot, "reduction", None), str):
        evaluated = twin(snapshot, wide=True)
        try:
            evaluated.reduction = "none"  # type: ignore[attr-defined]
            each = batch.evaluate(evaluated)
        except Exception:  # it knows no "none", in whatever way it says so
            return None
    elif not isinstance(snapshot, torch.nn.Module) and "reduction" in _parameters(snapshot):
        each = batch.evaluate(functools.partial(snapshot, reduction="none"))
    else:
        return None
    # Some have a `reduction` and return a scalar all the same.
    if not isinstance(each, Tensor) or each.shape[:1] != (batch.n,):
        return None
    if each.numel() > max(row.numel() for row in batch.rows):
        raise ValueError(
            f"`target` must have the shape of the outputs, got {batch.shapes()}, which "
            f"broadcast to {tuple(each.shape)}. Use target.unsqueeze(1) or output.squeeze(1)."
        )
    return each


def _parameters(function: Criterion) -> Any:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # some builtins have no signature
        return ()


def _one_by_one(snapshot: Criterion, record: Known, batch: LossBatch) -> Tensor:
    def single(*rows: Tensor) -> Tensor:
        one = batch.with_rows([row[None] for row in rows], 1)
        loss: Tensor = one.evaluate(twin(snapshot, wide=True)).sum()
        return loss

    def alone(*rows: Tensor) -> Tensor:
        try:
            return single(*rows)
        except Exception as error:
            raise fails_alone(snapshot, batch.part(1).shapes(), error) from error

    def loop(*rows: Tensor) -> Tensor:
        return torch.stack([alone(*row) for row in zip(*rows, strict=True)])

    def in_torch(*rows: Tensor) -> Tensor:
        with _NoNumpy():
            return single(*rows)

    vmap = functools.partial(torch.func.vmap, randomness="different")
    # vmap stumbles over writes in place, which `functionalize` removes, and branches on values.
    ways: list[Criterion] = [vmap(single), vmap(torch.func.functionalize(in_torch)), loop]
    for way in ways[record.way : _LOOP]:
        try:
            return sums_of_rows(way(*batch.rows))
        except Exception:  # by numpy or a look-up it may be any
            alone(*(row[0] for row in batch.rows))  # what is wrong without vmap too is the user's
            record.way += 1
    return sums_of_rows(loop(*batch.rows))


@torch.no_grad()
def _divisor(value: Tensor, each: Tensor, snapshot: Criterion) -> Tensor:
    """Z by ``Σ ℓ / value``, which is exact, but undefined at 0, and inexact where losses cancel.

    So the usual case, where Z is the number of losses (or 1 for a sum), is recognised.
    """
    total, size = each.sum(), each.abs().sum()
    usual = 1 if getattr(snapshot, "reduction", "mean") == "sum" else each.numel()
    value = value.to(total)
    is_usual = (value * usual - total).abs() <= 32 * torch.finfo(total.dtype).eps * size
    return torch.where(is_usual, usual, total / value)


@torch.no_grad()
def _divisor_of_samples(value: Tensor, losses: Tensor, batch: LossBatch) -> tuple[Tensor, Tensor]:
    """Z is n or 1, or NaN for a criterion that is neither the mean nor the sum of its samples."""
    total, value = losses.sum(), value.to(losses)
    rounding = _rounding(losses.abs().sum(), batch, value)
    is_mean = (value * batch.n - total).abs() <= rounding
    is_sum = (value - total).abs() <= rounding
    divisor = torch.where(is_mean, batch.n, torch.where(is_sum, 1, torch.nan))
    # A value that is not finite says nothing about coupling; who uses it sees that for himself.
    return divisor, is_mean | is_sum | ~value.isfinite()


def _is_sum_of_samples(snapshot: Criterion, batch: LossBatch, losses: Tensor) -> Tensor:
    """Whether half the samples have the same losses without the others, and value is ``Σ ℓ / Z``.

    The latter shows in its gradient: a mean that divides sample by sample, by their lengths say,
    or by something that depends on the outputs, has another direction than that of ``Σ ℓ``, and
    one with a penalty beside the samples, for its own parameters say, another Z than the value.
    """
    with torch.no_grad():
        part = batch.part(batch.n // 2)
        expected = losses[: part.n]
        try:
            alone = _unreduced(snapshot, part)
        except Exception as error:
            raise fails_alone(snapshot, part.shapes(), error) from error
    if alone is None:
        return torch.tensor(False, device="cpu")
    difference = (sums_of_rows(alone) - expected).abs().sum()
    agrees = ~(difference > _rounding(expected.abs().sum(), part, expected))
    output = next((row for row in batch.rows if row.is_floating_point()), None)
    if output is None or torch.is_inference_mode_enabled():
        return agrees
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        batch = batch.with_rows([leaf if r is output else r.detach() for r in batch.rows], batch.n)
        value, each = batch.evaluate(twin(snapshot, wide=True)), _unreduced(snapshot, batch)
        if each is None or not (value.requires_grad and each.requires_grad):
            return agrees
        whole, total = (torch.autograd.grad(v.sum(), leaf)[0].flatten() for v in (value, each))
    square, limits = torch.dot(whole, whole), torch.finfo(whole.dtype)
    # A slope that is none, or too small to be squared, says nothing: NaNs compare false.
    scale = torch.dot(total, whole) / square.where(square > limits.tiny / limits.eps, torch.nan)
    slants: Tensor = (whole * scale - total).norm() > 1e-3 * total.norm()
    with torch.no_grad():  # a penalty that is added to the value has no slope in the outputs
        excess = (value.sum() * scale - each.sum()).abs()
        beside: Tensor = excess > _rounding(each.abs().sum(), batch, each)
    return agrees & ~slants & ~beside


def _rounding(size: Tensor, batch: LossBatch, like: Tensor) -> Tensor:
    """How far apart two ways of adding losses of absolute sum `size` can be."""
    eps = torch.finfo(like.dtype).eps
    return (1e-4 if eps > 1e-9 else 1e-6) * size + batch.n * eps * batch.magnitude()
