"""The sampler: what a DataLoader sees of the adaptive subset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from adaptive_subset.checks import check_configuration, check_state, natural, shown
from adaptive_subset.delivery.attach import attached
from adaptive_subset.delivery.clock import Clock
from adaptive_subset.delivery.dataset import TaggedDataset
from adaptive_subset.delivery.epoch import Epoch, Order, check_weighting, in_order
from adaptive_subset.delivery.history import History
from adaptive_subset.delivery.lengths import Lengths
from adaptive_subset.delivery.schedule import Schedule
from adaptive_subset.delivery.sharding import Sharding
from adaptive_subset.distributed import Ranks, agree
from adaptive_subset.randomness import shard
from adaptive_subset.selection import Selection
from adaptive_subset.selector import Selector

_FIELDS: dict[str, type] = {"configuration": Mapping, "history": Mapping, "selector": Mapping}
_FIELDS |= {"epoch": int, "warm_epochs": int}


class AdaptiveSubsetSampler(Sampler[int]):
    """Samples epochs of k of n samples: from the whole data at first, then from selected subsets.

    An epoch is k samples long, always the same unless the selector lets the size vary, or the
    strategy plans sizes that do. With warm start κ the first κ·T epochs walk through the full data
    in freshly shuffled shards of k samples (κ·T·k/n passes over it, GRAD-MATCH §4), the others
    shuffle the current selection, which is renewed every R epochs. The order is a pure function of
    the seed, the epoch and the selection. Each index carries its weight: read the data through
    `dataset` (or `attach`) and take the loss through `WeightedLoss`, and weight and sample arrive
    together whatever workers, prefetchers or the loop do in between.

    Args:
        selector: chooses the subsets and holds the current one; it serves one sampler.
        every: R, epochs from one selection to the next; by default what the strategy asks for.
        epochs: T, epochs of the whole run; only a warm start needs it.
        warm_start: κ in [0, 1], the share of the epochs before the first selection.
        weighting: "loss" hands the weights to `WeightedLoss`; "resample" is for loops whose loss
            cannot be wrapped: samples are repeated in proportion to their weight (systematic
            resampling, each within one of its expectation) and have no weights. Not for "matched"
            weights, nor where the losses of training count: nothing tells a loss whose it is.
        seed: of the order.
        num_replicas, rank: how many processes share an epoch, and which one this is. Each rank
            gets a disjoint share of the same length; fewer than `num_replicas` samples (or
            mini-batches) are left out, others in each epoch. Where torch.distributed runs several
            processes they must be given: ``dist.get_world_size()`` and ``dist.get_rank()`` where
            this sampler shards, 1 and 0 where a framework shards its loader by itself. Either way
            all ranks select together.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range or unfit for the strategy, fewer samples than ranks,
            or a selector that serves another sampler.
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
        if not isinstance(selector, Selector):
            raise TypeError(f"`selector` must be a Selector, got {shown(selector)}. Build one.")
        strategy = selector.strategy
        check_weighting(weighting, selector)
        every = strategy.every if every is None else every
        self.selector = selector
        self.dataset = TaggedDataset(selector.dataset, selector.pool.source.target)
        self.weighting = weighting
        self.seed = natural("seed", seed)
        self._schedule = Schedule.of(every, epochs, warm_start)
        strategy.check_every(self.every)
        self._sharding = Sharding.of(num_replicas, rank)
        self._clock = Clock()
        self._history = History(len(self.dataset))
        self._lengths = Lengths(selector, self._schedule, self._sharding)
        selector.drive()

    def __repr__(self) -> str:
        shares = f", rank {self.rank} of {self.num_replicas}" if self._sharding.said else ""
        warm = f", {self.warm_epochs} of a warm start" if self.warm_epochs else ""
        return f"AdaptiveSubsetSampler({self.selector!r}, every={self.every}{warm}{shares})"

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is for."""
        return self._clock.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        """The figures of each selection so far, see `Selection.summary`."""
        return self._history.selections

    @property
    def every(self) -> int:
        """R, epochs from one selection to the next."""
        return self._schedule.every

    @property
    def warm_epochs(self) -> int:
        """Epochs before the first selection."""
        return self._schedule.warm_epochs

    @property
    def num_replicas(self) -> int:
        """How many processes share an epoch."""
        return self._sharding.shares()[0]

    @property
    def rank(self) -> int:
        """Which one of them this is."""
        return self._sharding.shares()[1]

    @property
    def selection(self) -> Selection | None:
        """The current selection, None before the first."""
        return self.selector.selection

    def __len__(self) -> int:
        """Samples that this rank gets in the current epoch.

        Raises:
            TypeError: the first selection will tell it (a `tolerance`, or a strategy that sizes
                itself). A TypeError is what ``list(sampler)`` takes for "no length".
        """
        return self._lengths.at(self.epoch)

    def sizes(self, epochs: int) -> list[int]:
        """Samples that this rank gets in each of the first `epochs` epochs, known in advance.

        What a schedule over steps needs: with batches of B a run has ``Σ ⌈size / B⌉`` of them.

        Raises:
            TypeError: selections find their own sizes.
        """
        return self._lengths.planned(epochs)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration is for. Never selects.

        Until the epoch is over it may only repeat what `maybe_reselect` was called with.
        """
        self._clock.set(epoch)

    def maybe_reselect(self, model: nn.Module, epoch: int) -> Selection | None:
        """Select a new subset if this epoch is due for one; the one call that selects.

        Call it at the start of every epoch, before iterating over the loader, on all ranks; the
        order is that of `epoch` then. A second call in an epoch does nothing.

        Args:
            model: as it stands; left as it was found.
            epoch: counted from 0.

        Returns:
            The new selection, or None where the current one (or the warm start) goes on.

        Raises:
            RuntimeError: the ranks differ in anything that matters; see also `Selector.select`.
        """
        agree(Ranks.of_run(), lambda: self._question(epoch))
        self._clock.ask(epoch)
        calls, are_learnt = self.selector.calls, self.selector.losses is not None
        if self.weighting == "loss" and self.selection is not None:
            calls.warn_if_missing(self.selection.loss_weights, are_learnt=are_learnt)
        if not self._schedule.is_due(self.epoch, self.selection):
            self.selector.exchange_losses()
            return None
        selection = self.selector.select(model, self.epoch)
        self._sharding.check(self.selector.strategy, len(selection))
        self._history.note(selection)
        if self.selector.strategy.needs_gradients:
            self._history.warn_if_wasteful(self.every)
        return selection

    def _question(self, epoch: int) -> dict[str, Any]:
        self._sharding.check_losses(self.selector.strategy)
        return {
            "epoch": natural("epoch", epoch),
            "selection": None if self.selection is None else self.selection.fingerprint(),
            "num_replicas": self.num_replicas,
            "rank": self.rank,
            "warm_epochs": self.warm_epochs,
            **self._configuration(),
            **self.selector.configuration() | self.selector.pool.reading(),
        }

    def attach(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A loader like `loader`, with all its settings, that reads the adaptive subset.

        Use what is returned in place of the given one, which stays as it was: a DataLoader does
        not let its dataset or sampler be replaced.

        Raises:
            TypeError: no DataLoader.
            ValueError: it reads other data, or chooses of them, its batches cannot be steered, or
                it would drop the one batch that it has.
        """
        return attached(loader, self, self.dataset)

    def __iter__(self) -> Epoch:
        """The indices of the epoch; which one that is counts when the first is asked for."""
        return self._clock.watch(Epoch(self._begin, self._finish))

    def _begin(self) -> tuple[int, Order]:
        self._clock.check()
        order = self._order()
        self._clock.begin()
        return self.epoch, order

    def _finish(self, seconds: float) -> None:
        self._history.note_training(seconds)
        self.selector.end_epoch()

    def _order(self) -> Order:
        """The indices of this rank in this epoch, each with its weight."""
        if self.epoch < self.warm_epochs:
            size = self.selector.size
            assert size is not None  # a warm start needs one
            indices = shard(len(self.dataset), size, self.epoch, self.seed)
            weights = torch.ones_like(indices, dtype=torch.float32)
        else:
            selection = self._schedule.current(self.epoch, self.selection)
            indices, weights = selection.indices, selection.loss_weights
        unit = self.selector.strategy.unit
        return in_order(
            indices.view(-1, unit),
            weights.view(-1, unit),
            resampled=self.weighting == "resample",
            seed=self.seed,
            epoch=self.epoch,
            shares=self._sharding.shares(),
        )

    def _configuration(self) -> dict[str, Any]:
        schedule = {"every": self.every, "warm_start": self._schedule.warm_start}
        return {**schedule, "weighting": self.weighting, "order_seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; copies that ``torch.load(weights_only=True)`` reads.

        Rank 0's is enough for all; where losses are needed, after `Selector.exchange_losses`.
        """
        return {
            "configuration": self._configuration(),
            "epoch": self.epoch,
            "warm_epochs": self.warm_epochs,
            "history": self._history.state_dict(),
            "selector": self.selector.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; a state that does not fit changes nothing.

        Call it before `maybe_reselect`. A loader that saves its sampler (torchdata's) calls it once
        more when iterated over, too late: what is known here wins. There may be more `epochs` than
        before; a warm start stays as long as it was.

        Raises:
            ValueError: it is that of a sampler with other arguments, or is corrupt.
            RuntimeError: only the loader's state was loaded, after a selection that needs this one.
        """
        check_state("AdaptiveSubsetSampler", state, _FIELDS)
        check_configuration("sampler", self._configuration(), state["configuration"])
        epoch = natural("epoch", state["epoch"])
        saved = self.selector.saved_selection(state["selector"])
        history = History(len(self.dataset))
        history.load_state_dict(state["history"])
        schedule = self._schedule.resumed(state["warm_epochs"])
        lengths = Lengths(self.selector, schedule, self._sharding)
        is_newer = False  # the selection here, which was due since
        if self._clock.is_in_loader:
            now, here = max(epoch, self.epoch), self.selection
            is_newer = schedule.is_due(now, saved)
            same = (here and here.fingerprint()) == (saved and saved.fingerprint())
            late = schedule != self._schedule or self.selector.depends_on(saved, is_due=is_newer)
            if not self._clock.takes(epoch, same=same, depends=late):
                return
            epoch = now
        if is_newer:
            history.go_on(self._history)
        else:
            self.selector.load_state_dict(state["selector"])
        self._history, self._schedule, self._lengths = history, schedule, lengths
        self._clock.set(epoch)
        self._clock.knows_past()
