"""Orthogonal matching pursuit with a ridge: which atoms to take, and with what weights.

Symbols: n atoms aᵢ of length d (rows of A), budget k, target b, ridge λ, support S, A_S its rows.
Nothing here knows a model or a data set; an atom is whatever has inner products (`atoms.py`). The
weights of a support are those of `ridge_fit.py`; here is the loop that chooses it. It runs in numpy
on the CPU: a step is a handful of products with small matrices, for which the time that torch takes
to start an operation would be most of it. Where gradients are on an accelerator many problems take
a step together instead (`batched_pursuit.py`).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from adaptive_subset.strategies.solvers.atoms import Array, Atoms
from adaptive_subset.strategies.solvers.greedy_path import GreedyPath, OMPResult, most_steps
from adaptive_subset.strategies.solvers.ridge_fit import DualFit, PrimalFit, RidgeFit


def omp(
    atoms: Atoms,
    target: Array,
    budget: int,
    *,
    ridge: float,
    nonnegative: bool = True,
    tolerance: float = 0.0,
    path: GreedyPath | None = None,
    _form: Literal["primal", "dual"] | None = None,
) -> OMPResult:
    """Greedily minimise ``‖Σ wᵢaᵢ − b‖² + λ‖w‖²`` over at most k atoms.

    GRAD-MATCH (ICML 2021), equations 1 to 3 and Algorithm 2: take the atom whose correlation with
    the residual is largest, fit all weights again, repeat. With non-negative weights the fit is
    the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23)
    stopped at k atoms: an atom whose weight would turn negative is dropped, and may come back.

    Deviations: weights are non-negative unless asked otherwise; the norm is squared; no atom is
    taken twice (under a ridge the correlation of a chosen one is λwᵢ, not 0). λ is raised to
    10⁻⁸ mean ‖aᵢ‖² where it is smaller, so that λ = 0 means the limit; up to ten times that,
    correlations of at most 10 λ max |w| count as zero: those of S, λw, are of the size of what
    rounding makes of others. Where λ is `small`, float32 atoms are copied in float64: weights are
    correlations over λ, which would make as much of their rounding.

    Cost of an atom, float64 counted twice: 4d² and one `correlate` in the primal form, about nk
    and one `gram_column` in the dual one; the primal form is taken where 4d² <= nk, and then its
    2d² + kd numbers of memory are fewer than the other's nk. It looks only at atoms long enough
    to win, ‖aᵢ‖‖r‖ >= max cⱼ: few, where most samples are fitted well; and of many only at those
    that can have caught up since all were read, see `Shortlist`, of which it copies a quarter at
    most. Where λ is `small` a dropped atom may cost as much as adding all the others again.

    Args:
        atoms: n vectors of length d, float32 or float64; the state is kept in float64.
        target: b, shape (d,).
        budget: k >= 1; more than n means n.
        ridge: λ >= 0, absolute, in units of ‖aᵢ‖².
        nonnegative: Keep w >= 0 (choose the largest cᵢ > 0), or let it be signed (largest |cᵢ|).
        tolerance: Stop once the objective is at most this share of ‖b‖².
        path: Is told what the run does, and has its results for smaller budgets afterwards.

    Returns:
        Support and weights; fewer than k atoms where the tolerance is met, where no other atom
        improves the match (atoms or target zero, residual zero), or after 4k + 100 additions.

    Raises:
        ValueError: An argument is out of range, or atoms or target are not finite.
    """
    norms = _check(atoms, target, budget, ridge, tolerance)
    n, d, b = len(atoms), atoms.dim, target.astype(np.float64)
    budget, energy, mean = min(budget, n), float(b @ b), float(norms.sum()) / max(n, 1)
    dtype, longest = atoms.dtype, float(norms.max(initial=0))
    solved, margin = raised_ridge(ridge, mean)
    if dtype == np.float32 and small(solved, longest):
        atoms = atoms.double()
    primal = _form == "primal" if _form else 4 * d * d <= n * budget
    order = np.arange(n)
    if primal:
        order = np.argsort(-norms, kind="stable")
        atoms, norms = atoms.take(order), norms[order]
    fit = (PrimalFit if primal else DualFit)(atoms, b, norms, budget, solved)
    closed = np.zeros(n, dtype=atoms.dtype)  # −∞ where chosen
    least = least_correlation(longest, energy)
    dropped = 0
    if path is not None:
        path.begin(budget, solved, order, primal, atoms.dtype)
    for _ in range(most_steps(budget)):
        before = fit.objective
        if len(fit.support) == budget or before <= tolerance * energy:
            break
        best, correlation = fit.best(closed, nonnegative)
        noise = margin * solved * np.abs(fit.weights()).max(initial=0.0) if margin else 0.0
        if not correlation > max(least, noise):
            break
        fit.add(best)
        closed[best] = -np.inf
        out: list[int] = []
        if nonnegative and not fit.is_positive():
            out = _make_feasible(fit, fit.weights_before())
            closed[out] = 0.0
            dropped += len(out)
        if path is not None:
            path.step(best, out, fit.state())
        if out and before - fit.objective <= 1e-15 * energy:
            break  # no progress beyond rounding: the only way to run in circles
    weights = fit.weights().astype(dtype)
    rest = b - fit.combine(weights.astype(np.float64))
    support = order[np.array(fit.support, dtype=np.int64)]
    return OMPResult.of(support, weights, rest, ridge, dropped)


def raised_ridge(ridge: float, mean: float) -> tuple[float, float]:
    """λ, or its floor: `mean` is that of ‖aᵢ‖².

    With it the number of λ max |w| that a correlation must have more of, 0 where λ is large enough
    for rounding not to matter.
    """
    floor = 1e-8 * mean
    return max(ridge, floor), 10.0 * (ridge < 10 * floor)


def small(ridge: float, longest: float) -> bool:
    """Whether λ is below about 3·10⁻⁵ of the `longest` ‖aᵢ‖².

    The s = λ² / (λ + ‖aᵢ‖²) of an atom that is dropped may then be too small to divide by.
    """
    return ridge * ridge < 1e-9 * longest * (ridge + longest)


def least_correlation(longest: float, energy: float) -> float:
    """What a correlation must be above to be none of rounding, of the `longest` ‖aᵢ‖² and ‖b‖²."""
    return 1e-13 * math.sqrt(longest * energy) if longest else math.inf


def _make_feasible(fit: RidgeFit, feasible: Array) -> list[int]:
    """Inner loop of Lawson and Hanson, after one atom joined a fit whose weights are > 0.

    Walk from the old weights towards the new ones up to the first that would turn negative,
    drop its atom, fit again, until all weights are positive. Returns the dropped atoms.
    """
    new = fit.weights()
    out: list[int] = []
    old = np.append(feasible, 0.0).clip(0)
    while len(new) and new.min() <= 0:
        share, falling = np.full(len(new), np.inf), new <= 0
        share[falling] = old[falling] / np.maximum(old[falling] - new[falling], 1e-300)
        stays = share > share.min()
        old = np.maximum(old + share.min() * (new - old), 0)[stays]
        for index in [i for i, kept in zip(fit.support, stays.tolist(), strict=True) if not kept]:
            fit.remove(index)
            out.append(index)
        new = fit.weights()
    return out


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
