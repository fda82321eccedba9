"""The few of many atoms that alone can be chosen next, for as long as that is certain.

Symbols: n atoms aᵢ of length d, target b, support S, operator P, residual r = Pb, correlations
cᵢ = aᵢ·r as in `ridge_fit.py`; P₀, r₀ and c₀ those of the last *look* at all atoms.

Write r = α(r₀ + δ), α = b·r / b·r₀, so that b·δ = 0. By Cauchy and Schwarz in the metric of P₀
|cᵢ/α − c₀ᵢ| <= τhᵢ, with τ² = δ·P₀⁻¹δ, τ the *turn* of r, and hᵢ² = aᵢ·P₀aᵢ − c₀ᵢ²/b·r₀.
Once there are more than d, atoms shrink r rather than turn it: it sways about a direction that
hardly moves, by less the more there are. So a short list has the best of n for hundreds of choices.
"""

# mypy: no-warn-return-any
# (the product of two numpy arrays is Any to it)

from __future__ import annotations

import math

import numpy as np

from adaptive_subset.strategies.solvers.atoms import Array, Atoms, DenseAtoms

WORTH = 1 << 18  # numbers to read at a look, from which a list may be worth its making
_LEAST = 64  # atoms on a list
_BLOCK = 1 << 20  # numbers in a temporary


class Shortlist:
    """The atoms that can have the largest c, or the weights that can turn negative, while τ <= ρ.

    Its length and ρ follow from how the last list ended; only time depends on them. Where a list
    cannot tell which atom is best it is closed, and all are looked at.

    Args:
        atoms: none longer than those before it.
        norms: (n,) ‖aᵢ‖².
        target: b.
    """

    def __init__(self, atoms: Atoms, norms: Array, target: Array) -> None:
        self.matrix = atoms.matrix if isinstance(atoms, DenseAtoms) else None
        self.norms, self.target = norms, target
        self.cost = 12 + len(target) / 4  # of a list: so many reads of all atoms, as measured
        self.pause = self.looks = 2.0 * len(target)  # looks until the next list
        self.size, self.limit = 1 << 14, 1.0  # of the next list; its ρ
        self.open = False

    def is_due(self, reach: int) -> bool:
        """Whether to make a list at this look at the first atoms: never if they are no matrix."""
        self.looks -= 1
        worth = self.matrix is not None and reach * len(self.target) >= WORTH
        return worth and self.looks <= 0

    def make(self, c: Array, score: Array, support: list[int], operator: Array, r: Array) -> None:
        """At a look: c of the first atoms, their score c or |c|, −∞ where chosen."""
        assert self.matrix is not None
        try:
            root = np.linalg.cholesky(operator)
        except np.linalg.LinAlgError:  # by rounding
            return
        self.residual, self.energy = r.copy(), float(self.target @ r)
        self.inverse = np.linalg.inv(root)
        height = self._heights(self.matrix[: len(c)], c, root)
        bound = score + self.limit * height
        self.size = max(_LEAST, min(self.size, len(c) // 4))
        last = len(c) - 1 - self.size
        self.far = float(np.partition(bound, last)[last]) if last >= 0 else -math.inf
        inside = bound > self.far
        self.near = float(score[~inside].max(initial=-math.inf))
        self.places = inside.nonzero()[0]
        self.rows = self.matrix[self.places]
        least = (c - self.limit * height)[support]
        self.weak, self.strong = (least <= 0).nonzero()[0], len(support)
        self.beyond = math.sqrt(self.norms[len(c)]) if len(c) < len(self.norms) else 0.0
        self.stale = 3 * self.cost * len(c)  # it has read more than is worth a new one
        self.read, self.picks, self.furthest = 0, 0, 0.0
        self.open = True
        if len(self.places):
            self.follow(r)
        else:  # all equal
            self.close()

    def _heights(self, matrix: Array, c: Array, root: Array) -> Array:
        """hᵢ of the first atoms, rounded up."""
        squares, step = np.empty_like(c), max(1, _BLOCK // len(root))
        for i in range(0, len(c), step):
            part = matrix[i : i + step] @ root.astype(c.dtype)
            squares[i : i + step] = np.einsum("ij,ij->i", part, part)
        rounding = (8 + 4 * len(root)) * np.finfo(c.dtype).eps * float(np.linalg.norm(root)) ** 2
        squares += (rounding * self.norms[: len(c)] - c * (c / self.energy)).astype(c.dtype)
        return np.sqrt(squares.clip(0, out=squares), out=squares)

    def follow(self, residual: Array) -> None:
        """Tell how far r has turned; after each change of it."""
        if self.open:
            self.scale = float(self.target @ residual) / self.energy
            if not self.scale > 0:
                self.close()
                return
            delta = self.inverse @ (residual / self.scale - self.residual)
            self.turn = math.sqrt(delta @ delta)
            self.furthest = max(self.furthest, self.turn)
            if self.turn > self.limit:
                self.close()

    def best(self, residual: Array, closed: Array, nonnegative: bool) -> tuple[int, float] | None:
        """The atom of the largest c, or |c|, and that; None where all must be looked at."""
        if not self.open:
            return None
        c = self.rows @ residual.astype(self.rows.dtype)
        score = (c if nonnegative else np.abs(c)) + closed[self.places]
        self.read += len(score)
        self.picks += 1
        # The bound is convex in τ: at most its chord, from 0 to ρ.
        others = self.scale * (self.near + self.turn / self.limit * (self.far - self.near))
        others = max(others, self.beyond * math.sqrt(residual @ residual))
        index = int(score.argmax())
        if self.read > self.stale or not score[index] > others:
            self.close()
            return None
        return int(self.places[index]), float(score[index])

    def close(self) -> None:
        """Look at all atoms again, and learn from this list for the next."""
        if self.open:
            self.open = False
            if self.read > self.stale:
                self.size //= 2
            elif self.furthest > 0:
                self.limit = 1.2 * self.furthest
                if 3 * self.read < self.stale:
                    self.size *= 2
            self.pause = 1 if self.picks > self.cost else min(2 * self.pause, 8 * self.cost)
            self.looks = self.pause
