"""What a whole selection costs, in units of a bare inference pass over the same data.

    python -m benchmarks.selection --data mnist

Both sides read the same dataset through a DataLoader of the same batch size.
"""

from __future__ import annotations

import statistics

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import GradMatch, GradMatchPB, Selection, Selector, Strategy
from benchmarks import measure, trained


def main() -> None:
    parser = measure.parser(__doc__, "selection.json")
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()

    images, model = trained.network(options.data)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def bare() -> None:
        for x, _ in DataLoader(images.plain, options.batch_size, pin_memory=device.type == "cuda"):
            model(x.to(device, non_blocking=True))

    def selection(strategy: Strategy, fraction: float) -> Selection:
        selector = Selector(
            images.plain,
            strategy,
            fraction=fraction,
            criterion=nn.CrossEntropyLoss(),
            batch_size=options.batch_size,
        )
        return selector.select(model, 0)

    rows: list[measure.Row] = []
    bare()
    for fraction in (0.1, 0.01):
        for strategy in (GradMatch(), GradMatchPB()):
            seconds, results = measure.in_turns(
                {
                    "inference": bare,
                    "selection": lambda s=strategy, f=fraction: selection(s, f),  # type: ignore[misc]
                },
                options.repeats,
            )
            rows.append(
                {
                    "strategy": type(strategy).__name__,
                    "fraction": fraction,
                    "inference, s": statistics.median(seconds["inference"]),
                    "selection, s": statistics.median(seconds["selection"]),
                    "of it solver, s": results["selection"].solver_seconds,
                    "ratio": measure.ratio(seconds["selection"], seconds["inference"]),
                    "raw inference": seconds["inference"],
                    "raw selection": seconds["selection"],
                }
            )
    measure.report(options.out, rows)


if __name__ == "__main__":
    main()
