"""k-means of numbers: in one dimension a group is a stretch of the sorted row."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 300


def group_edges(ordered: Tensor, groups: int) -> list[int]:
    """Where groups of k-means begin and end in `ordered` (m,) float64, from 0 to m.

    Lloyd's iteration from the middles of as many quantiles, so that nothing about it is random. It
    ends in a local optimum, as k-means does; fewer distinct numbers than `groups` give fewer.

    Examples:
        >>> group_edges(torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 9.0]).double(), groups=3)
        [0, 3, 5, 6]
    """
    middles = (torch.arange(groups, dtype=torch.float64) + 0.5) / groups
    centres = torch.unique(ordered[(middles * len(ordered)).long()])
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    edges = torch.tensor([0, len(ordered)])
    for _ in range(_ROUNDS):
        before = edges
        borders = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        # Those of an empty group are the same.
        edges = torch.tensor(sorted({0, *borders.tolist(), len(ordered)}))
        if torch.equal(edges, before):
            break
        centres = sums[edges].diff() / edges.diff()
    return [int(edge) for edge in edges]
