"""From a batch to the factors of its gradients: a forward pass, and backward to the head."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.head import Head, find_heads
from adaptive_subset.gradients.head_checks import by_position, check_rows, weight_of
from adaptive_subset.gradients.head_recorder import HeadRecorder
from adaptive_subset.gradients.loss_batch import explained, widened
from adaptive_subset.gradients.model_io import check_one_row_each, copied_to, part, run_model
from adaptive_subset.gradients.model_state import can_freeze, frozen, place_of
from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses
from adaptive_subset.gradients.position_losses import TokenLoss
from adaptive_subset.gradients.slopes import Slopes
from adaptive_subset.gradients.torch_losses import is_as_made

_NUMBERS = 1 << 25  # in the outputs of one piece of a batch, where these have many a sample

logger = logging.getLogger("adaptive_subset")


class Backward:
    """From a batch to the factors of its gradients: a forward pass, and backward to the head.

    Args:
        model, criterion, head: see `last_layer_gradients`.
        args, kwargs: a few samples, to find the head with.
        fresh: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        head: Head | None,
        args: Any,
        kwargs: Any,
        *,
        fresh: bool,
    ) -> None:
        self._model, self._criterion = model, criterion
        self._place = place_of(model)
        self._copies = True  # inputs, before the model may write to them
        self._checked = 0  # samples of the largest batch whose rows were checked
        self._ends: bool | Tensor = True  # whether what left the one head left the model
        copies = {
            name: p.detach().clone().requires_grad_(p.is_floating_point())
            for name, p in model.named_parameters()
        }
        untouched = {name: (copy._version, copy.data_ptr()) for name, copy in copies.items()}
        self.most = sys.maxsize  # samples to run at once

        def first() -> Tensor:
            output = self._forward(copies, args, kwargs)
            if output.ndim > 2 and len(output):
                self.most = max(1, _NUMBERS // max(1, output[0].numel()))
            return output

        heads = find_heads(model, head, first)
        # The loss of tokens has a formula for its slopes, which needs no graph.
        last = len(heads) == 1 and all(isinstance(m, nn.Linear) for m in heads.values())
        by_formula = last and type(criterion) is TokenLoss and is_as_made(criterion)
        self.recorder = HeadRecorder(heads, cut=not by_formula)
        # What did not fit on a device is run again, in pieces, from what it was, and so is a batch
        # that the formula turns out not to be for.
        self._copies = by_formula or not (fresh and self._place.device.type == "cpu")
        # A model that writes to its parameters in a forward pass goes on writing to copies.
        # A version does not count what is written through `.data`.
        self._written = {
            name
            for name, p in model.named_parameters()
            if (copies[name]._version, copies[name].data_ptr()) != untouched[name]
            or not torch.equal(copies[name], p)
        }
        self.slopes: Slopes | None = None  # of batches whose output is what left the head
        self._parameters: dict[str, Tensor] | None = None  # instead of the model's own
        if self._written or not can_freeze(model):
            self._parameters = {
                name: p.detach().clone() if name in self._written else p.detach()
                for name, p in model.named_parameters()
            }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model has hooks on its heads, and parameters without gradients, in here only."""
        with self.recorder.attached(), nullcontext() if self._parameters else frozen(self._model):
            yield

    def _forward(self, parameters: dict[str, Tensor] | None, args: Any, kwargs: Any) -> Tensor:
        return run_model(
            *(self._model, args, kwargs, self._place), parameters=parameters, copies=self._copies
        )

    def __call__(self, args: Any, kwargs: Any, y: Tensor) -> tuple[Any, ...]:
        self.recorder.clear()
        n, device = len(y), self._place.device
        output = self._forward(self._parameters, args, kwargs)
        check_one_row_each(output, n)
        features, leaves = self.recorder.take(n)
        is_end = self.recorder.is_unchanged(output)
        if not self.recorder.cut:
            if is_end and features[0].ndim > 2:
                assert isinstance(self._criterion, TokenLoss)
                by_formula = self._criterion.slopes(output, copied_to(device, y))
                return features, [by_formula], output
            # The model does something behind its head, or that runs at one position.
            self.recorder.cut = True
            return self(args, kwargs, y)
        if not is_end:
            output = widened(output)
            self._compare(leaves, output)
        elif output.dtype != leaves[0].dtype:  # a gradient through the cast would be rounded
            output = leaves[0].clone()
        if self.slopes is not None:
            if self.slopes.takes(output) and is_end:
                return features, None, output.detach()
            self.slopes.flush()  # they come before those of this batch
        if not output.requires_grad:
            raise ValueError(
                f"`head` {list(self.recorder.heads)} must lead to the output of the model with "
                "gradients, got an output without. Name the layer that it comes from, and keep "
                "no_grad(), detach() and argmax() out of the model's forward."
            )
        with torch.autocast(device.type, enabled=False):
            if n > self._checked:
                check_rows(list(self.recorder.heads), leaves, output)
                self._checked = n
            target = copied_to(device, y)
            with explained(output, target):
                losses = per_sample_losses(self._criterion, output, target, wait=False)
                (slope,) = torch.autograd.grad(losses, output, torch.ones_like(losses))
            slopes = torch.autograd.grad(output, leaves, slope)
            heads = zip(self.recorder.heads.items(), slopes, strict=True)
            deltas = [by_position(name, module, slope) for (name, module), slope in heads]
            return features, deltas, output

    @torch.no_grad()
    def _compare(self, leaves: list[Tensor], output: Tensor) -> None:
        """Note whether `output` has the numbers that left the head; no device is waited for."""
        if self._ends is False:
            return
        first = leaves[0].to(output.dtype)
        first = first.flatten(1) if output.ndim == 2 else first
        if len(leaves) > 1 or first.shape != output.shape:
            self._ends = False
        else:
            self._ends = (first == output).all() & self._ends

    def weight(self) -> Tensor | None:
        """(C, p) of the last layer, None unless what left the model always is what left its head.

        That is of all batches so far. A 1×1 convolution's output counts without its one place.
        """
        if not self._ends:
            return None
        ((name, module),) = self.recorder.heads.items()
        if any(key.removeprefix(f"{name}.") in ("weight", "bias") for key in self._written):
            return None
        weight = weight_of(module).detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)


class Pieces:
    """Runs batches in pieces of as many samples as memory was found to hold."""

    def __init__(self, run: Backward) -> None:
        self._run, self._most = run, sys.maxsize

    def __call__(self, args: Any, kwargs: Any, y: Tensor) -> Iterator[tuple[Any, ...]]:
        start, n = 0, len(y)
        while start < n:
            size = min(self._most, self._run.most, n - start)
            piece = (args, kwargs, y)
            if size < n:
                piece = part(piece, slice(start, start + size), n)
            try:
                result = self._run(*piece)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                result = None
            if result is None:  # here, since the handler holds on to what filled the memory
                self._most = size // 2
                logger.warning(
                    "%d samples at once do not fit in memory: going on with %d", size, self._most
                )
            else:
                yield *result, piece[2]
                start += size
