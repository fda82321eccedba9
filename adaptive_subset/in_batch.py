"""Selection within a batch: of many samples that are at hand the ones to train on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptive_subset.candidate_pool import groups_of
from adaptive_subset.checks import natural, whole
from adaptive_subset.gradients.head import Head
from adaptive_subset.gradients.model_io import arguments_and_targets
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.source import GradientSource
from adaptive_subset.outcome import as_selection
from adaptive_subset.randomness import SeededLoader
from adaptive_subset.selection import Selection
from adaptive_subset.sizing import in_whole_batches
from adaptive_subset.strategies import Candidates, Strategy, instance_of


@torch.inference_mode(False)  # what is chosen outlives the caller's mode
def select_in_batch(
    model: nn.Module,
    criterion: Criterion,
    batch: Any,
    strategy: Strategy | str,
    budget: int,
    *,
    head: Head | None = None,
    target: int | str | None = None,
    groups: Sequence[int] | np.ndarray[Any, Any] | Tensor | None = None,
    step: int = 0,
    seed: int = 0,
) -> Selection:
    """Which samples of a large batch to train on, by one forward pass over it.

    For training on a stream, or where a selection must be as fresh as the step: the forward pass
    costs about a third of a step on the whole batch. A strategy that needs neither gradients nor
    losses makes none, one that needs both makes two. Everything is left as it was found.

    Args:
        model: what the samples are judged by: the one that is trained, or a small proxy for it.
        criterion: ``criterion(output, target)``.
        batch: of n samples, as a DataLoader yields it.
        strategy: any that chooses a given number by gradients or by losses, which are those of
            `model` now.
        budget: k in [1, n]; a strategy that chooses mini-batches rounds it down to whole ones.
        head, target: see `GradientSource`.
        groups: (n,) of the samples of the batch, see `Selector`.
        step, seed: of what is random, in place of an epoch.

    Returns:
        The selection; its `indices` are rows of the batch and its `loss_weights` have mean one.

    Raises:
        ValueError: a budget that is not in range, losses that are not finite, or a strategy that
            takes no budget, plans sizes by epochs or needs more than one batch can tell; see also
            `GradientSource.read`.

    Examples:
        >>> from adaptive_subset import PerEpoch
        >>> from adaptive_subset.strategies import draws
        >>> model, criterion = nn.Linear(1, 1, bias=False), nn.MSELoss()
        >>> x, y = torch.arange(6.0)[:, None], torch.zeros(6, 1)
        >>> largest = PerEpoch(draw=draws.LargestOfPool(2 / 6))
        >>> kept = select_in_batch(model, criterion, (x, y), largest, 2)
        >>> sorted(kept.indices.tolist())
        [4, 5]
    """
    strategy = instance_of(strategy)
    budget, step, seed = whole("budget", budget), natural("step", step), natural("seed", seed)
    if strategy.sizes_itself or strategy.size_varies or strategy.keeps is not None:
        raise ValueError(
            "`strategy` must choose a given number of samples by what one batch tells of them, got "
            f"{strategy!r}. Use one with a budget, without a schedule or an average over time."
        )
    start = time.perf_counter()
    source = GradientSource(SeededLoader([batch], None), head=head, target=target, name="batch")
    losses = None
    if strategy.needs_losses:
        losses = source.losses(model, criterion)
        if not bool(losses.isfinite().all()):
            raise ValueError(
                f"`losses` must be finite, got {int((~losses.isfinite()).sum())} of {len(losses)} "
                "that are infinite or NaN: training has diverged, or the batch holds such numbers."
            )
    if strategy.needs_gradients:
        read = source.read(model, criterion)
        n, known, layer = len(read.gradients), (read.gradients, read.classes), read.last_layer
        candidates = Candidates(n, *known, losses=losses, last_layer=layer)
    else:
        ((_, _, targets),) = arguments_and_targets([batch], target, "batch")
        candidates = Candidates(len(targets), losses=losses)
    if not 1 <= budget <= candidates.n:
        raise ValueError(
            f"`budget` must be in [1, {candidates.n}], the samples of the batch, got {budget}."
        )
    budget = in_whole_batches(budget, strategy)
    candidates = replace(candidates, groups=groups_of(groups, candidates.n, strategy))
    forward_seconds = time.perf_counter() - start
    choice = strategy.choose(candidates, budget, seed=seed, epoch=step)
    return as_selection(
        choice,
        candidates,
        torch.arange(candidates.n, device="cpu"),
        candidates.n,
        matched=False,
        epoch=step,
        forward_seconds=forward_seconds,
        solver_seconds=time.perf_counter() - start - forward_seconds,
    )
