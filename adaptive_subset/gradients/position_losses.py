"""Cross-entropies of samples that have a label at each position: tokens and pixels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptive_subset.gradients.token_slopes import TokenSlopes

Reduction = Literal["mean", "sum", "mean-per-sample", "none"]


class _PositionLoss(nn.Module):
    """What losses of positions have in common; `TokenLoss` says what the arguments are."""

    def __init__(
        self,
        reduction: Reduction = "mean",
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            known = ", ".join(f'"{word}"' for word in get_args(Reduction))
            raise ValueError(f"`reduction` must be one of {known}, got {reduction!r}.")
        self.reduction: str = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits and labels."""
        each, divisor = self.terms(output, target)
        return each if divisor is None else each.sum() / divisor

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int | None]:
        """The losses, (n, T) or (n,), and what their sum is divided by; None for "none".

        Raises:
            TypeError: the output is no tensor.
        """
        if not isinstance(output, Tensor):
            raise TypeError(
                f"`output` must be the logits, a tensor, got {type(output).__name__}. Pass the "
                "tensor that the object holds, such as output.logits."
            )
        logits, labels = self._lined_up(output, target)
        each = F.cross_entropy(
            *(logits, labels, self._weights(logits)),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        each = each.reshape(target.shape).flatten(1)
        counted = (labels.reshape(target.shape).flatten(1) != self.ignore_index).sum(1)
        if self.reduction == "mean-per-sample":
            return each.sum(1) / counted.clamp(min=1), len(each)
        if self.reduction == "none":
            return each, None
        return each, 1 if self.reduction == "sum" else counted.sum().clamp(min=1)

    def count(self, target: Tensor) -> Tensor:
        """How many labels count."""
        return (self._labels(target) != self.ignore_index).sum()

    def _labels(self, target: Tensor) -> Tensor:
        """Those that are compared; as int64, since among bytes −100 is 156."""
        return target if target.is_floating_point() else target.long()  # torch refuses the former

    def _weights(self, logits: Tensor) -> Tensor | None:
        assert self.weight is None or isinstance(self.weight, Tensor)
        return None if self.weight is None else self.weight.to(logits)

    def _lined_up(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (m, C, …) and labels (m, …), those of a sample one after the other."""
        raise NotImplementedError


class TokenLoss(_PositionLoss):
    """The cross-entropy of tokens: of logits (n, T, C) and labels (n, T), −100 for padding.

    Args:
        reduction: "mean" divides by the labels that count in the batch, as Hugging Face's models
            do, so that a long sample counts for more than a short one; "mean-per-sample" divides
            each sample by its own and by their number; "sum" not at all; "none" gives the losses.
        shift: for causal models, whose logits at a position are for the label of the next one.
        ignore_index: the label of positions that do not count, as if they were not there.
        label_smoothing: in [0, 1], see `torch.nn.CrossEntropyLoss`.
        weight: (C,) of the classes in the losses. A mean still divides by the number of labels, not
            by the sum of their weights as torch's does.

    Raises:
        TypeError: an output that is no tensor, such as the object that holds the logits.
        ValueError: outputs or labels of other shapes.

    Examples:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 3, 2), torch.tensor([[1, 0, -100]])
        >>> TokenLoss(shift=True)(logits, labels)
        tensor(0.6931)
    """

    def __init__(
        self,
        reduction: Reduction = "mean",
        *,
        shift: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__(
            reduction, ignore_index=ignore_index, label_smoothing=label_smoothing, weight=weight
        )
        self.shift = shift

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int | None]:
        """See above; of shifted labels there are T − 1."""
        each, divisor = super().terms(output, target)
        return each[:, : target.shape[1] - self.shift] if each.ndim > 1 else each, divisor

    def slopes(self, logits: Tensor, target: Tensor) -> TokenSlopes:
        """``∂ℓᵢ/∂z`` of what each sample adds to a sum of `terms`, in at least float32."""
        labels = self._lined_up(logits, target)[1].view(target.shape)
        counts, dtype = labels != self.ignore_index, torch.promote_types(logits.dtype, torch.float)
        labels, share = labels.where(counts, 0), counts.to(dtype)
        weight = self._weights(share)  # not in half precision, as for half logits
        if self.reduction == "mean-per-sample":
            share /= counts.sum(1, keepdim=True).clamp(min=1)
        hit = share if weight is None else share * weight[labels]
        smoothing, rest = self.label_smoothing, None
        if smoothing:
            hit, rest = hit * (1 - smoothing), share * (smoothing / logits.shape[-1])
        return TokenSlopes(logits.detach(), labels, hit, rest, weight)

    def _labels(self, target: Tensor) -> Tensor:
        return super()._labels(target[:, 1:] if self.shift else target)

    def _lined_up(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if output.ndim != 3 or target.shape != output.shape[:2]:
            raise _shapes("(n, T, C)", "(n, T)", output, target)
        # Classes last, as they come, are read several times as fast as along another dimension;
        # and a label less is cheaper than a copy of the logits without the last position.
        labels = self._labels(target)
        labels = F.pad(labels, (0, target.shape[1] - labels.shape[1]), value=self.ignore_index)
        return output.flatten(0, 1), labels.flatten()


class PixelLoss(_PositionLoss):
    """The cross-entropy of pixels: of logits (n, C, h, w) and labels (n, H, W), −100 for no label.

    Logits of another size are brought to that of the labels, by bilinear interpolation, as
    segmentation models do that predict at a lower resolution.

    Args:
        reduction, ignore_index, label_smoothing, weight: see `TokenLoss`, with pixels for tokens.

    Raises:
        TypeError, ValueError: as `TokenLoss` does.

    Examples:
        >>> import torch
        >>> PixelLoss()(torch.zeros(1, 2, 1, 1), torch.ones(1, 4, 4, dtype=torch.int64))
        tensor(0.6931)
    """

    def _lined_up(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if output.ndim != 4 or target.ndim != 3 or len(target) != len(output):
            raise _shapes("(n, C, h, w)", "(n, H, W)", output, target)
        size = target.shape[1:]
        if output.shape[2:] != size:
            output = F.interpolate(output, size, mode="bilinear", align_corners=False)
        return output, self._labels(target)


def _shapes(outputs: str, labels: str, output: Tensor, target: Tensor) -> ValueError:
    return ValueError(
        f"`output` and `target` must be logits {outputs} and labels {labels}, got "
        f"{tuple(output.shape)} and {tuple(target.shape)}. Pass the tensor of logits, such as "
        "output.logits, and the labels of its positions."
    )
