"""Runs the recipes of docs/frameworks.md on a small problem, and the plain loop they must equal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.data import Dataset

from adaptive_subset import (
    AdaptiveSubsetSampler,
    Random,
    Selection,
    Selector,
    WeightedLoss,
    WeightedTarget,
)
from adaptive_subset.delivery import tags
from tests import models

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"
N, BATCH, EPOCHS, EVERY = 120, 5, 6, 5  # 12 samples an epoch: batches of 5, 5 and 2
SELECTS = [0, 5]  # the epochs that select

Order = list[list[list[int]]]  # indices by epoch, rank, place


class Pairs(Dataset[Any]):
    """Items (x, y) in float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(N, 6, generator=generator, dtype=torch.float64)
        self.y = torch.arange(N) % 4

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.x[index], int(self.y[index])


class Fields(Pairs):
    """Items {"x": x, key: y}."""

    def __init__(self, key: str = "labels") -> None:
        super().__init__()
        self.key = key

    def __getitem__(self, index: int) -> Any:
        return {"x": self.x[index], self.key: int(self.y[index])}


class WithLoss(nn.Module):
    """As Hugging Face's models: computes the mean loss by itself where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = self.net(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def net() -> nn.Module:
    torch.manual_seed(0)
    return models.mlp().double()


def recipe(title: str) -> str:
    """The start that all recipes share, and the code under `title`."""
    start, *sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    (section,) = (s for s in sections if s.partition("\n")[0] == title)
    return "\n".join(re.findall(r"```python\n(.*?)```", start + section, re.DOTALL))


class Run:
    """A training run by a recipe: what it selected and when, what it trained on, where it ended.

    Args:
        title: of the recipe.
        changes: passages of the recipe and what stands there instead.
        given: names that the recipe uses.
    """

    def __init__(self, title: str, changes: dict[str, str], given: dict[str, Any]) -> None:
        code = recipe(title)
        for passage, other in changes.items():
            assert passage in code, passage
            code = code.replace(passage, other)
        self._code = compile(code, f"{PAGE}: {title}", "exec")
        self._given = {
            "train_set": Pairs(),
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "workers": 0,
            "accumulate": 1,
            "options": {},
            "__name__": __name__,
            **given,
        }
        self.selections: dict[int, Selection] = {}
        self.before: dict[int, Tensor] = {}  # the parameters when it selected, by epoch
        self.batches: list[list[int]] = []  # what came to the loss in training

    def __call__(self, **given: Any) -> Run:
        """Run it with a new model."""
        self._model = self._given.get("new_model", net)()
        with self._watched():
            exec(self._code, {**self._given, **given, "model": self._model})
        self.parameters = self._parameters()
        return self

    def _parameters(self) -> Tensor:
        return parameters_to_vector(self._model.parameters()).detach().clone()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        select, forward = Selector.select, WeightedLoss.forward

        def watched_select(selector: Selector, model: nn.Module, epoch: int) -> Selection:
            self.before[epoch] = self._parameters()
            self.selections[epoch] = select(selector, model, epoch)
            return self.selections[epoch]

        def watched_forward(loss: WeightedLoss, output: Tensor, target: Tensor) -> Tensor:
            if isinstance(target, WeightedTarget):
                assert isinstance(target.sample_indices, Tensor)
                self.batches.append(target.sample_indices.tolist())
            return forward(loss, output, target)

        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(Selector, "select", watched_select)
            patches.setattr(WeightedLoss, "forward", watched_forward)
            patches.setattr(tags, "_warned", False)  # of a plain loss it warns once in a process
            yield


def order_of_sampler(selections: dict[int, Selection], ranks: int) -> Order:
    """The order in which samplers of their own walk through these selections."""
    samplers = [
        AdaptiveSubsetSampler(
            Selector(Pairs(), Random(), fraction=0.1), every=EVERY, num_replicas=ranks, rank=rank
        )
        for rank in range(ranks)
    ]
    epochs = []
    for epoch in range(EPOCHS):
        for sampler in samplers:
            sampler.selector.selection = selections[max(e for e in selections if e <= epoch)]
            sampler.set_epoch(epoch)
        epochs.append([[int(index) for index in sampler] for sampler in samplers])
    return epochs


def order_of_losses(runs: list[Run]) -> Order:
    """The order in which samples came to the losses of the ranks."""
    steps = len(runs[0].batches) // EPOCHS
    return [
        [list(chain(*run.batches[epoch * steps : (epoch + 1) * steps])) for run in runs]
        for epoch in range(EPOCHS)
    ]


def mean_of_samples(sizes: list[int]) -> list[float]:
    """What a batch counts in a step: all samples the same, as in Hugging Face's Trainer."""
    return [size / sum(sizes) for size in sizes]


def mean_of_pairs(sizes: list[int]) -> list[float]:
    """All batches a half, as in Lightning and Accelerate, also where the last is alone."""
    return [1 / 2] * len(sizes)


def plain_loop(
    selections: dict[int, Selection],
    order: Order,
    accumulate: int = 1,
    counts: Callable[[list[int]], list[float]] = mean_of_samples,
) -> tuple[dict[int, Tensor], Tensor]:
    """Gradient descent on ``1/m Σ wᵢℓᵢ``, written out; ranks average their gradients.

    Returns:
        The parameters before each selection, and in the end.
    """
    data, model, before = Pairs(), net(), {}
    for epoch, ranks in enumerate(order):
        if epoch in selections:
            before[epoch] = parameters_to_vector(model.parameters()).detach().clone()
            weights = torch.zeros(N, dtype=torch.float64)
            weights[selections[epoch].indices] = selections[epoch].loss_weights.double()
        batches = [[own[i : i + BATCH] for i in range(0, len(own), BATCH)] for own in ranks]
        for first in range(0, len(batches[0]), accumulate):
            total = torch.zeros((), dtype=torch.float64)
            for own in batches:
                step = own[first : first + accumulate]
                for batch, count in zip(step, counts([len(b) for b in step]), strict=True):
                    losses = F.cross_entropy(model(data.x[batch]), data.y[batch], reduction="none")
                    total = total + count * (weights[batch] * losses).mean() / len(batches)
            gradients = torch.autograd.grad(total, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(0.1 * gradient)
    return before, parameters_to_vector(model.parameters()).detach()


def assert_exact(runs: list[Run], **accumulation: Any) -> None:
    """The ranks selected when they should, and all of them are where the plain loop ends.

    Args:
        runs: of all ranks.
        accumulation: `accumulate` and `counts` of the plain loop.
    """
    selections = runs[0].selections
    assert list(selections) == SELECTS
    assert float(selections[0].loss_weights.std()) > 0.1, "equal weights would prove nothing"
    order = order_of_losses(runs)
    for epoch, ranks in enumerate(order):
        chosen = selections[max(e for e in SELECTS if e <= epoch)].indices.tolist()
        assert sorted(chain(*ranks)) == sorted(chosen), f"epoch {epoch}"
    assert order == order_of_sampler(selections, len(runs))
    before, parameters = plain_loop(selections, order, **accumulation)
    for run in runs:
        for epoch in SELECTS:
            torch.testing.assert_close(run.before[epoch], before[epoch], rtol=0, atol=1e-10)
        torch.testing.assert_close(run.parameters, parameters, rtol=0, atol=1e-10)
