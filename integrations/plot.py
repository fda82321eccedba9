"""`plot`: what a run has selected, in one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from adaptive_subset.integrations.subset import extra_is_missing

from adaptive_subset import AdaptiveSubsetSampler, Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 8  # images


def plot(
    sampler: AdaptiveSubsetSampler,
    labels: Sequence[int] | torch.Tensor | None = None,
    images: Callable[[int], Any] | None = None,
) -> Figure:
    """Draw the selections of a run; nothing is shown or saved, and pyplot is not touched.

    Relative errors (of the match, and of what is trained with) and effective size over the epochs;
    how many samples of each class the current selection has, where `labels` are given; its weights,
    as the loss is multiplied by them; and the images with the largest of them.

    Args:
        sampler: after a selection or more.
        labels: (n,) whole numbers, the classes of the samples of the dataset.
        images: gives the image of an index of the dataset: (h, w), (h, w, 3 or 4), or as tensors
            have them (1, 3 or 4, h, w), in any range. ``lambda i: train_set[i][0]``, for instance.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no selection yet, or not as many labels as samples.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise extra_is_missing(error, "plot") from error
    selection = sampler.selection
    if selection is None:
        raise ValueError(
            "`sampler` must have made a selection to plot, got none yet. Call it after training, "
            "or after maybe_reselect(model, epoch)."
        )
    if labels is not None and len(labels) != len(sampler.dataset):
        raise ValueError(
            f"`labels` must be of all {len(sampler.dataset)} samples of the dataset, got "
            f"{len(labels)}. Pass them in its order."
        )
    rows = 2 if images is None else 3
    figure = Figure(figsize=(9, 2.8 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    _errors(figure.add_subplot(grid[0, 0]), sampler.history)
    _sizes(figure.add_subplot(grid[0, 1]), sampler.history)
    weights = figure.add_subplot(grid[1, :] if labels is None else grid[1, 1])
    weights.hist(selection.loss_weights.numpy(), bins=30)
    weights.set(title=f"weights, epoch {selection.epoch}", xlabel="weight", ylabel="samples")
    if labels is not None:
        classes = torch.as_tensor(labels, device="cpu")[selection.indices].numpy()
        names, counts = np.unique(classes, return_counts=True)
        axes = figure.add_subplot(grid[1, 0])
        axes.bar(names, counts)
        axes.set(title=f"classes, epoch {selection.epoch}", xlabel="class", ylabel="samples")
    if images is not None:
        _largest(figure, grid[2, :], selection, images)
    return figure


def _errors(axes: Any, history: list[dict[str, Any]]) -> None:
    epochs = [entry["epoch"] for entry in history]
    for name, text in (("relative_error", "match"), ("trained_error", "as trained with")):
        values = [np.nan if entry[name] is None else entry[name] for entry in history]
        if not np.isnan(values).all():
            axes.plot(epochs, values, "o-", markersize=3, label=text)
    axes.set(title="relative gradient error", xlabel="epoch")
    if axes.lines:
        axes.set_yscale("log")  # the two may be far apart
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no gradients were matched", transform=axes.transAxes, ha="center")


def _sizes(axes: Any, history: list[dict[str, Any]]) -> None:
    epochs = [entry["epoch"] for entry in history]
    for name, text in (("size", "samples"), ("effective_size", "effective size")):
        axes.plot(epochs, [entry[name] for entry in history], "o-", markersize=3, label=text)
    axes.set(title="size", xlabel="epoch", ylim=(0, None))
    axes.legend()


def _largest(
    figure: Figure, place: Any, selection: Selection, images: Callable[[int], Any]
) -> None:
    weights = selection.loss_weights
    order = weights.argsort(descending=True, stable=True)[:_SHOWN]
    cells = place.subgridspec(1, _SHOWN)
    for column, at in enumerate(order.tolist()):
        index = int(selection.indices[at])
        axes = figure.add_subplot(cells[0, column])
        axes.imshow(_drawable(images(index)), cmap="gray")
        axes.set(title=f"{float(weights[at]):.2f}", xlabel=f"sample {index}", xticks=[], yticks=[])


def _drawable(image: Any) -> Any:
    """As matplotlib takes it: channels last, in [0, 1], a single one without its axis."""
    pixels = torch.as_tensor(np.asarray(image), device="cpu").double()
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"`images` must give images, got the shape {tuple(pixels.shape)}. Give (h, w), or "
            "three dimensions of which one has 1, 3 or 4 channels."
        )
    low, high = pixels.min(), pixels.max()
    scaled = (pixels - low) / (high - low).clamp_min(1e-12)
    return (
        scaled.squeeze(2).numpy() if pixels.shape[-1] == 1 and pixels.ndim == 3 else scaled.numpy()
    )
