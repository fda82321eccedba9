"""The ridge OMP solver against scikit-learn's `orthogonal_mp_gram` on G + λI.

    python -m benchmarks.omp --data mnist

Real gradients: the class of MNIST with label 3, 6,131 samples, 85 numbers each. Building the Gram
matrix counts on scikit-learn's side; ours never needs it. Both in float64, and ours in float32 as
it is used. `support` says whether both chose the same atoms in float64.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import orthogonal_mp_gram

from adaptive_subset.strategies.omp import DenseAtoms, omp
from benchmarks import measure, trained


def main() -> None:
    parser = measure.parser(__doc__, "omp.json")
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[62, 614, 1840])
    options = parser.parse_args()

    ((delta, h),) = (
        trained.candidates(options.data).own_rows().by_class()[options.label][1].atoms.blocks
    )
    single = (delta * h).numpy(force=True)
    matrix = single.astype(np.float64)
    target, ridge = matrix.sum(0), 0.5 * float((matrix**2).sum(1).mean())

    rows: list[measure.Row] = []
    for budget in options.budgets:

        def peer(budget: int = budget) -> np.ndarray:
            gram = matrix @ matrix.T
            gram.flat[:: len(gram) + 1] += ridge
            return orthogonal_mp_gram(gram, matrix @ target, n_nonzero_coefs=budget)

        def ours(atoms: np.ndarray, nonnegative: bool, budget: int = budget) -> np.ndarray:
            result = omp(DenseAtoms(atoms), target, budget, ridge=ridge, nonnegative=nonnegative)
            return result.support

        seconds, results = measure.in_turns(
            {
                "scikit-learn": peer,
                "signed, float64": lambda: ours(matrix, False),
                "signed": lambda: ours(single, False),
                "non-negative": lambda: ours(single, True),
            },
            options.repeats,
        )
        same = set(np.flatnonzero(results["scikit-learn"])) == set(results["signed, float64"])
        for name in ("signed, float64", "signed", "non-negative"):
            rows.append(
                {
                    "solver": name,
                    "n": len(matrix),
                    "p": matrix.shape[1],
                    "k": budget,
                    "seconds": float(np.median(seconds[name])),
                    "scikit-learn": float(np.median(seconds["scikit-learn"])),
                    "times faster": measure.ratio(seconds["scikit-learn"], seconds[name]),
                    "support": same,
                    "raw": seconds[name],
                    "raw scikit-learn": seconds["scikit-learn"],
                }
            )
    measure.report(options.out, rows)


if __name__ == "__main__":
    main()
