"""One run of train.py on a subset: what is chosen, delivered, weighted, saved and reported.

Imports timm, like `timm_weights`. `timm_patch` calls it from its hooks in the script.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from adaptive_subset.integrations import timm_data, timm_resume, timm_weights
from adaptive_subset.integrations.timm_flags import Refusal, flag_of
from adaptive_subset.integrations.timm_model import as_trained
from adaptive_subset.integrations.timm_objective import (
    DISTILLATION,
    WeightedDistillation,
    selection_loss,
    weighted,
)
from adaptive_subset.integrations.timm_trial import try_out
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from adaptive_subset import AdaptiveSubsetSampler, Selection, Selector, Strategy

# What goes to summary.csv in every epoch, of the selection that it was trained on.
FIGURES = (
    *("epoch", "size", "effective_size", "relative_error", "trained_error", "filled"),
    *("forward_seconds", "solver_seconds"),
)


class TimmSubset:
    """The subset of one run, and what the script's objects become with it.

    Args:
        args: of the script.
        strategy: how to choose.
        planned: see `timm_resume.plan`.
        training: arguments of `create_loader` for the script's training loader.
        logger: of the script.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        strategy: Strategy,
        planned: dict[str, Any],
        training: dict[str, Any],
        logger: logging.Logger,
    ) -> None:
        self._args = args
        self._strategy = strategy
        self._planned = planned
        self._training = training
        self._logger = logger
        self._shares = getattr(args, "world_size", 1), getattr(args, "rank", 0)
        self._pool = timm_data.EvaluationImages(training["dataset"])
        self._validation: timm_data.EvaluationImages | None = None
        self._reading: dict[str, Any] = {}
        self._mixup: Any = None
        self._loss: Any = None  # the weighted loss, or the distillation task
        self.sampler: AdaptiveSubsetSampler

    def attach(self, loader: DataLoader[Any], validation: Any) -> DataLoader[Any]:
        """A loader like the script's that reads the subset, with weights.

        Args:
            loader: shuffles the training set.
            validation: the dataset to match, or None.

        Raises:
            Refusal, ValueError, TypeError: flags that do not fit the data or one another.
        """
        args = self._args
        repeats = self._training.get("num_aug_repeats") or 0
        kinds = (RandomSampler, DistributedSampler)
        if type(loader.sampler) not in kinds and not repeats:
            raise Refusal(
                "a subset takes the place of a sampler that shuffles, got "
                f"{type(loader.sampler).__name__}. Leave out the option that brings it in."
            )
        self._check_size(len(self._pool), loader.batch_size or 1)
        if validation is not None:
            self._validation = timm_data.EvaluationImages(validation)
        dtype = args.subset_storage_dtype
        self._reading = {
            "head": args.subset_head,
            "target": 1,
            "validation": self._validation,
            "weights": args.subset_weights or "mean-one",
            "storage_dtype": getattr(torch, dtype) if dtype else None,
            "storage_dir": args.subset_storage_dir,
            "batch_size": self._training["batch_size"],
            "num_workers": self._training.get("num_workers", 0),
        }
        share = args.subset_pool_fraction
        selector = Selector(
            loader.dataset,
            self._strategy,
            fraction=args.subset_fraction,
            budget=args.subset_budget,
            tolerance=args.subset_tolerance,
            pool=self._pool,
            pool_fraction=1.0 if share is None else share,
            groups=self._pool.labels() if self._strategy.needs_groups else None,
            seed=args.seed,
            **self._reading,
        )
        self.sampler = timm_data.EpochSampler(
            selector,
            repeats=repeats,
            shares=self._shares,
            every=args.subset_every,
            epochs=self._planned["epochs"],
            warm_start=args.subset_warm_start or 0.0,
            seed=args.seed,
        )
        attached = self.sampler.attach(loader)
        attached.collate_fn = timm_weights.weighted_collate(loader.collate_fn)
        self._mixup = getattr(attached.collate_fn, "mixup", None)
        return attached

    def _check_size(self, n: int, batch: int) -> None:
        args, unit = self._args, self._strategy.unit
        size = args.subset_budget
        flag = f"{flag_of('budget')} {size}"
        fraction = args.subset_fraction
        if fraction is not None and 0 < fraction <= 1:  # else the Selector tells
            size, flag = round(fraction * n), f"{flag_of('fraction')} {fraction}"
        if size is not None and size // unit // self._shares[0] * unit < batch:
            need = -(-batch // unit) * unit * self._shares[0]
            raise Refusal(
                f"the subset must fill at least one batch of {batch} on each process, got {size} "
                f"of {n} samples by {flag}. Choose at least {need} samples, or a smaller "
                "--batch-size."
            )

    def begin(
        self, arguments: dict[str, Any], create_loader: Callable[..., Any], evaluation: Any
    ) -> None:
        """Before the first epoch: weigh the loss, go on with an earlier run, try a selection.

        Args:
            arguments: of `train_one_epoch`, by name; changed.
            create_loader: the script's.
            evaluation: arguments of its call for the evaluation loader; empty without one.
        """
        transform = timm_data.evaluation_transform(create_loader, self._training, evaluation)
        for images in (self._pool, self._validation):
            if images is not None:
                images.dataset.transform = transform
        if self._validation is not None:
            name, held_out = self._args.subset_validation, evaluation.get("dataset")
            timm_data.check_validation(self._validation, held_out, self._pool, name)
        timm_data.check_labels(self._pool, getattr(self._args, "num_classes", None))
        self._resume(arguments)
        self.weigh(arguments)
        try_out(self._model(arguments), self.sampler.selector, self._reading, self._shares[0])

    def weigh(self, arguments: dict[str, Any]) -> None:
        """Put weighted loss or task, and mixup that mixes weights too, in place of the script's."""
        selector = self.sampler.selector
        if arguments.get("mixup_fn") is not None:
            self._mixup = self._mixup or timm_weights.WeightedMixup(arguments["mixup_fn"])
            arguments["mixup_fn"] = self._mixup
        task = arguments.get("task")
        task = getattr(task, "_orig_mod", task)  # compiled, in some versions
        kind = type(task).__name__
        if task is None and "loss_fn" not in arguments:
            raise Refusal("`train_one_epoch` must take `loss_fn` or `task`, got neither.")
        if task is not None and kind not in ("ClassificationTask", *DISTILLATION):
            raise Refusal(
                f"a subset cannot go with timm's {kind}: what it computes outside the criterion "
                "would not be weighted. Known are ClassificationTask and the distillation tasks."
            )
        if self._loss is None:
            loss = arguments["loss_fn"] if task is None else task.criterion
            told = selector if self._strategy.needs_losses else None
            make = WeightedDistillation if kind in DISTILLATION else weighted
            self._loss = make(task if kind in DISTILLATION else loss, told)
            if self._strategy.needs_gradients:
                selector.bind_criterion(selection_loss(loss, self._mixup))
        if task is None:
            arguments["loss_fn"] = self._loss
        elif kind in DISTILLATION:
            arguments["task"] = self._loss
        else:
            task.criterion = self._loss

    def _model(self, arguments: dict[str, Any]) -> torch.nn.Module:
        last = getattr(self._args, "channels_last", False)
        memory_format = torch.channels_last if last else torch.contiguous_format
        autocast = arguments.get("amp_autocast", suppress)
        model: torch.nn.Module = as_trained(arguments["model"], autocast, memory_format)
        return model

    def select(self, arguments: dict[str, Any]) -> None:
        """Select, where the epoch is due for it."""
        # Its line for each selection is told in timm's style instead.
        logging.getLogger("adaptive_subset").setLevel(logging.WARNING)
        selection = self.sampler.maybe_reselect(self._model(arguments), arguments["epoch"])
        if selection is not None and self._shares[1] == 0:
            self._report(selection)
        if self._args.subset_tolerance is not None:
            batch = self._training["batch_size"]
            if len(self.sampler) < batch:
                raise Refusal(
                    f"the subset must fill at least one batch of {batch} on each process, got "
                    f"{len(self.sampler)} samples for --subset-tolerance "
                    f"{self._args.subset_tolerance}. Ask for a smaller error."
                )

    def _report(self, selection: Selection) -> None:
        size, total = len(selection), len(self._pool)
        error = selection.relative_error
        self._logger.info(
            f"Subset: {selection.epoch} [{size:>4d}/{total} ({100.0 * size / total:>3.0f}%)]  "
            f"Error: {'unknown' if error is None else format(error, '#.3g')}  "
            f"Effective: {selection.effective_size:.0f}  Filled: {selection.filled}  Time: "
            f"{selection.forward_seconds:.3f}s forward, {selection.solver_seconds:.3f}s solver"
        )

    def figures(self) -> dict[str, Any]:
        """Of the current selection, for summary.csv and wandb; the same keys in every epoch."""
        selection = self.sampler.selection
        if selection is None or selection.epoch > self.sampler.epoch:
            return {f"subset_{name}": None for name in FIGURES}
        known = selection.summary()
        return {f"subset_{name}": known[name] for name in FIGURES}

    def save(self, arguments: dict[str, Any]) -> None:
        """Write what the checkpoint of the epoch that was just trained needs; on all ranks."""
        self.sampler.selector.exchange_losses()  # so that one rank can save for all
        folder, keep = arguments.get("output_dir"), getattr(self._args, "val_interval", 1)
        if folder is not None:
            timm_resume.save(self.sampler, folder, arguments["epoch"], self._planned, keep)

    def _resume(self, arguments: dict[str, Any]) -> None:
        """Go on with the state of the epoch before, which lies beside the checkpoint."""
        checkpoint, epoch = getattr(self._args, "resume", ""), arguments["epoch"]
        source = timm_resume.folder_of(checkpoint) if checkpoint and epoch > 0 else None
        folder = arguments.get("output_dir")
        if folder is not None and Path(folder).resolve() != source and timm_resume.remove(folder):
            self._logger.warning(f"Subset: removed the subset-*.pth of an earlier run in {folder}")
        if source is None:
            return
        last = timm_resume.load_before(epoch, self.sampler, source)
        if last is None:
            if epoch > self.sampler.warm_epochs:
                self._logger.warning(
                    f"Subset: no subset-*.pth of an earlier epoch beside {checkpoint}, selecting "
                    "anew"
                )
        elif last != epoch - 1:
            self._logger.warning(
                f"Subset: no subset-{epoch - 1}.pth beside {checkpoint}, going on from that of "
                f"epoch {last}"
            )
