"""Orthogonal matching pursuit with a ridge: which atoms to take, and with what weights.

Symbols: n atoms aᵢ of length d (rows of A), budget k, target b, ridge λ, support S, A_S its rows.
Nothing here knows a model or a data set; an atom is whatever has inner products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class Atoms(Protocol):
    """n vectors of length d that need not exist as an (n, d) matrix."""

    @property
    def dim(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __len__(self) -> int: ...
    def correlate(self, vector: Tensor, /) -> Tensor: ...  # (d,) -> (n,): ⟨aᵢ, vector⟩
    def dense(self, index: int, /) -> Tensor: ...  # (d,): one atom
    def gram_column(self, index: int, /) -> Tensor: ...  # (n,): ⟨aᵢ, a_index⟩
    def squared_norms(self) -> Tensor: ...  # (n,): ‖aᵢ‖²


@dataclass(frozen=True, eq=False)
class OMPResult:
    """The chosen atoms, their weights, and how good the match is."""

    support: Tensor  # (s,) int64, s <= k, in the order of choice
    weights: Tensor  # (s,) in the atoms' dtype; all > 0 if non-negative
    objective: float  # ‖Σ wᵢaᵢ − b‖² + λ‖w‖²
    residual: float  # ‖Σ wᵢaᵢ − b‖²
    dropped: int  # how often an atom was taken out again


def omp(
    atoms: Atoms,
    target: Tensor,
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
    d² + kd numbers of memory are fewer than the other's nk. Where λ is below about
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
    n, d, b = len(atoms), atoms.dim, target.detach().to(torch.float64)
    budget, energy, mean = min(budget, n), float(b @ b), float(norms.sum()) / max(n, 1)
    solved = max(ridge, max(1e-8, 8 * torch.finfo(atoms.dtype).eps) * mean)  # λ with its floor
    primal = _form == "primal" if _form else 4 * d * d <= n * budget
    fit = (_Primal if primal else _Dual)(atoms, b, norms, budget, solved)
    closed = torch.zeros_like(fit.correlations())  # −∞ where chosen
    least = 1e-13 * math.sqrt(float(norms.amax()) * energy) if mean else math.inf
    weights, dropped = fit.weights(), 0
    for _ in range(4 * budget + 100):
        before = float(fit.objective)
        if len(fit.support) == budget or before <= tolerance * energy:
            break
        c = fit.correlations()
        score = closed + (c if nonnegative else c.abs())
        best = int(score.argmax())
        noise = 10 * solved * float(weights.abs().amax()) if len(weights) and solved > ridge else 0
        if not float(score[best]) > max(least, noise):
            break
        fit.add(best)
        closed[best] = -torch.inf
        if nonnegative:
            weights, out = _make_feasible(fit, weights)
            closed[out] = 0.0
            dropped += len(out)
            if out and before - float(fit.objective) <= 1e-15 * energy:
                break  # no progress beyond rounding: the only way to run in circles
        elif solved > ridge:
            weights = fit.weights()
    weights = fit.weights().to(atoms.dtype)
    rounded = weights.double()
    rest = b - fit.combine(rounded)
    residual = float(rest @ rest)
    objective = residual + ridge * float(rounded @ rounded)
    support = torch.tensor(fit.support, dtype=torch.int64, device=atoms.device)
    return OMPResult(support, weights, objective, residual, dropped)


def _make_feasible(fit: _Fit, feasible: Tensor) -> tuple[Tensor, list[int]]:
    """Inner loop of Lawson and Hanson, after one atom joined a fit whose weights are > 0.

    Walk from the old weights towards the new ones up to the first that would turn negative,
    drop its atom, fit again. Returns the positive weights (s,) and the dropped atoms.
    """
    old, new = torch.cat([feasible, feasible.new_zeros(1)]), fit.weights()
    out: list[int] = []
    while len(new) and float(new.min()) <= 0:
        share = (old / (old - new).clamp_min(1e-300)).masked_fill(new > 0, torch.inf)
        stays = share > share.min()
        old = (old + share.min() * (new - old)).clamp_min(0)[stays]
        for index in [i for i, kept in zip(fit.support, stays.tolist(), strict=True) if not kept]:
            fit.remove(index)
            out.append(index)
        new = fit.weights()
    return new, out


def _check(atoms: Atoms, target: Tensor, budget: int, ridge: float, tolerance: float) -> Tensor:
    """The squared norms (n,) in float64, once all arguments were found to be in range."""
    if atoms.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`atoms` must be float32 or float64, got {atoms.dtype}. Upcast them with `.float()`."
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
    norms = atoms.squared_norms().to(torch.float64)
    for name, values in (("target", target), ("atoms", norms)):
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(f"`{name}` must be finite, got {bad} of {len(values)} that are not.")
    return norms


class _Fit(ABC):
    """The ridge fit of b on a support, while single atoms come and go.

    All follows from P = λ(λI + A_SᵀA_S)⁻¹: the residual r = Pb, the correlations c = Ar, the
    weights w_S = c_S/λ, the objective b·r. With v = Paⱼ and s = λ ± aⱼ·v, adding (+) or removing
    (−) atom j is P ← P ∓ vvᵀ/s, and the objective falls or rises by cⱼ²/s (Sherman-Morrison).
    """

    def __init__(self, atoms: Atoms, target: Tensor, norms: Tensor, budget: int, ridge: float):
        self.atoms, self.target, self.norms = atoms, target, norms
        self.budget, self.ridge = budget, ridge
        self.clear()

    def clear(self) -> None:
        """The empty support: P = I, r = b."""
        self.support: list[int] = []
        self.objective = self.target @ self.target

    def add(self, index: int) -> None:
        self.support.append(index)
        image, overlap, correlation = self._image(index)
        self._update(index, image, self.ridge + overlap, correlation, 1)

    def remove(self, index: int) -> None:
        """Downdate; where s is too small to divide by, add the others to an empty support."""
        image, overlap, correlation = self._image(index)
        pivot = self.ridge - overlap
        others = [i for i in self.support if i != index]
        if float(pivot) > 1e-9 * float(self.norms[index]):
            self._update(index, image, pivot, correlation, -1)
            self.support = others
        else:
            self.clear()
            for other in others:
                self.add(other)

    def _update(self, index: int, image: Tensor, pivot: Tensor, c: Tensor, sign: int) -> None:
        scale = pivot.rsqrt()
        step = c * scale
        self._apply(index, image * scale, step, sign)
        self.objective = self.objective - sign * step * step

    @abstractmethod
    def correlations(self) -> Tensor: ...
    @abstractmethod
    def weights(self) -> Tensor: ...
    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor: ...  # A_Sᵀw (d,)
    @abstractmethod
    def _image(self, index: int) -> tuple[Tensor, Tensor, Tensor]: ...
    @abstractmethod
    def _apply(self, index: int, image: Tensor, step: Tensor, sign: int) -> None: ...


class _Primal(_Fit):
    """P (d, d), r (d,) and A_S (k, d); c comes fresh from r, in the atoms' dtype, without drift."""

    def clear(self) -> None:
        super().clear()
        self.operator = torch.eye(len(self.target)).to(self.target)
        self.residual = self.target.clone()
        self.rows = self.target.new_empty(self.budget, len(self.target))

    def correlations(self) -> Tensor:
        return self.atoms.correlate(self.residual.to(self.atoms.dtype))

    def weights(self) -> Tensor:
        return self.rows[: len(self.support)] @ self.residual / self.ridge

    def combine(self, weights: Tensor) -> Tensor:
        return weights @ self.rows[: len(self.support)]

    def _image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.rows[self.support.index(index)]
        row.copy_(self.atoms.dense(index))
        image = self.operator @ row
        return image, row @ image, row @ self.residual

    def _apply(self, index: int, image: Tensor, step: Tensor, sign: int) -> None:
        self.operator.addr_(image, image, alpha=-sign)
        self.residual.addcmul_(image, step, value=-sign)
        if sign < 0:
            at, size = self.support.index(index), len(self.support)
            self.rows[at : size - 1] = self.rows[at + 1 : size].clone()


