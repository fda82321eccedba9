"""Loops of the frameworks: exact, or the message that they raise.

A loop is a recipe of docs/frameworks.md, as it stands there or changed as its row says.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
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
    pytest.mark.slow,
    pytest.mark.xdist_group("frameworks"),  # each takes seconds to import
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]

EXACT = "exact"
LIGHTNING, TRAINER, ACCELERATE = "Lightning", "Hugging Face Trainer", "Accelerate"
TORCHDATA, IGNITE = "torchdata's StatefulDataLoader", "ignite"

LOST = "`target` must carry the weights of its samples"
NOT_DUE = "is due for a selection and has none"
OTHER_EPOCH = "`epoch` must be that of the last maybe_reselect"
# A warning, the others are errors.
UNWEIGHTED = "a loss that is not weighted was given targets whose samples have weights"

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

SAMPLER = "AdaptiveSubsetSampler(selector, every=5)"
LOADER = """DataLoader(
            sampler.dataset, batch_size=batch_size, sampler=sampler, num_workers=workers
        )"""
RESELECT = "        sampler.maybe_reselect(self.model, self.current_epoch)\n"
FACTOR = " * len(labels) / num_items_in_batch"

PLAIN_LOSS = {"criterion = WeightedLoss(nn.CrossEntropyLoss(), selector)": (
    "criterion = nn.CrossEntropyLoss()\nselector.bind_criterion(criterion)"
)}  # fmt: skip
ATTACHED = {LOADER: "sampler.attach(DataLoader(train_set, batch_size=batch_size, shuffle=True))"}
RETAGGED = {
    "    callbacks=[Reselect()],\n": (
        "    callbacks=[Reselect()],\n    data_collator=retag(default_data_collator),\n"
    ),
    "import Trainer,": "import default_data_collator, Trainer,",
    "Selector, WeightedLoss\n": "Selector, WeightedLoss, retag\n",
}
IN_EPOCH_START = {
    RESELECT: "",
    "    def training_step": (
        f"    def on_train_epoch_start(self):\n{RESELECT}\n    def training_step"
    ),
}
SHARES = {SAMPLER: "AdaptiveSubsetSampler(selector, every=5, num_replicas=2, rank=rank)"}
WHOLE = {SAMPLER: "AdaptiveSubsetSampler(selector, every=5, num_replicas=1, rank=0)"}
LIGHTNING_SHARDS = {"    use_distributed_sampler=False,\n": ""}


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
        shards_itself: see `assert_exact`.
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
    shards_itself: bool = True
    killed_after: int | None = None

    def new_run(self, folder: Path, **given: Any) -> Run:
        options = {**QUIET.get(self.recipe, {}), **self.options}
        if self.ranks > 1:
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
    Loop(LIGHTNING, "`sampler.attach(loader)`", changes=ATTACHED),
    Loop(LIGHTNING, "reselecting in `on_train_epoch_start`, no workers", changes=IN_EPOCH_START),
    Loop(LIGHTNING, "the same, 2 workers", NOT_DUE, changes=IN_EPOCH_START, given={"workers": 2}),
    Loop(LIGHTNING, "without `reload_dataloaders_every_n_epochs`", OTHER_EPOCH,
         changes={"    reload_dataloaders_every_n_epochs=1,\n": ""}),
    Loop(LIGHTNING, "a loader over `train_set`", LOST, changes={"sampler.dataset": "train_set"}),
    Loop(LIGHTNING, "2 processes, the sampler shards", changes=SHARES, ranks=2),
    Loop(LIGHTNING, "2 processes, the sampler shards, `sampler.attach(loader)`",
         changes=SHARES | ATTACHED, ranks=2),
    Loop(LIGHTNING, "2 processes, Lightning shards, `num_replicas=1, rank=0`",
         changes=WHOLE | LIGHTNING_SHARDS, ranks=2, shards_itself=False),
    Loop(LIGHTNING, "2 processes, Lightning shards, `sampler.attach(loader)`", LOST,
         changes=WHOLE | LIGHTNING_SHARDS | ATTACHED, ranks=2),
    Loop(LIGHTNING, "2 processes, not said who shards",
         "`num_replicas` and `rank` must be given in a run of 2 processes", ranks=2),
    Loop(TRAINER, "as above"),
    Loop(TRAINER, "2 workers", given={"workers": 2}),
    Loop(TRAINER, "`gradient_accumulation_steps=2`", given={"accumulate": 2},
         counts=mean_of_samples),
    Loop(TRAINER, "2 workers that stay, two steps ahead", given={"workers": 2},
         options={"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}),
    Loop(TRAINER, "the loss of the model, no `compute_loss_func`", UNWEIGHTED,
         changes={"    compute_loss_func=loss,\n": ""}),
    Loop(TRAINER, "the key `label`", LOST, given={"train_set": Fields("label")}),
    Loop(TRAINER, "the key `label`, `data_collator=retag(default_data_collator)`",
         given={"train_set": Fields("label")}, changes=RETAGGED),
    Loop(TRAINER, "`train_dataset=train_set`", LOST,
         changes={"train_dataset=sampler.dataset": "train_dataset=train_set"}),
    Loop(TRAINER, "the sampler of the Trainer", LOST, changes={
        "return sampler": "return super()._get_train_sampler(train_dataset)"}),
    Loop(TRAINER, "without the callback", NOT_DUE,
         changes={"    callbacks=[Reselect()],\n": ""}),
    Loop(ACCELERATE, "as above"),
    Loop(ACCELERATE, "2 workers", given={"workers": 2}),
    Loop(ACCELERATE, "`gradient_accumulation_steps=2`", given={"accumulate": 2},
         counts=mean_of_pairs),
    Loop(ACCELERATE, "a loss that is not wrapped", UNWEIGHTED, changes=PLAIN_LOSS),
    Loop(ACCELERATE, "without `maybe_reselect`", NOT_DUE,
         changes={"    sampler.maybe_reselect(model, epoch)\n": ""}),
    Loop(ACCELERATE, "`loader.set_epoch(0)`, as after a restart", OTHER_EPOCH,
         changes={"loader.set_epoch(epoch)": "loader.set_epoch(0)"}),
    Loop(TORCHDATA, "killed after the second step", killed_after=2),
    Loop(TORCHDATA, "killed between two selections", killed_after=7),
    Loop(TORCHDATA, "killed in the epoch of a selection, 2 workers", given={"workers": 2},
         killed_after=16),
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
    import_module("lightning")  # it takes seconds, and the ranks are forked
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
    os.environ.update(WORLD_SIZE=str(loop.ranks), LOCAL_WORLD_SIZE=str(loop.ranks))
    group = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=loop.ranks)
    run, names = loop.new_run(folder, rank=rank), ("selections", "before", "batches", "parameters")
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


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: f"{loop.recipe}: {loop.says}")
def test_loops(loop: Loop, tmp_path: Path) -> None:
    accumulation = {} if loop.counts is None else {"accumulate": 2, "counts": loop.counts}
    if loop.outcome == EXACT:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs = _train(loop, tmp_path)
        assert not [w for w in caught if UNWEIGHTED in str(w.message)]
        assert_exact(runs, shards_itself=loop.shards_itself, **accumulation)
    elif loop.outcome == UNWEIGHTED:
        with pytest.warns(UserWarning, match=re.escape(UNWEIGHTED)):
            _train(loop, tmp_path)
    else:
        with pytest.raises(RuntimeError) as raised:
            _train(loop, tmp_path)
        assert loop.outcome in _messages(raised.value)


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| (\w.*) \| (.*) \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows[1:] == [(loop.recipe, loop.says, loop.outcome) for loop in LOOPS]
