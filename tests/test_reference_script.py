"""torchvision's reference script, in form: with the diff of docs/frameworks.md it is exact.

The weight of a sample is made a function of its class. Mixing does the same to one-hot classes as
to weights, so the weight of a mixed sample must be the same function of its soft target.
"""

from __future__ import annotations

import inspect
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.data import Sampler
from torchvision.transforms import v2

import adaptive_subset
from adaptive_subset import (
    AdaptiveSubsetSampler,
    Candidates,
    Choice,
    Random,
    Selection,
    Selector,
    Strategy,
)
from tests import models, reference_script
from tests.reference_script import CLASSES, mixup_or_cutmix

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"
README = PAGE.parents[1] / "README.md"
EPOCHS, SELECTS = 6, [0, 5]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


def diff(page: Path, title: str) -> list[tuple[str, str]]:
    """What the first diff under `title` replaces and by what, for each of its passages."""
    section = page.read_text("utf-8").partition(f"\n## {title}\n")[2]
    (found,) = re.findall(r"```diff\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    passages = [passage.splitlines(keepends=True) for passage in re.split(r"(?m)^\n", found)]
    return [
        (
            "".join(line[1:] for line in passage if line[0] != "+"),
            "".join(line[1:] for line in passage if line[0] != "-"),
        )
        for passage in passages
    ]


def script(changes: list[tuple[str, str]]) -> Any:
    """The `main` of the reference script after these changes."""
    code = inspect.getsource(reference_script)
    for passage, other in changes:
        assert code.count(passage) == 1, passage
        code = code.replace(passage, other)
    names: dict[str, Any] = {"__name__": "changed_script"}
    exec(compile(code, "changed_script", "exec"), names)
    return names["main"]


@dataclass(frozen=True)
class ByClass(Strategy):
    """Draws samples and weighs them by their class."""

    needs_gradients = True  # so that the pool, the model and the loss are gone through

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        assert candidates.classes is not None
        generator = torch.Generator().manual_seed(seed + epoch)
        positions = torch.randperm(candidates.n, generator=generator)[:budget]
        return Choice(positions, 1.0 + candidates.classes.cpu()[positions])


class InOrder(Sampler[int]):
    """Goes through the same selections as a run did, without any weights."""

    def __init__(self, dataset: Any, selections: dict[int, Selection], ranks: int, own: int):
        selector = Selector(dataset, Random(), fraction=0.1)
        self.sampler = AdaptiveSubsetSampler(selector, every=5, num_replicas=ranks, rank=own)
        self.selections, self.iterations = selections, 0

    def __iter__(self) -> Iterator[int]:
        epoch, self.iterations = self.iterations, self.iterations + 1
        self.sampler.selector.selection = self.selections[max(e for e in SELECTS if e <= epoch)]
        self.sampler.set_epoch(epoch)
        return iter([int(index) for index in self.sampler])

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        assert epoch == self.iterations


class WeighedByTarget(nn.Module):
    """The same loss with weights read off the targets, one number for each class."""

    def __init__(self, smoothing: float, sampler: InOrder) -> None:
        super().__init__()
        self.smoothing, self.sampler = smoothing, sampler

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(
            output, target, reduction="none", label_smoothing=self.smoothing
        )
        if not output.requires_grad:
            return losses.mean()
        chosen = self.sampler.sampler.selector.selection
        assert chosen is not None
        soft = nn.functional.one_hot(target, CLASSES) if target.ndim == 1 else target
        values = torch.arange(1.0, CLASSES + 1, dtype=output.dtype) / chosen.weights.mean()
        return ((soft.to(output.dtype) @ values) * losses).mean()


WRITTEN_OUT = [
    (
        "    collate_fn: Any = default_collate\n",
        "    train_sampler = InOrder(dataset, args.selections, args.ranks, args.rank)\n"
        "    collate_fn: Any = default_collate\n",
    ),
    (
        "nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)",
        "WeighedByTarget(args.label_smoothing, train_sampler)",
    ),
    ("CLASSES, SIDE = 4, 8\n", "CLASSES, SIDE = 4, 8\nfrom tests.test_reference_script import *\n"),
]


def _both(rank: int, ranks: int, folder: str, options: dict[str, Any]) -> None:
    """Save what the script with the diff and the one with weights written out give."""
    torch.set_num_threads(1)
    args = Namespace(
        batch_size=4, start_epoch=0, epochs=EPOCHS, label_smoothing=0.1, distributed=ranks > 1,
        ranks=ranks, rank=rank, **{"workers": 0, "dtype": torch.float64, **options},
    )  # fmt: skip
    args.model = lambda: models.cnn(CLASSES).to(args.dtype)
    if args.distributed:
        group = f"file://{folder}/group"
        dist.init_process_group("gloo", init_method=group, rank=rank, world_size=ranks)
    select, args.selections = Selector.select, {}

    def watched(selector: Selector, model: nn.Module, epoch: int) -> Selection:
        selection = args.selections[epoch] = select(selector, model, epoch)
        return selection

    outcomes = []
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Selector, "select", watched)
        patches.setattr(adaptive_subset, "GradMatch", ByClass)
        for changes in diff(PAGE, "torchvision's reference script"), WRITTEN_OUT:
            torch.manual_seed(0)
            main = script(changes)
            torch.manual_seed(rank)
            outcomes.append(main(args))
    torch.save((sorted(args.selections), *outcomes), f"{folder}/{rank}")
    if args.distributed:
        dist.barrier()
        os._exit(0)  # gloo's threads may abort an interpreter that is shut down in order


@pytest.mark.parametrize(
    "options",
    [
        {"mixing": mixup_or_cutmix},
        {"mixing": mixup_or_cutmix, "workers": 2},
        {
            "mixing": v2.RandomChoice([v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)]),
            "dtype": torch.float32,  # torchvision's soft targets are of that
        },
        {"mixing": None},
    ],
    ids=["mixing", "mixing in workers", "torchvision's mixing", "no mixing"],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_script_with_the_diff_is_exact(
    ranks: int, options: dict[str, Any], tmp_path: Path
) -> None:
    arguments = (ranks, str(tmp_path), options)
    if ranks == 1:
        _both(0, *arguments)
    else:
        mp.start_processes(_both, arguments, nprocs=ranks, start_method="fork")  # type: ignore[attr-defined]
    for rank in range(ranks):
        selects, found, wanted = torch.load(tmp_path / str(rank), weights_only=False)
        assert selects == SELECTS
        # Weights are float32, and so are those that are mixed from them.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_diff_has_no_more_lines_than_that_of_the_readme() -> None:
    def added(page: Path, title: str) -> list[str]:
        return [
            line
            for old, new in diff(page, title)
            for line in new.splitlines()
            if line.strip() and line not in old.splitlines()
        ]

    readme = added(README, "What changes in your code")
    here = added(PAGE, "torchvision's reference script")
    assert len(here) <= len(readme)
