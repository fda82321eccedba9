"""What a selection costs when ranks select together, against one process on the same pool.

    python -m benchmarks.ranks --samples 4000 --ranks 2

Each process has one thread. Besides seconds on the clock it reports those of the processor, of the
rank that takes most: on a machine that is busy they tell more.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

from adaptive_subset import GradMatch, GradMatchPB, Selector
from benchmarks import measure

CASES: Any = {"GradMatch": GradMatch, "GradMatchPB": GradMatchPB}


def one(rank: int, ranks: int, folder: str, strategy: str, samples: int, repeats: int) -> None:
    """One rank: its seconds in each round, of the clock, the processor, the pass and the solver."""
    torch.set_num_threads(1)
    if ranks > 1:
        group: Any = {"init_method": f"file://{folder}/group", "rank": rank, "world_size": ranks}
        dist.init_process_group("gloo", **group)
    torch.manual_seed(0)
    images, labels = torch.randn(samples, 3, 32, 32), torch.arange(samples) % 10
    model = torchvision.models.resnet18(num_classes=10)
    dataset, criterion = TensorDataset(images, labels), nn.CrossEntropyLoss()
    selector = Selector(dataset, CASES[strategy](), fraction=0.1, criterion=criterion)
    rounds = []
    for epoch in range(repeats + 1):
        start, busy = time.perf_counter(), time.process_time()
        found = selector.select(model, epoch)
        seconds = time.perf_counter() - start, time.process_time() - busy
        rounds.append((*seconds, found.forward_seconds, found.solver_seconds))
    torch.save((rounds[1:], found.indices, found.weights), f"{folder}/{rank}")


def same(found: Any, expected: Any) -> bool:
    """Whether two selections have the same indices, and the same weights but for rounding."""
    (indices, weights), (others, theirs) = found, expected
    return torch.equal(indices, others) and torch.allclose(weights, theirs, rtol=1e-4)


def main() -> None:
    parser = measure.parser(__doc__, "ranks.json")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    options = parser.parse_args()
    rows: list[measure.Row] = []
    for strategy in CASES:
        alone: dict[str, Any] = {}
        for ranks in (1, *options.ranks):
            with tempfile.TemporaryDirectory() as folder:
                job = (ranks, folder, strategy, options.samples, options.repeats)
                mp.start_processes(one, job, nprocs=ranks, start_method="spawn")  # type: ignore[attr-defined]
                found = [torch.load(Path(folder) / str(rank)) for rank in range(ranks)]
            raw = torch.tensor([rounds for rounds, *_ in found])
            best = raw.max(0).values.min(0).values.tolist()  # the best round of the slowest rank
            names = ("selection, s", "processor, s", "of it pass, s", "of it solver, s")
            figures = dict(zip(names, best, strict=True))
            alone = alone or {**figures, "selection": found[0][1:]}
            rows.append(
                {
                    "strategy": strategy,
                    "ranks": ranks,
                    "samples": options.samples,
                    **figures,
                    "times one process": figures["selection, s"] / alone["selection, s"],
                    "processor times": figures["processor, s"] / alone["processor, s"],
                    "same selection": all(same(told, alone["selection"]) for _, *told in found),
                    "raw": raw.tolist(),
                }
            )
    measure.report(options.out, rows)


if __name__ == "__main__":
    main()
