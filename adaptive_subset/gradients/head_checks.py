"""What makes a layer a head: a linear map, whose rows are the samples of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS = 4  # random inputs that a head is tried on
_WEIGHT_NORM = {"weight_g", "weight_v", *(f"parametrizations.weight.original{i}" for i in (0, 1))}


def vectors(name: str, module: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """(n, p) for a head whose input has that shape.

    Raises:
        ValueError: it sees several vectors a sample.
    """
    place = 1 if isinstance(module, LINEAR[1:]) else -1
    if len(shape) < 2 or torch.Size(shape[1:]).numel() != shape[place]:
        raise ValueError(
            f"`head` {name!r} must see one vector a sample, got input of shape {tuple(shape)}. "
            "Name a layer behind the pooling."
        )
    return shape[0], shape[place]


def weight_of(module: nn.Module) -> Tensor:
    """(C, p) the weight, with the bias as its last column; weight · input + bias is the output."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    columns = [weight.flatten(1)] + ([bias[:, None]] if isinstance(bias, Tensor) else [])
    return torch.cat(columns, 1)


def check_linear(name: str, module: nn.Module, shape: Sequence[int]) -> None:
    """Raise a ValueError where ``∂ℓ/∂z ⊗ f`` is not the gradient of the head.

    The head is run on the CPU in float64, on random inputs and with random weights, so that neither
    weights that start at zero nor a low precision of matrix products hide a scale or a mask. A head
    under weight norm counts: the gradient is then that of the normalised weight.

    Args:
        name: of the head.
        module: a layer of one of the kinds in `LINEAR`.
        shape: of its input in a forward pass, (n, …).
    """
    _, p = vectors(name, module, shape)
    own = dict(module.named_parameters())
    beside = [key for key in own if key not in {"weight", "bias", *_WEIGHT_NORM}]
    if beside or _is_reparametrised(module) or not all(v.is_floating_point() for v in own.values()):
        raise ValueError(
            f"`head` {name!r} must train its weight and bias as they are, got a "
            f"{type(module).__name__} with the parameters {list(own)}. The gradient of a pruned, "
            "quantised or otherwise adapted weight is another one: name another linear layer, or "
            "take a strategy that needs no gradients."
        )
    drawn = {key: torch.randn(value.shape, dtype=torch.float64) for key, value in own.items()}
    features = torch.randn(_ROWS, *shape[1:], dtype=torch.float64)
    weights: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, *_: weights.append(weight_of(m)))
    try:
        # The weight is read inside the call, where it is what the drawn parameters make it.
        output = torch.func.functional_call(module, drawn, (features,))
    finally:
        hook.remove()
    flat = _with_constant(module, features.reshape(_ROWS, p))
    exact = weights[0].shape[1] == flat.shape[1] and output.numel() == _ROWS * len(weights[0])
    if exact:
        expected = flat @ weights[0].T
        exact = torch.allclose(output.reshape(_ROWS, -1), expected, rtol=1e-9, atol=1e-9 * p)
    if not exact:
        raise ValueError(
            f"`head` {name!r} must be a plain linear map of its input, got a "
            f"{type(module).__name__} whose output is not weight · input + bias. Pass the "
            "linear layer itself as head=."
        )


def _is_reparametrised(module: nn.Module) -> bool:
    """By something else than weight norm."""
    parametrizations = getattr(module, "parametrizations", {})
    kinds = {key: [type(p).__name__ for p in chain] for key, chain in parametrizations.items()}
    return kinds not in ({}, {"weight": ["_WeightNorm"]})


def _with_constant(module: nn.Module, features: Tensor) -> Tensor:
    """(n, p) as the weight sees them: with a constant 1 for the bias, if there is one."""
    if module.bias is None:
        return features
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def check_rows(heads: Sequence[str], leaves: Sequence[Tensor], output: Tensor) -> None:
    """Raise a ValueError where row i of `output` depends on other rows of a head than row i.

    For each bit of the row numbers, the rows that have it are pulled back without the others: of
    any two rows one is then left out beside the other, or both gradients differ from the whole.

    Args:
        heads: names.
        leaves: what leaves each head, (n, …).
        output: (n, …), made of the leaves.
    """
    n, seen = len(output), torch.randn_like(output)

    def pulled(rows: Tensor) -> tuple[Tensor | None, ...]:
        kept = seen * rows.view(-1, *[1] * (output.ndim - 1))
        return torch.autograd.grad(output, leaves, kept, retain_graph=True, allow_unused=True)

    number = torch.arange(n, device=output.device)
    whole = pulled(torch.ones_like(number))
    for bit in range((n - 1).bit_length()):
        rows = number >> bit & 1
        for name, total, part in zip(heads, whole, pulled(rows), strict=True):
            if total is None or part is None:
                raise ValueError(
                    f"`head` {name!r} must lead to the output of the model, got an output that "
                    "does not depend on it. Name the layer that the output comes from."
                )
            expected = total * rows.view(-1, *[1] * (total.ndim - 1))
            rounding = 32 * torch.finfo(total.dtype).eps * total.abs().max()
            # NaNs compare false: they are somebody else's to report.
            if bool(((part - expected).abs() > rounding).any()):
                raise ValueError(
                    f"`head` {name!r} must see the samples in the order of the batch, got an "
                    "output whose rows depend on other rows of the head: the model permutes or "
                    "mixes samples behind it. Name another linear layer, or take a strategy that "
                    "needs no gradients."
                )
