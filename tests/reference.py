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


def largest_of_pool(scores: list[float], order: list[int], budget: int, share: float) -> set[int]:
    """OrderDP: of the first k / share in a random `order` the k with the largest last losses."""
    pool = order[: min(len(order), round(budget / share))]
    # Who was not trained on yet comes first; among equals, who comes first in the pool.
    ranked = sorted(pool, key=lambda i: -np.inf if np.isnan(scores[i]) else -scores[i])
    return set(ranked[:budget])


def below_mean_dropped(scores: list[float], ratio: float) -> tuple[int, float, set[int]]:
    """InfoBatch: how many are left out, the weight of those who stand for them, and who may be."""
    known = [s for s in scores if not np.isnan(s)]
    below = {i for i, s in enumerate(scores) if s < sum(known) / len(known)}
    out = int(ratio * len(below))
    return out, len(below) / (len(below) - out), below


def lloyd(values: list[float], groups: int) -> list[list[int]]:
    """k-means by Lloyd's iteration: the positions in each group, from the lowest group on."""
    ordered = sorted(values)
    middles = [ordered[int((g + 0.5) / groups * len(values))] for g in range(groups)]
    centres = sorted(set(middles))
    while True:
        members: list[list[int]] = [[] for _ in centres]
        for i, value in enumerate(values):
            distances = [abs(value - centre) for centre in centres]
            members[distances.index(min(distances))].append(i)
        members = [group for group in members if group]
        means = [sum(values[i] for i in group) / len(group) for group in members]
        if means == centres:
            return members
        centres = means


def window_of_groups(
    scores: list[float], order: list[int], epoch: int, ratio: float, groups: int, window: float
) -> set[int]:
    """SeTa: who is in the window of `epoch`, of those that a random `order` leaves."""
    known = [s for s in scores if not np.isnan(s)]
    kept = order[: max(1, round((1 - ratio) * len(scores)))]
    largest = max(known, default=0.0)
    found = lloyd([largest if np.isnan(scores[i]) else scores[i] for i in kept], groups)
    width = max(1, round(window * len(found)))
    first = epoch % (len(found) - width + 1)
    return {kept[i] for group in found[first : first + width] for i in group}


def lowest_hidden(scores: list[float], share: float, confidence: float) -> set[int]:
    """KAKURENBO: who is hidden of the lowest share, by a cross-entropy."""
    known = [i for i in range(len(scores)) if not np.isnan(scores[i])]
    lowest = sorted(known, key=lambda i: scores[i])[: int(share * len(scores))]
    return {i for i in lowest if np.exp(-scores[i]) >= confidence}
