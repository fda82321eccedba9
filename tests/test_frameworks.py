"""Loops of the frameworks: exact, or the message that they raise.

A loop is a recipe of docs/frameworks.md, as it stands there or changed as its row says.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.framework_recipes import (
    PAGE,
    Fields,
    Run,
    WithLoss,
    assert_exact,
    mean_of_pairs,
    mean_of_samples,
)

pytestmark = [
    pytest.mark.xdist_group("frameworks"),  # each takes seconds to import
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]

EXACT = "exact"
LIGHTNING, TRAINER, ACCELERATE = "Lightning", "Hugging Face Trainer", "Accelerate"
TORCHDATA, IGNITE = "torchdata's StatefulDataLoader", "ignite"

NOT_DUE = "is due for a selection and has none"
UNUSED = "`criterion` must be what the training step computes its loss with"

QUIET: dict[str, dict[str, Any]] = {
    LIGHTNING: {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    TRAINER: {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
    },
}

# A loader of the module's own, and a loss that training computes by itself.
OWN_LOADER = {
    "    def configure_optimizers": (
        "    def train_dataloader(self):\n        return loader\n\n    def configure_optimizers"
    ),
    "trainer.fit(Task(), loader)": "trainer.fit(Task())",
}
OWN_LOSS = {
    LIGHTNING: {"self.criterion(self(x), y)": "nn.functional.cross_entropy(self(x), y)"},
    TRAINER: {"trainer = SubsetTrainer(": """class InModel(SubsetTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        return model(**inputs).loss


trainer = InModel("""},
    ACCELERATE: {"subset.criterion(model(x), y)": "nn.functional.cross_entropy(model(x), y)"},
}  # fmt: skip
MIXIN = {
    "trainer = SubsetTrainer(": "class Mine(SubsetMixin, Trainer):\n    pass\n\n\ntrainer = Mine(",
    "import SubsetTrainer": "import SubsetMixin",
    "import TrainingArguments": "import Trainer, TrainingArguments",
}
# What the page says under torchdata's recipe, in place of a state after each step.
NEXT = "sampler.set_epoch(epoch + 1)"
SAVE = "save({name: part.state_dict() for name, part in parts.items()})"
SAVE_WITHOUT = f'{SAVE[:-2]} if name != "loader"}})'
SAVED_AFTER = {f"        {SAVE}\n": f"    {NEXT}\n    {SAVE_WITHOUT}\n"}


@dataclass(frozen=True)
class Loop:
    """A row of the table.

    Args:
        recipe: whose recipe.
        says: what is special about it.
        outcome: "exact", or a part of the message that it raises.
        changes, given: see `Run`.
        options: of Lightning's or Hugging Face's Trainer.
        counts: how accumulated batches are weighed against each other, if any are.
        ranks: processes.
        killed_after: steps, after which it is killed and then resumed from its checkpoint.
    """

    recipe: str
    says: str
    outcome: str = EXACT
    changes: dict[str, str] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    counts: Callable[[list[int]], list[float]] | None = None
    ranks: int = 1
    killed_after: int | None = None

    def new_run(self, folder: Path, **given: Any) -> Run:
        options = {**QUIET.get(self.recipe, {}), **self.options}
        if self.ranks > 1 and self.recipe == LIGHTNING:
            options |= {"devices": self.ranks, "strategy": "ddp"}
        if self.recipe == TRAINER:
            options["output_dir"] = str(folder)
            given = {"train_set": Fields(), "new_model": WithLoss, **given}
        return Run(self.recipe, self.changes, {"options": options, **given, **self.given})


LOOPS = [
    Loop(LIGHTNING, "as above"),
    Loop(LIGHTNING, "2 workers", given={"workers": 2}),
    Loop(LIGHTNING, "`accumulate_grad_batches=2`", options={"accumulate_grad_batches": 2},
         counts=mean_of_pairs),
    Loop(LIGHTNING, "`reload_dataloaders_every_n_epochs=1`, 2 workers", given={"workers": 2},
         options={"reload_dataloaders_every_n_epochs": 1}),
    Loop(LIGHTNING, "`train_dataloader()` of the module", changes=OWN_LOADER),
    Loop(LIGHTNING, "the step computes a loss of its own", UNUSED, changes=OWN_LOSS[LIGHTNING]),
    Loop(LIGHTNING, "2 processes", ranks=2),
    Loop(LIGHTNING, "2 processes, `use_distributed_sampler=False`", ranks=2,
         options={"use_distributed_sampler": False}),
    Loop(TRAINER, "as above"),
    Loop(TRAINER, "2 workers", given={"workers": 2}),
    Loop(TRAINER, "`gradient_accumulation_steps=2`", given={"accumulate": 2},
         counts=mean_of_samples),
    Loop(TRAINER, "2 workers that stay, two steps ahead", given={"workers": 2},
         options={"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}),
    Loop(TRAINER, "the key `label`", given={"train_set": Fields("label")}),
    Loop(TRAINER, "`SubsetMixin` and a Trainer", changes=MIXIN),
    Loop(TRAINER, "the model computes the loss", UNUSED, changes=OWN_LOSS[TRAINER]),
    Loop(TRAINER, "2 processes", ranks=2),
    Loop(TRAINER, "2 processes, `gradient_accumulation_steps=2`", given={"accumulate": 2},
         counts=mean_of_samples, ranks=2),
    Loop(ACCELERATE, "as above"),
    Loop(ACCELERATE, "2 workers", given={"workers": 2}),
    Loop(ACCELERATE, "`gradient_accumulation_steps=2`", given={"accumulate": 2},
         counts=mean_of_pairs),
    Loop(ACCELERATE, "the loop computes a loss of its own", UNUSED, changes=OWN_LOSS[ACCELERATE]),
    Loop(ACCELERATE, "2 processes", ranks=2),
    Loop(TORCHDATA, "killed after the second step", killed_after=2),
    Loop(TORCHDATA, "killed between two selections", killed_after=7),
    Loop(TORCHDATA, "killed in the epoch of a selection, 2 workers", given={"workers": 2},
         killed_after=16),
    Loop(TORCHDATA, "saved after an epoch", killed_after=2, changes=SAVED_AFTER),
    Loop(TORCHDATA, "saved before the epoch of a selection, 2 workers", given={"workers": 2},
         killed_after=5, changes=SAVED_AFTER),
    Loop(IGNITE, "as above"),
    Loop(IGNITE, "2 workers", given={"workers": 2}),
    Loop(IGNITE, "without the handler", NOT_DUE,
         changes={"@trainer.on(Events.EPOCH_STARTED)\n": ""}),
]  # fmt: skip


class Killed(Exception):
    pass


def _train(loop: Loop, folder: Path) -> list[Run]:
    """The runs of all ranks, in one process the one run."""
    if loop.ranks > 1:
        return _ranks(loop, folder)
    run = loop.new_run(folder)
    if loop.killed_after is None:
        return [run()]
    checkpoints: list[io.BytesIO] = []

    def save(state: dict[str, Any]) -> None:
        checkpoints.append(io.BytesIO())
        torch.save(state, checkpoints[-1])
        if len(checkpoints) == loop.killed_after:
            raise Killed

    with contextlib.suppress(Killed):
        run(saved=None, save=save)
    checkpoints[-1].seek(0)
    return [run(saved=torch.load(checkpoints[-1]), save=lambda state: None)]


def _ranks(loop: Loop, folder: Path) -> list[Run]:
    for name in ("lightning", "accelerate", "transformers"):
        import_module(name)  # it takes seconds, and the ranks are forked
    mp.start_processes(_rank, (loop, folder), nprocs=loop.ranks, start_method="fork")  # type: ignore[attr-defined]
    outcomes = [torch.load(folder / str(rank), weights_only=False) for rank in range(loop.ranks)]
    runs = []
    for outcome in outcomes:
        if isinstance(outcome, str):
            raise RuntimeError(outcome)
        runs.append(loop.new_run(folder))
        vars(runs[-1]).update(outcome)
    return runs


def _rank(rank: int, loop: Loop, folder: Path) -> None:
    torch.set_num_threads(1)
    # As torchrun says it; the group itself is there already, and needs no port.
    os.environ.update(TORCHELASTIC_RUN_ID="1", GROUP_RANK="0", MASTER_ADDR="none", MASTER_PORT="0")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(
        ACCELERATE_USE_CPU="1", WORLD_SIZE=str(loop.ranks), LOCAL_WORLD_SIZE=str(loop.ranks)
    )
    group = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=loop.ranks)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of tests before, in one process
    run, names = loop.new_run(folder), ("selections", "before", "batches", "parameters")
    outcome: Any
    try:
        run()
        outcome = {name: getattr(run, name) for name in names}
    except Exception as error:
        outcome = str(error)
    torch.save(outcome, folder / str(rank))
    dist.barrier()
    os._exit(0)


def _messages(error: BaseException | None) -> str:
    """What it says, and what those say in whose handling it was raised (Lightning's clean-up)."""
    return "" if error is None else f"{error}\n{_messages(error.__context__)}"


@pytest.mark.parametrize(
    "loop",
    [pytest.param(loop, marks=[] if loop.ranks > 1 else pytest.mark.slow) for loop in LOOPS],
    ids=lambda loop: f"{loop.recipe}: {loop.says}",
)
def test_loops(loop: Loop, tmp_path: Path) -> None:
    accumulation = {} if loop.counts is None else {"accumulate": 2, "counts": loop.counts}
    if loop.outcome == EXACT:
        assert_exact(_train(loop, tmp_path), **accumulation)
    else:
        with pytest.raises(RuntimeError) as raised:
            _train(loop, tmp_path)
        assert loop.outcome in _messages(raised.value)


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text("utf-8")
    assert f"`{NEXT}`" in page
    assert f"`{SAVE_WITHOUT}`" in page
    rows = re.findall(r"^\| (\w.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert rows[-len(LOOPS) :] == [(loop.recipe, loop.says, loop.outcome) for loop in LOOPS]
