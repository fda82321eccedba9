"""The selector: when a selection is asked for, pool → gradients → strategy → Selection."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset

from adaptive_subset.gradients import FactoredGradients
from adaptive_subset.head import Head
from adaptive_subset.losses import Criterion
from adaptive_subset.pool import last_layer_gradients, pool_loader, varies
from adaptive_subset.randomness import seeded
from adaptive_subset.selection import Selection
from adaptive_subset.strategies import STRATEGIES, Candidates, Choice, Strategy, Validation

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
        budget: k in [1, n]. A strategy that chooses mini-batches rounds k down to whole ones.
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
            more memory, the result does not depend on it.
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
        criterion: Criterion | None = None,
        pool: Dataset[Any] | Iterable[Any] | None = None,
        pool_fraction: float = 1.0,
        validation: Dataset[Any] | Iterable[Any] | None = None,
        head: Head | None = None,
        target: int | str | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
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
        self.budget = _resolve_budget(len(dataset), fraction, budget, strategy.batch_size)
        self.criterion = criterion
        self.head = head
        self.target = target
        self.seed = seed
        self.progress = progress
        self.selection: Selection | None = None
        self._bound: Criterion | None = None
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

    def bind_criterion(self, criterion: Criterion) -> None:
        """Take `criterion` as the loss to match unless one was given; `WeightedLoss` calls it.

        Raises:
            ValueError: another criterion is bound already and none was given.
        """
        if self.criterion is None and self._bound not in (None, criterion):
            raise ValueError(
                "`selector` is held by two losses and cannot tell which one's gradients to match, "
                "got a second WeightedLoss. Pass criterion= to the Selector."
            )
        self._bound = criterion

    def select(self, model: nn.Module, epoch: int) -> Selection:
        """Make a new selection for `model` and keep it as `selection`.

        The model, its buffers, hooks and gradients and the global random state are as before
        afterwards, also when this raises; a failed selection leaves the current one in place.

        Raises:
            RuntimeError: no criterion is known.
            ValueError: gradients are not finite; head or loss do not fit, see
                `last_layer_gradients`.
        """
        start = time.perf_counter()
        indices, candidates = self._candidates(model, epoch)
        forward_seconds = time.perf_counter() - start
        choice = self.strategy.select(candidates, self.budget, seed=self.seed, epoch=epoch)
        self._check(choice, candidates.n)
        weights = choice.weights.detach().to("cpu", torch.float32) * (self._size / candidates.n)
        self.selection = Selection(
            indices=indices[choice.positions.cpu()],
            weights=weights,
            epoch=epoch,
            batch_size=choice.batch_size,
            objective=choice.objective,
            relative_error=_relative_error(candidates, choice),
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
        if not self.strategy.needs_gradients:
            return indices, Candidates(n)
        if self.pool_fraction < 1:
            n = round(self.pool_fraction * n)
            order = torch.randperm(self._size, generator=seeded(self.seed, epoch))
            indices = order[:n].sort().values
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
        gradients, targets = self._gradients(model, pool, "pool", n)
        classes, validation = _labels(targets), None
        if self._validation is not None:
            size = _length(self._validation)
            rows, labels = self._gradients(model, self._validation, "validation", size)
            validation = Validation(rows, _labels(labels), n / len(rows))
            if (validation.classes is None) != (classes is None):
                raise ValueError(
                    "`validation` must have class labels exactly where the pool has them, got "
                    f"targets of shape {tuple(labels.shape)} and {tuple(targets.shape)}."
                )
        return indices, Candidates(n, gradients, classes, validation)

    def _gradients(
        self, model: nn.Module, data: Dataset[Any] | Iterable[Any], name: str, size: int | None
    ) -> tuple[FactoredGradients, Tensor]:
        criterion = self._bound if self.criterion is None else self.criterion
        if criterion is None:
            raise RuntimeError(
                "`criterion` must be known to compute gradients, got none. Pass criterion= to the "
                "Selector, or wrap the training loss: WeightedLoss(criterion, selector)."
            )
        gradients, targets = last_layer_gradients(
            model,
            pool_loader(data, **self._loading),
            criterion,
            head=self.head,
            target=self.target,
            size=size,
            progress=self.progress,
        )
        if not gradients.is_finite():
            raise ValueError(
                f"`{name}` must give finite gradients, got NaN or infinity. The model has diverged "
                "or a sample is broken: check the learning rate and the data."
            )
        return gradients, targets

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
        if round(share * self._size) < self.budget:
            raise ValueError(
                f"`pool_fraction` must leave at least the budget of {self.budget} samples to "
                f"choose from, got {share}, which leaves {round(share * self._size)}."
            )

    def _check(self, choice: Choice, n: int) -> None:
        positions, weights = choice.positions, choice.weights
        problem = None
        if len(positions) != self.budget or len(weights) != self.budget:
            problem = f"{len(positions)} positions and {len(weights)} weights"
        elif int(positions.min()) < 0 or int(positions.max()) >= n:
            problem = f"positions from {int(positions.min())} to {int(positions.max())}"
        elif not bool(torch.isfinite(weights).all()) or not float(weights.sum()) > 0:
            problem = f"weights that are not finite or add up to {float(weights.sum()):g}"
        if problem is not None:
            raise ValueError(
                f"`strategy` must choose {self.budget} of {n} samples with finite weights of "
                f"positive sum, got {problem} from {self.strategy!r}."
            )


def _length(data: Any) -> int | None:
    """Number of samples in a dataset; that of a loader's batches says nothing."""
    return len(data) if isinstance(data, Dataset) and isinstance(data, Sized) else None


def _resolve_budget(
    n: int, fraction: float | None, budget: int | None, batch_size: int | None
) -> int:
    if (fraction is None) == (budget is None):
        raise ValueError(
            "exactly one of `fraction` and `budget` must be given, got "
            f"fraction={fraction} and budget={budget}."
        )
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


def _relative_error(candidates: Candidates, choice: Choice) -> float | None:
    if candidates.gradients is None:
        return None
    atoms, target = candidates.gradients, candidates.target()
    positions = choice.positions.to(atoms.device)
    matched = atoms[positions].sum(choice.weights.to(atoms.device))
    norm = target.norm()
    return float((matched - target).norm() / norm) if norm > 0 else None
