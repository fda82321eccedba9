"""One pass over the candidates: model and batches in, last-layer gradients out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.coupling import raise_what_was_found
from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head import Head, find_heads
from adaptive_subset.gradients.head_checks import by_position, check_rows, weight_of
from adaptive_subset.gradients.head_recorder import HeadRecorder
from adaptive_subset.gradients.kept import Factors, Sums
from adaptive_subset.gradients.loss_batch import check_takes_two, widened
from adaptive_subset.gradients.model_io import (
    check_one_row_each,
    copied_to,
    logits_of,
    part,
    targets_of,
    to_model,
)
from adaptive_subset.gradients.model_state import can_freeze, evaluating, frozen, readable
from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses
from adaptive_subset.gradients.position_losses import TokenLoss
from adaptive_subset.gradients.sketch import Sketch
from adaptive_subset.gradients.storage import Rows
from adaptive_subset.gradients.torch_losses import is_as_defined
from adaptive_subset.items import split_batch
from adaptive_subset.randomness import preserved_random_state

_NUMBERS = 1 << 25  # in the outputs of one piece of a batch, where these have many a sample

logger = logging.getLogger("adaptive_subset")


def last_layer_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Criterion,
    *,
    head: Head | None = None,
    target: int | str | None = None,
    size: int | None = None,
    storage_dtype: torch.dtype | None = None,
    sketch: Sketch = Sketch(8192, 0),  # noqa: B008
    name: str = "pool",
    expect: Callable[[int], None] | None = None,
) -> tuple[FactoredGradients | DenseGradients, Tensor, Tensor | None]:
    """Per-sample gradients of the last layer over `batches`, the targets, and the last layer.

    ``g_i = ∂ℓ_i/∂z_i ⊗ f_i`` with f the features that enter the head and z what leaves it. ℓ is the
    criterion on the model's real output, sample by sample whatever its reduction, so the gradient
    is exact whatever the model does behind the head. Where the head runs at T positions of a
    sample, as those of language and segmentation models do, ``g_i = Σ_t ∂ℓ_i/∂z_it ⊗ f_it``, which
    is held as it is if it is no longer than the `sketch`, else as one.

    The model runs in eval mode, uncompiled, outside DDP, without a graph up to the head; it, its
    buffers, gradients and hooks, the criterion, the inputs and the global random state are left as
    they were found, also when the pass raises.

    The model runs under the caller's autocast, as it trains; the loss and its gradient are computed
    outside of it, in at least float32. `no_grad` and inference mode around the pass do not matter.

    Args:
        model: any module; parameters stay where they are and define device and dtype.
        batches: yields what a DataLoader yields; inputs and target are told apart by `target`.
        criterion: a loss ``criterion(output, target)``, see `per_sample_losses`.
        head: the last layer(s), see `find_heads`.
        target: key or index of the target in a batch, see `split_batch`.
        size: n, when known: the result is then written in place instead of joined at the end.
        storage_dtype: what the gradients are kept in, by default what they are computed in:
            float32 or, for a float64 model, float64.
        sketch: of gradients that are summed over positions and too long to be held.
        name: what errors call the batches.
        expect: called with d, the length of a gradient, after the first batch; it may raise.

    Returns:
        Gradients of n samples on the model's device: n Σ(C + p) numbers, 4 bytes each by default,
        or n rows of at most the size of the sketch a head.
        Beside them memory holds the activations of one batch; one that does not fit is run in
        halves. Then the targets (n, …); and the weight (C, p) of the last layer, bias included, if
        the model has one, of one position, and returns its output as it is, else None. Labels of
        positions are not kept, the targets are (n, 0) then.

    Raises:
        TypeError: a model, output or target of the wrong kind, a loss of other arguments.
        ValueError: no or several heads found, a head that is no linear map or sees other rows than
            the targets, a loss that couples samples, more or fewer samples than `size`.
    """
    model = readable(model)
    check_takes_two(criterion)
    place = next(model.parameters())
    dtype = storage_dtype or torch.promote_types(place.dtype, torch.float32)
    kept: Factors | Sums | None = None
    weight: Tensor | None = None
    targets = Rows(size)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(preserved_random_state())
        stack.enter_context(evaluating(model, criterion))
        stack.enter_context(torch.enable_grad())
        run: _Backward | None = None
        for batch in batches:
            args, kwargs, y = split_batch(batch, target)
            y = targets_of(y, name)
            if len(y) == 0:
                continue
            if run is None:
                run = _Backward(model, criterion, head, *part((args, kwargs), slice(2), len(y)))
                stack.enter_context(run.attached())
                in_pieces = _Pieces(run)
            for features, leaves, deltas, output in in_pieces(args, kwargs, y):
                if kept is None:
                    biases = run.recorder.biases
                    if any(delta.ndim > 2 for delta in deltas):
                        _check_storage(storage_dtype)
                        kept = Sums(features, deltas, biases, size, sketch)
                    else:
                        weight = run.weight(leaves, output)
                        kept = Factors(features, deltas, biases, size, dtype)
                    if expect is not None:
                        expect(kept.dim)
                with torch.autocast(place.device.type, enabled=False):
                    kept.append(features, deltas)
            if isinstance(kept, Sums) and y.ndim > 1:
                y = y.new_empty(len(y), 0)  # they differ in length from batch to batch
            targets.append(copied_to(place.device, y))
        raise_what_was_found(criterion)
        if kept is None:
            raise ValueError(f"`{name}` must yield at least one batch, got none.")
        if size is not None and len(targets) != size:
            raise ValueError(
                f"`{name}` must yield each of its {size} samples once, in order, got "
                f"{len(targets)} samples. Check drop_last, the sampler and the length of the data."
            )
        return kept.join(), targets.join(), weight


def _check_storage(dtype: torch.dtype | None) -> None:
    if dtype is not None:
        raise ValueError(
            "`storage_dtype` must be left out for a head that runs at several positions, whose "
            f"gradients are held in what they are computed in, got {dtype}. Choose a smaller "
            "`sketch`."
        )


class _Backward:
    """From a batch to the factors of its gradients: a forward pass, and backward to the head.

    Args:
        model, criterion, head: see `last_layer_gradients`.
        args, kwargs: a few samples, to find the head with.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion, head: Head | None, args: Any, kwargs: Any
    ) -> None:
        self._model, self._criterion = model, criterion
        self._place = next(model.parameters())
        self._most = 0  # rows of the largest batch so far, whose rows were checked
        copies = {
            name: p.detach().clone().requires_grad_(p.is_floating_point())
            for name, p in model.named_parameters()
        }
        untouched = {name: copy._version for name, copy in copies.items()}
        self.most = sys.maxsize  # samples to run at once

        def first() -> Tensor:
            output = self._forward(copies, args, kwargs)
            if output.ndim > 2 and len(output):
                self.most = max(1, _NUMBERS // max(1, output[0].numel()))
            return output

        heads = find_heads(model, head, first)
        # The loss of tokens has a formula for its slopes, which needs no graph.
        known = type(criterion) is TokenLoss and is_as_defined(criterion)
        last = len(heads) == 1 and all(isinstance(m, nn.Linear) for m in heads.values())
        self.recorder = HeadRecorder(heads, cut=not (known and last))
        # A model that writes to its parameters in a forward pass goes on writing to copies.
        self._written = {name for name, p in copies.items() if p._version != untouched[name]}
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
        args, kwargs = to_model(args, self._place), to_model(kwargs, self._place)
        if parameters is None:
            return logits_of(self._model(*args, **kwargs))
        return logits_of(torch.func.functional_call(self._model, parameters, args, kwargs))

    def __call__(self, args: Any, kwargs: Any, y: Tensor) -> tuple[Any, ...]:
        self.recorder.clear()
        n, device = len(y), self._place.device
        output = self._forward(self._parameters, args, kwargs)
        check_one_row_each(output, n)
        features, leaves = self.recorder.take(n)
        if not self.recorder.cut:
            assert isinstance(self._criterion, TokenLoss)
            if self.recorder.is_unchanged(output) and features[0].ndim > 2:
                formula = self._criterion.slopes(output, copied_to(device, y))
                return features, leaves, [formula], output
            self.recorder.cut = True  # the model does something behind its head
            return self(args, kwargs, y)
        output = widened(output)
        if not output.requires_grad:
            raise ValueError(
                f"`head` {list(self.recorder.heads)} must lead to the output of the model with "
                "gradients, got an output without. Name the layer that it comes from, and keep "
                "no_grad(), detach() and argmax() out of the model's forward."
            )
        with torch.autocast(device.type, enabled=False):
            if n > self._most:
                check_rows(list(self.recorder.heads), leaves, output)
                self._most = n
            target = copied_to(device, y)
            losses = per_sample_losses(self._criterion, output, target, wait=False)
            slopes = torch.autograd.grad(losses, leaves, torch.ones_like(losses))
            heads = zip(self.recorder.heads.items(), slopes, strict=True)
            deltas = [by_position(name, module, slope) for (name, module), slope in heads]
            return features, leaves, deltas, output

    def weight(self, leaves: list[Tensor], output: Tensor) -> Tensor | None:
        """(C, p) of the last layer, None unless what leaves the model is what left its one head.

        A 1×1 convolution's output counts without its one place.
        """
        first = leaves[0].to(output.dtype)
        first = first.flatten(1) if output.ndim == 2 else first
        if len(leaves) > 1 or first.shape != output.shape or not torch.equal(first, output):
            return None
        ((name, module),) = self.recorder.heads.items()
        if any(key.removeprefix(f"{name}.") in ("weight", "bias") for key in self._written):
            return None
        weight = weight_of(module).detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)


class _Pieces:
    """Runs batches in pieces of as many samples as memory was found to hold."""

    def __init__(self, run: _Backward) -> None:
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
                yield result
                start += size
