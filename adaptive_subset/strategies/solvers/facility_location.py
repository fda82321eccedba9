"""Facility location by greedy choice: few medoids that are near to everything.

Symbols: rows i are what is to be covered (m), columns j are what may be chosen (n), d_ij >= 0 their
distance, S the chosen ones, c the largest distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaptive_subset.gradients.protocol import Index


class Distances(Protocol):
    """An (m, n) matrix of distances that need not exist as a whole."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def column(self, j: Tensor, /) -> Tensor: ...  # (m,), for j of shape (1,)
    def tile(self, rows: Index, columns: Index, /) -> Tensor: ...  # (r, c), see `Stored`


@dataclass(frozen=True, eq=False)
class Stored:
    """Distances that are held as a matrix (m, n); columns of a symmetric one are read as rows.

    A tile is a view where rows and columns are slices, and the caller's own otherwise.
    """

    matrix: Tensor
    symmetric: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def column(self, j: Tensor) -> Tensor:
        return self.matrix.index_select(0 if self.symmetric else 1, j).flatten()

    def tile(self, rows: Index, columns: Index) -> Tensor:
        if isinstance(columns, slice):
            part = self.matrix[:, columns]
            return part[rows] if isinstance(rows, slice) else part.index_select(0, rows)
        if self.symmetric:
            return self.matrix[:, rows].index_select(0, columns).T
        return self.matrix[rows].index_select(1, columns)


@dataclass(frozen=True, eq=False)
class Medoids:
    """The chosen columns and what each of them stands for."""

    chosen: Tensor  # (s,) int64, s <= k, in the order of choice
    owner: Tensor  # (m,) int64, the place in `chosen` of the medoid that is nearest to each row
    cost: float  # Σᵢ min over S of d_ij


def facility_location(
    distances: Distances,
    budget: int,
    *,
    epsilon: float | None = None,
    generator: torch.Generator | None = None,
) -> Medoids:
    """Greedily minimise ``Σᵢ minⱼ dᵢⱼ`` over at most k chosen columns j.

    The same as maximising ``Σᵢ maxⱼ (c − dᵢⱼ)``, which is monotone and submodular, so that the
    greedy choice is within 1 − 1/e of the best. The cost after each possible next choice is kept
    for all columns. A choice changes it by those rows only that are nearer to it than to
    all earlier ones, so they alone are read again: as a rule some n/s rows at the s-th choice, and
    m n ln k numbers in all, where looking at everything again takes m n k. The smallest column is
    chosen where costs are equal.

    Args:
        distances: d, with m >= 0 rows.
        budget: k >= 1.
        epsilon: None looks at all columns; ε in (0, 1) makes each choice among (n/k) ln(1/ε) random
            ones: 1 − 1/e − ε on average (Mirzasoleiman et al., AAAI 2015, "Lazier Than Lazy
            Greedy").
        generator: on the CPU, for these draws.

    Returns:
        Medoids on the CPU; fewer than k where no further column is nearer to any row, none where
        all distances are zero.
    """
    m, n = distances.shape
    place = distances.device
    nearest = torch.full((m,), torch.inf, dtype=distances.dtype, device=place)
    owner = torch.zeros(m, dtype=torch.int64, device=place)
    free = torch.ones(n, dtype=torch.bool, device=place)
    drawn = n if epsilon is None else math.ceil(n / budget * math.log(1 / epsilon))
    chosen: list[Tensor] = []
    costs: Tensor | None = None  # (n,) Σᵢ min(nearest_i, d_ij), where it is known
    while len(chosen) < min(budget, n):
        if epsilon is None:
            costs = _costs(distances, nearest, free) if costs is None else costs
            best = costs.argmin()
        else:
            some = _draw(free, drawn, generator)
            best = some[_costs_of(some, distances, nearest).argmin()]
        column = distances.column(best[None])
        closer = (column < nearest).nonzero()[:, 0]
        if not len(closer) or not (chosen or n == 1 or column.any()):
            # No gain: by rounding, in an unlucky draw, or since there is none.
            costs = _costs(distances, nearest, free)
            best = costs.argmin()
            column = distances.column(best[None])
            closer = (column < nearest).nonzero()[:, 0]
            if not len(closer) or not (chosen or costs.any()):
                break
        old, nearest = nearest, torch.minimum(nearest, column)
        owner[closer] = len(chosen)
        free[best] = False
        chosen.append(best)
        if epsilon is not None or 2 * len(closer) > m:
            costs = None  # all anew: as quick, and without the rounding errors of differences
        elif costs is not None:
            _lower(costs, distances, closer, old[closer], nearest[closer])
            costs[best] = torch.inf
    cost = float(nearest.sum(dtype=torch.float64)) if chosen else 0.0
    picked = torch.stack(chosen).cpu() if chosen else torch.zeros(0, dtype=torch.int64)
    return Medoids(picked, owner.cpu(), cost)


def _costs(distances: Distances, nearest: Tensor, free: Tensor) -> Tensor:
    """(n,) float64, ``Σᵢ min(nearest_i, d_ij)`` for all columns that are still `free`, else ∞."""
    return _costs_of(None, distances, nearest).masked_fill_(~free, torch.inf)


def _costs_of(some: Tensor | None, distances: Distances, nearest: Tensor) -> Tensor:
    """The same for `some` columns (c,), or all."""
    size = distances.shape[1] if some is None else len(some)
    costs = torch.zeros(size, dtype=torch.float64, device=nearest.device)
    for rows, columns in tiles(len(nearest), size, nearest.device):
        tile = distances.tile(rows, columns if some is None else some[columns])
        costs[columns] += torch.minimum(tile, nearest[rows, None]).sum(0, dtype=torch.float64)
    return costs


def _lower(costs: Tensor, distances: Distances, rows: Tensor, old: Tensor, new: Tensor) -> None:
    """Bring `costs` up to date where the nearest of some rows (r,) came from `old` to `new`."""
    for part, columns in tiles(len(rows), len(costs), rows.device):
        low, high = new[part, None], old[part, None]
        # Each is one of three numbers, so that float64 sums up differences without rounding them.
        tile = distances.tile(rows[part], columns)
        torch.minimum(torch.maximum(tile, low, out=tile), high, out=tile)  # quicker than clamp
        costs[columns] -= tile.sum(0, dtype=torch.float64) - low.sum(dtype=torch.float64)


def _draw(free: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """`size` columns that are still free, in ascending order, or all."""
    left = free.nonzero()[:, 0]
    if size >= len(left):
        return left
    places = torch.randint(len(left), (size,), generator=generator).sort().values
    return left[places.to(left.device)]


def tiles(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cover an (m, n) matrix by tiles that stay in the cache of a CPU, larger ones elsewhere.

    They are four times as wide as high; wider where there are few rows, higher where there are few
    columns.
    """
    size = 2**18 if device.type == "cpu" else 2**24  # numbers in a tile
    width = size // min(math.isqrt(size) // 2, max(1, rows))
    height = size // min(width, max(1, columns))
    for i in range(0, rows, height):
        for j in range(0, columns, width):
            yield slice(i, min(i + height, rows)), slice(j, min(j + width, columns))
