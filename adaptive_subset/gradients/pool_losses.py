"""One pass without gradients: model and batches in, the loss of each sample out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.coupling import raise_what_was_found
from adaptive_subset.gradients.loss_batch import check_takes_two, explained, widened
from adaptive_subset.gradients.model_io import (
    arguments_and_targets,
    check_one_row_each,
    copied_to,
    run_model,
)
from adaptive_subset.gradients.model_state import evaluating, place_of, readable
from adaptive_subset.gradients.per_sample import Criterion, per_sample_losses
from adaptive_subset.randomness import preserved_random_state


def pool_losses(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Criterion,
    *,
    target: int | str | None = None,
    name: str = "pool",
) -> Tensor:
    """ℓ (n,) float32 on the CPU, of the model in eval mode.

    Model, criterion and the global random state are left as they were found, also when it raises.

    Args:
        model: any module; its parameters define device and dtype.
        batches, criterion, target, name: see `last_layer_gradients`.

    Raises:
        TypeError: a model, output or target of the wrong kind, a loss of other arguments.
        ValueError: no batch, an output of other rows than the targets, a loss that couples samples
            or does not take the targets as they are.
    """
    model = readable(model)
    check_takes_two(criterion)
    place = place_of(model)
    found: list[Tensor] = []
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        preserved_random_state(),
        evaluating(model, criterion),
    ):
        for args, kwargs, targets in arguments_and_targets(batches, target, name):
            y = copied_to(place.device, targets)
            output = widened(run_model(model, args, kwargs, place))
            check_one_row_each(output, len(y))
            with torch.autocast(place.device.type, enabled=False), explained(output, y):
                found.append(per_sample_losses(criterion, output, y, wait=False).float())
    raise_what_was_found(criterion)
    return torch.cat(found).cpu()
