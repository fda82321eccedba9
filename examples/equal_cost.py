"""All data and subsets at equal cost, each method at the learning rate that suits it best.

`full` trains on all the data for as many epochs as asked for. The others make as many updates as
these epochs have on a subset: `full-short` on all the data, the rest on what they choose.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
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
class Run:
    """What a run reached on validation and test data, the larger the better, and its seconds.

    The figure on test data is left out of a run that only served to choose a learning rate.
    """

    method: str
    rate: float
    seed: int
    validation: float | None
    test: float | None
    seconds: float


Train = Callable[[str, float, int], Run]  # by method, learning rate and seed


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


@dataclass(frozen=True)
class Experiment:
    """What an example compares.

    Args:
        prepare: of so many training samples and a plan, what trains on them.
        samples, plan: by default.
        rates: learning rates to choose from; where the best is at their edge others are tried.
        figure: what the results are.
    """

    prepare: Callable[[int, Plan], Train]
    samples: int
    plan: Plan
    rates: Sequence[float]
    figure: str

    def runs(self, seeds: Sequence[int]) -> Iterator[Run]:
        """Of each method with the first seed at several rates, with the others at the best one."""
        train = self.prepare(self.samples, self.plan)
        for method in METHODS:
            best, *others = by_rate(train, method, seeds[0], self.rates, 10**0.5)
            yield from (best, *(replace(run, test=None) for run in others))
            yield from (train(method, best.rate, seed) for seed in seeds[1:])

    def main(self, description: str | None) -> None:
        """Run it for the seeds of the command line, and print the table."""
        parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--out", type=Path, help="a file for all runs, one JSON line each")
        options = parser.parse_args()
        check_least(parser, options, seeds=0)
        if options.out is not None and not options.out.absolute().parent.is_dir():
            parser.error(f"--out must be a file in a folder that there is, got {options.out}")
        runs = []
        for run in self.runs(options.seeds):
            print(run, flush=True)
            runs.append(run)
            if options.out is not None:  # now, for the others take a while
                save(options.out, runs)
        print("\n" + "\n".join(table(runs, self.figure)))


def check_least(
    parser: argparse.ArgumentParser, options: argparse.Namespace, **least: float
) -> None:
    """End as argparse does where an option, or one of its numbers, is less than it may be."""
    for name, smallest in least.items():
        given = getattr(options, name)
        for number in given if isinstance(given, (list, tuple)) else [given]:
            if number is not None and not number >= smallest:  # NaN is not either
                flag = f"--{name.replace('_', '-')}"
                parser.error(f"{flag} must be at least {smallest}, got {number}")


def by_rate(
    train: Train, method: str, seed: int, rates: Sequence[float], factor: float
) -> list[Run]:
    """Runs at several learning rates, the best on validation data first.

    Where the best rate is at the edge of those tried, so is the next one beyond.
    """
    runs = {rate: train(method, rate, seed) for rate in rates}
    while True:
        best = max(runs, key=lambda rate: (_reached(runs[rate]), -rate))
        if best in (min(runs), max(runs)):
            beyond = best / factor if best == min(runs) else best * factor
            runs[beyond] = train(method, beyond, seed)
        else:
            return [runs.pop(best), *runs.values()]


def _reached(run: Run) -> float:
    value = run.validation
    return -math.inf if value is None or math.isnan(value) else value


def save(path: Path, runs: Iterable[Run]) -> None:
    """One JSON line for each."""
    path.write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs))


def table(runs: Iterable[Run], figure: str, digits: int = 3) -> Iterator[str]:
    """The lines of a Markdown table: mean ± standard error over the seeds of each method."""
    yield f"| method | learning rate | {figure} | seconds |"
    yield "|---|---|---|---|"
    tested: dict[str, list[Run]] = {}
    for run in runs:
        if run.test is not None:
            tested.setdefault(run.method, []).append(run)
    for method, own in tested.items():
        figures = [run.test for run in own if run.test is not None]
        reached = f"{mean(figures):.{digits}f}"
        if len(figures) > 1:
            reached += f" ± {stdev(figures) / len(figures) ** 0.5:.{digits}f}"
        seconds = mean(run.seconds for run in own)
        yield f"| `{method}` | {own[0].rate:.2g} | {reached} | {seconds:.3g} |"
