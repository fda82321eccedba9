"""The weighted loss: what the training loop sees of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.gradients.per_sample import Criterion, unreduced_losses
from adaptive_subset.loss_record import LossRecord
from adaptive_subset.selector import Selector


def weighted_loss(
    criterion: Criterion, output: Tensor, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """``Σ wᵢℓᵢ / Z`` and the ``ℓᵢ``, with Z the number that `criterion` itself divides ``Σ ℓᵢ`` by.

    Z is n for a mean, 1 for a sum, the sum of class weights for a weighted mean, the number of
    labels that are not ignored, …: with all weights one the value is that of the criterion.
    Weights are not normalised within the batch.

    Args:
        criterion: any loss that treats samples one by one, see `per_sample_losses`.
        output: (n, …) what the model returns.
        target: (n, …).
        weights: (n,), of mean one over the subset.

    Returns:
        A scalar, or for ``reduction="none"`` the weighted losses in the criterion's shape; and
        the losses before weighting, of shape (n,).
    """
    reduction = getattr(criterion, "reduction", None)
    if reduction == "none" and (each := criterion(output, target)).ndim > 0:
        columns = weights.to(each).view(-1, *[1] * (each.ndim - 1))
        return each * columns, each.reshape(len(weights), -1).sum(1)
    losses, terms = unreduced_losses(criterion, output, target)
    total = torch.dot(weights.to(losses), losses)
    if reduction == "sum":
        return total, losses
    # Σℓ / criterion is exact but undefined at 0 and inexact where losses of both signs cancel, so
    # a plain mean, the usual case, is recognised.
    with torch.no_grad():
        value, plain = criterion(output, target), losses.sum()
        rounding = 1e3 * torch.finfo(value.dtype).eps * losses.abs().sum()
        mean = (value * terms - plain).abs() <= rounding
        scale = torch.where(mean, 1 / terms, value / plain)
    return total * scale, losses


class WeightedLoss(nn.Module):
    """A training loss in which each sample counts with the weight that its selection gave it.

    ``L = Σ wᵢ ℓᵢ / Z``, see `weighted_loss`. The weights come with the targets, see
    `AdaptiveSubsetSampler`. Parameters, buffers and ``state_dict`` are those of `criterion`, and so
    are other attributes.

    Args:
        criterion: the loss to weight, a module or a function ``criterion(output, target)``.
        selector: told that this is the loss whose gradients to match (`Selector.bind_criterion`);
            its record of losses, if its strategy needs one, is kept in training.

    Raises:
        RuntimeError: on a call in training with targets that carry no weights. In evaluation
            (``eval()``, ``no_grad()``, an output without a graph) they are passed through.
        ValueError: the number of weights is not that of the outputs; see also `per_sample_losses`.

    Example:
        >>> loss = WeightedLoss(nn.MSELoss())
        >>> target = WeightedTarget(torch.zeros(2), torch.tensor([0.5, 1.5]))
        >>> loss(torch.tensor([2.0, 1.0]), target)
        tensor(1.7500)
    """

    criterion: Criterion
    _record: LossRecord | None

    def __init__(self, criterion: Criterion, selector: Selector | None = None) -> None:
        super().__init__()
        if isinstance(criterion, nn.Module):
            # The same registries, not a child: no key of the state changes its name.
            for name in ("_parameters", "_buffers", "_modules"):
                self.__dict__[name] = criterion.__dict__[name]
        self.__dict__["criterion"] = criterion
        if selector is not None:
            selector.bind_criterion(criterion)
        self.__dict__["_record"] = None if selector is None else selector.losses

    # As torch.compiler.disable, which would load the whole compiler at import.
    @_disable_dynamo
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The weighted loss of a batch; `output` (n, …), `target` (n, …) with weights (n,)."""
        tags = target.tags if isinstance(target, WeightedTarget) else None
        plain = target.plain() if isinstance(target, WeightedTarget) else target
        if tags is None:
            if self.training and torch.is_grad_enabled() and output.requires_grad:
                raise RuntimeError(
                    "`target` must carry the weights of its samples in training, got a "
                    f"{type(target).__name__} without any. Read the data through `sampler.dataset` "
                    "(or `sampler.attach(loader)`), and keep operations that mix samples out of "
                    "the targets; to evaluate, use torch.no_grad() or criterion.eval()."
                )
            return self.criterion(output, plain)
        weights, indices = tags
        if isinstance(weights, float):
            return self.criterion(output, plain) * weights
        if len(weights) != len(output):
            raise ValueError(
                f"`target` must carry one weight for each of the {len(output)} outputs, got "
                f"{len(weights)}. Give outputs and targets the same rows."
            )
        loss, losses = weighted_loss(self.criterion, output, plain, weights)
        if self._record is not None and self.training and torch.is_grad_enabled():
            self._record.note(indices, losses)
        return loss

    def train(self, mode: bool = True) -> WeightedLoss:
        super().train(mode)
        if isinstance(self.criterion, nn.Module):
            self.criterion.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "criterion" not in self.__dict__:  # while it is being copied or unpickled
                raise
            return getattr(self.criterion, name)
