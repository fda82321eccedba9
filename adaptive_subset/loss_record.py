"""The losses that training computes anyway, remembered by sample."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptive_subset.checks import Described, check_state, digest, shape_or_kind
from adaptive_subset.default_device import on_cpu
from adaptive_subset.distributed import Ranks, world

_MOST = 1024  # batches whose tensors stay on the device


class Memory(Described, ABC):
    """A number that is kept of each sample beside its last loss, such as an average of them."""

    @abstractmethod
    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Tensor:
        """What is kept of the m samples of a batch after it, (m,) float32 like the arguments.

        Args:
            kept, last: what was kept and the last loss until then, NaN where there was none.
            losses: of this batch.
        """


class LossRecord:
    """The last loss that each of n samples had in training, and what a memory keeps beside it.

    A step of training only hands its tensors over; they are entered when somebody reads, so that
    no step waits for a transfer from the device. Where several ranks train, each notes the losses
    of its own batches, and they are entered when the ranks `exchange` them: those of one step are
    the batch that one process would have trained on.

    Args:
        n: number of samples.
        memory: what else is kept of a sample, None for nothing.

    Examples:
        >>> record = LossRecord(3)
        >>> record.note(torch.tensor([2, -1]), torch.tensor([0.5, 9.0]))
        >>> record.values
        tensor([   nan,    nan, 0.5000])
    """

    def __init__(self, n: int, memory: Memory | None = None) -> None:
        self._values = torch.full((n,), torch.nan, dtype=torch.float32, device="cpu")
        self._memory = memory
        self._kept = None if memory is None else self._values.clone()
        self._waiting: list[list[tuple[Tensor, Tensor]]] = []  # batches, each loss as it was noted
        self._noted: list[tuple[Tensor, Tensor]] = []  # those before them, on the CPU
        self._last: tuple[weakref.ref[Tensor] | None, Tensor] | None = None  # outputs, and whose
        self._rows = self._mixed = 0  # entered since the last `check`, and those of no one sample
        self._is_due = False

    def __len__(self) -> int:
        return len(self._values)

    def note(self, indices: Tensor, losses: Tensor, outputs: Tensor | None = None) -> None:
        """Remember the `losses` (m,) of the samples at `indices` (m,) int64.

        What has no index (−1), such as a mixture of several samples, is no sample's own loss and
        is left out. Of a sample that occurs more than once in a batch, as with a row for each of
        its parts, the mean counts; and so it does of several losses of the same batch in a row, as
        those of an auxiliary head are, whose sum is trained on.

        Args:
            indices, losses: of a batch.
            outputs: what the losses are computed from. One output belongs to one sample.

        Raises:
            RuntimeError: the same outputs were noted for other samples, as those of mixed inputs.
        """
        before, known = self._last or (None, None)
        again = known is not None and _are_same(known, indices)
        shared = outputs is not None and before is not None and before() is outputs
        if shared and not again and known is not None and not torch.equal(known, indices):
            raise RuntimeError(
                "`target` must be that of the samples that the outputs are of, where a strategy "
                "goes by their losses, got targets of other samples for the same outputs: mixed "
                f"inputs have no loss of one sample. {_INSTEAD}"
            )
        self._last = None if outputs is None else weakref.ref(outputs), indices
        batch = indices, losses.detach()
        if again and self._waiting:
            self._waiting[-1].append(batch)
            return
        if len(self._waiting) == _MOST:
            self._fetch()
        self._waiting.append([batch])

    def expect(self) -> None:
        """Say that an epoch is over, in which losses should have been noted."""
        self._is_due = True

    def check(self, strategy: str, *, is_held: bool) -> None:
        """Make sure that a strategy has something to go by; where ranks `exchange`, after that.

        Args:
            strategy: its name.
            is_held: whether a loss holds the record and can note what it computes.

        Raises:
            RuntimeError: no loss holds it, a whole epoch noted none, or most of what was noted
                since the last time were losses of mixed samples.
        """
        self._enter_own()
        rows, mixed, self._rows, self._mixed = self._rows, self._mixed, 0, 0
        is_due, self._is_due = self._is_due, False
        if mixed > rows / 2:
            raise RuntimeError(
                f"`target` must be that of a single sample for {strategy}, which goes by the loss "
                f"of each, got mixtures, or targets without an index, in {mixed} of {rows} rows. "
                f"{_INSTEAD}"
            )
        if not bool(self._values.isnan().all()):
            return
        if not is_held:
            raise RuntimeError(
                f"`selector` must learn the losses of training for {strategy}, and no WeightedLoss "
                "was built with it. Wrap the training loss: WeightedLoss(criterion, selector)."
            )
        if is_due:
            raise RuntimeError(
                "`criterion` must be what the training step computes its loss with, since "
                f"{strategy} goes by the losses of training, got an epoch in which the "
                "WeightedLoss of the selector computed none. Train on what it returns."
            )

    @property
    def values(self) -> Tensor:
        """(n,) float32 on the CPU, NaN where no loss was entered; a copy."""
        self._enter_own()
        return self._values.clone()

    @property
    def kept(self) -> Tensor | None:
        """(n,) float32 on the CPU, NaN where nothing was entered; a copy. None without a memory."""
        self._enter_own()
        return None if self._kept is None else self._kept.clone()

    def exchange(self, ranks: Ranks) -> None:
        """Enter what all `ranks` have noted since the last time; all of them call it.

        The i-th batches of all of them are entered as one, in the order of ranks.

        Raises:
            RuntimeError: some noted none, or knew other losses before; on all of them.
        """
        self._fetch()
        known = digest(self._values) if ranks.size > 1 else None
        told = ranks.step(lambda: (known, *_packed(self._noted)))
        before, *noted = zip(*told, strict=True)
        parts = list(map(_unpacked, *noted))
        if len(set(before)) > 1:
            raise RuntimeError(
                "every rank must know the same losses of training, got "
                f"{', '.join(before)} on ranks 0 to {ranks.size - 1}. Load the same checkpoint on "
                "all ranks, or on none."
            )
        silent = [rank for rank, batches in enumerate(parts) if not batches]
        if 0 < len(silent) < ranks.size:
            raise RuntimeError(
                "`criterion` must be what the training step computes its loss with on every rank, "
                "got an epoch in which the WeightedLoss of the selector computed none on "
                f"rank {', '.join(map(str, silent))} of {ranks.size}. Train on what it returns."
            )
        self._noted.clear()
        for step in range(max(len(part) for part in parts)):
            batch = [part[step] for part in parts if step < len(part)]
            self._enter(torch.cat([at for at, _ in batch]), torch.cat([of for _, of in batch]))

    def _fetch(self) -> None:
        self._noted += map(_joined, self._waiting)
        self._waiting.clear()

    def _enter_own(self) -> None:
        if world()[0] == 1:
            self.exchange(Ranks(1, 0))

    def _enter(self, indices: Tensor, losses: Tensor) -> None:
        known = indices >= 0
        self._rows += len(known)
        self._mixed += len(known) - int(known.sum())
        if bool((indices >= len(self)).any()):
            raise ValueError(
                f"`target` must be that of one of the {len(self)} samples of the selector's "
                f"dataset, got that of sample {int(indices.max())}. Give each sampler a selector "
                "and a WeightedLoss of its own."
            )
        # Not a number is what a diverged loss is, and would pass for one that nobody has seen.
        losses = losses.masked_fill(losses.isnan(), torch.inf)
        indices, losses = _once_each(indices[known], losses[known])
        if self._memory is not None and self._kept is not None and len(indices):
            kept = self._memory.update(self._kept[indices], self._values[indices], losses)
            if not isinstance(kept, Tensor) or kept.shape != losses.shape:
                raise ValueError(
                    f"`update` must return one number for each of the {len(losses)} samples of a "
                    f"batch, got {shape_or_kind(kept)} from {self._memory!r}. Return a tensor like "
                    "its arguments."
                )
            self._kept[indices] = kept.to(self._kept)
        self._values[indices] = losses

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}  # a weak reference cannot be pickled

    def state_dict(self) -> dict[str, Any]:
        """Copies of the losses, of what is kept beside them, and of what was not exchanged yet."""
        values, kept = self.values, self.kept
        state: dict[str, Any] = {"values": values} | ({} if kept is None else {"kept": kept})
        self._fetch()
        if self._noted:
            state |= dict(zip(_NOTED, _packed(self._noted), strict=True))
            state["ranks"], state["rank"] = world()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the losses of `state`.

        Raises:
            ValueError: they are those of another number of samples, or no losses; or the state of
                another rank, which the losses of this one's last batches are not in.
        """
        names = ("values",) if self._memory is None else ("values", "kept")
        check_state("LossRecord", state, dict.fromkeys(names, Tensor))
        for values in (state[name] for name in names):
            if values.shape != self._values.shape or not values.is_floating_point():
                raise ValueError(
                    f"`state` must hold the losses of {len(self)} samples, got "
                    f"{tuple(values.shape)} of {values.dtype}. Load the state of a run on the same "
                    "dataset."
                )
        noted = []
        if "ranks" in state:
            check_state("LossRecord", state, {**dict.fromkeys(_NOTED, Tensor), "rank": int})
            if (state["ranks"], state["rank"]) != world():
                raise ValueError(
                    "`state` must be that of the same rank, since it was saved in an epoch, before "
                    "the ranks exchanged its losses, got that of rank "
                    f"{state['rank']} of {state['ranks']} on rank {world()[1]} of {world()[0]}. "
                    "Load on each rank what it saved, or call selector.exchange_losses() on all "
                    "ranks before one of them saves for all."
                )
            noted = _unpacked(*(state[name].cpu() for name in _NOTED))
        loaded = {name: state[name].detach().to("cpu", torch.float32, copy=True) for name in names}
        self._waiting.clear()
        self._noted = noted
        self._rows = self._mixed = 0
        self._is_due = False
        self._values, self._kept = loaded["values"], loaded.get("kept")


