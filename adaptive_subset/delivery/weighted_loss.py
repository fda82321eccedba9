"""The weighted loss: what the training loop sees of the weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from adaptive_subset.calls import Calls
from adaptive_subset.checks import loss as checked_loss
from adaptive_subset.delivery.rows import Tags, are_same, common_indices
from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.gradients.loss_batch import Criterion, LossBatch
from adaptive_subset.gradients.per_sample import losses_and_divisor, sums_of_rows
from adaptive_subset.gradients.torch_losses import torch_losses
from adaptive_subset.gradients.twin import twin
from adaptive_subset.loss_record import LossRecord
from adaptive_subset.selector import Selector


def weighted_loss(
    criterion: Criterion, weights: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """``Σ wᵢℓᵢ / Z`` and the ``ℓᵢ``, with Z the number that `criterion` itself divides ``Σ ℓᵢ`` by.

    Z is n for a mean, 1 for a sum, the sum of class weights for a weighted mean, the number of
    labels that are not ignored, …: with all weights one the value is that of the criterion.
    Weights are not normalised within the batch. A criterion with state is evaluated once, on the
    whole batch, as far as its state can tell.

    Args:
        criterion: any loss that treats samples one by one, see `per_sample_losses`.
        weights: (n,), of mean one over the subset.
        args, kwargs: what `criterion` takes: outputs and targets of n rows, and whatever else.

    Returns:
        A scalar, or the weighted losses in the criterion's shape where it returns losses (as for
        ``reduction="none"``); and the losses before weighting, of shape (n,).
    """
    if len(weights) and (known := torch_losses(criterion, args, kwargs)) is not None:
        each, divisor = known
        if divisor is None:
            return _weighted_rows(each, weights)
        dtype, losses = each.dtype, sums_of_rows(each)
    else:
        snapshot = twin(criterion)
        value = criterion(*args, **kwargs)  # the evaluation that its state keeps
        if not isinstance(value, Tensor):
            raise TypeError(
                f"`criterion` must return a tensor, got {type(value).__name__}. Wrap what is "
                "trained with: WeightedLoss(lambda output, target: criterion(output, target)[...])."
            )
        if len(weights) == 0:
            return value, weights.to(value)
        if value.ndim > 0:
            return _weighted_rows(value, weights)
        dtype, value = value.dtype, value.detach()
        batch = LossBatch.of(len(weights), args, kwargs)
        losses, divisor = losses_and_divisor(criterion, snapshot, batch, value, wait=False)
    # Divided before, as nobody differentiates weights: an operation less in the backward pass.
    return torch.dot(weights.to(losses) / divisor, losses).to(dtype), losses


def _weighted_rows(each: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if each.shape[:1] != weights.shape:
        raise ValueError(
            f"`criterion` must return a number, or losses of the {len(weights)} samples, got "
            f"shape {tuple(each.shape)}."
        )
    columns = weights.to(each).view(-1, *[1] * (each.ndim - 1))
    return each * columns, sums_of_rows(each)


class WeightedLoss(nn.Module):
    """A training loss in which each sample counts with the weight that its selection gave it.

    ``L = Σ wᵢ ℓᵢ / Z``, with Z what `criterion` divides its own sum by. The weights come with the
    targets, see `AdaptiveSubsetSampler`. It is called as `criterion` is: with any number of
    arguments, by position or by name, outputs and targets may be nested in tuples and dicts.
    Parameters, buffers, ``state_dict`` and all other attributes are those of `criterion`.

    Args:
        criterion: the loss to weight, a module or a function such as ``criterion(output, target)``.
        selector: told that this is the loss whose gradients to match (`Selector.bind_criterion`);
            its record of losses, if its strategy needs one, is kept in training.

    Raises:
        RuntimeError: on targets that carry no weights, where the loss has a graph, so that it could
            be trained on, whatever mode this module is in. Without one (``torch.no_grad()``) they
            are passed through.
        TypeError: a criterion that is a class or no loss of single samples (CTC), a `selector` that
            is none, outputs that hold no tensor.
        ValueError: the number of weights is not that of the outputs, or a criterion that couples
            samples.

    Examples:
        >>> loss = WeightedLoss(nn.MSELoss())
        >>> target = WeightedTarget(torch.zeros(2), torch.tensor([0.5, 1.5]))
        >>> loss(torch.tensor([2.0, 1.0]), target)
        tensor(1.7500)
    """

    criterion: Criterion
    _record: LossRecord | None
    _calls: Calls

    def __init__(self, criterion: Criterion, selector: Selector | None = None) -> None:
        _check_arguments(criterion, selector)
        super().__init__()
        if isinstance(criterion, nn.Module):
            # The same registries, not a child: no key of the state changes its name.
            for name in _REGISTRIES:
                self.__dict__[name] = criterion.__dict__[name]
            del self.__dict__["training"]  # the criterion's is the only one, see __getattr__
        self.__dict__["criterion"] = criterion
        if selector is not None:
            selector.bind_criterion(criterion)
        self.__dict__["_record"] = None if selector is None else selector.losses
        self.__dict__["_calls"] = Calls() if selector is None else selector.calls
        self._calls.is_held = True

    # As torch.compiler.disable, which would load the whole compiler at import.
    @_disable_dynamo
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted loss of a batch; takes what `criterion` takes, targets with weights (n,).

        Raises:
            RuntimeError: the targets have lost their weights.
            TypeError: the output is, or holds, something else than tensors.
            ValueError: outputs have no rows, or others than the weights, or targets are those of
                other samples.
        """
        args, kwargs = self._by_position(args, kwargs)
        leaves: list[Any] = list(args)
        structure = None  # of arguments that are not all tensors
        if kwargs or not all(isinstance(leaf, Tensor) for leaf in leaves):
            leaves, structure = tree_flatten((args, kwargs))
        targets = [leaf for leaf in leaves if isinstance(leaf, WeightedTarget)]
        if targets:
            plain = [leaf.plain() if isinstance(leaf, WeightedTarget) else leaf for leaf in leaves]
            args, kwargs = (
                (tuple(plain), {}) if structure is None else tree_unflatten(plain, structure)
            )
        tags = _common_tags(targets)
        if tags is None:
            loss = self.criterion(*args, **kwargs)
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(loss)):
                raise _lost(targets or leaves[-1:])
            return loss
        self._calls.number += 1
        weights, indices = tags
        if isinstance(weights, float):
            loss = self.criterion(*args, **kwargs)
            if self._record is not None and loss.requires_grad:
                self._record.note(torch.tensor([indices], device="cpu"), loss.mean().view(1))
            return loss * weights
        others = [leaf for leaf in leaves if not isinstance(leaf, WeightedTarget)]
        rows = next((leaf for leaf in others if isinstance(leaf, Tensor) and leaf.ndim), None)
        if rows is None and any(isinstance(leaf, Tensor) for leaf in others):
            raise ValueError(
                "`output` must have a row for each sample, got a tensor of shape (). A batch of "
                "one keeps its row with squeeze(1), not with squeeze()."
            )
        if rows is None:
            raise TypeError(
                "`output` must be a tensor, or tuples, lists and dicts of tensors, got "
                f"{', '.join(type(leaf).__name__ for leaf in others) or 'none'}. Pass the tensor "
                "that the object holds, such as output.logits."
            )
        if len(weights) != len(rows):
            raise ValueError(
                f"`target` must carry one weight for each of the {len(rows)} outputs, got "
                f"{len(weights)}. Give outputs and targets the same rows."
            )
        loss, losses = weighted_loss(self.criterion, weights, *args, **kwargs)
        if self._record is not None and loss.requires_grad:
            self._record.note(indices, losses, rows)
        return loss

    def _by_position(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`output` and `target` by position, for a criterion that calls them otherwise."""
        if not kwargs.keys() & {"output", "target"}:
            return args, kwargs
        function = getattr(self.criterion, "forward", self.criterion)
        theirs = inspect.signature(function).parameters
        ours = [name for name in ("output", "target") if name in kwargs and name not in theirs]
        args = (*args, *(kwargs[name] for name in ours))
        return args, {name: value for name, value in kwargs.items() if name not in ours}

    def train(self, mode: bool = True) -> WeightedLoss:
        """As in torch, for the criterion too."""
        super().train(mode)
        if isinstance(self.criterion, nn.Module):
            self.criterion.train(mode)
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Any:
        """The criterion is among them, so that who saves and restores all modules finds it."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        if isinstance(self.criterion, nn.Module):
            yield from self.criterion.named_modules(memo, prefix, remove_duplicate)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.criterion!r})"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "criterion" not in self.__dict__:  # while it is being copied or unpickled
                raise
            return getattr(self.criterion, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "criterion":
            raise AttributeError(
                "`criterion` cannot be replaced, its parameters are in use. Build another "
                "WeightedLoss."
            )
        if self._is_own(name):
            super().__setattr__(name, value)
        else:
            setattr(self.criterion, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            super().__delattr__(name)
        else:
            delattr(self.criterion, name)

    def _is_own(self, name: str) -> bool:
        known = name in self.__dict__ or hasattr(type(self), name)
        return known or not isinstance(self.__dict__.get("criterion"), nn.Module)


_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def _check_arguments(criterion: Any, selector: Any) -> None:
    if isinstance(checked_loss(criterion), WeightedLoss):
        raise TypeError(f"`criterion` must be a loss that is not weighted yet, got {criterion!r}.")
    if isinstance(criterion, nn.CTCLoss) or getattr(criterion, "func", criterion) is F.ctc_loss:
        raise TypeError(
            "`criterion` must take outputs whose rows are samples, got CTC, whose second dimension "
            "they are. Pass a function of outputs (n, T, C) that transposes them and calls "
            "F.ctc_loss with the lengths that it takes from the targets."
        )
    if not isinstance(selector, (Selector, type(None))):
        raise TypeError(
            f"`selector` must be a Selector, got {type(selector).__name__}. A sampler has one: "
            "sampler.selector."
        )


def _common_tags(targets: list[WeightedTarget]) -> Tags | None:
    """The tags of all `targets`, None where one of them has none (any more)."""
    with torch._C.DisableTorchFunctionSubclass():  # which reading a count of writes would call
        tags = [tags for target in targets if (tags := target.tags) is not None]
    if not tags or len(tags) < len(targets):
        return None
    weights, indices = tags[0]
    for other in tags[1:]:
        if are_same(tags[0], other):
            continue
        if not torch.equal(torch.as_tensor(weights), torch.as_tensor(other[0])):
            raise ValueError(
                "`target` must carry the same weights in all its parts, got targets of different "
                "samples in one call. Call the loss once for each of them."
            )
        indices = common_indices(indices, other[1])  # of equal weights, by chance
    return weights, indices


def _lost(targets: list[Any]) -> RuntimeError:
    got = " and ".join(f"a {type(target).__name__} without any" for target in targets)
    return RuntimeError(
        "`target` must carry the weights of its samples wherever a gradient can be taken, got "
        f"{got}. Read the data by `DataLoader(sampler.dataset, sampler=sampler)`, both of them, or "
        "by `sampler.attach(loader)`. A collate function that builds new targets keeps the weights "
        "by `retag(collate_fn)`, an operation that builds them anew or writes to them by "
        '`WeightedTarget.like(tensor, target)`. `weighting="resample"` has none, and is for the '
        "bare loss, `criterion.criterion(output, target)`. To evaluate, use torch.no_grad(), or "
        "the bare loss."
    )
