"""Orthogonal matching pursuit with a ridge: which atoms to take, and with what weights.

Symbols: n atoms aᵢ of length d (rows of A), budget k, target b, ridge λ, support S, A_S its rows.
Nothing here knows a model or a data set; an atom is whatever has inner products. The solver runs
in numpy on the CPU: a step is a handful of products with small matrices, for which the time that
torch takes to start an operation, on a GPU above all, would be most of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from adaptive_subset.gradients.factored import BatchGradients, FactoredGradients

Array = np.ndarray[Any, Any]


class Atoms(Protocol):
    """n vectors of length d that need not exist as an (n, d) matrix."""

    @property
    def dim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Array, /) -> Atoms: ...  # (n,): in another order
    def correlate(self, vector: Array, first: int, /) -> Array: ...  # ⟨aᵢ, vector⟩, i < first
    def dense(self, index: int, /) -> Array: ...  # (d,): one atom
    def combine(self, index: Array, weights: Array, /) -> Array: ...  # (d,): Σ wᵢaᵢ over index
    def gram_column(self, index: int, /) -> Array: ...  # (n,): ⟨aᵢ, a_index⟩
    def squared_norms(self) -> Array: ...  # (n,): ‖aᵢ‖²


class DenseAtoms:
    """Atoms that are the rows of a matrix (n, d)."""

    def __init__(self, matrix: Array) -> None:
        self.matrix, self.dim, self.dtype = matrix, matrix.shape[1], matrix.dtype

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, index: Array) -> DenseAtoms:
        return DenseAtoms(self.matrix[index])

    def correlate(self, vector: Array, first: int) -> Array:
        return self.matrix[:first] @ vector

    def dense(self, index: int) -> Array:
        return self.matrix[index]

    def combine(self, index: Array, weights: Array) -> Array:
        return weights @ self.matrix[index]

    def gram_column(self, index: int) -> Array:
        return self.matrix @ self.matrix[index]

    def squared_norms(self) -> Array:
        return np.einsum("ij,ij->i", self.matrix, self.matrix, dtype=np.float64)


class GradientAtoms:
    """Atoms that are gradients, on whatever device; only vectors leave it."""

    def __init__(self, gradients: FactoredGradients | BatchGradients) -> None:
        self.gradients = gradients
        self.dim = gradients.dim
        self.dtype = np.dtype(str(gradients.dtype).removeprefix("torch."))

    def __len__(self) -> int:
        return len(self.gradients)

    def __getitem__(self, index: Array) -> GradientAtoms:
        rows = torch.from_numpy(index).to(self.gradients.device)
        return GradientAtoms(self.gradients[rows])

    def correlate(self, vector: Array, first: int) -> Array:
        on_device = torch.from_numpy(vector).to(self.gradients.device)
        return _array(self.gradients.correlate(on_device, first))

    def dense(self, index: int) -> Array:
        return _array(self.gradients.dense(index))

    def combine(self, index: Array, weights: Array) -> Array:
        device = self.gradients.device
        return _array(
            self.gradients.sum(
                torch.from_numpy(weights).to(device), torch.from_numpy(index).to(device)
            )
        )

    def gram_column(self, index: int) -> Array:
        return _array(self.gradients.gram_column(index))

    def squared_norms(self) -> Array:
        return _array(self.gradients.squared_norms().double())


class BatchAtoms(GradientAtoms):
    """Mini-batches' gradients: their Gram matrix comes over once, not a column for each atom."""

    def __init__(self, gradients: BatchGradients) -> None:
        super().__init__(gradients)
        self.gram = _array(gradients.gram)

    def gram_column(self, index: int) -> Array:
        column: Array = self.gram[:, index]
        return column


def atoms_of(gradients: FactoredGradients | BatchGradients) -> Atoms:
    """The gradients as atoms: a matrix where that takes no more room than the factors."""
    if isinstance(gradients, BatchGradients):
        return BatchAtoms(gradients)
    if len(gradients.blocks) == 1:
        ((delta, h),) = gradients.blocks
        if delta.shape[1] == 1:
            return DenseAtoms(_array(delta * h))
    return GradientAtoms(gradients)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy(force=True)


@dataclass(frozen=True, eq=False)
class OMPResult:
    """The chosen atoms, their weights, and how good the match is."""

    support: Array  # (s,) int64, s <= k, in the order of choice
    weights: Array  # (s,) in the atoms' dtype; all > 0 if non-negative
    objective: float  # ‖Σ wᵢaᵢ − b‖² + λ‖w‖²
    residual: float  # ‖Σ wᵢaᵢ − b‖²
    dropped: int  # how often an atom was taken out again


