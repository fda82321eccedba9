"""Head, loss and strategy on a few samples, so that what cannot work fails before training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from adaptive_subset.integrations.timm_data import evenly
from torch import nn
from torch.utils.data import Subset

from adaptive_subset import Selector, Strategy

_SAMPLES = 16


def try_out(model: nn.Module, selector: Selector, reading: dict[str, Any], processes: int) -> None:
    """Make a small selection as `selector` will make its own; nothing is kept of it.

    Args:
        model: as it is trained.
        selector: of the run, with its loss bound.
        reading: `head`, `validation`, … of the run.
        processes: that select together; all of them call it.

    Raises:
        TypeError, ValueError: what a selection of the run would raise as well.
    """
    strategy, pool = selector.strategy, selector.pool.source.pool
    if not strategy.needs_gradients:
        return
    data = {"pool": pool, "validation": reading.get("validation")}
    few: dict[str, Any] = {name: _part(d, processes) for name, d in data.items() if d is not None}
    small = _small(strategy)
    n = len(few["pool"])
    trial = Selector(
        _part(selector.dataset, processes),
        small,
        budget=max(n // 2, small.unit),
        criterion=selector.criterion,
        **{**reading, **few, "num_workers": 0},
    )
    with _quiet():
        trial.select(model, 0)
        # What does not fit in memory is known as soon as the length of a gradient is.
        gradients = trial.pool.source.read(model, trial.criterion).gradients  # type: ignore[arg-type]
    if selector.size is not None:
        m = round(selector.pool.fraction * len(selector))
        strategy.check_memory(m, gradients.dim, selector.size)


def _part(data: Any, processes: int) -> Subset[Any]:
    return Subset(data, evenly(len(data), max(_SAMPLES, 2 * processes)))


def _small(strategy: Strategy) -> Strategy:
    """`strategy` on mini-batches of which a few samples make some."""
    if strategy.batch_size is None:
        return strategy
    small: Strategy = replace(strategy, batch_size=min(2, strategy.batch_size))  # type: ignore[type-var]
    return small


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a word on how good the small selection is."""
    logger = logging.getLogger("adaptive_subset")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
