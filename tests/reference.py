"""Slow, obviously correct versions of what the library computes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import nnls


def ridge_weights(atoms: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """argmin ‖Σ wᵢaᵢ − b‖² + λ‖w‖², as least squares on the stacked system [Aᵀ; √λ I]."""
    return np.linalg.lstsq(*_stacked(atoms, target, ridge), rcond=None)[0]


def nonnegative_ridge_weights(atoms: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """The same with w >= 0, by scipy."""
    return nnls(*_stacked(atoms, target, ridge))[0]


def _stacked(atoms: np.ndarray, target: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    n = len(atoms)
    return np.vstack([atoms.T, np.sqrt(ridge) * np.eye(n)]), np.append(target, np.zeros(n))


def ridge_objective(
    atoms: np.ndarray, target: np.ndarray, ridge: float, weights: np.ndarray
) -> float:
    """‖Σ wᵢaᵢ − b‖² + λ‖w‖²."""
    return float(np.sum((weights @ atoms - target) ** 2) + ridge * np.sum(weights**2))


def ridge_omp(
    atoms: np.ndarray, target: np.ndarray, budget: int, ridge: float, *, nonnegative: bool
) -> tuple[list[int], np.ndarray]:
    """OMP that solves each step from scratch; with Lawson-Hanson for w >= 0."""
    support: list[int] = []
    weights = np.zeros(len(atoms))
    while len(support) < min(budget, len(atoms)):
        correlations = atoms @ (target - weights @ atoms)
        score = correlations if nonnegative else np.abs(correlations)
        score[support] = -np.inf
        best = int(np.argmax(score))
        if score[best] <= 1e-12 * np.abs(atoms @ target).max():
            break
        support.append(best)
        while True:
            fit = np.zeros(len(atoms))
            fit[support] = ridge_weights(atoms[support], target, ridge)
            blocking = [i for i in support if fit[i] <= 0]
            if not nonnegative or not blocking:
                weights = fit
                break
            shares = {i: weights[i] / (weights[i] - fit[i]) for i in blocking}
            first = min(shares, key=shares.__getitem__)
            weights += shares[first] * (fit - weights)
            weights[first] = 0.0
            support.remove(first)
    return support, weights[support]


def best_subset_objective(
    atoms: np.ndarray, target: np.ndarray, budget: int, ridge: float, *, nonnegative: bool
) -> float:
    """The optimum over every support of exactly `budget` atoms."""
    solve = nonnegative_ridge_weights if nonnegative else ridge_weights
    return min(
        ridge_objective(atoms[list(s)], target, ridge, solve(atoms[list(s)], target, ridge))
        for s in combinations(range(len(atoms)), budget)
    )
