"""Find the last linear layer(s) of a model and read what goes in and out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.model_state import unwrap

Head: TypeAlias = str | nn.Module | Sequence[str | nn.Module]
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_heads(
    model: nn.Module, head: Head | None, forward: Callable[[], Tensor]
) -> dict[str, nn.Module]:
    """The linear layers whose gradients stand for the model's, by name.

    Tried in this order: the argument; timm's ``model.get_classifier()``; the one linear layer
    that the output of a real forward pass leads back to. Containers are searched for the linear
    layer that fires last in them. 1×1 convolutions count as linear layers.

    Args:
        model: unwrapped and in eval mode.
        head: a module of the model or its dotted name; several of them for a model with several
            heads; None to search.
        forward: runs the model once on a few samples, with gradients enabled.

    Raises:
        ValueError: none or more than one found, or a layer that is not applied as a linear map to
            one vector a sample. The message lists the candidates.
    """
    names = {module: name for name, module in model.named_modules()}
    terminal, fired = _trace(model, forward)
    if head is None and callable(classifier := getattr(model, "get_classifier", None)):
        head = _usable(classifier())
    if head is not None:
        found = [
            _linear_inside(model, item, names, fired)
            for item in ([head] if isinstance(head, (str, nn.Module)) else head)
        ]
        return {names[module]: module for module in found}
    if len(terminal) == 1 and isinstance(terminal[0], _LINEAR):
        return {names[terminal[0]]: terminal[0]}
    ends = ", ".join(f"{names[m] or '(the model itself)'!r} ({type(m).__name__})" for m in terminal)
    linear = [names[m] for m in fired if isinstance(m, _LINEAR)]
    raise ValueError(
        f"`head` could not be found: the output of {type(model).__name__} comes from "
        f"{len(terminal)} layers with parameters [{ends}], and exactly one linear layer is needed. "
        f"Pass head=<name or module>, one or a list of {linear}."
    )


def _usable(classifier: Any) -> Any:
    """What `get_classifier` returned, or None where that is no layer (an Identity, a method)."""
    if isinstance(classifier, (nn.ModuleList, tuple, list)):
        heads = [m for m in classifier if isinstance(m, nn.Module)]
    elif isinstance(classifier, (nn.ModuleDict, Mapping)):
        heads = [m for m in classifier.values() if isinstance(m, nn.Module)]
    else:
        heads = [classifier] if isinstance(classifier, nn.Module) else []
    heads = [m for m in heads if not isinstance(m, nn.Identity)]
    return heads or None


def _linear_inside(
    model: nn.Module,
    item: str | nn.Module,
    names: Mapping[nn.Module, str],
    fired: Sequence[nn.Module],
) -> nn.Module:
    if isinstance(item, str):
        if item not in set(names.values()):
            linear = [names[m] for m in fired if isinstance(m, _LINEAR)]
            raise ValueError(
                f"`head` must name a module of {type(model).__name__}, got {item!r}. "
                f"Linear layers that the model uses: {linear}."
            )
        module = model.get_submodule(item)
    else:
        module = unwrap(item)
        if module not in names:
            raise ValueError(
                f"`head` must be a module inside {type(model).__name__}, got a "
                f"{type(module).__name__} that is not part of it. Pass its name instead."
            )
    inside = [m for m in fired if m in set(module.modules()) and isinstance(m, _LINEAR)]
    if not inside:
        raise ValueError(
            f"`head` must be or contain a linear layer that the forward pass uses, got "
            f"{names[module]!r} ({type(module).__name__}). Linear layers that the model uses: "
            f"{[names[m] for m in fired if isinstance(m, _LINEAR)]}."
        )
    return inside[-1]


def _trace(
    model: nn.Module, forward: Callable[[], Tensor]
) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers with parameters that the output leads back to first, and all in firing order."""
    origin: dict[Any, nn.Module] = {}
    fired: list[nn.Module] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        fired.append(module)
        if isinstance(output, Tensor) and output.grad_fn is not None:
            origin[output.grad_fn] = module

    hooks = [
        module.register_forward_hook(record)
        for module in model.modules()
        if next(module.children(), None) is None
        and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        output = forward()
    finally:
        for hook in hooks:
            hook.remove()
    terminal: dict[nn.Module, None] = {}
    stack, seen = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in origin:
            terminal[origin[node]] = None
        elif (variable := getattr(node, "variable", None)) is not None and variable.ndim > 1:
            raise ValueError(
                "`head` could not be found: the output depends on a parameter of shape "
                f"{tuple(variable.shape)} that is used outside any layer. Pass head=<name or "
                f"module> of a linear layer in {type(model).__name__}."
            )
        else:
            stack.extend(parent for parent, _ in node.next_functions)
    return list(terminal), fired


class HeadRecorder:
    """Records the input features f and the output z of the heads during a forward pass.

    The outputs are cut out of the graph and made its leaves, so that ``∂ℓ/∂z`` comes from the
    model's real output, whatever it does after the head: several heads averaged, a distillation
    or an auxiliary head, a scale.
    """

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        self._heads = dict(heads)
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on the heads inside this block only."""
        hooks = [
            m.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, m in self._heads.items()
        ]
        try:
            yield
        finally:
            self.clear()
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            leaf = output.detach().requires_grad_()
            features = args[0] if args else next(iter(kwargs.values()))
            self._seen.setdefault(name, []).append((features.detach(), leaf))
            # A copy, since an in-place activation behind the head would change what was recorded.
            return leaf.clone()

        return record

    def clear(self) -> None:
        """Forget a forward pass that was not completed."""
        self._seen.clear()

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        """The features (n, p), with a constant 1 for the bias, and outputs of the last forward.

        Raises:
            RuntimeError: a head did not fire exactly once.
        """
        features, outputs = [], []
        for name, module in self._heads.items():
            seen = self._seen.pop(name, [])
            if len(seen) != 1:
                raise RuntimeError(
                    f"`head` {name!r} must run exactly once in a forward pass, got {len(seen)} "
                    "runs. Name a layer that the model applies once, or uncompile the model."
                )
            f, z = seen[0]
            channels = f.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else f.shape[-1]
            if f.numel() != len(f) * channels:
                raise ValueError(
                    f"`head` {name!r} must see one vector a sample, got input of shape "
                    f"{tuple(f.shape)}. Name a layer behind the pooling."
                )
            flat = f.reshape(len(f), channels)
            if getattr(module, "bias", None) is not None:
                flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
            features.append(flat)
            outputs.append(z)
        return features, outputs

    def check(self, features: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
        """The weights of the heads (C, p), once every output was found to be weight · features.

        Raises:
            ValueError: the layer does something else than a plain linear map (it normalises its
                input, masks its weight, …), so that ``δ ⊗ f`` would not be its gradient.
        """
        weights = []
        for (name, module), f, z in zip(self._heads.items(), features, outputs, strict=True):
            weight: Any = module.weight
            bias: Any = getattr(module, "bias", None)
            matrix = (
                weight.flatten(1)
                if bias is None
                else torch.cat([weight.flatten(1), bias[:, None]], 1)
            )
            exact = matrix.shape == (z[0].numel(), f.shape[1])
            if exact:
                expected = (f.double() @ matrix.double().T).view_as(z)
                # Half precision and TF32 round at about 1e-3 of the terms that are added up.
                scale = f.double().norm(dim=1).max() * matrix.double().norm(dim=1).max()
                # NaNs compare false: they are somebody else's to report.
                exact = not bool(((expected - z).abs() > 1e-2 * scale).any())
            if not exact:
                raise ValueError(
                    f"`head` {name!r} must be a plain linear map of its input, got a "
                    f"{type(module).__name__} whose output is not weight · input + bias. Pass the "
                    "linear layer itself as head=."
                )
            weights.append(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)))
        return weights
