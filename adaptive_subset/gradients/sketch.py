"""Sketches of gradients that are too long to be held: fewer numbers, the same inner products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_subset.default_device import on_cpu
from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.token_slopes import TokenSlopes, numbers_at_once
from adaptive_subset.randomness import Purpose, seeded


@dataclass(frozen=True)
class Sketch:
    """How long a gradient may be that is summed over positions, and the draw that shortens others.

    Args:
        size: m, the numbers that are held of a gradient of one head.
        seed: of the draw; the same on all ranks, and for all gradients that are compared.
    """

    size: int
    seed: int


class TensorSketch:
    """A random linear map of matrices ``Σ_t δ_t ⊗ h_t`` (C, p) to m numbers.

    Inner products keep their expectation. Entry (c, j) is added, with the sign ``s_c s'_j``, to
    number ``(a_c + a'_j) mod m`` (Pham and Pagh 2013, "Fast and Scalable Polynomial Kernels via
    Explicit Feature Maps", §3). The sketch of ``δ ⊗ h`` is then the circular convolution of those
    of δ and h, so that no matrix (C, p) is needed; the positions are added up between two
    Fourier transforms. Where the matrix is the smaller work, it is made and then mapped.

    Deviation: classes are hashed in stretches of m, each turned by a random number of places, so
    that δ is read in order. Two classes of one stretch never meet, others do with chance 1/m.

    Args:
        rows, columns: C and p.
        size: m.
        generator: on the CPU.
        like: of the device and dtype to work in.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        size: int,
        generator: torch.Generator,
        like: Tensor | TokenSlopes,
    ) -> None:
        def signs(count: int) -> Tensor:
            drawn = torch.randint(2, (count,), generator=generator) * 2 - 1
            return drawn.to(like.device, like.dtype)

        self.size = size
        self._row_signs, self._column_signs = signs(rows), signs(columns)
        self._turns = torch.randint(size, (-(-rows // size),), generator=generator).tolist()
        places = torch.randperm(size * -(-columns // size), generator=generator)[:columns] % size
        self._columns = places.to(like.device)

    def __call__(self, delta: Tensor | TokenSlopes, features: Tensor) -> Tensor:
        """(n, m) of δ (n, T, C) and h (n, T, p)."""
        (_, positions, rows), columns = delta.shape, features.shape[2]
        if rows * columns <= positions * self.size:
            signed = (delta[:] * self._row_signs).mT @ (features * self._column_signs)
            return self._folded(signed)
        return self._convolved(delta, features)

    def _convolved(self, delta: Tensor | TokenSlopes, features: Tensor) -> Tensor:
        (n, positions, rows), m = delta.shape, self.size
        spectrum = torch.fft.rfft(features.new_zeros(n, m))
        some = max(1, numbers_at_once(features.device) // max(rows, m))
        samples = max(1, some // positions)
        for i in (slice(start, start + samples) for start in range(0, n, samples)):
            for t in (slice(start, start + some) for start in range(0, positions, some)):
                left, right = self._left(delta[i, t]), self._right(features[i, t])
                spectrum[i] += torch.fft.rfft(left).mul_(torch.fft.rfft(right)).sum(1)
        sketch: Tensor = torch.fft.irfft(spectrum, n=m)
        return sketch

    def _left(self, delta: Tensor) -> Tensor:
        """(…, m) of δ (…, C)."""
        m, rows = self.size, delta.shape[-1]
        left = delta.new_zeros(*delta.shape[:-1], m)
        for k, turn in enumerate(self._turns):
            part = slice(k * m, min((k + 1) * m, rows))
            some, own = delta[..., part], self._row_signs[part]
            split = min(m - turn, some.shape[-1])
            left[..., turn : turn + split].addcmul_(some[..., :split], own[:split])
            rest = some.shape[-1] - split
            left[..., :rest].addcmul_(some[..., split:], own[split:])
        return left

    def _right(self, features: Tensor) -> Tensor:
        """(…, m) of h (…, p)."""
        right = features.new_zeros(*features.shape[:-1], self.size)
        return right.scatter_add_(
            -1, self._columns.expand(features.shape), features * self._column_signs
        )

    def _folded(self, signed: Tensor) -> Tensor:
        """(n, m) of matrices (n, C, p) whose entries have their signs."""
        n, rows, _ = signed.shape
        sketch = signed.new_zeros(n, self.size)
        row = torch.arange(rows, device=signed.device)
        turns = torch.tensor(self._turns, device=signed.device)
        places = (row + turns[row // self.size])[:, None] + self._columns
        return sketch.index_add_(1, (places % self.size).flatten(), signed.flatten(1))


class SketchedGradients(DenseGradients):
    """Sketches in the place of n gradients: their inner products are estimates of the gradients'.

    Args:
        matrix: (n, m), each row made by the same draw.
    """

    is_estimate = True


@on_cpu()
def sketch_of(
    sketch: Sketch, head: int, rows: int, columns: int, like: Tensor | TokenSlopes
) -> TensorSketch:
    """The map for gradients (rows, columns) of the `head`-th head."""
    generator = seeded(sketch.seed, 0, Purpose.SKETCH, head)
    return TensorSketch(rows, columns, sketch.size, generator, like)
