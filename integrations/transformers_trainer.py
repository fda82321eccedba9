"""Hugging Face's Trainer: `SubsetTrainer`, and `SubsetMixin` for Trainers of one's own."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from adaptive_subset.integrations.subset import OPTIONS, Subset, extra_is_missing

from adaptive_subset import AdaptiveSubsetSampler, Strategy, TokenLoss, retag

try:
    from adaptive_subset.integrations.accelerate_loader import check_leaves_batches, unsharded
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ImportError as error:
    raise extra_is_missing(error, "transformers") from error

FILE = "subset.pt"  # in each checkpoint's folder


class SubsetMixin:
    """Makes a Trainer train on the adaptive subset of its training data.

    Put it before the Trainer: ``class MyTrainer(SubsetMixin, Seq2SeqTrainer)``. The loss is
    `criterion` of the logits and the labels, each sample with its weight, and exact under gradient
    accumulation; whatever collates the batches, the weights come through. On several processes each
    gets its share. The state goes with the Trainer's checkpoints; the figures of each selection go
    to its log, as ``subset/…``.

    Args:
        args, kwargs: what the Trainer takes, and the options in
            `adaptive_subset.integrations.subset.OPTIONS`; `epochs` is
            `num_train_epochs` by default. The pool, `train_dataset`, and a dataset for `validation`
            are collated as in training, in batches as large as in evaluation.
        strategy: how to choose.
        criterion: ``criterion(logits, labels)``, such as ``nn.CrossEntropyLoss()``, or
            ``TokenLoss(shift=True)`` for a causal language model. It must be a mean.

    Raises:
        ValueError: arguments of the Trainer that cannot go with a subset.

    Attributes:
        sampler: delivers the subset; `sampler.history` has the figures of each selection.
    """

    sampler: AdaptiveSubsetSampler
    subset: Any
    data_collator: Any

    def __init__(
        self: Any, *args: Any, strategy: Strategy | str, criterion: Any, **kwargs: Any
    ) -> None:
        options: Any = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "`compute_loss_func` must be left out, the loss of training is `criterion`, got "
                "both. Pass criterion=, a function of logits and labels."
            )
        kwargs["compute_loss_func"] = self._weighted_loss
        super().__init__(*args, **kwargs)
        _check_arguments(self.args, self.train_dataset, criterion)
        check_leaves_batches(self.accelerator)
        self.label_names = self.label_names or ["labels"]  # the model need not take any
        if options.get("warm_start") and self.args.max_steps <= 0:
            options.setdefault("epochs", math.ceil(self.args.num_train_epochs))
        collate = self._get_collator_with_removed_columns(self.data_collator, "selection")
        options = {
            "collate_fn": collate,
            "batch_size": self.args.eval_batch_size,
            "num_workers": self.args.dataloader_num_workers,
            **options,
        }
        self.subset = Subset(
            self.train_dataset,
            criterion,
            strategy,
            num_replicas=self.args.world_size,
            rank=self.args.process_index,
            **options,
        )
        if not self.subset.size_is_fixed:
            raise ValueError(
                f"`strategy` must select as many samples each time, as known in advance, got "
                f"{self.subset.sampler.selector.strategy!r}: the Trainer plans all steps by the "
                "length of one epoch. Take a strategy of one size, and a `fraction` or `budget`."
            )
        self.sampler = self.subset.sampler
        self.train_dataset = self.sampler.dataset
        self.data_collator = retag(self.data_collator)
        self.add_callback(_Select(self))

    def _weighted_loss(
        self: Any, outputs: Any, labels: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The `compute_loss_func`: a batch counts by its share of the labels in a step."""
        logits = getattr(outputs, "logits", None)
        if labels is None or logits is None:
            raise ValueError(
                "the Trainer must get `labels` with each batch and `logits` from the model, got "
                f"{'no labels' if labels is None else f'a {type(outputs).__name__} without logits'}"
                ". Name the target `labels` in the items of the dataset."
            )
        loss: torch.Tensor = self.subset.criterion(logits, labels)
        if num_items_in_batch is None:
            return loss
        own = self.subset.criterion.criterion
        if isinstance(own, TokenLoss) and own.shift and own.ignore_index == -100:
            counted = own.count(labels)  # what a causal model adds up, by the Trainer's divisor
        else:  # a mean of whatever: as the Trainer counts, so that all shares add up to one
            shifts = getattr(self, "_loss_shifts_labels", False)
            counted = (labels[..., 1:] if shifts else labels).ne(-100).sum()
        share: torch.Tensor = counted.to(loss.dtype) / num_items_in_batch
        return loss * share

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.subset.check_used()
        return loss

    def _get_train_sampler(self, *_: Any) -> AdaptiveSubsetSampler:
        return self.sampler

    def get_train_dataloader(self: Any) -> Any:
        return unsharded(self.accelerator, super().get_train_dataloader())  # type: ignore[misc]

    def train(
        self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder:
            self._load_subset(Path(folder) / FILE)
        elif self.sampler.epoch or self.sampler.selection is not None:
            raise RuntimeError(
                "`resume_from_checkpoint` must be given where training goes on, got none after "
                f"epoch {self.sampler.epoch}, whose subset is that of a model that is trained "
                "already. To train once more from the start, build another Trainer."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _load_subset(self: Any, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"`resume_from_checkpoint` must be of a run on a subset, got {path.parent} without "
                f"{path.name}. To start from the weights alone, load them into the model."
            )
        state = torch.load(path, weights_only=True)
        steps = self._steps_of_epoch()
        if isinstance(state, dict) and state.pop("steps", None) != steps:
            raise ValueError(
                f"`resume_from_checkpoint` must be of a run of {steps} steps an epoch, by which "
                "the Trainer tells epochs, got another one. Resume with the same batch size, "
                "accumulation and number of processes."
            )
        self.subset.load_state_dict(state)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        state = {**self.subset.state_dict(), "steps": self._steps_of_epoch()}  # on all processes
        if self.args.should_save:  # before the rest, so that no finished checkpoint lacks it
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(self._get_output_dir(trial)) / name
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / f"{FILE}.part")
            os.replace(folder / f"{FILE}.part", folder / FILE)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _steps_of_epoch(self: Any) -> int:
        samples = len(self.sampler)
        size, drop = self._train_batch_size, self.args.dataloader_drop_last
        batches = samples // size if drop else math.ceil(samples / size)
        steps: int = max(1, math.ceil(batches / self.args.gradient_accumulation_steps))
        return steps


class SubsetTrainer(SubsetMixin, Trainer):
    """A Trainer on the adaptive subset of its training data, see `SubsetMixin`.

    SubsetTrainer(model, args, train_dataset=train_set, criterion=nn.CrossEntropyLoss(),
                  strategy=OrderDP(), fraction=0.1)
    """


class _Select(TrainerCallback):
    """Selects at the start of an epoch. The Trainer counts them by its steps where it resumes."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._epoch = state.global_step // self._trainer._steps_of_epoch()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        figures = trainer.subset.select(trainer.model, self._epoch)
        if figures is not None:
            trainer.log(figures)
        self._epoch += 1


def _check_arguments(args: Any, dataset: Any, criterion: Any) -> None:
    if isinstance(criterion, TokenLoss) and criterion.reduction != "mean":
        raise ValueError(
            '`criterion` must be a TokenLoss("mean"), since the Trainer weighs batches by their '
            f'labels, got "{criterion.reduction}".'
        )
    bound = getattr(criterion, "keywords", {})  # of a functools.partial
    reduction = getattr(criterion, "reduction", bound.get("reduction", "mean"))
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            "`criterion` must be a mean over the labels of a batch, by whose number the Trainer "
            f'weighs it, got reduction={reduction!r}. Pass a loss with reduction="mean".'
        )
    if dataset is None:
        raise ValueError("`train_dataset` must be given, a subset is chosen of it, got None.")
    if args.label_smoothing_factor:
        raise ValueError(
            "`label_smoothing_factor` must be 0, got "
            f"{args.label_smoothing_factor}. Pass criterion=nn.CrossEntropyLoss(label_smoothing=…)."
        )
    if (strategy := getattr(args, "train_sampling_strategy", "random")) != "random":
        raise ValueError(
            f'`train_sampling_strategy` must be "random", got {strategy!r}. The subset has an '
            "order of its own."
        )
