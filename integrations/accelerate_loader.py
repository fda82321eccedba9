"""Accelerate: `SubsetLoader`, a prepared loader of the subset and its weighted loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from adaptive_subset.integrations.subset import Subset, extra_is_missing
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import Strategy

try:
    from accelerate import Accelerator
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
except ImportError as error:
    raise extra_is_missing(error, "accelerate") from error


class SubsetLoader:
    """Reads the adaptive subset of a loader's data on all processes of an Accelerator.

        criterion = nn.CrossEntropyLoss()
        subset = SubsetLoader(accelerator, loader, criterion, OrderDP(), fraction=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        for epoch in range(subset.epoch, epochs):
            for x, y in subset.batches(model, epoch):
                loss = subset.criterion(model(x), y)

    It is prepared, so do not prepare the loader as well, and goes with ``accelerator.save_state()``
    and ``load_state()``, those in the middle of an epoch too. The figures of each selection go to
    the accelerator's trackers, as ``subset/…``, at the number of batches before it.

    Args:
        accelerator: of the run.
        loader: a DataLoader over the training data, as for training on all of them.
        criterion: the loss of training.
        strategy: how to choose.
        options: see `adaptive_subset.integrations.subset.OPTIONS`; `num_workers` is that of the
            loader by default.

    Raises:
        ValueError: an accelerator that splits or dispatches batches, or keeps the place of loaders
            by itself.

    Attributes:
        sampler: delivers the subset; `sampler.history` has the figures of each selection.
        criterion: the weighted loss.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loader: DataLoader[Any],
        criterion: Any,
        strategy: Strategy | str,
        **options: Any,
    ) -> None:
        if accelerator.dataloader_config.use_stateful_dataloader:
            raise ValueError(
                "`use_stateful_dataloader` must be False with a SubsetLoader, got True. It goes on "
                "in the middle of an epoch by itself."
            )
        shares = {"num_replicas": accelerator.num_processes, "rank": accelerator.process_index}
        options = {"num_workers": loader.num_workers, **options}
        self._subset: Subset = Subset(loader.dataset, criterion, strategy, **shares, **options)
        self.sampler, self.criterion = self._subset.sampler, self._subset.criterion
        self._loader: DataLoader[Any] = unsharded(
            accelerator, accelerator.prepare(self.sampler.attach(loader))
        )
        self._before = 0  # batches of this process before the current epoch
        self._accelerator = accelerator
        accelerator.register_for_checkpointing(self)

    @property
    def epoch(self) -> int:
        """The epoch to begin, or to go on, with."""
        return int(self._subset.epoch)

    def __len__(self) -> int:
        """Batches of the current epoch on this process."""
        return len(self._loader)

    def batches(self, model: nn.Module, epoch: int) -> Iterator[Any]:
        """The batches of `epoch`, after a selection if one is due; call it on all processes.

        Args:
            model: maps inputs to outputs; prepared or not.
            epoch: counted from 0. In the one that a checkpoint interrupted the rest of it comes.

        Raises:
            RuntimeError: an epoch before that of the checkpoint; an epoch without a single call of
                `criterion`.
        """
        if epoch > self.sampler.epoch:
            self._before += self._subset.batches
        figures = self._subset.select(model, epoch)
        if figures is not None:
            self._accelerator.log(figures, step=self._before)
        done = self._subset.enter(len(self))
        return self._rest(epoch, done)

    def _rest(self, epoch: int, done: int) -> Iterator[Any]:
        self._loader.set_epoch(epoch)  # type: ignore[attr-defined]  # it counts from 0 again after a restart
        for done, batch in enumerate(islice(self._loader, done, None), done + 1):  # noqa: B020
            self._subset.batches = done
            yield batch
        self._subset.check_used()

    def state_dict(self) -> dict[str, Any]:
        """What ``accelerator.save_state()`` saves."""
        return {**self._subset.state_dict(), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``accelerator.load_state()`` loads; a state that does not fit changes nothing.

        Raises:
            ValueError: it is corrupt, or of a run with other arguments.
        """
        self._subset.load_state_dict(state)
        all_alike = state["sampler"]["epoch"] * state["length"]  # of a version that did not count
        self._before = state.get("before", all_alike)


def check_leaves_batches(accelerator: Accelerator, *, is_shard: bool = True) -> None:
    """Raise a ValueError for an accelerator that splits batches, or dispatches them.

    Args:
        is_shard: whether it prepares loaders as those of one process.
    """
    config = accelerator.dataloader_config
    if config.split_batches or config.dispatch_batches or not is_shard:
        raise ValueError(
            "`accelerator` must leave the batches of each process to its loader, got "
            f"split_batches={config.split_batches}, dispatch_batches={config.dispatch_batches}. "
            "Leave both out, and pass the batch size of one process."
        )


def unsharded(accelerator: Accelerator, loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader that `accelerator` has prepared, each process reading all that its sampler gives.

    The sampler shares the epoch out by itself, where Accelerate would repeat samples to fill up the
    last batches.

    Raises:
        ValueError: an accelerator that splits or dispatches batches.
    """
    check_leaves_batches(accelerator, is_shard=isinstance(loader, DataLoaderShard))
    if isinstance(loader.batch_sampler, BatchSamplerShard):
        loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
        loader.batch_sampler.even_batches = False
    # Accelerate would take the last batch to be filled up, to as many as the whole dataset leaves
    # over, and `gather_for_metrics` cut off the rest of it.
    loader._drop_last = True
    prepared: DataLoader[Any] = loader
    return prepared
