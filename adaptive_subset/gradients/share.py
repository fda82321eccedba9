"""A pass over a pool that ranks share: each reads a stretch, and samples go to who needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.distributed import Ranks
from adaptive_subset.gradients.look_ahead import LastLayer
from adaptive_subset.gradients.model_state import place_of, readable
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.protocol import Gradients
from adaptive_subset.gradients.same_data import check_same_data
from adaptive_subset.gradients.snapshot import preserved_modules
from adaptive_subset.gradients.source import GradientSource, PoolGradients


@dataclass(frozen=True, eq=False)
class Share:
    """The stretch of n samples that this rank has read; all ranks call each method together.

    Args:
        ranks: that share the samples.
        edges: ranks.size + 1 positions from 0 to n, rank r has those from edges[r] to edges[r + 1].
        part: what this rank has read.
        classes: (n,) int64 of all samples, on the CPU; None where targets are no labels.
    """

    ranks: Ranks
    edges: Tensor
    part: PoolGradients
    classes: Tensor | None

    def __len__(self) -> int:
        return int(self.edges[-1])

    def sum(self, weights: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """``Σ wᵢgᵢ`` (d,) over all samples, or those at `positions` (m,) on the CPU."""

        def own() -> Tensor:
            if positions is None:
                return self.part.gradients.sum(weights)
            here = self._owners(positions) == self.ranks.rank
            device = self.part.gradients.device
            index = (positions[here] - self.edges[self.ranks.rank]).to(device)
            return self.part.gradients.sum(None if weights is None else weights[here], index)

        return self.ranks.total(own)

    def own_rows(self) -> Share:
        """Of each gradient the row of its class, see `Gradients.own_rows`."""
        labels = self.part.classes
        assert labels is not None
        gradients = self.part.gradients.own_rows(labels)
        return replace(self, part=replace(self.part, gradients=gradients))

    def squared_norms(self) -> Tensor:
        """``‖gᵢ‖²`` of all samples, (n,) on the CPU."""
        return torch.cat(self.ranks.step(lambda: self.part.gradients.squared_norms().cpu()))

    def dealt(self, groups: Sequence[Tensor]) -> PoolGradients:
        """The samples at positions ``groups[rank]``, in that order, on this rank.

        Args:
            groups: for each rank positions on the CPU, the same on all ranks.
        """
        rank, part = self.ranks.rank, self.part
        device, owners = part.gradients.device, [self._owners(group) for group in groups]
        leaving = [group[own == rank] for group, own in zip(groups, owners, strict=True)]
        index = (torch.cat(leaving) - self.edges[rank]).to(device)
        received = torch.bincount(owners[rank], minlength=self.ranks.size).tolist()
        # They come in the order of those that had them.
        place = torch.argsort(torch.argsort(owners[rank], stable=True), stable=True).to(device)
        in_order = bool((owners[rank].diff() >= 0).all())

        def travel(rows: Tensor) -> Tensor:
            sent = [len(some) for some in leaving]
            arrived = self.ranks.exchange(lambda: rows[index], sent, received)
            return arrived if in_order else arrived[place]

        held = part.gradients.rows()
        rows, targets, layer = [travel(each) for each in held], travel(part.targets), None
        if part.last_layer is not None:
            own = part.last_layer.features
            features = next((new for old, new in zip(held, rows, strict=True) if old is own), None)
            features = travel(own) if features is None else features
            layer = replace(part.last_layer, features=features, targets=targets)
        return PoolGradients(part.gradients.with_rows(rows), targets, layer)

    def _owners(self, positions: Tensor) -> Tensor:
        """The rank that has read each of `positions`."""
        return torch.bucketize(positions, self.edges[1:], right=True)


def read_shares(
    ranks: Ranks,
    source: GradientSource,
    model: nn.Module,
    criterion: Criterion,
    indices: Tensor | None,
    size: int | None,
    expect: Callable[[int], None] | None = None,
    seed: int = 0,
) -> Share:
    """Each rank reads its stretch of `source`; the arguments are those of `GradientSource.read`.

    A stretch is of whole batches, so that each batch is the one that a single process would run,
    and its gradients the same bit for bit. Rank 0 reads a pool of batches alone: to read a part of
    it the others would have to load all of it.

    Raises:
        RuntimeError: the ranks have different data; see also `GradientSource.read`.
    """
    if source.size is not None:
        check_same_data(
            ranks, source.pool, source.target, name=source.name, num_workers=source.num_workers
        )
        size = source.size if indices is None else len(indices)
        batches = -(-size // source.batch_size)
        ends = [-(-batches * (rank + 1) // ranks.size) for rank in range(ranks.size)]
        places = [0, *(min(size, end * source.batch_size) for end in ends)]
        some = torch.arange(size, device="cpu") if indices is None else indices
        indices = some[places[ranks.rank] : places[ranks.rank + 1]]
        size = len(indices)
    reads = ranks.rank == 0 or (indices is not None and len(indices) > 0)
    found: list[PoolGradients] = []

    def read() -> int:
        if reads:
            found.append(source.read(model, criterion, indices, size, expect, seed))
        return sum(len(part.gradients) for part in found)

    edges = torch.tensor([0, *ranks.step(read)], device="cpu").cumsum(0)
    empty = ranks.first(lambda: _Empty.like(found[0]))
    device = place_of(readable(model)).device
    part = found[0] if found else empty.on(device, criterion)
    told = ranks.step(lambda: (part.last_layer is not None, part.classes))
    if not all(is_last for is_last, _ in told):
        part = replace(part, last_layer=None)
    classes = [labels.cpu() for _, labels in told if labels is not None]
    return Share(ranks, edges, part, torch.cat(classes) if len(classes) == len(told) else None)


@dataclass(frozen=True, eq=False)
class _Empty:
    """What a rank that reads nothing has, as rank 0 has it; on the CPU."""

    gradients: Gradients
    targets: Tensor
    weight: Tensor | None  # of the last layer
    features: Tensor | int | None  # that enter it, or which of the gradients' rows they are

    @classmethod
    def like(cls, part: PoolGradients) -> _Empty:
        held, layer = part.gradients.rows(), part.last_layer
        gradients = part.gradients.with_rows([_none_of(rows) for rows in held])
        if layer is None:
            return cls(gradients, _none_of(part.targets), None, None)
        places = [place for place, rows in enumerate(held) if rows is layer.features]
        features = places[0] if places else _none_of(layer.features)
        return cls(gradients, _none_of(part.targets), layer.weight.cpu(), features)

    def on(self, place: torch.device, criterion: Criterion) -> PoolGradients:
        rows = [rows.to(place) for rows in self.gradients.rows()]
        targets, layer, features = self.targets.to(place), None, self.features
        if self.weight is not None and features is not None:
            features = rows[features] if isinstance(features, int) else features.to(place)
            layer = LastLayer(features, self.weight.to(place), targets, criterion)
        return PoolGradients(self.gradients.with_rows(rows), targets, layer)


def _none_of(rows: Tensor) -> Tensor:
    return rows[:0].cpu().clone()


@contextmanager
def state_of_first_rank(ranks: Ranks, model: nn.Module, criterion: Criterion) -> Iterator[None]:
    """`model` and `criterion` have rank 0's buffers in here on all ranks, then their own again.

    Raises:
        RuntimeError: the ranks have other parameters, or buffers of another shape.
    """
    if ranks.size == 1:
        yield
        return
    modules = [module for module in (model, criterion) if isinstance(module, nn.Module)]
    ranks.step(lambda: [type(readable(model)).__name__])  # which refuses sharded ones
    with preserved_modules(*modules):
        seen = ranks.step(lambda: {n: _sum_of_bits(t) for n, t in _tensors(modules).items()})
        names = {name for each in seen for name in each}
        differing = sorted(n for n in names if any(each.get(n) != seen[0].get(n) for each in seen))
        tensors = _tensors(modules)
        wrong = [
            name
            for name in differing
            if isinstance(tensors.get(name), nn.Parameter)
            or len({each.get(name, ())[:-1] for each in seen}) > 1
        ]
        if wrong:
            raise RuntimeError(
                "`model` must have the same parameters and shapes on all ranks, got others for "
                f"{', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}. Wrap it in "
                "DistributedDataParallel, or load the same state on all ranks."
            )
        if differing:
            first = ranks.first(lambda: [tensors[name].detach().cpu() for name in differing])
            for name, value in zip(differing, first, strict=True):
                with torch.inference_mode(tensors[name].is_inference()), torch.no_grad():
                    tensors[name].copy_(value)
        yield


def _tensors(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers by name, those of the second module with a prefix."""
    found: dict[str, Tensor] = {}
    for module, prefix in zip(modules, ("", "criterion."), strict=False):
        found |= {prefix + name: tensor for name, tensor in module.named_parameters()}
        found |= {prefix + name: tensor for name, tensor in module.named_buffers()}
    return found


def _sum_of_bits(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and an exact sum that hardly ever is the same for other numbers."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = parts.detach().contiguous().view(whole[parts.element_size()])
    return tuple(tensor.shape), str(tensor.dtype), int(bits.sum(dtype=torch.int64))
