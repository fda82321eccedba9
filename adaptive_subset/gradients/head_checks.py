"""What makes a layer a head: a linear map, whose rows are the samples of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptive_subset.default_device import on_cpu

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS = 4  # random inputs that a head is tried on
_PLACES = 4  # positions of each, where it runs at more
_WEIGHT_NORM = {"weight_g", "weight_v", *(f"parametrizations.weight.original{i}" for i in (0, 1))}


def by_position(name: str, module: nn.Module, tensor: Tensor) -> Tensor:
    """What enters or leaves a head as (n, c), or (n, T, c) where it runs at T > 1 positions.

    Raises:
        ValueError: it has no rows, or is a convolution that sees several positions at once.
    """
    shape, convolves = tensor.shape, isinstance(module, LINEAR[1:])
    one = tensor.ndim > 1 and shape[1:].numel() == shape[1 if convolves else -1]
    wide = any(size > 1 for size in getattr(module, "kernel_size", ()))
    if tensor.ndim < 2 or (wide and not one):
        raise ValueError(
            f"`head` {name!r} must see one vector a sample, or one at each position as a linear "
            f"layer or a 1×1 convolution does, got a {type(module).__name__} on input of shape "
            f"{tuple(shape)}. Name a layer behind the pooling, or take a strategy that needs no "
            "gradients."
        )
    if one:
        return tensor.flatten(1)
    return tensor.flatten(2).mT if convolves else tensor.flatten(1, -2)


def weight_of(module: nn.Module) -> Tensor:
    """(C, p) the weight, with the bias as its last column; weight · input + bias is the output."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    columns = [weight.flatten(1)] + ([bias[:, None]] if isinstance(bias, Tensor) else [])
    return torch.cat(columns, 1)


@on_cpu()
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
    features = torch.randn(_ROWS, *_tried(module, shape), dtype=torch.float64)
    seen = by_position(name, module, features)
    weights: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, *_: weights.append(weight_of(m)))
    try:
        # The weight is read inside the call, where it is what the drawn parameters make it.
        output = torch.func.functional_call(module, drawn, (features,))
    finally:
        hook.remove()
    rows, width = seen if module.bias is None else with_constant(seen), seen.shape[-1]
    exact = weights[0].shape[1] == rows.shape[-1] and output.shape[:1] == (_ROWS,)
    if exact:
        expected, found = rows @ weights[0].T, by_position(name, module, output)
        exact = found.shape == expected.shape
        exact = exact and torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * width)
    if not exact:
        raise ValueError(
            f"`head` {name!r} must be a plain linear map of its input, got a "
            f"{type(module).__name__} whose output is not weight · input + bias. Pass the "
            "linear layer itself as head=."
        )


def _tried(module: nn.Module, shape: Sequence[int]) -> list[int]:
    """The shape of one input to try a head on; torch's own layers treat all positions alike."""
    own = type(module) in LINEAR and not (module._forward_hooks or module._forward_pre_hooks)
    if not own:
        return list(shape[1:])
    convolves = isinstance(module, LINEAR[1:])
    if any(size > 1 for size in getattr(module, "kernel_size", ())):
        return list(shape[1:])
    few = [min(size, _PLACES) for size in shape[1:]]
    few[0 if convolves else -1] = shape[1 if convolves else -1]
    return few


def _is_reparametrised(module: nn.Module) -> bool:
    """By something else than weight norm."""
    parametrizations = getattr(module, "parametrizations", {})
    kinds = {key: [type(p).__name__ for p in chain] for key, chain in parametrizations.items()}
    return kinds not in ({}, {"weight": ["_WeightNorm"]})


def with_constant(features: Tensor) -> Tensor:
    """(n, …, p + 1): as a weight with a bias sees features (n, …, p), with a constant 1 for it."""
    return torch.cat([features, features.new_ones(*features.shape[:-1], 1)], -1)


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
