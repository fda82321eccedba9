"""What a strategy chose among the candidates, as a selection of the dataset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive_subset.selection import Selection
from adaptive_subset.strategies import Candidates, Choice


def as_selection(
    choice: Choice, candidates: Candidates, indices: Tensor, n: int, *, matched: bool, **rest: Any
) -> Selection:
    """The selection that `choice` stands for.

    Args:
        choice: positions among the `candidates`.
        candidates: m of them.
        indices: (m,) int64, where they are in the dataset.
        n: samples of the dataset, which the candidates stand for.
        matched: whether the loss keeps the length of the match, see `Selection.unit`.
        rest: the epoch and the seconds that it took.
    """
    to_mean_one = candidates.n / float(choice.weights.sum())
    error, trained = candidates.relative_errors(choice, 1.0, 1.0 if matched else to_mean_one)
    return Selection(
        indices=indices[choice.positions.cpu()],
        weights=choice.weights.detach().to("cpu", torch.float32) * (n / candidates.n),
        batch_size=choice.batch_size,
        objective=None if choice.objective is None else float(choice.objective),
        relative_error=error,
        trained_error=trained,
        is_estimate=candidates.is_estimate,
        filled=int(choice.filled),
        unit=n / len(choice.weights) if matched else None,
        **rest,
    )
