"""What a whole selection costs, in units of a bare inference pass over the same data.

    python -m benchmarks.selection --data mnist

Both sides read the same dataset through a DataLoader of the same batch size. `First` chooses what
comes first: its row is what any strategy costs that asks for gradients.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import (
    Candidates,
    Choice,
    GradMatch,
    GradMatchPB,
    Selection,
    Selector,
    Strategy,
)
from benchmarks import measure, trained
from examples import models


@dataclass(frozen=True)
class First(Strategy):
    """Reads all gradients and looks at none: what any selection by gradients costs at the least."""

    needs_gradients = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        """See `Strategy.select`."""
        return Choice(torch.arange(budget), torch.ones(budget))


CASES: dict[str, tuple[Strategy, torch.dtype]] = {
    "nothing": (First(), torch.float32),
    "per gradient": (GradMatch(), torch.float32),
    "per batch": (GradMatchPB(), torch.float32),
    "per gradient, half": (GradMatch(), torch.float16),
}


def main() -> None:
    parser = measure.parser(__doc__, "selection.json")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.01])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--model", choices=models.NAMES, help="(by the size of the images)")
    parser.add_argument("--limit", type=int, help="only so many of the training images")
    parser.add_argument("--steps", type=int, help="to train before (an epoch)")
    options = parser.parse_args()

    images = trained.images(options.data, options.limit)
    model = trained.network(images, options.model, options.steps)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def bare() -> None:
        for x, _ in DataLoader(images.plain, options.batch_size, pin_memory=device.type == "cuda"):
            model(x.to(device, non_blocking=True))

    def selection(strategy: Strategy, fraction: float, storage: torch.dtype) -> Selection:
        selector = Selector(
            images.plain,
            strategy,
            fraction=fraction,
            criterion=nn.CrossEntropyLoss(),
            batch_size=options.batch_size,
            storage_dtype=storage,
        )
        return selector.select(model, 0)

    rows: list[measure.Row] = []
    for fraction in options.fractions:
        cases: dict[str, Callable[[], Any]] = {"inference": bare}
        for name, (strategy, storage) in CASES.items():
            cases[name] = partial(selection, strategy, fraction, storage)
        measure.in_turns({"warm-up": bare}, 1)
        seconds, results = measure.in_turns(cases, options.repeats)
        for name, (strategy, storage) in CASES.items():
            rows.append(
                {
                    "model": options.model or models.default(images.shape),
                    "samples": len(images.plain),
                    "strategy": type(strategy).__name__,
                    "storage": str(storage).removeprefix("torch."),
                    "fraction": fraction,
                    "inference, s": statistics.median(seconds["inference"]),
                    "selection, s": statistics.median(seconds[name]),
                    "of it solver, s": results[name].solver_seconds,
                    "ratio": measure.ratio(seconds[name], seconds["inference"]),
                    "relative error": results[name].relative_error,
                    "raw inference": seconds["inference"],
                    "raw selection": seconds[name],
                }
            )
    measure.report(options.out, rows)


if __name__ == "__main__":
    main()
