"""One training run: a task, a method, a budget, a learning rate, a seed."""

from __future__ import annotations

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
from adaptive_subset.energy import EnergyMeter
from adaptive_subset.strategies.per_epoch import Combination
from benchmarks.arena.data import Batches, Data, Samples, as_it_is
from benchmarks.arena.methods import Method, Plan
from benchmarks.arena.phases import SELECTION, TRAINING, Phases
from benchmarks.arena.tasks import Task


class Epochs:
    """Batches epoch by epoch, of all data or of what a method selects; inputs are on `device`."""

    def __init__(
        self,
        task: Task,
        method: Method,
        fraction: float,
        data: Data,
        seed: int,
        device: torch.device,
    ) -> None:
        plan = Plan(task.epochs, fraction, task.batch_size)
        batches = round(fraction * len(data.train) / task.batch_size)
        self.budget = max(1, batches) * task.batch_size
        self.steps = task.epochs * self.budget // task.batch_size
        self.criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing)
        self.sampler: AdaptiveSubsetSampler | None = None
        train = Batches(data.train.to(device))
        loading: dict[str, Any] = {"batch_size": task.batch_size, "drop_last": True}
        loading["collate_fn"] = as_it_is
        strategy = None if method.strategy is None else method.strategy(plan)
        if method.by_class:
            assert isinstance(strategy, Combination)
            strategy = replace(strategy.parts(), shares="equal")
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
        part = method.pool_fraction if strategy.needs_gradients else 1.0
        match = data.reference if method.reference else None
        selector = Selector(
            train,
            strategy,
            # A part of the pool is drawn by index; all of it is read where the inputs are.
            pool=_whole(train) if part == 1 else data.train,
            budget=None if strategy.sizes_itself else self.budget,
            pool_fraction=part,
            validation=None if match is None else _whole(Batches(match.to(device))),
            groups=data.train.labels if method.by_class else None,
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

    def batches(self, model: nn.Module, phases: Phases) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless; the time that they take counts as training or as selection."""
        for epoch in count():
            if self.sampler is not None:
                phases.enter(SELECTION)
                self.sampler.maybe_reselect(model, epoch)
            phases.enter(TRAINING)
            yield from self.loader


def _whole(batches: Batches) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=1000, collate_fn=as_it_is)


class Training:
    """A run that goes on from step to step, as far as it is told to.

    Args:
        phases: what it takes counts there, as training or as selection.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        fraction: float,
        rate: float,
        seed: int,
        data: Data,
        phases: Phases,
    ) -> None:
        torch.manual_seed(seed)
        self.device = phases.device
        self.model = task.network().to(self.device).to(memory_format=torch.channels_last)
        self.step = 0
        self._task, self._phases = task, phases
        self._augmenting = torch.Generator().manual_seed(seed)
        phases.enter(SELECTION)
        self.epochs = Epochs(task, method, fraction, data, seed, self.device)
        phases.enter(None)  # torch loads parts of itself with the first optimizer
        self._optimizer, self._schedule = task.optimizer(self.model, rate, self.epochs.steps)
        self._batches = self.epochs.batches(self.model, phases)

    def advance(self, step: int) -> bool:
        """Train up to that step; False if parameters are no longer finite, now or before."""
        self.model.train()
        self._phases.enter(TRAINING)
        try:
            while self.step < step:
                self._take()
        except ValueError:  # it cannot select for a broken model, and says so
            if finite(self.model):
                raise
        finally:
            self._phases.enter(None)
        return finite(self.model)

    def _take(self) -> None:
        task, epochs, autocast = self._task, self.epochs, self._task.autocast(self.device)
        with autocast:
            x, y = next(self._batches)
        x, y = x.to(self.device), y.to(self.device)
        if task.augment is not None:
            x = task.augment(x, self._augmenting)
        with autocast:
            if epochs.within is not None:
                self._phases.enter(SELECTION)
                x, y = epochs.kept(self.model, x, y, self.step)
                self._phases.enter(TRAINING)
            loss = epochs.criterion(self.model(x), y)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self.step += 1


def train(
    task: Task,
    method: Method,
    fraction: float,
    rate: float,
    seed: int,
    data: Data,
    device: torch.device,
    meter: EnergyMeter | None = None,
) -> dict[str, Any]:
    """Train one network for as many steps as any other method; see `benchmarks.arena`.

    Returns:
        Real `steps` and `samples`; `seconds` (all of it) and `selection_seconds` (its share), on
        the wall and of the processor; accuracy on `validation` and `test`; a `curve` of [seconds,
        steps, validation accuracy, test accuracy]; with a `meter` `joules` by phase and counter. A
        run whose parameters are no longer finite has `diverged`: it ends there, with accuracies of
        zero.
    """
    with Phases(device, meter) as phases:
        training = Training(task, method, fraction, rate, seed, data, phases)
        validation, test = data.validation.to(device), data.test.to(device)
        curve: list[list[float]] = []
        steps, points = training.epochs.steps, task.points if fraction < 1 else task.points_full
        sound, apart = True, max(1, steps // points)
        while sound and training.step < steps:
            sound = training.advance(min(steps, training.step + apart))
            if sound:
                with task.autocast(device):
                    reached = [
                        accuracy(training.model, samples, device) for samples in (validation, test)
                    ]
                curve.append([sum(phases.wall.values()), training.step, *reached])
        return {
            "steps": training.step,
            "samples": training.step * task.batch_size,
            **phases.spent(),
            "validation": curve[-1][2] if sound else 0.0,
            "test": curve[-1][3] if sound else 0.0,
            "diverged": not sound,
            "curve": curve,
            **phases.energy(),
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
