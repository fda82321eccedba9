"""What a pass keeps of each batch: the factors of its gradients, or gradients added up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head_checks import with_constant
from adaptive_subset.gradients.sketch import Sketch, SketchedGradients, TensorSketch, sketch_of
from adaptive_subset.gradients.storage import Rows
from adaptive_subset.gradients.token_slopes import TokenSlopes


class Factors:
    """δ (n, C) and h (n, p) of heads that run at one position of a sample.

    Args:
        features, deltas: of a first batch, for their widths.
        biases: whether each head has one, whose feature is a constant 1 beside the others.
        size: n, where it is known.
        dtype: what they are kept in.
        folder: for a file in place of memory, see `Rows`.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        deltas: Sequence[Tensor],
        biases: Sequence[bool],
        size: int | None,
        dtype: torch.dtype,
        folder: Path | None = None,
    ) -> None:
        heads = zip(deltas, features, biases, strict=True)
        self.dim = sum(delta.shape[1] * (h.shape[1] + bias) for delta, h, bias in heads)
        self._blocks = [
            (Rows(size, dtype, folder=folder), Rows(size, dtype, ones=bias, folder=folder))
            for bias in biases
        ]

    def append(self, features: Sequence[Tensor], deltas: Sequence[Tensor] | None) -> None:
        """Add those of a batch; None where the δ of the one head come by `append_delta`."""
        for delta in deltas or ():
            if delta.ndim > 2:
                raise ValueError(
                    "`head` must run at as many positions in all batches as in the first, or at "
                    f"several, got one there and {delta.shape[1]} here. Pad the first batch to "
                    "more than one position."
                )
        for (_, h_rows), h in zip(self._blocks, features, strict=True):
            h_rows.append(h)
        if deltas is not None:
            for (d_rows, _), delta in zip(self._blocks, deltas, strict=True):
                d_rows.append(delta)

    def append_delta(self, delta: Tensor) -> None:
        """Add the δ of samples whose features were added before."""
        self._blocks[0][0].append(delta)

    def join(self) -> FactoredGradients:
        return FactoredGradients([(d.join(), h.join()) for d, h in self._blocks])


class Sums:
    """``Σ_t δ_t ⊗ h_t`` of heads that run at T positions of a sample: as they are, or sketched.

    Args:
        features, deltas: of a first batch, (n, T, p) and (n, T, C), or (n, p) and (n, C).
        biases: see `Factors`.
        size: n, where it is known.
        sketch: gradients of a head that are longer are sketched to its size.
        folder: for a file in place of memory, see `Rows`.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        deltas: Sequence[Tensor | TokenSlopes],
        biases: Sequence[bool],
        size: int | None,
        sketch: Sketch,
        folder: Path | None = None,
    ) -> None:
        self._biases = biases
        self._maps: list[TensorSketch | None] = []
        self.dim = 0
        for head, (delta, h, bias) in enumerate(zip(deltas, features, biases, strict=True)):
            rows, columns = delta.shape[-1], h.shape[-1] + bias
            fits = rows * columns <= sketch.size
            self._maps.append(None if fits else sketch_of(sketch, head, rows, columns, delta))
            self.dim += rows * columns if fits else sketch.size
        self._rows = Rows(size, folder=folder)

    def append(self, features: Sequence[Tensor], deltas: Sequence[Tensor | TokenSlopes]) -> None:
        """Add those of a batch."""
        parts = []
        heads = zip(self._maps, deltas, features, self._biases, strict=True)
        for reduce, delta, h, bias in heads:
            if isinstance(delta, Tensor) and delta.ndim == 2:
                delta, h = delta[:, None], h[:, None]
            h = h.to(delta.dtype)
            if bias:
                h = with_constant(h)
            parts.append(delta[:].mT.bmm(h).flatten(1) if reduce is None else reduce(delta, h))
        self._rows.append(torch.cat(parts, 1))

    def join(self) -> DenseGradients:
        matrix = self._rows.join()
        exact = all(reduce is None for reduce in self._maps)
        return DenseGradients(matrix) if exact else SketchedGradients(matrix)
