"""What the search for the smallest subset costs, in units of one selection of its size.

    python -m benchmarks.tolerance --data mnist

`Selector(tolerance=)` against the same strategy given the budget that this found; and against the
search with a solver run for each budget that it tries, as of strategies that keep no path.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from adaptive_subset import GradMatch, GradMatchPB, Strategy
from adaptive_subset.strategies.smallest import smallest_choice
from adaptive_subset.strategies.solvers.greedy_path import GreedyPath
from benchmarks import measure, trained


def main() -> None:
    parser = measure.parser(__doc__, "tolerance.json")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.2, 0.06])
    options = parser.parse_args()
    given = trained.candidates(options.data)
    rows: list[measure.Row] = []
    for strategy in (GradMatch(), GradMatchPB()):
        for tolerance in options.tolerances:
            search = partial(smallest_choice, strategy, given, tolerance, seed=0, epoch=0)
            size, tried = sizes(strategy, search)
            cases: dict[str, Callable[[], Any]] = {
                "search": search,
                "one run": partial(strategy.choose, given, size, seed=0, epoch=0),
                "a run each": partial(without_paths, search),
            }
            seconds, found = measure.in_turns(cases, options.repeats)
            rows.append(
                {
                    "strategy": type(strategy).__name__,
                    "tolerance": tolerance,
                    "samples": given.n,
                    "selected": size,
                    "budgets tried": tried,
                    "search, s": statistics.median(seconds["search"]),
                    "times one run": measure.ratio(seconds["search"], seconds["one run"]),
                    "a run each, times one": measure.ratio(
                        seconds["a run each"], seconds["one run"]
                    ),
                    "same": found["search"].positions.equal(found["a run each"].positions),
                }
            )
    measure.report(options.out, rows)


def without_paths(search: Callable[[], Any]) -> Any:
    with mock.patch.object(GreedyPath, "covers", return_value=False):
        return search()


def sizes(strategy: Strategy, search: Callable[[], Any]) -> tuple[int, int]:
    """The size that the search finds, and how many budgets it looks at."""
    choose = type(strategy).choose
    with mock.patch.object(type(strategy), "choose", autospec=True, side_effect=choose) as calls:
        return len(search().positions), calls.call_count


if __name__ == "__main__":
    main()
