"""The selector: when a selection is asked for, pool → gradients → strategy → Selection."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset

from adaptive_subset.gradients.collect import last_layer_gradients, pool_loader, varies
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.head import Head
from adaptive_subset.gradients.look_ahead import LastLayer
from adaptive_subset.gradients.per_sample import Criterion
from adaptive_subset.randomness import seeded
from adaptive_subset.selection import Selection
from adaptive_subset.strategies import STRATEGIES, Candidates, Choice, Strategy, Validation
from adaptive_subset.strategies.smallest import smallest_choice

logger = logging.getLogger("adaptive_subset")


class Selector:
    """Chooses a weighted subset of a dataset for the model as it stands.

    Holds the strategy, the candidate pool and the current `selection`; a sampler asks it for a
    new one, a `WeightedLoss` tells it the loss.

    Args:
        dataset: map-style training set of n samples.
        strategy: how to choose, for instance ``GradMatch()``, or the name of a strategy with its
            default arguments, such as "gradmatch".
        fraction: k / n in (0, 1]; or
        budget: k in [1, n]; or
        tolerance: the relative gradient error in (0, 1) for which the smallest subset is sought.
            The first selection sets the size for the whole run, unless `size_varies`. A strategy
            that chooses mini-batches rounds k down to whole ones; one that sizes itself takes none
            of the three.
        size_varies: with a `tolerance`, let each selection find its own size, so that epochs differ
            in length: for loops and schedules that count steps, not epochs.
        criterion: the loss whose gradients are matched; by default the one in the `WeightedLoss`
            that holds this selector.
        pool: what gradients are computed on, sample by sample the same as `dataset`: a twin
            without random augmentation, or any iterable of batches in the order of the dataset
            (a DataLoader, timm's loader). By default `dataset` itself, with a warning if it is
            augmented at random.
        pool_fraction: share of the pool that a selection looks at, drawn afresh at each one. The
            pass costs that much less, or can come that much more often.
        validation: a dataset or iterable of batches whose gradient is matched instead of that of
            the pool (`isValid` in the paper's Algorithm 1), for imbalanced or noisy training data.
        head: the last layer, a module or its name, or a list of them; found by itself where the
            model ends in one linear layer.
        target: key or index of the target in an item, where that is not the second of a pair or
            a field with a usual name.
        batch_size, num_workers: of the pass over the pool; a larger batch is faster and takes
            more memory, the result does not depend on it. On a GPU, one that does not fit is run
            in halves.
        storage_dtype: what gradients are kept in, n Σ(C + p) numbers: by default float32 (float64
            for a float64 model). torch.float16 and bfloat16 halve that, for pools of millions of
            samples; everything is computed in float32 still, from rounded factors.
        seed: of everything random in a selection.
        progress: show a progress bar in the pass (needs the extra ``progress``).

    Raises:
        ValueError: a budget that is not in range, both or neither of `fraction` and `budget`, a
            pool of another length.
        TypeError: a dataset without a length or random access.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        strategy: Strategy | str,
        *,
        fraction: float | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        size_varies: bool = False,
        criterion: Criterion | None = None,
        pool: Dataset[Any] | Iterable[Any] | None = None,
        pool_fraction: float = 1.0,
        validation: Dataset[Any] | Iterable[Any] | None = None,
        head: Head | None = None,
        target: int | str | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        storage_dtype: torch.dtype | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise TypeError(
                "`dataset` must be map-style, with a length and access by index, got "
                f"{type(dataset).__name__}. Subsets of a stream cannot be chosen."
            )
        if isinstance(strategy, str) and strategy in STRATEGIES:
            strategy = STRATEGIES[strategy]()
        if not isinstance(strategy, Strategy):
            raise TypeError(
                f"`strategy` must be one of {', '.join(STRATEGIES)}, or an instance of a Strategy "
                f"such as GradMatch(), got {strategy!r}."
            )
        self.dataset: Dataset[Any] = dataset
        self._size = len(dataset)
        self.strategy: Strategy = strategy
        self.budget = _resolve_budget(len(dataset), strategy, fraction, budget, tolerance)
        self.tolerance = tolerance
        self.size_varies = size_varies or strategy.sizes_itself
        if size_varies and self.budget is not None:
            raise ValueError(
                "`size_varies` must be False for a fixed `fraction` or `budget`, got True. Give a "
                "`tolerance` instead."
            )
        self.criterion = criterion
        self.head = head
        self.target = target
        self.seed = seed
        self.progress = progress
        self.selection: Selection | None = None
        self._bound: Criterion | None = None
        # One more place, for the losses of samples without an index, such as mixed ones (−1).
        self._losses = torch.full((len(dataset) + 1,), torch.nan)
        self._pool = dataset if pool is None else pool
        if isinstance(self._pool, Dataset) and _length(self._pool) != self._size:
            raise ValueError(
                f"`pool` must hold the {self._size} samples of `dataset` in the same order, got "
                f"{_length(self._pool)}."
            )
        self.pool_fraction = pool_fraction
        self._check_pool_fraction()
        self._validation = validation
        self._loading = {"batch_size": batch_size, "num_workers": num_workers}
        if storage_dtype is not None and not storage_dtype.is_floating_point:
            raise ValueError(
                f"`storage_dtype` must be a floating dtype such as torch.float16, got "
                f"{storage_dtype}."
            )
        self.storage_dtype = storage_dtype

    @property
    def size(self) -> int | None:
        """k of the next selection, None where only that selection will tell."""
        if self.budget is None and not self.size_varies and self.selection is not None:
            return len(self.selection)
        return self.budget

    @property
    def losses(self) -> Tensor:
        """(n,) float32 on the CPU, the last loss of each sample in training, NaN if none was noted.

        They are noted by a `WeightedLoss` for strategies that need them.
        """
        return self._losses[:-1].cpu()

    @losses.setter
    def losses(self, losses: Tensor) -> None:
        self._losses = torch.cat([losses, losses.new_full((1,), torch.nan)])

    def _note(self, indices: Tensor, losses: Tensor) -> None:
        self._losses = self._losses.to(losses.device)  # once; no transfer in a step of training
        self._losses[indices.to(losses.device)] = losses.to(self._losses.dtype)

    def bind_criterion(self, criterion: Criterion) -> Callable[[Tensor, Tensor], None] | None:
        """Take `criterion` as the loss to match unless one was given; `WeightedLoss` calls it.

        Returns:
            What to call with the indices (n,) and the losses (n,) of each batch in training; None
            where the strategy has no use for them.

        Raises:
            ValueError: another criterion is bound already and none was given.
        """
        if self.criterion is None and self._bound not in (None, criterion):
            raise ValueError(
                "`selector` is held by two losses and cannot tell which one's gradients to match, "
                "got a second WeightedLoss. Pass criterion= to the Selector."
            )
        self._bound = criterion
        return self._note if self.strategy.needs_losses else None

    def select(self, model: nn.Module, epoch: int) -> Selection:
        """Make a new selection for `model` and keep it as `selection`.

        The model, its buffers, hooks and gradients and the global random state are as before
        afterwards, also when this raises; a failed selection leaves the current one in place.

        Raises:
            RuntimeError: no criterion is known, or no `WeightedLoss` to note losses for a strategy
                that needs them.
            ValueError: gradients are not finite; head or loss do not fit, see
                `last_layer_gradients`.
        """
        start = time.perf_counter()
        indices, candidates = self._candidates(model, epoch)
        forward_seconds = time.perf_counter() - start
        size = self.size
        if size is None and self.tolerance is not None:
            choice = smallest_choice(
                self.strategy, candidates, self.tolerance, seed=self.seed, epoch=epoch
            )
        else:
            budget = candidates.n if size is None else size
            choice = self.strategy.select(candidates, budget, seed=self.seed, epoch=epoch)
        self._check(choice, candidates.n, size)
        weights = choice.weights.detach().to("cpu", torch.float32) * (self._size / candidates.n)
        self.selection = Selection(
            indices=indices[choice.positions.cpu()],
            weights=weights,
            epoch=epoch,
            batch_size=choice.batch_size,
            objective=choice.objective,
            relative_error=candidates.relative_error(choice),
            filled=choice.filled,
            forward_seconds=forward_seconds,
            solver_seconds=time.perf_counter() - start - forward_seconds,
        )
        logger.info(
            "epoch %d: selected %d of %d samples, relative gradient error %s, effective size %.0f, "
            "%d filled at random, %.2f s forward, %.2f s solver",
            epoch,
            len(self.selection),
            self._size,
            "unknown"
            if self.selection.relative_error is None
            else f"{self.selection.relative_error:.4f}",
            self.selection.effective_size,
            self.selection.filled,
            self.selection.forward_seconds,
            self.selection.solver_seconds,
        )
        return self.selection

    def _candidates(self, model: nn.Module, epoch: int) -> tuple[Tensor, Candidates]:
        """What to choose from, and the indices in the dataset that its positions stand for."""
        indices, pool, n = torch.arange(self._size), self._pool, self._size
        losses = self.losses if self.strategy.needs_losses else None
        if losses is not None and self._bound is None and bool(losses.isnan().all()):
            raise RuntimeError(
                f"`selector` must learn the losses of training for {type(self.strategy).__name__}, "
                "got no loss that holds it. Wrap the training loss: "
                "WeightedLoss(criterion, selector)."
            )
        if not self.strategy.needs_gradients:
            return indices, Candidates(n, losses=losses)
        if self.pool_fraction < 1:
            n = round(self.pool_fraction * n)
            order = torch.randperm(self._size, generator=seeded(self.seed, epoch))
            indices = order[:n].sort().values
            losses = losses[indices] if losses is not None else None
            pool = Subset(cast("Dataset[Any]", pool), indices.tolist())
        if (
            self._pool is self.dataset
            and self.selection is None
            and varies(self.dataset, self.target)
        ):
            warnings.warn(
                "`dataset` gives another input each time an index is read, so selections match the "
                "gradients of augmented samples that training will not see again. Pass the same "
                "data without random transforms: Selector(..., pool=...).",
                stacklevel=4,
            )
        gradients, targets, layer = self._gradients(model, pool, "pool", n)
        classes, validation = _labels(targets), None
        if self._validation is not None:
            size = _length(self._validation)
            rows, labels, own = self._gradients(model, self._validation, "validation", size)
            validation = Validation(rows, _labels(labels), n / len(rows), own)
            if (validation.classes is None) != (classes is None):
                raise ValueError(
                    "`validation` must have class labels exactly where the pool has them, got "
                    f"targets of shape {tuple(labels.shape)} and {tuple(targets.shape)}."
                )
        return indices, Candidates(n, gradients, classes, validation, losses, layer)

    def _gradients(
        self, model: nn.Module, data: Dataset[Any] | Iterable[Any], name: str, size: int | None
    ) -> tuple[FactoredGradients, Tensor, LastLayer | None]:
        criterion = self._bound if self.criterion is None else self.criterion
        if criterion is None:
            raise RuntimeError(
                "`criterion` must be known to compute gradients, got none. Pass criterion= to the "
                "Selector, or wrap the training loss: WeightedLoss(criterion, selector)."
            )
        gradients, targets, weight = last_layer_gradients(
            model,
            pool_loader(data, **self._loading),
            criterion,
            head=self.head,
            target=self.target,
            size=size,
            storage_dtype=self.storage_dtype,
            progress=self.progress,
        )
        if not gradients.is_finite():
            raise ValueError(
                f"`{name}` must give finite gradients, got NaN or infinity in {gradients.stored}. "
                "The model has diverged, a sample is broken, or features exceed the range of the "
                "dtype: check the learning rate, the data and storage_dtype=."
            )
        layer = None
        if weight is not None:
            layer = LastLayer(gradients.blocks[0][1], weight, targets, criterion)
        return gradients, targets, layer

    def _check_pool_fraction(self) -> None:
        share = self.pool_fraction
        if not 0 < share <= 1:
            raise ValueError(f"`pool_fraction` must be in (0, 1], got {share}.")
        if share == 1:
            return
        if not self.strategy.needs_gradients:
            raise ValueError(
                f"`pool_fraction` must be 1 for a strategy that makes no pass over the pool, got "
                f"{share} for {self.strategy!r}."
            )
        if not isinstance(self._pool, Dataset):
            raise ValueError(
                f"`pool` must be a dataset with access by index to draw a `pool_fraction` of "
                f"{share} from, got a {type(self._pool).__name__}. Pass its dataset."
            )
        if self.budget is not None and round(share * self._size) < self.budget:
            raise ValueError(
                f"`pool_fraction` must leave at least the budget of {self.budget} samples to "
                f"choose from, got {share}, which leaves {round(share * self._size)}."
            )

    def _check(self, choice: Choice, n: int, size: int | None) -> None:
        positions, weights = choice.positions, choice.weights
        size = len(positions) if size is None else size
        problem = None
        if len(positions) != size or len(weights) != size or size == 0:
            problem = f"{len(positions)} positions and {len(weights)} weights"
        elif int(positions.min()) < 0 or int(positions.max()) >= n:
            problem = f"positions from {int(positions.min())} to {int(positions.max())}"
        elif not bool(torch.isfinite(weights).all()) or not float(weights.sum()) > 0:
            problem = f"weights that are not finite or add up to {float(weights.sum()):g}"
        if problem is not None:
            raise ValueError(
                f"`strategy` must choose {size or 'some'} of {n} samples with finite weights of "
                f"positive sum, got {problem} from {self.strategy!r}."
            )


def _length(data: Any) -> int | None:
    """Number of samples in a dataset; that of a loader's batches says nothing."""
    return len(data) if isinstance(data, Dataset) and isinstance(data, Sized) else None


def _resolve_budget(
    n: int,
    strategy: Strategy,
    fraction: float | None,
    budget: int | None,
    tolerance: float | None,
) -> int | None:
    """k, or None where it is up to the strategy or the tolerance."""
    given = [size for size in (fraction, budget, tolerance) if size is not None]
    if len(given) != (0 if strategy.sizes_itself else 1):
        raise ValueError(
            f"{'none' if strategy.sizes_itself else 'exactly one'} of `fraction`, `budget` and "
            f"`tolerance` must be given, got fraction={fraction}, budget={budget} and "
            f"tolerance={tolerance} for {strategy!r}."
        )
    if tolerance is not None:
        if not 0 < tolerance < 1:
            raise ValueError(f"`tolerance` must be in (0, 1), got {tolerance}.")
        if not strategy.needs_gradients:
            raise ValueError(
                f"`tolerance` must come with a strategy that computes gradients, got {strategy!r}."
            )
    if not given or tolerance is not None:
        return None
    batch_size = strategy.batch_size
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(
                f"`fraction` must be in (0, 1], got {fraction}. Pass `budget=` for a number of "
                "samples."
            )
        budget = max(1, round(fraction * n))
    assert budget is not None
    if not 1 <= budget <= n:
        raise ValueError(
            f"`budget` must be in [1, {n}], got {budget}. Pass `fraction=` to size it relative to "
            "the dataset."
        )
    if batch_size is not None:
        if budget < batch_size:
            raise ValueError(
                f"`budget` must hold at least one mini-batch of {batch_size}, got {budget}. Choose "
                "a larger budget or a strategy with a smaller batch_size."
            )
        budget -= budget % batch_size
    return budget


def _labels(targets: Tensor) -> Tensor | None:
    """Class labels, if that is what the targets are."""
    whole = not (targets.is_floating_point() or targets.is_complex())
    return targets.long() if whole and targets.ndim == 1 else None
