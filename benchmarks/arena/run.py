"""One training run: a task, a method, a budget, a learning rate, a seed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive_subset import (
    AdaptiveSubsetSampler,
    Selector,
    WeightedLoss,
    WeightedTarget,
    select_in_batch,
)
from adaptive_subset.strategies.by_group import ByGroup
from adaptive_subset.strategies.per_epoch import Combination
from benchmarks.arena.data import Batches, Data, Samples, as_it_is
from benchmarks.arena.methods import Method, Plan
from benchmarks.arena.tasks import Task

POINTS = 10  # of the curve


class Stopwatch:
    """Seconds inside its ``with`` blocks: of the clock on the wall, and of the processor."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.wall, self.processor = device, 0.0, 0.0

    def __enter__(self) -> None:
        self._wait()
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Epochs:
    """Batches epoch by epoch, of all data or of what a method selects."""

    def __init__(self, task: Task, method: Method, fraction: float, data: Data, seed: int) -> None:
        plan = Plan(task.epochs, fraction, task.batch_size)
        batches = round(fraction * len(data.train) / task.batch_size)
        self.budget = max(1, batches) * task.batch_size
        self.steps = task.epochs * self.budget // task.batch_size
        self.criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing)
        self.sampler: AdaptiveSubsetSampler | None = None
        train = Batches(data.train)
        loading: dict[str, Any] = {"batch_size": task.batch_size, "drop_last": True}
        loading["collate_fn"] = as_it_is
        strategy = None if method.strategy is None else method.strategy(plan)
        if method.by_class:
            assert isinstance(strategy, Combination)
            parts = strategy.parts()
            strategy = replace(parts, draw=ByGroup(parts.draw, data.train.labels, "equal"))
        self.within = strategy if method.within > 1 else None
        self._batch_size, self._seed, self._unweighted = task.batch_size, seed, self.criterion
        if strategy is None or self.within is not None:
            loading["batch_size"] *= method.within
            generator = torch.Generator().manual_seed(seed)
            self.loader: DataLoader[Any] = DataLoader(
                train, shuffle=True, generator=generator, **loading
            )
            if self.within is not None:
                self.criterion = WeightedLoss(self._unweighted)
            return
        selector = Selector(
            train,
            strategy,
            pool=data.train,
            budget=None if strategy.sizes_itself else self.budget,
            pool_fraction=method.pool_fraction if strategy.needs_gradients else 1.0,
            validation=data.reference if method.reference else None,
            weights=method.weights,
            seed=seed,
        )
        self.sampler = AdaptiveSubsetSampler(
            selector,
            every=method.every(plan),
            epochs=task.epochs,
            warm_start=method.warm_start,
            seed=seed,
        )
        self.loader = DataLoader(self.sampler.dataset, sampler=self.sampler, **loading)
        self.criterion = WeightedLoss(self.criterion, selector)

    def kept(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Of a large batch what the step trains on, with its weights, where steps choose."""
        assert self.within is not None
        chosen = select_in_batch(
            *(model, self._unweighted, (x, y), self.within, self._batch_size),
            step=step,
            seed=self._seed,
        )
        rows = chosen.indices.to(x.device)
        return x[rows], WeightedTarget(y[rows], chosen.loss_weights.to(x.device))

    def batches(
        self, model: nn.Module, training: Stopwatch, selecting: Stopwatch
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless; the time that they take counts as training or as selecting."""
        for epoch in count():
            if self.sampler is not None:
                with selecting:
                    self.sampler.maybe_reselect(model, epoch)
            batches = iter(self.loader)
            while True:
                with training:
                    batch = next(batches, None)
                if batch is None:
                    break
                yield batch


def train(
    task: Task,
    method: Method,
    fraction: float,
    rate: float,
    seed: int,
    data: Data,
    device: torch.device,
) -> dict[str, Any]:
    """Train one network for as many steps as any other method; see `benchmarks.arena`.

    Returns:
        Real `steps` and `samples`; `seconds` (all of it) and `selection_seconds` (its share), on
        the wall and of the processor; accuracy on `validation` and `test`; a `curve` of [seconds,
        steps, validation accuracy]. A run whose parameters are no longer finite has `diverged`: it
        ends there, with accuracies of zero.
    """
    torch.manual_seed(seed)
    model = task.network().to(device).to(memory_format=torch.channels_last)
    augmenting = torch.Generator().manual_seed(seed)
    training, selecting = Stopwatch(device), Stopwatch(device)
    curve: list[list[float]] = []
    with selecting:
        epochs = Epochs(task, method, fraction, data, seed)
    optimizer, schedule = task.optimizer(model, rate, epochs.steps)
    batches = epochs.batches(model, training, selecting)
    model.train()
    step = 0
    while step < epochs.steps:
        try:
            x, y = next(batches)
        except ValueError:  # it cannot select for a broken model, and says so
            if finite(model):
                raise
            break
        with training:
            x, y = x.to(device), y.to(device)
            if task.augment is not None:
                x = task.augment(x, augmenting)
        if epochs.within is not None:
            with selecting:
                x, y = epochs.kept(model, x, y, step)
        with training:
            loss = epochs.criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        step += 1
        if step % max(1, epochs.steps // POINTS) == 0 or step == epochs.steps:
            if not finite(model):
                break
            reached = accuracy(model, data.validation, device)
            curve.append([training.wall + selecting.wall, step, reached])
            model.train()
    diverged = not finite(model)
    return {
        "steps": step,
        "samples": step * task.batch_size,
        "seconds": training.wall + selecting.wall,
        "selection_seconds": selecting.wall,
        "processor_seconds": training.processor + selecting.processor,
        "selection_processor_seconds": selecting.processor,
        "validation": 0.0 if diverged else curve[-1][2],
        "test": 0.0 if diverged else accuracy(model, data.test, device),
        "diverged": diverged,
        "curve": curve,
    }


@torch.inference_mode()
def accuracy(model: nn.Module, samples: Samples, device: torch.device) -> float:
    """The share of the samples that the model classifies correctly."""
    model.eval()
    hits = 0
    for start in range(0, len(samples), 1000):
        x, y = samples[start : start + 1000]
        hits += int((model(x.to(device)).argmax(1) == y.to(device)).sum())
    return hits / len(samples)


def finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
