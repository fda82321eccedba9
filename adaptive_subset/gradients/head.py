"""Find the last linear layer(s) of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.head_checks import LINEAR, check_linear
from adaptive_subset.gradients.model_state import unwrap

Head: TypeAlias = str | nn.Module | Sequence[str | nn.Module]


def find_heads(
    model: nn.Module, head: Head | None, forward: Callable[[], Tensor]
) -> dict[str, nn.Module]:
    """The linear layers whose gradients stand for the model's, by name.

    Tried in this order: the argument; timm's ``model.get_classifier()``; the one linear layer
    that the output of a real forward pass leads back to. A container stands for the linear layers
    that its own output leads back to, all of them where it adds several up. A frozen layer with an
    adapter beside it, as peft makes them, stands for the adapter's layers. 1×1 convolutions count
    as linear layers.

    Args:
        model: unwrapped and in eval mode.
        head: a module of the model or its dotted name; several of them for a model with several
            heads; None to search.
        forward: runs the model once on a few samples, with gradients enabled.

    Raises:
        ValueError: none or more than one found, trained and frozen layers that are added up, an
            adapter that is not of linear layers alone, a layer that is no linear map (see
            `check_linear`), or several that share a parameter. The message lists the candidates.
    """
    trace = _Trace(model, forward)
    if head is None and callable(classifier := getattr(model, "get_classifier", None)):
        head = _usable(classifier())
    if head is None:
        found = _search(model, trace)
    else:
        items = [head] if isinstance(head, (str, nn.Module)) else head
        found = [layer for item in items for layer in _inside(model, item, trace)]
    heads = {trace.names[layer]: layer for layer in found}
    for name, layer in heads.items():
        check_linear(name, layer, trace.inputs[layer])
    own = [parameter for layer in heads.values() for parameter in layer.parameters()]
    if len(set(own)) < len(own):
        raise ValueError(
            f"`head` must be layers with parameters of their own, got {list(heads)}, of which some "
            "share one: its gradient is the sum of theirs. Name one of them to match by that "
            "alone, or take a strategy that needs no gradients."
        )
    return heads


def _search(model: nn.Module, trace: _Trace) -> list[nn.Module]:
    """The one linear layer that the output leads back to, or its adapter."""
    ends, loose = trace.ends(trace.output)
    if loose is not None:
        raise ValueError(
            f"`head` could not be found: the output depends on a parameter of shape {loose} that "
            "is used outside any layer. Pass head=<name or module> of a linear layer in "
            f"{type(model).__name__}, or take a strategy that needs no gradients."
        )
    if len(ends) == 1 and isinstance(ends[0], LINEAR):
        return ends
    if adapter := _adapter(model, ends, trace):
        return adapter
    raise ValueError(
        f"`head` could not be found: the output of {type(model).__name__} comes from {len(ends)} "
        f"layers with parameters {trace.listed(ends)}, and exactly one linear layer is needed. "
        f"Pass head=<name or module>, one or a list of {trace.linear()}, or take a strategy that "
        "needs no gradients."
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


def _inside(model: nn.Module, item: str | nn.Module, trace: _Trace) -> list[nn.Module]:
    """The linear layers that a given module is, or that its output leads back to."""
    module = _resolved(model, item, trace)
    within = set(module.modules())
    if not any(layer in within for layer in trace.inputs):
        raise ValueError(
            f"`head` must be or contain a linear layer that the forward pass uses, got "
            f"{trace.names[module]!r} ({type(module).__name__}). Linear layers that the model "
            f"uses: {trace.linear()}."
        )
    if module in trace.inputs:
        return [module]
    # A list of layers is never called itself: what counts then is the output of the model.
    ends, _ = trace.ends(trace.outputs.get(module, trace.output))
    ends = [layer for layer in ends if layer in within]
    trained = [layer for layer in ends if _is_trained(layer)]
    if not ends or not all(layer in trace.inputs for layer in ends):
        problem = f"that ends in {trace.listed(ends)}"
    elif adapter := _adapter(model, ends, trace):
        return adapter
    elif trained and len(trained) < len(ends):
        problem = f"that adds up trained and frozen layers {trace.listed(ends)}"
    else:
        return ends
    raise ValueError(
        f"`head` must end in linear layers that are all trained, got {trace.names[module]!r} "
        f"({type(module).__name__}) {problem}. Pass one or a list of those to match: "
        f"{trace.linear(within)}."
    )


def _adapter(model: nn.Module, ends: list[nn.Module], trace: _Trace) -> list[nn.Module]:
    """The trained layers of the adapter that `ends` are of, with the frozen layer that it adapts.

    That layer has the name that peft gives it, and is beside the adapter; empty where it is not so.
    """
    frozen = [trace.names[layer] for layer in ends if not _is_trained(layer)]
    around = frozen[0].removesuffix(".base_layer") if len(frozen) == 1 < len(ends) else ""
    if around in ("", *frozen):
        return []
    adapted = model.get_submodule(around)
    within = set(adapted.modules())
    layers = [layer for layer in trace.inputs if layer in within and _is_trained(layer)]
    if not within.issuperset(ends):
        return []
    known = {parameter for layer in layers for parameter in layer.parameters()}
    beside = [n for n, p in adapted.named_parameters() if p.requires_grad and p not in known]
    if beside:
        raise ValueError(
            f"`head` {around!r} must be adapted by linear layers alone, got an adapter that trains "
            f"{beside} beside them. Train a plain one (LoRA without DoRA), name another layer of "
            f"{trace.linear()}, or take a strategy that needs no gradients."
        )
    return layers


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _resolved(model: nn.Module, item: str | nn.Module, trace: _Trace) -> nn.Module:
    if isinstance(item, str):
        if item not in set(trace.names.values()):
            raise ValueError(
                f"`head` must name a module of {type(model).__name__}, got {item!r}. "
                f"Linear layers that the model uses: {trace.linear()}."
            )
        return model.get_submodule(item)
    if not isinstance(item, nn.Module):
        raise TypeError(
            f"`head` must be a module, its name, or a list of them, got {type(item).__name__}. "
            f"Linear layers that the model uses: {trace.linear()}."
        )
    module = unwrap(item)
    if module not in trace.names:
        raise ValueError(
            f"`head` must be a module inside {type(model).__name__}, got a "
            f"{type(module).__name__} that is not part of it. Pass its name instead."
        )
    return module


class _Trace:
    """What one forward pass tells of the layers: their order, inputs and way to the output.

    A layer is a linear one, or a module without children that has parameters.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Tensor]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.inputs: dict[nn.Module, tuple[int, ...]] = {}  # shapes, of linear layers that fired
        self.outputs: dict[nn.Module, list[Any]] = {}  # nodes of the graph, of every module
        self._origin: dict[Any, nn.Module] = {}
        hooks = [
            module.register_forward_hook(self._record, with_kwargs=True)
            for module in self.names
            if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
        ]
        try:
            output = forward()
        finally:
            for hook in hooks:
                hook.remove()
        self.output = [output.grad_fn]

    def _record(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nodes = [part.grad_fn for part in _tensors(output) if part.grad_fn is not None]
        self.outputs.setdefault(module, []).extend(nodes)
        if isinstance(module, LINEAR):
            first = next(_tensors([args, kwargs]), None)
            self.inputs[module] = () if first is None else tuple(first.shape)
        elif any(True for _ in module.children()):
            return
        if any(True for _ in module.parameters()):
            self._origin.update(dict.fromkeys(nodes, module))

    def ends(self, nodes: Iterable[Any]) -> tuple[list[nn.Module], tuple[int, ...] | None]:
        """The layers that these nodes lead back to first, and the shape of a matrix in no layer."""
        found: dict[nn.Module, None] = {}
        loose = None
        stack, seen = list(nodes), set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if node in self._origin:
                found[self._origin[node]] = None
            elif variable is not None and sum(size > 1 for size in variable.shape) > 1:
                loose = tuple(variable.shape)
            else:
                stack.extend(parent for parent, _ in node.next_functions)
        order = list(self.names)
        return sorted(found, key=order.index), loose

    def linear(self, within: set[nn.Module] | None = None) -> list[str]:
        """Names of the linear layers that fired, without frozen ones where others are trained."""
        layers = [layer for layer in self.inputs if within is None or layer in within]
        trained = [layer for layer in layers if _is_trained(layer)]
        return [self.names[layer] for layer in trained or layers]

    def listed(self, layers: Iterable[nn.Module]) -> str:
        ends = (f"{self.names[m] or '(the model itself)'!r} ({type(m).__name__})" for m in layers)
        return f"[{', '.join(ends)}]"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
