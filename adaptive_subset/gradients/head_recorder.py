"""Read what goes in and out of the heads of a model during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_subset.gradients.head_checks import by_position
from adaptive_subset.gradients.loss_batch import widened


class HeadRecorder:
    """Records the input features f and the output z of the heads during a forward pass.

    The outputs are cut out of the graph and made its leaves, so that ``∂ℓ/∂z`` comes from the
    model's real output, whatever it does after the head: several heads averaged, a distillation
    or an auxiliary head, a scale. One head may lead to another, as the factors of an adapter do.

    Args:
        heads: by name.
        cut: whether outputs are cut out. Otherwise they are recorded as they are.
    """

    def __init__(self, heads: Mapping[str, nn.Module], *, cut: bool = True) -> None:
        self.heads = dict(heads)
        self.cut = cut
        self._seen: dict[str, list[tuple[Tensor, int, Tensor]]] = {}  # f, its version then, z
        self._last: Tensor | None = None  # what went on from the last head that ran
        self._version = 0

    @property
    def biases(self) -> list[bool]:
        """Whether each head has a bias, whose feature is a constant 1."""
        return [module.bias is not None for module in self.heads.values()]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are on the heads inside this block only."""
        hooks = [
            m.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, m in self.heads.items()
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
            features = (args[0] if args else next(iter(kwargs.values()))).detach()
            version = _version(features)
            if not self.cut:
                self._seen.setdefault(name, []).append((features, version, output))
                self._last, self._version = output, output._version
                return output
            # Parameters are frozen, so that only another head upstream gives it a graph.
            leaf = output if output.requires_grad else output.detach()
            leaf = widened(leaf)  # else ∂ℓ/∂z would be rounded to half precision
            leaf = leaf if leaf.requires_grad else leaf.requires_grad_()
            self._seen.setdefault(name, []).append((features, version, leaf))
            # Without autocast the layers behind the head take no other dtype than their own.
            autocast = torch.is_autocast_enabled(leaf.device.type)
            # A copy, since an in-place activation behind the head would change what was recorded.
            self._last = leaf.to(leaf.dtype if autocast else output.dtype, copy=True)
            self._version = 0
            return self._last

        return record

    def is_unchanged(self, output: Tensor) -> bool:
        """Whether the one head is the end of the model: `output` is what left it, untouched."""
        unchanged = output is self._last and output._version == self._version
        return unchanged and len(self.heads) == 1

    def clear(self) -> None:
        """Forget a forward pass that was not completed."""
        self._seen.clear()
        self._last = None

    def take(self, n: int) -> tuple[list[Tensor], list[Tensor]]:
        """The features, without that of a bias, and outputs of the last forward pass.

        Features are (n, p), or (n, T, p) where a head ran at T > 1 positions of a sample.

        Raises:
            RuntimeError: a head did not fire exactly once, or its input was written over.
            ValueError: it saw something else than a row for each of the n samples.
        """
        features, outputs = [], []
        for name, module in self.heads.items():
            seen = self._seen.pop(name, [])
            if len(seen) != 1:
                raise RuntimeError(
                    f"`head` {name!r} must run exactly once in a forward pass, got {len(seen)} "
                    "runs. Name a layer that the model applies once, or uncompile the model."
                )
            f, version, z = seen[0]
            if _version(f) != version:
                raise RuntimeError(
                    f"`head` {name!r} must leave its input as it is, and so must what follows, got "
                    "one that was written over after it had run. Make that step of the model's "
                    "forward out of place (inplace=False, x = x + y)."
                )
            flat = by_position(name, module, f)
            if len(flat) != n:
                raise ValueError(
                    f"`head` {name!r} must see one row a sample, got {len(flat)} rows for {n} "
                    "targets. A model that sees several views of a sample has no gradient of one "
                    "row each: give the pool one view, or wrap the model to run one at a time."
                )
            features.append(flat)
            outputs.append(z)
        return features, outputs


def _version(tensor: Tensor) -> int:
    """How often it was written to, of tensors that count it: those of inference mode do not."""
    return 0 if tensor.is_inference() else tensor._version
