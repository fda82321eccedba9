"""The ridge fit of a target on a support, while single atoms come and go.

Symbols: n atoms aᵢ of length d (rows of A), budget k, target b, ridge λ, support S, A_S its rows.
Two forms of one fit: `PrimalFit` keeps a matrix (d, d), `DualFit` one (n, k).
"""

# mypy: no-warn-return-any
# (the product of two numpy arrays is Any to it)

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from adaptive_subset.strategies.solvers.atoms import Array, Atoms
from adaptive_subset.strategies.solvers.shortlist import Shortlist


class RidgeFit(ABC):
    """The ridge fit of b on a support, while single atoms come and go.

    All follows from P = λ(λI + A_SᵀA_S)⁻¹: the residual r = Pb, the correlations c = Ar, the
    weights w_S = c_S/λ, the objective b·r. With v = Paⱼ and s = λ ± aⱼ·v, adding (+) or removing
    (−) atom j is P ← P ∓ vvᵀ/s, and the objective falls or rises by cⱼ²/s (Sherman-Morrison).
    """

    def __init__(self, atoms: Atoms, target: Array, norms: Array, budget: int, ridge: float):
        self.atoms, self.target, self.norms = atoms, target, norms
        self.budget, self.ridge = budget, ridge
        self.clear()

    def clear(self) -> None:
        """The empty support: P = I, r = b."""
        self.support: list[int] = []
        self.objective = float(self.target @ self.target)

    def add(self, index: int) -> None:
        self.support.append(index)
        image, overlap, correlation = self._image(index, len(self.support) - 1)
        # Below zero by rounding only, that of a Gram column in float32 where λ is small.
        self._update(image, self.ridge + max(overlap, 0.0), correlation, 1)

    def remove(self, index: int) -> None:
        """Downdate; where s is too small to divide by, add the others to an empty support."""
        place = self.support.index(index)
        image, overlap, correlation = self._image(index, place)
        pivot = self.ridge - overlap
        if pivot > 1e-9 * self.norms[index]:
            self._update(image, pivot, correlation, -1)
            self._forget(place)
        else:
            others = self.support[:place] + self.support[place + 1 :]
            self.clear()
            for other in others:
                self.add(other)

    def _update(self, image: Array, pivot: float, c: float, sign: int) -> None:
        scale = 1 / math.sqrt(pivot)
        step = c * scale
        self._apply(image * scale, step, sign)
        self.objective -= sign * step * step

    def _forget(self, place: int) -> None:
        del self.support[place]

    @abstractmethod
    def best(self, closed: Array, nonnegative: bool) -> tuple[int, float]: ...  # and its c or |c|
    @abstractmethod
    def weights(self) -> Array: ...
    @abstractmethod
    def weights_before(self) -> Array: ...  # those before the last atom was added
    @abstractmethod
    def state(self) -> Array: ...  # a copy of r or c_S, see `GreedyPath`
    @abstractmethod
    def is_positive(self) -> bool: ...  # whether all weights are > 0
    @abstractmethod
    def combine(self, weights: Array) -> Array: ...  # A_Sᵀw (d,)
    @abstractmethod
    def _image(self, index: int, place: int) -> tuple[Array, float, float]: ...  # v, a·v, c
    @abstractmethod
    def _apply(self, image: Array, step: float, sign: int) -> None: ...


def _scores(c: Array, closed: Array, nonnegative: bool) -> Array:
    """What the next choice has the largest of."""
    return (c if nonnegative else np.abs(c)) + closed[: len(c)]


