"""The ridge OMP solver against scikit-learn's `orthogonal_mp_gram` on G + λI.

    python -m benchmarks.omp --data mnist

Real gradients: the class of MNIST with label 3, 6,131 samples, 85 numbers each. Building the Gram
matrix counts on scikit-learn's side; ours never needs it. Both in float64, and ours in float32 as
it is used. `same support` says whether both chose the same atoms in float64; `of clipped` and `of
NNLS` compare the non-negative objective with the signed solution's, its negative weights set to
zero, and with scipy's NNLS on the same support.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp_gram

from adaptive_subset.gradients import DenseGradients
from adaptive_subset.strategies.solvers.atoms import DenseAtoms
from adaptive_subset.strategies.solvers.greedy_path import OMPResult
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from benchmarks import measure, trained


def main() -> None:
    parser = measure.parser(__doc__, "omp.json")
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[62, 614, 1840])
    options = parser.parse_args()

    given = trained.candidates(options.data)
    problem = given.of_group(given.by_group()[options.label]).own_rows()
    gradients = problem.atoms.compact()
    assert isinstance(gradients, DenseGradients)
    single = gradients.matrix.numpy(force=True)
    matrix = single.astype(np.float64)
    target, ridge = matrix.sum(0), 0.5 * float((matrix**2).sum(1).mean())

    rows: list[measure.Row] = []
    for budget in options.budgets:

        def peer(budget: int = budget) -> np.ndarray:
            gram = matrix @ matrix.T
            gram.flat[:: len(gram) + 1] += ridge
            return orthogonal_mp_gram(gram, matrix @ target, n_nonzero_coefs=budget)

        def ours(atoms: np.ndarray, nonnegative: bool, budget: int = budget) -> OMPResult:
            return omp(DenseAtoms(atoms), target, budget, ridge=ridge, nonnegative=nonnegative)

        seconds, results = measure.in_turns(
            {
                "scikit-learn": peer,
                "signed, float64": lambda: ours(matrix, False),
                "signed": lambda: ours(single, False),
                "non-negative": lambda: ours(single, True),
            },
            options.repeats,
        )
        signed, nonnegative = results["signed"], results["non-negative"]
        floor = {
            "of clipped": objective(single, target, ridge, signed.support, signed.weights.clip(0)),
            "of NNLS": objective(
                single,
                target,
                ridge,
                nonnegative.support,
                nnls_weights(single, target, ridge, nonnegative.support),
            ),
        }
        same = set(np.flatnonzero(results["scikit-learn"])) == set(
            results["signed, float64"].support
        )
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
                    "times signed": measure.ratio(seconds[name], seconds["signed"]),
                    "same support": same if name == "signed, float64" else "",
                    **{
                        key: results[name].objective / value if name == "non-negative" else ""
                        for key, value in floor.items()
                    },
                    "raw": seconds[name],
                    "raw scikit-learn": seconds["scikit-learn"],
                }
            )
    measure.report(options.out, rows)


def nnls_weights(
    atoms: np.ndarray, target: np.ndarray, ridge: float, support: np.ndarray
) -> np.ndarray:
    """The ridge NNLS weights on a support, by scipy."""
    rows = np.vstack([atoms[support].T.astype(np.float64), np.sqrt(ridge) * np.eye(len(support))])
    weights: np.ndarray = nnls(rows, np.append(target, np.zeros(len(support))))[0]
    return weights


def objective(
    atoms: np.ndarray, target: np.ndarray, ridge: float, support: np.ndarray, weights: np.ndarray
) -> float:
    rest = target - weights @ atoms[support].astype(np.float64)
    return float(rest @ rest + ridge * weights @ weights)


if __name__ == "__main__":
    main()
