"""Scores: how much a sample has to teach, by what training knows of it anyway."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptive_subset.checks import (
    Described,
    check_fields,
    check_one_each,
    check_rest,
    digest,
    shown,
)
from adaptive_subset.loss_record import Memory
from adaptive_subset.strategies.candidates import Candidates


class Score(Described, ABC):
    """A number for each candidate, the larger the more it has to teach.

    A score that needs more than the last loss is a `Memory` of `adaptive_subset.loss_record` too:
    its `update` says which number is kept of a sample, and finds it in `Candidates.kept`.

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
class ThresholdCloseness(Score):
    """``p(1 − p)``: neither what is learned (p near 1) nor what looks wrong (p near 0).

    Chang, Learned-Miller and McCallum, NeurIPS 2017, "Active Bias: Training More Accurate Neural
    Networks by Emphasizing High Variance Samples", §3.3. Deviations: p is ``exp(m − ℓᵢ)`` with m
    the smallest loss, which is the probability of the label for a cross-entropy, and about that
    with label smoothing; it is that of the last training, not a mean over all.
    """

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        assert candidates.losses is not None
        losses = candidates.losses
        known = losses[~losses.isnan()]
        p = (float(known.min()) - losses).exp() if len(known) else losses
        return p * (1 - p)


@dataclass(frozen=True)
class _Average(Score, Memory):
    """``sᵢ ← f·sᵢ + (1 − f)·news`` whenever a sample is trained on; the first time it is the news.

    Args:
        factor: f in [0, 1), the share of what was known before.
    """

    factor: float = 0.7

    def __post_init__(self) -> None:
        check_fields(self)
        check_rest("factor", self.factor)

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


@dataclass(frozen=True, eq=False, repr=False)
class Given(Score):
    """What somebody else found of each sample, once: a proxy's losses, or inverse class counts.

    A proxy is a small model, or one that was trained before (Coleman et al., ICLR 2020, "Selection
    via Proxy: Efficient Data Selection for Deep Learning"); `GradientSource.losses` computes its
    losses.

    Args:
        values: (n,) of all samples of the dataset, finite.

    Raises:
        TypeError, ValueError: they are not.
    """

    values: Tensor

    needs_losses = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _checked("values", self.values))

    def __repr__(self) -> str:
        return f"Given({digest(self.values)})"

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        check_one_each("values", self.values, candidates.n)
        return self.values


@dataclass(frozen=True, eq=False, repr=False)
class ReducibleLoss(Score):
    """``ℓᵢ − ℓᵢᵛ``: the last loss over what a model trained on reference data has, given once.

    RHO-LOSS (Mindermann et al., ICML 2022, "Prioritized Training on Points that are Learnable,
    Worth Learning, and Not Yet Learnt", §3): a sample that the reference model cannot fit either
    has a wrong label, or cannot be learned. `GradientSource.losses` computes ℓᵛ. Deviation: the
    paper renews ℓᵢ of a large batch in each step; here it is the loss of the last training.

    Args:
        irreducible: ℓᵛ (n,) of all samples of the dataset, finite.

    Raises:
        TypeError, ValueError: they are not.
    """

    irreducible: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "irreducible", _checked("irreducible", self.irreducible))

    def __repr__(self) -> str:
        return f"ReducibleLoss({digest(self.irreducible)})"

    def of(self, candidates: Candidates) -> Tensor:
        """See `Score.of`."""
        assert candidates.losses is not None
        check_one_each("irreducible", self.irreducible, candidates.n)
        return candidates.losses - self.irreducible


def _checked(name: str, values: Tensor) -> Tensor:
    """A copy of `values` as (n,) float32 on the CPU."""
    if not isinstance(values, Tensor):
        raise TypeError(f"`{name}` must be a tensor of one number a sample, got {shown(values)}.")
    copy = values.detach().to("cpu", torch.float32, copy=True)
    if copy.ndim != 1 or not bool(copy.isfinite().all()):
        raise ValueError(
            f"`{name}` must hold one finite number for each sample of the dataset, got shape "
            f"{tuple(copy.shape)} with {int((~copy.isfinite()).sum())} that are not finite. "
            "GradientSource(dataset).losses(model, criterion) computes losses."
        )
    return copy
