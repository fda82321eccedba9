"""What strategies and solvers ask of gradients, however these are held."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

Index = slice | Tensor  # some of n: a slice, or int64 positions

BLOCK = 1 << 27  # numbers in the largest temporary


class Gradients(Protocol):
    """n gradients of length d, the rows of a matrix G (n, d) that need not exist.

    A new kind of gradients is one more file in this folder: a class derived from this one that has
    the abstract methods and keeps to the laws, with no temporary of the size of G, nor of (n, n).

    | what is asked               | what it is                                 | shape    |
    |-----------------------------|--------------------------------------------|----------|
    | `len(g)`, `g.dim`           | n, d                                       |          |
    | `take(i)`                   | the gradients `G[i]`                       |          |
    | `compact()`                 | the gradients G, fastest to compute        |          |
    | `double()`                  | the gradients G, in float64                |          |
    | `sum(w, i)`                 | `wᵀ G[i]`                                  | (d,)     |
    | `correlate(v, first)`       | `G[:first] v`                              | (first,) |
    | `dense(j)`                  | `G[j]`                                     | (d,)     |
    | `gram_column(j)`            | `G G[j]`                                   | (n,)     |
    | `gram`                      | `G Gᵀ`, or None                            | (n, n)   |
    | `pairwise(other, i, j)`     | `G[i] G'[j]ᵀ`, G' that of `other`          | (r, c)   |
    | `squared_norms()`           | `diag(G Gᵀ)`                               | (n,)     |
    | `means(members)`            | `G[members].mean(1)`                       | (m, d)   |
    | `is_finite()`               | whether all of G is finite                 |          |
    | `own_rows(classes)`         | the gradients of one row of a layer        |          |
    | `rows()`, `with_rows(r)`    | what is held, n rows each; G of other rows |          |
    | `is_estimate`               | whether the rows of G are sketches         |          |

    Results are on `device`, in `dtype` or more exact. An index i is a slice or holds positions, in
    any order and more than once; j is one position.
    """

    is_estimate: bool = False  # inner products are those of longer gradients, on average

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def dim(self) -> int:
        """d, the length of one gradient."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where they are held."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What is computed with, float32 or float64, whatever they are stored in."""

    @property
    def gram(self) -> Tensor | None:
        """All inner products (n, n), where they are held anyway; not to be written to."""
        return None

    @abstractmethod
    def take(self, index: Index) -> Gradients:
        """Those at `index`, stored in the dtype that is computed with."""

    def compact(self) -> Gradients:
        """The same in the form that is fastest to compute with; it holds no more numbers."""
        return self

    def double(self) -> Gradients:
        """The same held and computed with in float64; a copy. Raises as `rows` does."""
        return self.with_rows([rows.double() for rows in self.rows()])

    @abstractmethod
    def sum(self, weights: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """``Σ wᵢ gᵢ`` of shape (d,), over all or those at `index`; weights are one by default."""

    @abstractmethod
    def correlate(self, vector: Tensor, first: int | None = None) -> Tensor:
        """``⟨gᵢ, vector⟩`` of the `first` ones, or all (n,), for a `vector` of shape (d,)."""

    @abstractmethod
    def dense(self, index: int) -> Tensor:
        """One gradient, of shape (d,)."""

    @abstractmethod
    def gram_column(self, index: int) -> Tensor:
        """``⟨gⱼ, gᵢ⟩`` for all j, of shape (n,)."""

    def pairwise(
        self, other: Gradients, rows: Index, columns: Index, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``⟨gᵢ, g'ⱼ⟩`` for i in `rows`, j in `columns` of `other`: a tile (r, c) of the caller's.

        In `dtype` or more exact, by default that of these gradients. Here one column at a time,
        for gradients of any two kinds.

        Raises:
            ValueError: `other` has gradients of another length.
        """
        if other.dim != self.dim:
            raise ValueError(
                f"`other` must hold gradients of length {self.dim}, got {other.dim}. Compare "
                "gradients of the same layer."
            )
        left, right = self.take(rows), other.take(columns)
        tile = torch.empty(len(left), len(right), dtype=dtype or self.dtype, device=self.device)
        for j in range(len(right)):
            tile[:, j] = left.correlate(right.dense(j))
        return tile

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """``‖gᵢ‖²`` of shape (n,)."""

    @abstractmethod
    def means(self, members: Tensor) -> Iterator[Tensor]:
        """The mean gradients of m mini-batches, for `members` of shape (m, B), column by column.

        Yields (m, c) for the next c of the d columns, so many that no temporary is large.
        """

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no gradient holds a NaN or an infinity."""

    def own_rows(self, classes: Tensor) -> Gradients:
        """Only the row of the last layer that belongs to a sample's class, by labels (n,).

        Raises:
            ValueError: the rows of the layer are not known any more, or one is asked for that it
                does not have.
        """
        raise ValueError(
            "`gradients` must keep the rows of the last layer apart to match only that of a "
            f"sample's class, got {type(self).__name__}. Match whole gradients instead: "
            'scope="per-class".'
        )

    def rows(self) -> list[Tensor]:
        """The tensors (n, …) that hold G row by row, as they are stored, to send them elsewhere.

        Raises:
            ValueError: they are not held like that.
        """
        raise self._not_by_rows()

    def with_rows(self, rows: list[Tensor]) -> Gradients:
        """The same kind of gradients, made of other rows than those of `rows()`; raises as it."""
        raise self._not_by_rows()

    def _not_by_rows(self) -> ValueError:
        return ValueError(
            "`gradients` must be held row by row to travel between ranks, or to be matched under a "
            f"ridge of next to none, got {type(self).__name__}. Give that class `rows` and "
            "`with_rows`, or select in one process with a larger ridge."
        )
