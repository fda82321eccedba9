"""The sampler: what a DataLoader sees of the adaptive subset."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from adaptive_subset.delivery.dataset import TaggedDataset
from adaptive_subset.delivery.tags import TaggedIndex
from adaptive_subset.distributed import once, replicas
from adaptive_subset.randomness import resample, seeded, shard
from adaptive_subset.selection import Selection
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
        selector: chooses the subsets and holds the current one.
        every: R, epochs from one selection to the next.
        epochs: T, epochs of the whole run; only a warm start needs it.
        warm_start: κ in [0, 1], the share of the epochs before the first selection.
        weighting: "loss" hands the weights to `WeightedLoss`; "resample" is for loops whose loss
            cannot be wrapped: samples are repeated in proportion to their weight (systematic
            resampling, each within one of its expectation) and have no weights.
        seed: of the order.
        num_replicas, rank: of the distributed processes; by default those of torch.distributed's
            default group. Each rank gets a disjoint share of the same length; fewer than
            `num_replicas` samples (or mini-batches) are left out, others in each epoch. Pass
            ``num_replicas=1, rank=0`` to a framework that shards by itself.

    Raises:
        ValueError: an argument out of range, or fewer samples than ranks.
    """

    def __init__(
        self,
        selector: Selector,
        *,
        every: int = 20,
        epochs: int | None = None,
        warm_start: float = 0.0,
        weighting: Literal["loss", "resample"] = "loss",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
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
        world, own = replicas()
        self.selector = selector
        self.dataset = TaggedDataset(selector.dataset, selector.target)
        self.every = every
        self.warm_epochs = round(warm_start * epochs) if epochs is not None else 0
        self.weighting = weighting
        self.seed = seed
        self.num_replicas = world if num_replicas is None else num_replicas
        self.rank = own if rank is None else rank
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self._train_seconds = 0.0
        self._warned = False
        self._unit = selector.strategy.batch_size or 1
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"`rank` must be in [0, {self.num_replicas - 1}], got {self.rank}.")
        if selector.size is None and self.warm_epochs:
            raise ValueError(
                f"`warm_start` must be 0 where the first selection sets the size of an epoch, got "
                f"{warm_start}. Give the Selector a `fraction` or a `budget`."
            )
        if selector.strategy.needs_losses and self.num_replicas > 1:
            raise ValueError(
                f"`num_replicas` must be 1 for {selector.strategy!r}, got {self.num_replicas}: "
                "each process would know the losses of its own samples only."
            )
        if selector.size is not None:
            self._check_size()

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
        if self.num_replicas > 1 and replicas()[0] > 1:
            selection = once(
                lambda: self.selector.select(model, epoch) if due else None,
                question={"epoch": epoch, "due": due},
            )
        else:
            selection = self.selector.select(model, epoch) if due else None
        if selection is not None:
            self.selector.selection = selection
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
        return _Epoch(self, self._indices())

    def _is_due(self, epoch: int) -> bool:
        if epoch < self.warm_epochs:
            return False
        return self.selection is None or self._period(self.selection.epoch) != self._period(epoch)

    def _period(self, epoch: int) -> int:
        return (epoch - self.warm_epochs) // self.every

    def _indices(self) -> list[int]:
        """The indices of this rank in this epoch, each with its weight."""
        generator = seeded(self.seed, self.epoch)
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
        order = self._order(weights, generator)
        share = order[self.rank : len(order) // self.num_replicas * self.num_replicas]
        share = share[:: self.num_replicas]
        chosen = indices[share].flatten().tolist()
        if self.weighting == "resample":
            return chosen
        tagged = zip(chosen, weights[share].flatten().tolist(), strict=True)
        return [TaggedIndex(index, weight) for index, weight in tagged]

    def _order(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Rows of `weights` (units, unit) in the order of the epoch."""
        units = len(weights)
        if self.weighting == "loss":
            return torch.randperm(units, generator=generator)
        if float(weights.min()) < 0:
            raise ValueError(
                'weighting="resample" needs weights of at least 0, got '
                f"{float(weights.min()):g}. Use a strategy with non-negative weights."
            )
        drawn = resample(weights[:, 0], units, generator)
        return drawn[torch.randperm(units, generator=generator)]

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
            "samples": len(self.dataset),
            "budget": self.selector.budget,
            "tolerance": self.selector.tolerance,
            "size_varies": self.selector.size_varies,
            "strategy": repr(self.selector.strategy),
            "pool_fraction": self.selector.pool_fraction,
            "every": self.every,
            "warm_epochs": self.warm_epochs,
            "weighting": self.weighting,
            "seeds": [self.seed, self.selector.seed],
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on with the same indices, weights and order.

        Holds tensors and plain values only, so ``torch.load(weights_only=True)`` reads it. The
        indices are those of all ranks together: saving rank 0's is enough.
        """
        selection, selector = self.selection, self.selector
        return {
            "configuration": self._configuration(),
            "epoch": self.epoch,
            "selection": None if selection is None else dict(vars(selection)),
            "history": [dict(entry) for entry in self.history],
            "train_seconds": self._train_seconds,
            "losses": selector.losses if selector.strategy.needs_losses else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is that of a sampler with other arguments, which would go on
                differently.
        """
        here, saved = self._configuration(), state["configuration"]
        if here != saved:
            differing = {k: (saved.get(k), here[k]) for k in here if saved.get(k) != here[k]}
            raise ValueError(
                "`state` must come from a sampler with the same arguments, got (saved, here): "
                f"{differing}. Construct sampler and selector as in the interrupted run."
            )
        self.epoch = state["epoch"]
        selection = state["selection"]
        self.selector.selection = None if selection is None else Selection(**selection)
        self.history = [dict(entry) for entry in state["history"]]
        self._train_seconds = state["train_seconds"]
        if state["losses"] is not None:
            self.selector.losses = state["losses"]


class _Epoch(Iterator[int]):
    """One pass over the indices of an epoch, resumable in the middle (torchdata's protocol)."""

    def __init__(self, sampler: AdaptiveSubsetSampler, indices: list[int]) -> None:
        self._sampler, self._indices, self._position = sampler, indices, 0
        self._epoch, self._start = sampler.epoch, time.perf_counter()

    def __next__(self) -> int:
        if self._position == len(self._indices):
            self._sampler._train_seconds += time.perf_counter() - self._start
            self._start = time.perf_counter()
            raise StopIteration
        self._position += 1
        return self._indices[self._position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["epoch"] != self._epoch:
            raise ValueError(
                f"`state` must be of the epoch that the sampler is at, got {state['epoch']} and "
                f"{self._epoch}. Load the sampler's state first."
            )
        self._position = state["position"]
