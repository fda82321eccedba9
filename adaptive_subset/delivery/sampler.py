"""The sampler: what a DataLoader sees of the adaptive subset."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from adaptive_subset.delivery.dataset import TaggedDataset
from adaptive_subset.delivery.epoch import Epoch, order_of, share_of
from adaptive_subset.delivery.tags import TaggedIndex
from adaptive_subset.distributed import agree, world
from adaptive_subset.randomness import shard
from adaptive_subset.selection import Selection, check_configuration
from adaptive_subset.selector import Selector


class AdaptiveSubsetSampler(Sampler[int]):
    """Samples epochs of k of n samples: from the whole data at first, then from selected subsets.

    An epoch is k samples long, always the same unless the selector lets the size vary. With warm
    start κ the first κ·T epochs walk through the full data in freshly shuffled shards of k samples
    (κ·T·k/n passes over it, GRAD-MATCH §4), the others shuffle the current selection, which is
    renewed every R epochs. The order is a pure function of the seed, the epoch and the selection.
    Each index carries its weight: read the data through `dataset` (or `attach`) and take the loss
    through `WeightedLoss`, and weight and sample arrive together whatever workers, prefetchers or
    the loop do in between.

    Args:
        selector: chooses the subsets and holds the current one; it serves one sampler.
        every: R, epochs from one selection to the next; by default what the strategy asks for.
        epochs: T, epochs of the whole run; only a warm start needs it.
        warm_start: κ in [0, 1], the share of the epochs before the first selection.
        weighting: "loss" hands the weights to `WeightedLoss`; "resample" is for loops whose loss
            cannot be wrapped: samples are repeated in proportion to their weight (systematic
            resampling, each within one of its expectation) and have no weights.
        seed: of the order.
        num_replicas, rank: how many processes share an epoch, and which one this is. Each rank
            gets a disjoint share of the same length; fewer than `num_replicas` samples (or
            mini-batches) are left out, others in each epoch. Where torch.distributed runs several
            processes they must be given: ``dist.get_world_size()`` and ``dist.get_rank()`` where
            this sampler shards, 1 and 0 where a framework shards its loader by itself. Either way
            rank 0 selects for all.

    Raises:
        ValueError: an argument out of range, fewer samples than ranks, or a selector that serves
            another sampler.
    """

    def __init__(
        self,
        selector: Selector,
        *,
        every: int | None = None,
        epochs: int | None = None,
        warm_start: float = 0.0,
        weighting: Literal["loss", "resample"] = "loss",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        every = selector.strategy.every if every is None else every
        if every < 1:
            raise ValueError(f"`every` must be at least 1 epoch, got {every}.")
        if not 0 <= warm_start <= 1:
            raise ValueError(
                f"`warm_start` must be in [0, 1], got {warm_start}. It is a share of `epochs`."
            )
        if warm_start > 0 and epochs is None:
            raise ValueError(
                f"`epochs` must be given for a warm start of {warm_start}, got None. Pass the "
                "number of epochs of the whole run."
            )
        if weighting not in ("loss", "resample"):
            raise ValueError(f'`weighting` must be "loss" or "resample", got {weighting!r}.')
        if (num_replicas is None) != (rank is None):
            raise ValueError(
                "`num_replicas` and `rank` must be given together, got "
                f"num_replicas={num_replicas} and rank={rank}."
            )
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise ValueError(f"`rank` must be in [0, {num_replicas - 1}], got {rank}.")
        self.selector = selector
        self.dataset = TaggedDataset(selector.dataset, selector.pool.source.target)
        self.every = every
        self.warm_epochs = round(warm_start * epochs) if epochs is not None else 0
        self.weighting = weighting
        self.seed = seed
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self._sharding = None if num_replicas is None or rank is None else (num_replicas, rank)
        self._train_seconds = 0.0
        self._warned = False
        self._unit = selector.strategy.batch_size or 1
        if selector.size is None and self.warm_epochs:
            raise ValueError(
                f"`warm_start` must be 0 where the first selection sets the size of an epoch, got "
                f"{warm_start}. Give the Selector a `fraction` or a `budget`."
            )
        if selector.strategy.needs_losses and num_replicas is not None and num_replicas > 1:
            raise ValueError(
                f"`num_replicas` must be 1 for {selector.strategy!r}, got {num_replicas}: "
                "each process would know the losses of its own samples only."
            )
        if selector.size is not None and self._sharding is not None:
            self._check_size()
        selector.drive()

    @property
    def num_replicas(self) -> int:
        """How many processes share an epoch."""
        return self._shares()[0]

    @property
    def rank(self) -> int:
        """Which one of them this is."""
        return self._shares()[1]

    def _shares(self) -> tuple[int, int]:
        # Asked for when it is used: a process group may start after the sampler was made.
        if self._sharding is not None:
            return self._sharding
        processes, rank = world()
        if processes > 1:
            raise RuntimeError(
                f"`num_replicas` and `rank` must be given in a run of {processes} processes, got "
                f"neither: use num_replicas={processes}, rank={rank} where this sampler gives each "
                "process its share, num_replicas=1, rank=0 where a framework (Accelerate, Hugging "
                "Face's Trainer) shards the loader by itself."
            )
        return 1, 0

    @property
    def selection(self) -> Selection | None:
        """The current selection, None before the first."""
        return self.selector.selection

    def __len__(self) -> int:
        """Samples that this rank gets in an epoch.

        Raises:
            TypeError: it is not known before the first selection (a `tolerance`, or a strategy that
                sizes itself). A TypeError is what ``list(sampler)`` takes for "no length".
        """
        return self._size // self._unit // self.num_replicas * self._unit

    @property
    def _size(self) -> int:
        """k, the samples that all ranks together get in an epoch."""
        if self.selector.size is not None:
            return self.selector.size
        if self.selection is None:
            raise TypeError(
                "the length of an epoch follows from the first selection, and there is none yet. "
                "Call `sampler.maybe_reselect(model, epoch)` before `len`."
            )
        return len(self.selection)

    def _check_size(self) -> None:
        if len(self) == 0:
            raise ValueError(
                f"`budget` must give each of {self.num_replicas} ranks at least {self._unit} "
                f"samples, got {self._size}. Choose a larger budget."
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration is for. Never selects."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be at least 0, got {epoch}.")
        self.epoch = epoch

    def maybe_reselect(self, model: nn.Module, epoch: int) -> Selection | None:
        """Select a new subset if this epoch is due for one; the one call that selects.

        Call it at the start of every epoch, before iterating over the loader, on all ranks. A
        second call in an epoch does nothing.

        Args:
            model: as it stands; left as it was found.
            epoch: counted from 0.

        Returns:
            The new selection, or None where the current one (or the warm start) goes on.
        """
        self.set_epoch(epoch)
        due = self._is_due(epoch)
        configuration = {**self._configuration(), **self.selector.configuration()}
        agree({"epoch": epoch, "due": due, "num_replicas": self.num_replicas, **configuration})
        if not due:
            return None
        selection = self.selector.select(model, epoch)
        self._check_size()
        self.history.append(selection.summary())
        self._warn_if_wasteful()
        return selection

    def attach(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A loader like `loader`, with all its settings, that reads the adaptive subset.

        A DataLoader does not let its dataset or sampler be replaced, so use what is returned in
        place of the given one. That one stays as it was.

        Raises:
            ValueError: a loader over other data, or one whose batches a sampler cannot steer.
        """
        inner = loader.dataset
        if inner is not self.selector.dataset and inner is not self.dataset:
            raise ValueError(
                f"`loader` must read the dataset of the selector, got one over another "
                f"{type(inner).__name__}. Give the Selector `loader.dataset`."
            )
        if isinstance(inner, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "`loader` must form batches by `batch_size` from a sampler, got "
                f"batch_sampler={loader.batch_sampler!r}. Build it with batch_size=."
            )
        attached = copy.copy(loader)
        batches = BatchSampler(self, loader.batch_sampler.batch_size, loader.drop_last)
        # DataLoader.__setattr__ refuses these three; a fresh copy has no workers to mislead yet.
        attached.__dict__.update(
            dataset=self.dataset, sampler=self, batch_sampler=batches, _iterator=None
        )
        return attached

    def __iter__(self) -> Iterator[int]:
        return Epoch(self.epoch, self._indices(), self._finish)

    def _finish(self, seconds: float) -> None:
        self._train_seconds += seconds

    def _is_due(self, epoch: int) -> bool:
        if epoch < self.warm_epochs:
            return False
        return self.selection is None or self._period(self.selection.epoch) != self._period(epoch)

    def _period(self, epoch: int) -> int:
        return (epoch - self.warm_epochs) // self.every

    def _indices(self) -> list[int]:
        """The indices of this rank in this epoch, each with its weight."""
        unit = self._unit
        if self.epoch < self.warm_epochs:
            indices = shard(len(self.dataset), self._size, self.epoch, self.seed).view(-1, unit)
            weights = torch.ones(indices.shape)
        else:
            if self._is_due(self.epoch) or self.selection is None:
                raise RuntimeError(
                    f"epoch {self.epoch} is due for a selection and has none. Call "
                    "`sampler.maybe_reselect(model, epoch)` before iterating over the loader."
                )
            indices = self.selection.indices.view(-1, unit)
            weights = self.selection.loss_weights.view(-1, unit)
        resampled = self.weighting == "resample"
        order = order_of(weights, by_weight=resampled, seed=self.seed, epoch=self.epoch)
        share = share_of(order, self.num_replicas, self.rank)
        chosen = indices[share].flatten().tolist()
        if resampled:
            return chosen
        tagged = zip(chosen, weights[share].flatten().tolist(), strict=True)
        return [TaggedIndex(index, weight) for index, weight in tagged]

    def _warn_if_wasteful(self) -> None:
        if self._warned or not self.selector.strategy.needs_gradients:
            return
        spent = sum(entry["forward_seconds"] + entry["solver_seconds"] for entry in self.history)
        saved = self._train_seconds * (len(self.dataset) / self._size - 1)
        if len(self.history) > 1 and spent > saved:
            self._warned = True
            warnings.warn(
                f"selections have taken {spent:.3g} s so far, more than the {saved:.3g} s that the "
                f"smaller epochs saved. Select less often (every={self.every}), speed up the pass "
                "over the pool (batch_size=, num_workers=) or choose a strategy without gradients.",
                stacklevel=3,
            )

    def _configuration(self) -> dict[str, Any]:
        return {
            "every": self.every,
            "warm_epochs": self.warm_epochs,
            "weighting": self.weighting,
            "order_seed": self.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on with the same indices, weights and order.

        Holds copies of tensors and plain values only, so ``torch.load(weights_only=True)`` reads
        it. The indices are those of all ranks together: saving rank 0's is enough.
        """
        return {
            "configuration": self._configuration(),
            "epoch": self.epoch,
            "history": [dict(entry) for entry in self.history],
            "train_seconds": self._train_seconds,
            "selector": self.selector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; a state that does not fit changes nothing.

        Raises:
            ValueError: the state is that of a sampler with other arguments, which would go on
                differently, or is corrupt.
        """
        check_configuration("sampler", self._configuration(), state["configuration"])
        self.selector.load_state_dict(state["selector"])
        self.epoch = state["epoch"]
        self.history = [dict(entry) for entry in state["history"]]
        self._train_seconds = state["train_seconds"]
