"""Where the time of a whole selection goes, under cProfile.

python -m benchmarks.stages --data mnist
"""

from __future__ import annotations

import cProfile
import pstats

from torch import nn

from adaptive_subset import GradMatch, Selector
from benchmarks import measure, trained

# What is counted, callees included: file, function, name in the table.
STAGES = [
    ("dataloader.py", "__next__", "load and collate"),
    ("functional_call.py", "functional_call", "model"),
    ("per_sample.py", "per_sample_losses", "loss"),
    ("autograd/__init__.py", "grad", "δ = ∂ℓ/∂z"),
    ("head_recorder.py", "take", "features from the head"),
    ("storage.py", "append", "storing δ and h"),
    ("factored.py", "is_finite", "looking for NaN"),
    ("candidates.py", "of_group", "one class after another"),
    ("matching_pursuit.py", "omp", "matching pursuit"),
    ("candidates.py", "relative_error", "relative error of the whole layer"),
]


def main() -> None:
    parser = measure.parser(__doc__, "stages.json")
    options = parser.parse_args()
    images = trained.images(options.data)
    model = trained.network(images)

    rows: list[measure.Row] = []
    for fraction in (0.1, 0.01):
        selector = Selector(
            images.plain, GradMatch(), fraction=fraction, criterion=nn.CrossEntropyLoss()
        )
        selector.select(model, 0)
        profile = cProfile.Profile()
        profile.runcall(selector.select, model, 1)
        times = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        whole = max(spent[3] for spent in times.values())
        stages = {name: _cumulative(times, file, function) for file, function, name in STAGES}
        stages["everything else"] = whole - sum(stages.values())
        rows += [
            {"fraction": fraction, "stage": name, "seconds": spent, "share, %": 100 * spent / whole}
            for name, spent in stages.items()
        ]
    measure.report(options.out, rows)


def _cumulative(
    times: dict[tuple[str, int, str], tuple[float, ...]], file: str, name: str
) -> float:
    return sum(
        spent[3]
        for (path, _, function), spent in times.items()
        if path.endswith(file) and function == name
    )


if __name__ == "__main__":
    main()