class PrimalFit(RidgeFit):
    """P (d, d), r (d,) and A_S (k, d); c comes fresh from r, in the atoms' dtype, without drift.

    Atoms must be in the order of falling ‖aᵢ‖. Of a matrix of many, most are not read at each
    choice, see `Shortlist`.
    """

    def __init__(self, atoms: Atoms, target: Array, norms: Array, budget: int, ridge: float):
        super().__init__(atoms, target, norms, budget, ridge)
        self.shortness = -np.sqrt(norms)  # ascending
        self.reach = min(len(norms), 64)

    def clear(self) -> None:
        super().clear()
        self.list = Shortlist(self.atoms, self.norms, self.target)
        d = len(self.target)
        self.operator, self.scratch = np.eye(d), np.empty((d, d))
        self.residual = self.target.copy()
        self.rows = np.empty((self.budget, d))

    def best(self, closed: Array, nonnegative: bool) -> tuple[int, float]:
        listed = self.list.best(self.residual, closed, nonnegative)
        if listed is not None:
            return listed
        # cᵢ <= ‖aᵢ‖‖r‖, and the longest atoms come first: whoever could win is among the first.
        residual = self.residual.astype(self.atoms.dtype)
        length = math.sqrt(self.residual @ self.residual)
        while True:
            c = self.atoms.correlate(residual, self.reach)
            scores = _scores(c, closed, nonnegative)
            index = int(scores.argmax())
            score = float(scores[index])
            least = score / length if length and score > 0 else 0.0
            enough = int(self.shortness.searchsorted(-least))
            if enough <= self.reach:
                if self.list.is_due(self.reach):
                    self.list.make(c, scores, self.support, self.operator, self.residual)
                return index, score
            self.reach = min(self.reach + enough, len(self.shortness))

    def weights(self) -> Array:
        return self.rows[: len(self.support)] @ self.residual / self.ridge

    def weights_before(self) -> Array:
        image, step = self.last
        return self.rows[: len(self.support) - 1] @ (self.residual + step * image) / self.ridge

    def state(self) -> Array:
        return self.residual.copy()

    def is_positive(self) -> bool:
        rows = self.rows[: len(self.support)]
        if self.list.open:
            weak, strong = self.list.weak, self.list.strong
            if not bool((rows[weak] @ self.residual > 0).all()):
                return False
            rows = rows[strong:]
        return bool((rows @ self.residual > 0).all())

    def combine(self, weights: Array) -> Array:
        return weights @ self.rows[: len(self.support)]

    def _image(self, index: int, place: int) -> tuple[Array, float, float]:
        row = self.rows[place]
        row[:] = self.atoms.dense(index)
        image = self.operator @ row
        return image, float(row @ image), float(row @ self.residual)

    def _apply(self, image: Array, step: float, sign: int) -> None:
        np.multiply(image[:, None], image, out=self.scratch)
        (np.subtract if sign > 0 else np.add)(self.operator, self.scratch, out=self.operator)
        self.residual -= (sign * step) * image
        self.last = image, step
        self.list.follow(self.residual)

    def _forget(self, place: int) -> None:
        self.list.close()
        self.rows[place : len(self.support) - 1] = self.rows[place + 1 : len(self.support)]
        super()._forget(place)


class DualFit(RidgeFit):
    """Nothing of size d × d: P = I − QΣQᵀ, of which V = AQ (n, k or more), σ = ±1 and c are kept.

    A Paⱼ = Gⱼ − V(σ ⊙ Vⱼ) with G = AAᵀ is appended as a column, scaled by 1/√s.
    """

    def clear(self) -> None:
        super().clear()
        self.c = self.atoms.correlate(self.target.astype(self.atoms.dtype), len(self.atoms))
        self.c = self.c.astype(np.float64)
        self.columns = np.empty((self.budget, len(self.c)))  # Vᵀ; grows if atoms are dropped
        self.signs: list[float] = []

    def best(self, closed: Array, nonnegative: bool) -> tuple[int, float]:
        scores = _scores(self.c, closed, nonnegative)
        index = int(scores.argmax())
        return index, float(scores[index])

    def weights(self) -> Array:
        return self.c[self.support] / self.ridge

    def weights_before(self) -> Array:
        image, step = self.last
        return (self.c + step * image)[self.support[:-1]] / self.ridge

    def state(self) -> Array:
        return self.c[self.support]

    def is_positive(self) -> bool:
        return bool((self.c[self.support] > 0).all())

    def combine(self, weights: Array) -> Array:
        return self.atoms.sum(weights, np.array(self.support, dtype=np.int64))

    def _image(self, index: int, place: int) -> tuple[Array, float, float]:
        used = self.columns[: len(self.signs)]
        signed = used[:, index] * np.array(self.signs)
        image = self.atoms.gram_column(index) - signed @ used
        return image, float(image[index]), float(self.c[index])

    def _apply(self, image: Array, step: float, sign: int) -> None:
        if len(self.signs) == len(self.columns):
            self.columns = np.concatenate([self.columns, np.empty_like(self.columns)])
        self.columns[len(self.signs)] = image
        self.signs.append(float(sign))
        self.c -= (sign * step) * image
        self.last = image, step
