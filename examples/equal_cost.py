"""All data and subsets at equal cost, each method at the learning rate that suits it best.

`full` trains on all the data for as many epochs as asked for. The others make as many updates as
these epochs have on a subset: `full-short` on all the data, the rest on what they choose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from adaptive_subset import (
    AdaptiveSubsetSampler,
    FreshRandom,
    GradMatch,
    OrderDP,
    Selector,
    Strategy,
    WeightedLoss,
)

METHODS: dict[str, Strategy | None] = {
    "full": None,
    "full-short": None,
    "fresh-random": FreshRandom(),
    "order-dp": OrderDP(),
    "gradmatch": GradMatch(),
}


@dataclass(frozen=True)
class Plan:
    """How long to train: `epochs` on the `fraction` of the data that a method chooses.

    GRAD-MATCH chooses anew after `every` epochs, the others in each.
    """

    epochs: int
    fraction: float
    batch_size: int
    every: int

    def options(self, strategy: Strategy) -> dict[str, Any]:
        """What sampler and adapters are told of it."""
        return {"every": self.every if strategy.needs_gradients else None, "epochs": self.epochs}

    def updates(self, method: str, samples: int) -> int:
        """How often a run changes the model."""
        chosen = samples if method == "full" else max(1, int(self.fraction * samples))
        return self.epochs * -(-chosen // self.batch_size)


@dataclass(frozen=True)
class Result:
    """Figures on validation and test data, the larger the better, and the seconds it took."""

    validation: float
    test: float
    seconds: float


def fit(
    model: nn.Module, data: Dataset[Any], loss: nn.Module, method: str, rate: float, plan: Plan
) -> float:
    """Train by AdamW with a rate that falls to zero; the seconds, selections included."""
    start, strategy, samples = time.perf_counter(), METHODS[method], len(data)  # type: ignore[arg-type]
    sampler: AdaptiveSubsetSampler | None = None
    if strategy is None:
        loader = DataLoader(data, plan.batch_size, shuffle=True)
    else:
        selector = Selector(data, strategy, fraction=plan.fraction, criterion=loss)
        sampler = AdaptiveSubsetSampler(selector, **plan.options(strategy))
        loader = DataLoader(sampler.dataset, plan.batch_size, sampler=sampler)
        loss = WeightedLoss(loss, selector)

    def batches() -> Iterator[Any]:
        for epoch in count():
            if sampler is not None:
                sampler.maybe_reselect(model, epoch)
            yield from loader

    updates = plan.updates(method, samples)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    model.train()
    for x, y in islice(batches(), updates):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def compare(
    train: Callable[[str, float, int], Result],
    rates: Sequence[float],
    seeds: Sequence[int],
    figure: str,
) -> Iterator[str]:
    """The lines of a Markdown table with a row for each method, as they come.

    The learning rate is the one that is best on the validation data with the first seed; the other
    seeds run with it alone.

    Args:
        train: one run, by method, learning rate and seed.
        rates: to choose from.
        seeds: whose mean and standard error are shown.
        figure: what the results are.
    """
    yield f"| method | learning rate | {figure} | seconds |"
    yield "|---|---|---|---|"
    for method in METHODS:
        first = {rate: train(method, rate, seeds[0]) for rate in rates}
        best = max(rates, key=lambda rate: first[rate].validation)
        results = [first[best], *(train(method, best, seed) for seed in seeds[1:])]
        tested = [result.test for result in results]
        spread = f" ± {stdev(tested) / len(tested) ** 0.5:.3f}" if len(tested) > 1 else ""
        seconds = mean(result.seconds for result in results)
        yield f"| {method} | {best:g} | {mean(tested):.3f}{spread} | {seconds:.1f} |"


def run(main: Callable[[Sequence[int]], Iterator[str]], description: str | None) -> None:
    """Print the table of an example for the seeds of the command line."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for line in main(parser.parse_args().seeds):
        print(line, flush=True)
