"""One pass over the candidates: model and batches in, factored last-layer gradients out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head import Head, HeadRecorder, find_heads
from adaptive_subset.gradients.model_state import evaluating, unwrap
from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses
from adaptive_subset.gradients.storage import Rows
from adaptive_subset.items import split_batch
from adaptive_subset.randomness import preserved_random_state

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
    name: str = "pool",
) -> tuple[FactoredGradients, Tensor, Tensor | None]:
    """Per-sample gradients of the last layer over `batches`, the targets, and the last layer.

    ``g_i = ∂ℓ_i/∂z_i ⊗ f_i`` with f the features that enter the head and z what leaves it. ℓ is the
    criterion on the model's real output, sample by sample whatever its reduction, so the gradient
    is exact whatever the model does behind the head. The model runs in eval mode, uncompiled,
    outside DDP, without a graph up to the head; it, its buffers, gradients and hooks, and the
    global random state are left as they were found, also when the pass raises.

    Args:
        model: any module; parameters stay where they are and define device and dtype.
        batches: yields what a DataLoader yields; inputs and target are told apart by `target`.
        criterion: a loss ``criterion(output, target)``, see `per_sample_losses`.
        head: the last layer(s), see `find_heads`.
        target: key or index of the target in a batch, see `split_batch`.
        size: n, when known: the result is then written in place instead of joined at the end.
        storage_dtype: what the gradients are kept in, by default what they are computed in:
            float32 or, for a float64 model, float64.
        name: what errors call the batches.

    Returns:
        Gradients of n samples on the model's device: n Σ(C + p) numbers, 4 bytes each by default.
        Beside them memory holds the activations of one batch; one that does not fit is run in
        halves. Then the targets (n, …); and the weight (C, p) of the last layer, bias included, if
        the model has one and returns its output as it is, else None.

    Raises:
        ValueError: no or several heads found, a head that is no linear map, a loss that couples
            samples, more or fewer samples than `size`.
    """
    model = unwrap(model)
    place = next(iter(model.parameters()), None)
    if place is None:
        raise ValueError("`model` must have parameters, got a module without any.")
    dtype = storage_dtype or torch.promote_types(place.dtype, torch.float32)
    blocks: list[tuple[Rows, Rows]] = []
    weight: Tensor | None = None
    targets = Rows(size)
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        recorder: HeadRecorder | None = None
        for batch in batches:
            args, kwargs, y = split_batch(batch, target)
            args, kwargs = _to_model(args, place), _to_model(kwargs, place)
            y = torch.as_tensor(y).to(place.device, non_blocking=True)
            if recorder is None:
                few = _part((args, kwargs), slice(2), len(y))
                recorder = HeadRecorder(find_heads(model, head, partial(_probe, model, *few)))
                stack.enter_context(recorder.attached())
                in_pieces = _Pieces(_Backward(model, recorder, criterion))
            for features, leaves, deltas, output in in_pieces(args, kwargs, y):
                if not blocks:
                    weights = recorder.check(features, leaves)
                    weight = weights[0].clone() if _is_output(leaves, output) else None
                    blocks = [(Rows(size, dtype), Rows(size, dtype)) for _ in features]
                for (d_rows, h_rows), delta, h in zip(blocks, deltas, features, strict=True):
                    d_rows.append(delta.flatten(1))
                    h_rows.append(h)
            targets.append(y)
    if not blocks:
        raise ValueError(f"`{name}` must yield at least one batch, got none.")
    if size is not None and len(targets) != size:
        raise ValueError(
            f"`{name}` must yield each of its {size} samples once, in order, got {len(targets)} "
            "samples. Check drop_last, the sampler and the length of the data."
        )
    gradients = FactoredGradients([(d.join(), h.join()) for d, h in blocks])
    return gradients, targets.join(), weight


class _Backward:
    """From a batch to the factors of its gradients: a forward pass, and backward to the head."""

    def __init__(self, model: nn.Module, recorder: HeadRecorder, criterion: Criterion) -> None:
        self._model, self._recorder, self._criterion = model, recorder, criterion
        self._frozen = {name: p.detach() for name, p in model.named_parameters()}

    def __call__(self, args: Any, kwargs: Any, y: Tensor) -> tuple[Any, ...]:
        self._recorder.clear()
        output = _output(torch.func.functional_call(self._model, self._frozen, args, kwargs))
        features, leaves = self._recorder.take()
        losses = per_sample_losses(self._criterion, output, y)
        return features, leaves, torch.autograd.grad(losses.sum(), leaves), output


class _Pieces:
    """Runs batches in pieces of as many samples as memory was found to hold."""

    def __init__(self, run: Callable[[Any, Any, Tensor], tuple[Any, ...]]) -> None:
        self._run, self._most = run, sys.maxsize

    def __call__(self, args: Any, kwargs: Any, y: Tensor) -> Iterator[tuple[Any, ...]]:
        start, n = 0, len(y)
        while start < n:
            size = min(self._most, n - start)
            piece = (args, kwargs, y)
            if size < n:
                piece = _part(piece, slice(start, start + size), n)
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


def _part(value: Any, rows: slice, n: int) -> Any:
    """Those rows of every tensor in a batch of n."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == n else value
    if isinstance(value, Mapping):
        return {key: _part(field, rows, n) for key, field in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_part(field, rows, n) for field in value)
    return value


def _to_model(inputs: Any, place: Tensor) -> Any:
    """Inputs on the model's device, floating ones in its dtype (autocast chooses its own)."""
    if isinstance(inputs, Tensor):
        cast = inputs.is_floating_point() and not torch.is_autocast_enabled(place.device.type)
        return inputs.to(place.device, place.dtype if cast else None, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {key: _to_model(value, place) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_to_model(value, place) for value in inputs)
    return inputs


def _output(output: Any) -> Tensor:
    """The logits, in at least float32: also of an output object that has them as `.logits`."""
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            "`model` must return a tensor or an object with a tensor `.logits`, got "
            f"{type(output).__name__}. Wrap the model so that it returns its logits."
        )
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def _is_output(leaves: list[Tensor], output: Tensor) -> bool:
    """Whether what leaves the model is what left its one head."""
    first = leaves[0].to(output.dtype)
    return len(leaves) == 1 and first.shape == output.shape and torch.equal(first, output)


def _probe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A forward pass with a graph that leads to copies of the parameters."""
    parameters = {
        name: p.detach().requires_grad_(p.is_floating_point())
        for name, p in model.named_parameters()
    }
    return _output(torch.func.functional_call(model, parameters, args, kwargs))
