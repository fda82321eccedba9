"""Selection and training step on one device: seconds, and launches and waits counted.

    python -m benchmarks --device cuda

Runs unchanged on a CPU, on fewer samples. Images are random numbers with a pattern for each class
and lie on the device, in ready-made batches, so that no loader is measured: the bare inference pass
and the selection read the same ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adaptive_subset import (
    CRAIG,
    GLISTER,
    AdaptiveSubsetSampler,
    GradMatch,
    GradMatchPB,
    Random,
    Selector,
    Strategy,
    WeightedLoss,
)
from adaptive_subset.gradients import GradientSource
from benchmarks import counts, measure
from examples import models

FRACTIONS = (0.1, 0.3)


def strategies(samples: int) -> tuple[Strategy, ...]:
    """Those that are measured; mini-batches of 128, fewer where there are few samples."""
    return GradMatchPB(batch_size=min(128, max(1, samples // 32))), GradMatch(), GLISTER(), CRAIG()


@dataclass(frozen=True)
class Task:
    """Data and network of one row.

    Args:
        name: what it has the shape of.
        model: "resnet18" with the stem for small images, or torchvision's "resnet50".
        shape, classes: of the images.
        samples: how many on a GPU, with --quick, and on a CPU.
        batch: samples of a batch of the pass; of a step half as many.
    """

    name: str
    model: str
    shape: tuple[int, int, int]
    classes: int
    samples: tuple[int, int, int]
    batch: int

    def build(self) -> nn.Module:
        if self.model == "resnet18":
            return models.build("resnet18", self.shape, self.classes)
        import torchvision

        network: nn.Module = torchvision.models.resnet50(num_classes=self.classes)
        return network


TASKS = (
    Task("CIFAR-10", "resnet18", (3, 32, 32), 10, (50_000, 10_000, 128), 256),
    Task("ImageNet", "resnet50", (3, 224, 224), 1000, (4096, 1024, 16), 128),
)


class Batches:
    """Ready-made batches of images and labels on the device, a pool that can be read anew."""

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(self.size), self.labels.split(self.size), strict=True)


class Labels(Dataset[Any]):
    """Numbers of images and their labels: what the host has to hand over in a step."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer samples, one round")
    names = [type(strategy).__name__ for strategy in strategies(1)]
    parser.add_argument("--strategies", nargs="+", choices=names, default=names)
    tasks = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument("--batch-size", type=int, help="of the pass (256; ImageNet 128)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/device.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("`--device cuda` needs a GPU, and torch sees none")
    print(measure.environment("cuda")["device"] if device.type == "cuda" else "no GPU seen")
    rows = []
    for task in [task for task in TASKS if task.name in options.tasks]:
        start = time.perf_counter()
        task = replace(task, batch=options.batch_size or task.batch)
        repeats = 1 if options.quick else options.repeats
        for row in measured(task, options.strategies, device, repeats, options.quick):
            rows.append(row)
            measure.save(options.out, rows, device.type)
            print(row, flush=True)
        print(f"{task.name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(measure.markdown(rows))


def measured(
    task: Task, names: list[str], device: torch.device, repeats: int, quick: bool
) -> Iterator[measure.Row]:
    """The rows of one task."""
    n = task.samples[2 if device.type == "cpu" else int(quick)]
    size = min(task.batch, n // 4)
    torch.manual_seed(0)
    # A pattern for each class, of a lower resolution, so that there is something to learn.
    classes = min(task.classes, max(2, n // 32))
    labels = torch.arange(n, device=device) % classes
    patterns = torch.randn(classes, 3, 4, 4, device=device)
    images = torch.randn(n, *task.shape, device=device)
    for some, own in zip(images.split(1024), labels.split(1024), strict=True):
        some += nn.functional.interpolate(patterns[own], task.shape[1:])
    model = task.build().to(device)
    data = {"task": f"{task.name}, {task.model}", "samples": n, "batch": size}

    step_rows = steps(data, model, images, labels, size // 2, device, repeats)
    yield from step_rows  # trains it a little, too
    chosen = [strategy for strategy in strategies(n) if type(strategy).__name__ in names]
    yield from passes(data, model.eval(), Batches(images, labels, size), chosen, device, repeats)


def passes(
    data: measure.Row,
    model: nn.Module,
    pool: Batches,
    chosen: list[Strategy],
    device: torch.device,
    repeats: int,
) -> Iterator[measure.Row]:
    """The bare pass, what the pass for gradients adds to a batch of it, and whole selections."""
    dataset, criterion = Labels(pool.labels.tolist()), nn.CrossEntropyLoss()

    @torch.inference_mode()
    def bare(batches: int | None = None) -> None:
        for x, _ in list(pool)[:batches]:
            model(x)

    def selector(strategy: Strategy, fraction: float) -> Selector:
        return Selector(dataset, strategy, fraction=fraction, criterion=criterion, pool=pool)

    def gradients(batches: int) -> None:
        some = [pool.images[: batches * pool.size], pool.labels[: batches * pool.size]]
        given = Batches(some[0], some[1], pool.size)
        GradientSource(given).read(model, criterion)

    kind = {"what": "a batch of the bare pass"}
    yield {**data, **kind, **counts.per_unit(bare, 2, 4, device)}
    kind = {"what": "a batch of the pass for gradients"}
    yield {**data, **kind, **counts.per_unit(gradients, 2, 4, device)}

    measure.in_turns({"warm-up": bare}, 1)
    for fraction in FRACTIONS:
        cases: dict[str, Callable[[], Any]] = {"bare": bare}
        for strategy in chosen:
            cases[type(strategy).__name__] = partial(selector(strategy, fraction).select, model, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of small classes, filled up
            seconds, results = measure.in_turns(cases, repeats)
        yield {
            **data,
            "what": f"bare pass, {100 * fraction:g} %",
            "seconds": statistics.median(seconds["bare"]),
            "raw": seconds["bare"],
        }
        for name in list(cases)[1:]:
            yield {
                **data,
                "what": f"{name}, {100 * fraction:g} %",
                "seconds": statistics.median(seconds[name]),
                "ratio": measure.ratio(seconds[name], seconds["bare"]),
                "solver, s": results[name].solver_seconds,
                "raw": seconds[name],
            }
    for strategy in chosen:
        n, unit = len(dataset), strategy.unit

        def atoms(number: int, strategy: Strategy = strategy, unit: int = unit) -> None:
            budget = number * unit
            Selector(dataset, strategy, budget=budget, criterion=criterion, pool=pool).select(
                model, 0
            )

        few = max(2, n // (16 * unit))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = counts.per_unit(atoms, few, 2 * few, device)
        yield {**data, "what": f"an atom of {type(strategy).__name__}", **found}


def steps(
    data: measure.Row,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    size: int,
    device: torch.device,
    repeats: int,
) -> list[measure.Row]:
    """A step of training as it is, and with weights."""
    dataset = Labels(labels.tolist())
    selector = Selector(dataset, Random(), fraction=1.0)
    sampler = AdaptiveSubsetSampler(selector, every=10**6)
    sampler.maybe_reselect(model, 0)
    number = 20 if device.type == "cuda" else 3
    pinned = device.type == "cuda"
    tagged = list(
        DataLoader(sampler.dataset, size, sampler=sampler, drop_last=True, pin_memory=pinned)
    )[:number]
    plain = [(index, y.plain()) for index, y in tagged]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    batch = images[:size]  # always the same, so that no copying of images is measured

    def run(batches: list[Any], criterion: nn.Module, steps: int | None = None) -> None:
        for _, y in batches[:steps]:
            loss = criterion(model(batch), y.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    bare, weighted = nn.CrossEntropyLoss(), WeightedLoss(nn.CrossEntropyLoss(), selector)
    model.train()
    cases = {"plain": partial(run, plain, bare), "weighted": partial(run, tagged, weighted)}
    measure.in_turns(cases, 1)
    seconds, _ = measure.in_turns(cases, 3 * repeats if pinned else repeats)
    rows: list[measure.Row] = []
    for name, run_some in cases.items():
        own = [value / len(tagged) for value in seconds[name]]
        rows.append(
            {
                **data,
                "batch": size,
                "what": f"a {name} step",
                "seconds": statistics.median(own),
                "ratio": measure.ratio(seconds[name], seconds["plain"]),
                **counts.per_unit(run_some, 1, 3, device),
                "raw": own,
            }
        )
    return rows


if __name__ == "__main__":
    main()