def omp(
    atoms: Atoms,
    target: Array,
    budget: int,
    *,
    ridge: float,
    nonnegative: bool = True,
    tolerance: float = 0.0,
    _form: Literal["primal", "dual"] | None = None,
) -> OMPResult:
    r"""Greedily minimise :math:`\|\sum_i w_i a_i - b\|^2 + \lambda \|w\|^2` over at most k atoms.

    GRAD-MATCH (ICML 2021), equations 1 to 3 and Algorithm 2: take the atom whose correlation with
    the residual is largest, fit all weights again, repeat. With non-negative weights the fit is
    the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23)
    stopped at k atoms: an atom whose weight would turn negative is dropped, and may come back.

    Deviations: weights are non-negative unless asked otherwise; the norm is squared; no atom is
    taken twice (under a ridge the correlation of a chosen one is λwᵢ, not 0). λ is raised to
    max(10⁻⁸, 8 machine epsilons) · mean ‖aᵢ‖² where it is smaller, so that λ = 0 means the limit;
    correlations up to 10 λ max |w| then count as zero: those of S, λw, are the floor's own doing.

    Cost of an atom, float64 counted twice: 4d² and one `correlate` in the primal form, about nk
    and one `gram_column` in the dual one; the primal form is taken where 4d² <= nk, and then its
    2d² + kd numbers of memory are fewer than the other's nk. It looks only at atoms long enough
    to win, ‖aᵢ‖‖r‖ >= max cⱼ: few, where most samples are fitted well. Where λ is below about
    3·10⁻⁵ mean ‖aᵢ‖² a dropped atom costs as much as adding all the others again.

    Args:
        atoms: n vectors of length d, float32 or float64; the state is kept in float64.
        target: b, shape (d,).
        budget: k >= 1; more than n means n.
        ridge: λ >= 0, absolute, in units of ‖aᵢ‖².
        nonnegative: Keep w >= 0 (choose the largest cᵢ > 0), or let it be signed (largest \|cᵢ\|).
        tolerance: Stop once the objective is at most this share of ‖b‖².

    Returns:
        Support and weights; fewer than k atoms where the tolerance is met, where no other atom
        improves the match (atoms or target zero, residual zero), or after 4k + 100 additions.

    Raises:
        ValueError: An argument is out of range, or atoms or target are not finite.
    """
    norms = _check(atoms, target, budget, ridge, tolerance)
    n, d, b = len(atoms), atoms.dim, target.astype(np.float64)
    budget, energy, mean = min(budget, n), float(b @ b), float(norms.sum()) / max(n, 1)
    solved = max(ridge, max(1e-8, 8 * float(np.finfo(atoms.dtype).eps)) * mean)  # λ, its floor
    primal = _form == "primal" if _form else 4 * d * d <= n * budget
    order = np.arange(n)
    if primal:
        order = np.argsort(-norms, kind="stable")
        atoms, norms = atoms[order], norms[order]
    fit = (_Primal if primal else _Dual)(atoms, b, norms, budget, solved)
    closed = np.zeros(n, dtype=atoms.dtype)  # −∞ where chosen
    least = 1e-13 * math.sqrt(norms.max() * energy) if mean else math.inf
    weights, dropped = fit.weights(), 0
    for _ in range(4 * budget + 100):
        before = fit.objective
        if len(fit.support) == budget or before <= tolerance * energy:
            break
        best, correlation = fit.best(closed, nonnegative)
        noise = 10 * solved * float(np.abs(weights).max()) if len(weights) and solved > ridge else 0
        if not correlation > max(least, noise):
            break
        fit.add(best)
        closed[best] = -np.inf
        if nonnegative:
            weights, out = _make_feasible(fit, weights)
            closed[out] = 0.0
            dropped += len(out)
            if out and before - fit.objective <= 1e-15 * energy:
                break  # no progress beyond rounding: the only way to run in circles
        elif solved > ridge:
            weights = fit.weights()
    weights = fit.weights().astype(atoms.dtype)
    rounded = weights.astype(np.float64)
    rest = b - fit.combine(rounded)
    residual = float(rest @ rest)
    objective = residual + ridge * float(rounded @ rounded)
    support = order[np.array(fit.support, dtype=np.int64)]
    return OMPResult(support, weights, objective, residual, dropped)