class _Dual(_Fit):
    """Nothing of size d × d: P = I − QΣQᵀ, of which V = AQ (n, k or more), σ = ±1 and c are kept.

    A Paⱼ = Gⱼ − V(σ ⊙ Vⱼ) with G = AAᵀ is appended as a column, scaled by 1/√s.
    """

    def clear(self) -> None:
        super().clear()
        self.c = self.atoms.correlate(self.target.to(self.atoms.dtype)).to(torch.float64, copy=True)
        self.columns = self.c.new_empty(self.budget, len(self.c))  # Vᵀ; grows if atoms are dropped
        self.signs: list[float] = []

    def correlations(self) -> Tensor:
        return self.c

    def weights(self) -> Tensor:
        support = torch.tensor(self.support, dtype=torch.int64, device=self.c.device)
        return self.c[support] / self.ridge

    def combine(self, weights: Tensor) -> Tensor:
        total = torch.zeros_like(self.target)
        for index, weight in zip(self.support, weights, strict=True):
            total += weight * self.atoms.dense(index).double()
        return total

    def _image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        used = self.columns[: len(self.signs)]
        signed = used[:, index] * self.c.new_tensor(self.signs)
        image = torch.addmv(self.atoms.gram_column(index).double(), used.T, signed, alpha=-1)
        return image, image[index], self.c[index]

    def _apply(self, index: int, image: Tensor, step: Tensor, sign: int) -> None:
        if len(self.signs) == len(self.columns):
            self.columns = torch.cat([self.columns, torch.empty_like(self.columns)])
        self.columns[len(self.signs)] = image
        self.signs.append(float(sign))
        self.c.addcmul_(image, step, value=-sign)
