"""What the solver sees: n vectors, the atoms, that have inner products, in numpy.

Symbols: n atoms aᵢ of length d, the rows of A. Nothing here knows a model or a data set.
"""

# mypy: no-warn-return-any
# (the product of two numpy arrays is Any to it)

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adaptive_subset.gradients import DenseGradients, Gradients

Array = np.ndarray[Any, Any]


class Atoms(Protocol):
    """n vectors of length d that need not exist as an (n, d) matrix: `Gradients` in numpy."""

    @property
    def dim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def take(self, index: Array, /) -> Atoms: ...  # those at index
    def double(self) -> Atoms: ...  # the same in float64
    def sum(self, weights: Array, index: Array, /) -> Array: ...  # (d,): Σ wᵢaᵢ over index
    def correlate(self, vector: Array, first: int, /) -> Array: ...  # ⟨aᵢ, vector⟩, i < first
    def dense(self, index: int, /) -> Array: ...  # (d,): one atom
    def gram_column(self, index: int, /) -> Array: ...  # (n,): ⟨aᵢ, a_index⟩
    def squared_norms(self) -> Array: ...  # (n,): ‖aᵢ‖²


class DenseAtoms:
    """Atoms that are the rows of a matrix (n, d)."""

    def __init__(self, matrix: Array) -> None:
        self.matrix, self.dim, self.dtype = matrix, matrix.shape[1], matrix.dtype

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, index: Array) -> DenseAtoms:
        return DenseAtoms(self.matrix[index])

    def double(self) -> DenseAtoms:
        return DenseAtoms(self.matrix.astype(np.float64))

    def sum(self, weights: Array, index: Array) -> Array:
        return weights @ self.matrix[index]

    def correlate(self, vector: Array, first: int) -> Array:
        return self.matrix[:first] @ vector

    def dense(self, index: int) -> Array:
        return self.matrix[index]

    def gram_column(self, index: int) -> Array:
        return self.matrix @ self.matrix[index]

    def squared_norms(self) -> Array:
        return np.einsum("ij,ij->i", self.matrix, self.matrix, dtype=np.float64)


class GradientAtoms:
    """Atoms that are gradients, on whatever device; only vectors leave it, and what Gram they hold.

    A Gram matrix that is there comes over at once, instead of a column for each atom.
    """

    def __init__(self, gradients: Gradients) -> None:
        self.gradients = gradients
        self.dim = gradients.dim
        self.dtype = np.dtype(str(gradients.dtype).removeprefix("torch."))

    @cached_property
    def _gram(self) -> Array | None:
        gram = self.gradients.gram
        return None if gram is None else _array(gram)

    def _on_device(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.gradients.device)

    def __len__(self) -> int:
        return len(self.gradients)

    def take(self, index: Array) -> GradientAtoms:
        return GradientAtoms(self.gradients.take(self._on_device(index)))

    def double(self) -> GradientAtoms:
        return GradientAtoms(self.gradients.double())

    def sum(self, weights: Array, index: Array) -> Array:
        return _array(self.gradients.sum(self._on_device(weights), self._on_device(index)))

    def correlate(self, vector: Array, first: int) -> Array:
        return _array(self.gradients.correlate(self._on_device(vector), first))

    def dense(self, index: int) -> Array:
        return _array(self.gradients.dense(index))

    def gram_column(self, index: int) -> Array:
        if self._gram is not None:
            return self._gram[:, index]
        return _array(self.gradients.gram_column(index))

    def squared_norms(self) -> Array:
        return _array(self.gradients.squared_norms().double())


def atoms_of(gradients: Gradients) -> Atoms:
    """The gradients as atoms: a matrix where they have no smaller form."""
    compact = gradients.compact()
    if isinstance(compact, DenseGradients):
        return DenseAtoms(_array(compact.matrix))
    return GradientAtoms(compact)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy(force=True)