def _make_feasible(fit: _Fit, feasible: Array) -> tuple[Array, list[int]]:
    """Inner loop of Lawson and Hanson, after one atom joined a fit whose weights are > 0.

    Walk from the old weights towards the new ones up to the first that would turn negative,
    drop its atom, fit again. Returns the positive weights (s,) and the dropped atoms.
    """
    new = fit.weights()
    out: list[int] = []
    if new.min() > 0:
        return new, out
    old = np.append(feasible, 0.0)
    while len(new) and new.min() <= 0:
        share, falling = np.full(len(new), np.inf), new <= 0
        share[falling] = old[falling] / np.maximum(old[falling] - new[falling], 1e-300)
        stays = share > share.min()
        old = np.maximum(old + share.min() * (new - old), 0)[stays]
        for index in [i for i, kept in zip(fit.support, stays.tolist(), strict=True) if not kept]:
            fit.remove(index)
            out.append(index)
        new = fit.weights()
    return new, out


def _check(atoms: Atoms, target: Array, budget: int, ridge: float, tolerance: float) -> Array:
    """The squared norms (n,) in float64, once all arguments were found to be in range."""
    if atoms.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"`atoms` must be float32 or float64, got {atoms.dtype}. Upcast them to float32."
        )
    if target.shape != (atoms.dim,):
        raise ValueError(
            f"`target` must have an atom's shape ({atoms.dim},), got {tuple(target.shape)}."
        )
    if budget < 1:
        raise ValueError(f"`budget` must be at least 1, got {budget}.")
    for name, value in (("ridge", ridge), ("tolerance", tolerance)):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be finite and at least 0, got {value}.")
    norms = atoms.squared_norms().astype(np.float64)
    for name, values in (("target", target), ("atoms", norms)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(f"`{name}` must be finite, got {bad} of {len(values)} that are not.")
    return norms


class _Fit(ABC):
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
        self._update(image, self.ridge + overlap, correlation, 1)

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
    def combine(self, weights: Array) -> Array: ...  # A_Sᵀw (d,)
    @abstractmethod
    def _image(self, index: int, place: int) -> tuple[Array, float, float]: ...  # v, a·v, c
    @abstractmethod
    def _apply(self, image: Array, step: float, sign: int) -> None: ...


def _largest(c: Array, closed: Array, nonnegative: bool) -> tuple[int, float]:
    score = (c if nonnegative else np.abs(c)) + closed[: len(c)]
    index = int(score.argmax())
    return index, float(score[index])


class _Primal(_Fit):
    """P (d, d), r (d,) and A_S (k, d); c comes fresh from r, in the atoms' dtype, without drift.

    Atoms must be in the order of falling ‖aᵢ‖.
    """

    def __init__(self, atoms: Atoms, target: Array, norms: Array, budget: int, ridge: float):
        super().__init__(atoms, target, norms, budget, ridge)
        self.shortness = -np.sqrt(norms)  # ascending
        self.reach = min(len(norms), 64)

    def clear(self) -> None:
        super().clear()
        d = len(self.target)
        self.operator, self.scratch = np.eye(d), np.empty((d, d))
        self.residual = self.target.copy()
        self.rows = np.empty((self.budget, d))

    def best(self, closed: Array, nonnegative: bool) -> tuple[int, float]:
        # cᵢ <= ‖aᵢ‖‖r‖, and the longest atoms come first: whoever could win is among the first.
        residual = self.residual.astype(self.atoms.dtype)
        length = math.sqrt(self.residual @ self.residual)
        while True:
            c = self.atoms.correlate(residual, self.reach)
            index, score = _largest(c, closed, nonnegative)
            least = score / length if length and score > 0 else 0.0
            enough = int(self.shortness.searchsorted(-least))
            if enough <= self.reach:
                return index, score
            self.reach = min(self.reach + enough, len(self.shortness))

    def weights(self) -> Array:
        return self.rows[: len(self.support)] @ self.residual / self.ridge

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

    def _forget(self, place: int) -> None:
        self.rows[place : len(self.support) - 1] = self.rows[place + 1 : len(self.support)]
        super()._forget(place)


class _Dual(_Fit):
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
        return _largest(self.c, closed, nonnegative)

    def weights(self) -> Array:
        return self.c[self.support] / self.ridge

    def combine(self, weights: Array) -> Array:
        return self.atoms.combine(np.array(self.support, dtype=np.int64), weights)

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
