"""Scores: how much a sample has to teach, by what training knows of it anyway."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptive_subset.checks import check_fields
from adaptive_subset.loss_record import Memory
from adaptive_subset.strategies.strategy import Candidates


class Score(ABC):
    """A number for each candidate, the larger the more it has to teach.

    A score that needs more than the last loss is a `Memory` too: its `update` says which number is
    kept of a sample, and finds it in `Candidates.kept`.

    Attributes:
        needs_losses: it follows from the losses of training.
        needs_gradients: it follows from the last layer's gradients.
        spreads: of these it asks for no more than `Candidates.squared_norms`.
    """

    needs_losses: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    spreads: ClassVar[bool] = False

    @abstractmethod
    def of(self, candidates: Candidates) -> Tensor:
        """(n,) on the CPU, NaN for those of which nothing is known yet."""


@dataclass(frozen=True)
class Equal(Score):
    """One for all, with which any draw is a uniform one."""

    needs_losses = False

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        return torch.ones(candidates.n)


@dataclass(frozen=True)
class LastLoss(Score):
    """``ℓᵢ``, the loss that a sample had when it was last trained on.

    Loshchilov and Hutter 2016, "Online Batch Selection for Faster Training of Neural Networks", §3.
    """

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        assert candidates.losses is not None
        return candidates.losses


@dataclass(frozen=True)
class _Average(Score, Memory):
    """``sᵢ ← f·sᵢ + (1 − f)·news`` whenever a sample is trained on; the first time it is the news.

    Args:
        factor: f in [0, 1), the share of what was known before.
    """

    factor: float = 0.7

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.factor < 1:
            raise ValueError(f"`factor` must be in [0, 1), got {self.factor}.")

    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Tensor:
        """See `Memory.update`."""
        news = self._news(losses)
        return torch.where(kept.isnan(), news, self.factor * kept + (1 - self.factor) * news)

    @abstractmethod
    def _news(self, losses: Tensor) -> Tensor:
        """(m,) what a batch of m `losses` tells of each of its samples."""

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        assert candidates.kept is not None
        return candidates.kept


@dataclass(frozen=True)
class MovingAverage(_Average):
    """``sᵢ ← f·sᵢ + (1 − f)·ℓᵢ``: less of the noise of augmentation and dropout than `LastLoss`.

    Args:
        factor: f in [0, 1), the share of what was known before.
    """

    def _news(self, losses: Tensor) -> Tensor:
        return losses


@dataclass(frozen=True)
class BatchLoss(_Average):
    """``sᵢ ← f·sᵢ + (1 − f)·ℓ̄``, with ℓ̄ the mean loss of the batch that sample i was trained in.

    Batch-level loss scores (CVPR 2026, f = 0.7). Batches are mixed anew in each epoch, so the
    average over many of them tells an easy sample from a hard one, if slowly.

    Args:
        factor: f in [0, 1), the share of what was known before.
    """

    def _news(self, losses: Tensor) -> Tensor:
        return losses.mean().expand_as(losses)


@dataclass(frozen=True)
class LossChange(Score, Memory):
    """``|ℓᵢ − ℓᵢ'|``, with ℓᵢ' the loss that a sample had the time before the last.

    What is still learned changes; what is known and what cannot be learned do not.
    """

    def update(self, kept: Tensor, last: Tensor, losses: Tensor) -> Tensor:
        """See `Memory.update`."""
        return last

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`; NaN for what was trained on less than twice."""
        assert candidates.losses is not None
        assert candidates.kept is not None
        return (candidates.losses - candidates.kept).abs()


@dataclass(frozen=True)
class LastLayerNorm(Score):
    """``‖gᵢ‖``, the norm of a sample's last-layer gradient; takes a pass over the candidates.

    Katharopoulos and Fleuret, ICML 2018, "Not All Samples Are Created Equal", §3: it bounds the
    norm of the whole gradient.
    """

    needs_losses = False
    needs_gradients = True
    spreads = True

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        return candidates.squared_norms().clamp_min(0).sqrt()
