"""Where gradients come from: a pool of samples, and how it is read through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset

from adaptive_subset.checks import natural
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head import Head
from adaptive_subset.gradients.look_ahead import LastLayer
from adaptive_subset.gradients.model_state import is_on_gpu
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.gradients.pool_checks import (
    check_finite,
    check_pool,
    collated,
    is_map_style,
    read_twice,
    shuffles,
)
from adaptive_subset.gradients.pool_losses import pool_losses
from adaptive_subset.gradients.protocol import Gradients
from adaptive_subset.gradients.sketch import Sketch
from adaptive_subset.gradients.snapshot import preserved_generators
from adaptive_subset.items import split_batch
from adaptive_subset.randomness import SeededLoader, preserved_random_state

Pool = Dataset[Any] | Iterable[Any]


class Reading(TypedDict, total=False):
    """How a `GradientSource` reads its pool, as keyword arguments."""

    head: Head | None
    target: int | str | None
    batch_size: int
    num_workers: int
    collate_fn: Callable[[list[Any]], Any] | None
    storage_dtype: torch.dtype | None
    storage_dir: str | PathLike[str] | None
    sketch: int
    progress: bool


@dataclass(frozen=True, eq=False)
class PoolGradients:
    """What a pass over n samples finds.

    Args:
        gradients: of the n samples.
        targets: (n, …) on the gradients' device.
        last_layer: what the gradients were computed from; None for a model whose output is not
            that of one last layer.
    """

    gradients: Gradients
    targets: Tensor
    last_layer: LastLayer | None

    @property
    def classes(self) -> Tensor | None:
        """(n,) int64 class labels, None where the targets are no labels."""
        whole = not (self.targets.is_floating_point() or self.targets.is_complex())
        return self.targets.long() if whole and self.targets.ndim == 1 else None


class GradientSource:
    """A pool of samples, read through a model on demand: its last-layer gradients.

    Args:
        pool: a dataset, which is anything with a length and access by index; or any other iterable,
            of batches in the order of the dataset (a DataLoader, timm's loader). So a list holds
            samples; read ready-made batches through ``DataLoader(batches, batch_size=None)``.
        head: the last layer, a module or its name, or a list of them; found by itself where the
            model ends in one linear layer.
        target: key or index of the target in an item, where that is not the second of a pair or
            a field with a usual name; −1 for the last. Dataset, pool and batches have it there.
        batch_size, num_workers: of the pass over a dataset; batches of a loader are taken as they
            come. A larger batch is faster and takes more memory, the result does not depend on it.
            On a GPU, one that does not fit is run in halves. With workers only these read a
            dataset: where training has some too, which are forked later, they share no file that a
            dataset opens when it is first read.
        collate_fn: makes a batch of a list of samples of a dataset, as that of a DataLoader does:
            the one of training, where samples are padded, or fields left out. It must treat each
            sample the same in any batch, and mix none. By default torch's own.
        storage_dtype: what gradients are kept in, n Σ(C + p) numbers: by default float32 (float64
            for a float64 model). torch.float16 and bfloat16 halve that, for pools of millions of
            samples; everything is computed in float32 at least, from rounded factors.
        storage_dir: a folder for a file that gradients are kept in, where memory does not hold
            them: the system reads and writes it as memory allows, and it is gone with them. On the
            CPU, so that strategies compute there; with a model on a GPU that is slower.
        sketch: the most numbers that are held of a sample whose head runs at many positions, as for
            tokens and pixels. Longer gradients are sketched to so many; their errors are then
            estimates, see `Selection.is_estimate`.
        progress: show a progress bar in the pass (needs the extra ``progress``).
        name: what errors call the pool.

    Raises:
        TypeError: a pool that is neither, or an iterator, which can be read only once; sizes or
            numbers that are no whole ones.
        ValueError: a size below one, a `storage_dtype` that is not floating, a `storage_dir` that
            is no folder, or a list of ready-made batches.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        head: Head | None = None,
        target: int | str | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        storage_dtype: torch.dtype | None = None,
        storage_dir: str | PathLike[str] | None = None,
        sketch: int = 8192,
        progress: bool = False,
        name: str = "pool",
    ) -> None:
        if storage_dtype is not None and not storage_dtype.is_floating_point:
            raise ValueError(
                f"`storage_dtype` must be a floating dtype such as torch.float16, got "
                f"{storage_dtype}."
            )
        folder = None if storage_dir is None else Path(storage_dir)
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"`storage_dir` must be a folder that exists, got {storage_dir!r}. Make it first, "
                "or leave it out to keep gradients in memory."
            )
        check_pool(pool, target, name)
        self.pool = pool
        self.head = head
        self.target = target
        self.batch_size = natural("batch_size", batch_size, 1)
        self.num_workers = natural("num_workers", num_workers)
        self.collate_fn = collate_fn
        self.storage_dtype = storage_dtype
        self.storage_dir = folder
        self.sketch = natural("sketch", sketch, 1)
        self.progress = progress
        self.name = name

    @property
    def size(self) -> int | None:
        """n, None for a pool of batches: their number says nothing."""
        return len(cast("list[Any]", self.pool)) if is_map_style(self.pool) else None

    def over(self, pool: Pool, name: str) -> GradientSource:
        """A source that reads another pool in the same way."""
        return GradientSource(**{**vars(self), "pool": pool, "name": name})

    def read(
        self,
        model: nn.Module,
        criterion: Criterion,
        indices: Tensor | None = None,
        size: int | None = None,
        expect: Callable[[int], None] | None = None,
        seed: int = 0,
    ) -> PoolGradients:
        """The gradients of the pool for `model` as it stands; one pass.

        Model, global random state and the pool's own generators are left as they were found.

        Args:
            model: any module with a linear head.
            criterion: ``criterion(output, target)``.
            indices: (m,) int64, the samples to read, of a pool that is a dataset; all by default.
            size: how many samples must come, where that is known.
            expect: called with d, the length of a gradient, after the first batch; it may raise.
            seed: of sketches; gradients that are to be compared need the same.

        Raises:
            TypeError: a model, output or target of the wrong kind, a loss of other arguments.
            ValueError: gradients, or inner products of them, that are not finite; a loader that
                shuffles, more or fewer samples than `size`; no or several heads found, a head that
                is no linear map or sees other rows than the targets; a loss that couples samples or
                does not take the targets as they are.
        """
        pool = self.pool
        if indices is not None:
            pool = Subset(cast("Dataset[Any]", pool), indices.tolist())
        with preserved_generators(self.pool):
            gradients, targets, weight = last_layer_gradients(
                model,
                self._progressing(self._batches(pool, model)),
                criterion,
                head=self.head,
                target=self.target,
                size=size,
                storage_dtype=self.storage_dtype,
                storage_dir=self.storage_dir,
                sketch=Sketch(self.sketch, seed),
                name=self.name,
                fresh=is_map_style(pool) and self.collate_fn is None,  # new ones, by torch's
                expect=expect,
            )
        check_finite(gradients, self.name)
        if weight is None or not isinstance(gradients, FactoredGradients):
            return PoolGradients(gradients, targets, None)
        features = gradients.blocks[0][1]
        return PoolGradients(gradients, targets, LastLayer(features, weight, targets, criterion))

    def losses(self, model: nn.Module, criterion: Criterion) -> Tensor:
        """The loss of each sample of the pool for `model` as it stands; one pass without gradients.

        For `Given` and `ReducibleLoss`. No head is needed; all else is as for `read`.

        Returns:
            (n,) float32 on the CPU, sample by sample whatever the reduction of the criterion.
        """
        with preserved_generators(self.pool):
            return pool_losses(
                model,
                self._progressing(self._batches(self.pool, model)),
                criterion,
                target=self.target,
                name=self.name,
            )

    def is_augmented(self) -> bool:
        """Whether the first items of a dataset come out differently from access to access."""
        inputs = partial(_inputs, target=self.target)  # of what an item holds, all a worker sends
        places = range(min(4, self.size or 0))
        return any(
            not torch.equal(first, again)
            for pair in read_twice(self.pool, places, inputs, self.num_workers)
            for first, again in zip(*pair, strict=True)
            if first.shape == again.shape
        )

    def _batches(self, pool: Pool, model: nn.Module) -> Iterable[Any]:
        """Batches of `pool` in its own order; a loader of the user's is taken as it is."""
        if shuffles(pool):
            raise ValueError(
                f"`{self.name}` must be read in the order of the dataset, got a "
                f"{type(pool).__name__} that shuffles. Build it with shuffle=False."
            )
        if not (is_map_style(pool) or isinstance(pool, IterableDataset)):
            return cast("Iterable[Any]", pool)
        return SeededLoader(
            pool,
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(collated, collate_fn=self.collate_fn, name=self.name),
            pin_memory=is_on_gpu(model) and not self._is_on_gpu(pool),
        )

    def _is_on_gpu(self, pool: Any) -> bool:
        """Whether a dataset gives tensors of a GPU, which cannot be pinned."""
        # Workers hand none over. With some, nothing is read here: what a dataset opens when it is
        # first read would be shared by all workers that are forked later.
        if self.num_workers or not is_map_style(pool) or len(pool) == 0:
            return False
        with preserved_random_state():
            args, kwargs, y = split_batch(pool[0], self.target)
        values = (*args, *kwargs.values(), y)
        return any(isinstance(value, Tensor) and value.is_cuda for value in values)

    def _progressing(self, batches: Iterable[Any]) -> Iterable[Any]:
        if not self.progress:
            return batches
        try:
            from tqdm import tqdm
        except ImportError:
            raise ImportError(
                "`progress=True` needs tqdm: pip install 'adaptive-subset[progress]'"
            ) from None
        bar: Iterator[Any] = tqdm(batches, desc="gradients", leave=False, unit="batch")
        return bar


def _inputs(item: Any, target: int | str | None) -> list[Tensor]:
    """The tensors and arrays of numbers among the inputs of an item."""
    args, kwargs, _ = split_batch(item, target)
    return [
        value if isinstance(value, Tensor) else torch.from_numpy(value)
        for value in (*args, *kwargs.values())
        if isinstance(value, Tensor)
        or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")
    ]
