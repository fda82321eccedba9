"""What sampler, tagged targets and weighted loss add to an epoch of training.

    python -m benchmarks.step --data mnist

The plain loop trains on the same subset, with the same network, through `torch.utils.data.Subset`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from adaptive_subset import AdaptiveSubsetSampler, Random, Selector, WeightedLoss
from benchmarks import measure, trained
from examples import models


def main() -> None:
    parser = measure.parser(__doc__, "step.json")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only so many of the training images")
    parser.add_argument("--model", choices=models.NAMES, help="(by the size of the images)")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = trained.images(options.data, options.limit)
    name = options.model or models.default(images.shape)
    selector = Selector(images.train, Random(), fraction=options.fraction)
    sampler = AdaptiveSubsetSampler(selector, every=10**6)
    loading = {"batch_size": options.batch_size, "num_workers": options.workers}

    def epoch(loader: DataLoader[object], criterion: nn.Module) -> Callable[[], None]:
        torch.manual_seed(0)
        model = models.build(name, images.shape, images.classes).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def run() -> None:
            for x, y in loader:
                loss = criterion(model(x.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return run

    sampler.maybe_reselect(nn.Linear(1, 1), 0)
    assert sampler.selection is not None
    subset = Subset(images.train, sampler.selection.indices.tolist())
    cases = {
        "plain": epoch(DataLoader(subset, shuffle=True, **loading), nn.CrossEntropyLoss()),
        "adaptive": epoch(
            DataLoader(sampler.dataset, sampler=sampler, **loading),
            WeightedLoss(nn.CrossEntropyLoss(), selector),
        ),
    }
    for run in cases.values():
        run()
    seconds, _ = measure.in_turns(cases, options.repeats)
    measure.report(
        options.out,
        [
            {
                "model": name,
                "data": options.data.rpartition("/")[2],
                "workers": options.workers,
                "plain, s": statistics.median(seconds["plain"]),
                "adaptive, s": statistics.median(seconds["adaptive"]),
                "ratio": measure.ratio(seconds["adaptive"], seconds["plain"]),
                "raw plain": seconds["plain"],
                "raw adaptive": seconds["adaptive"],
            }
        ],
    )


if __name__ == "__main__":
    main()