_INSTEAD = "Leave out mixup and cutmix, or take FreshRandom() or GradMatchPB()."
_NOTED = ("noted_sizes", "noted_indices", "noted_losses")


@on_cpu()
def _packed(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """How long the batches are, and their indices and losses one after the other."""
    sizes = torch.tensor([len(at) for at, _ in batches], dtype=torch.int64)
    indices = torch.cat([torch.zeros(0, dtype=torch.int64), *(at for at, _ in batches)])
    losses = torch.cat([torch.zeros(0, dtype=torch.float32), *(noted for _, noted in batches)])
    return sizes, indices, losses


def _unpacked(sizes: Tensor, indices: Tensor, losses: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The batches that were `_packed`."""
    each = sizes.tolist()
    return list(zip(torch.split(indices, each), torch.split(losses, each), strict=True))


def _are_same(known: Tensor, indices: Tensor) -> bool:
    """Whether both are of the same samples, as far as no step waits for a device to tell."""
    if known is indices or known.device.type != "cpu" or indices.device.type != "cpu":
        return known is indices
    return torch.equal(known, indices) and bool((indices >= 0).any())


def _joined(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The rows of all losses of a batch on the CPU; heads may be on several devices."""
    indices, losses = zip(*batch, strict=True)
    return torch.cat([at.cpu() for at in indices]), torch.cat([x.float().cpu() for x in losses])


def _once_each(indices: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct indices, with the mean loss of each."""
    unique, place = torch.unique(indices, return_inverse=True)
    if len(unique) == len(indices):
        return indices, losses
    sums = losses.new_zeros(len(unique)).index_add_(0, place, losses)
    return unique, sums / torch.bincount(place)
