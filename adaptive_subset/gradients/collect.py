"""One pass over the candidates: model and batches in, last-layer gradients out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.backward import Backward, Pieces
from adaptive_subset.gradients.coupling import raise_what_was_found
from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head import Head
from adaptive_subset.gradients.kept import Factors, Sums
from adaptive_subset.gradients.loss_batch import check_takes_two
from adaptive_subset.gradients.model_io import arguments_and_targets, copied_to, part
from adaptive_subset.gradients.model_state import evaluating, place_of, readable
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.sketch import Sketch
from adaptive_subset.gradients.slopes import Slopes
from adaptive_subset.gradients.storage import Rows
from adaptive_subset.randomness import preserved_random_state


def last_layer_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Criterion,
    *,
    head: Head | None = None,
    target: int | str | None = None,
    size: int | None = None,
    storage_dtype: torch.dtype | None = None,
    storage_dir: Path | None = None,
    sketch: Sketch = Sketch(8192, 0),  # noqa: B008
    name: str = "pool",
    fresh: bool = False,
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
        storage_dir: folder for a file that they are kept in, on the CPU; None for the memory of the
            model's device.
        sketch: of gradients that are summed over positions and too long to be held.
        name: what errors call the batches.
        fresh: whether nobody else holds the tensors of a batch: a model may write to them.
        expect: called with d, the length of a gradient, after the first batch; it may raise.

    Returns:
        Gradients of n samples, on the model's device unless they are in a file: n Σ(C + p) numbers,
        4 bytes each by default, or n rows of at most the size of the sketch a head. Beside them
        memory holds the activations of one batch; one that does not fit is run in halves. Then the
        targets (n, …); and the weight (C, p) of the last layer, bias included, if the model has
        one, of one position, and returns its output as it is, else None. Labels of positions are
        not kept, the targets are (n, 0) then.

    Raises:
        TypeError: a model, output or target of the wrong kind, a loss of other arguments.
        ValueError: no or several heads found, a head that is no linear map or sees other rows than
            the targets, a loss that couples samples or does not take the targets as they are, more
            or fewer samples than `size`.
    """
    model = readable(model)
    check_takes_two(criterion)
    place = place_of(model)
    held = place.device if storage_dir is None else torch.device("cpu")
    dtype = storage_dtype or torch.promote_types(place.dtype, torch.float32)
    kept: Factors | Sums | None = None
    targets = Rows(size)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(preserved_random_state())
        stack.enter_context(evaluating(model, criterion))
        stack.enter_context(torch.enable_grad())
        run: Backward | None = None
        for args, kwargs, y in arguments_and_targets(batches, target, name):
            if run is None:
                few = part((args, kwargs), slice(2), len(y))
                run = Backward(model, criterion, head, *few, fresh=fresh)
                stack.enter_context(run.attached())
                in_pieces = Pieces(run)
            for features, deltas, output, labels in in_pieces(args, kwargs, y):
                if kept is None:
                    biases = run.recorder.biases
                    if any(delta.ndim > 2 for delta in deltas):
                        _check_storage(storage_dtype)
                        kept = Sums(features, deltas, biases, size, sketch, storage_dir)
                    else:
                        kept = Factors(features, deltas, biases, size, dtype, storage_dir)
                        run.slopes = Slopes.of(criterion, output, labels, kept.append_delta)
                    if expect is not None:
                        expect(kept.dim)
                with torch.autocast(place.device.type, enabled=False):
                    kept.append(features, deltas)
                if deltas is None and run.slopes is not None:
                    run.slopes.add(output, labels)
            if isinstance(kept, Sums) and y.ndim > 1:
                y = y.new_empty(len(y), 0)  # they differ in length from batch to batch
            targets.append(copied_to(held, y))
        assert run is not None
        assert kept is not None
        if run.slopes is not None:
            run.slopes.flush()
        raise_what_was_found(criterion)
        if size is not None and len(targets) != size:
            raise ValueError(
                f"`{name}` must yield each of its {size} samples once, in order, got "
                f"{len(targets)} samples. Check drop_last, the sampler and the length of the data."
            )
        weight = run.weight() if isinstance(kept, Factors) else None
        return kept.join(), targets.join(), weight


def _check_storage(dtype: torch.dtype | None) -> None:
    if dtype is not None:
        raise ValueError(
            "`storage_dtype` must be left out for a head that runs at several positions, whose "
            f"gradients are held in what they are computed in, got {dtype}. Choose a smaller "
            "`sketch`."
        )
