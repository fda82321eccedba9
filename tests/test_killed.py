"""Runs that are killed at random moments and resumed end bit for bit as undisturbed ones."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from adaptive_subset import (
    CRAIG,
    GLISTER,
    AdaptiveSubsetSampler,
    FreshRandom,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    LossSampling,
    OrderDP,
    Selector,
    WeightedLoss,
)
from tests.framework_recipes import BATCH, Fields, Pairs, WithLoss, net

pytestmark = [
    pytest.mark.xdist_group("frameworks"),  # each takes seconds to import
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]
EPOCHS = 6
SUBSET: dict[str, Any] = {"strategy": GradMatch(), "fraction": 0.1, "every": 2, "warm_start": 0.25}
RAW: dict[str, dict[str, Any]] = {
    "gradmatch": {"strategy": GradMatch(), "fraction": 0.1, "every": 2},
    "gradmatch, warm": SUBSET,
    "gradmatch, a quarter": {"strategy": GradMatch(), "fraction": 0.1, "pool_fraction": 0.25},
    "gradmatch, a tolerance": {"strategy": GradMatch(), "tolerance": 0.3, "every": 3},
    "gradmatch-pb": {"strategy": GradMatchPB(batch_size=4), "fraction": 0.1, "every": 2},
    "craig": {"strategy": CRAIG(), "fraction": 0.1, "every": 2},
    "glister": {"strategy": GLISTER(), "fraction": 0.1, "every": 2},
    "fresh-random": {"strategy": FreshRandom(), "fraction": 0.1},
    "order-dp": {"strategy": OrderDP(), "fraction": 0.1},
    "losses": {"strategy": LossSampling(), "fraction": 0.1},
    "infobatch": {"strategy": InfoBatch(epochs=EPOCHS)},
}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def save(value: Any, path: Path) -> None:
    """In one step, so that a kill leaves no half of it."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def raw(folder: Path, subset: dict[str, Any]) -> nn.Module:
    options = dict(subset)
    warm = {"warm_start": options.pop("warm_start", 0.0), "epochs": EPOCHS}
    every = options.pop("every", None)
    selector = Selector(Pairs(), **options)
    sampler = AdaptiveSubsetSampler(selector, every=every, **warm)
    criterion = WeightedLoss(nn.CrossEntropyLoss(), selector)
    model = net()
    parts: dict[str, Any] = {"model": model, "optimizer": sgd(model), "sampler": sampler}
    first, path = 0, folder / "checkpoint"
    if path.exists():
        saved = torch.load(path)
        first = saved.pop("next")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    loader = DataLoader(sampler.dataset, batch_size=BATCH, sampler=sampler)
    for epoch in range(first, EPOCHS):
        sampler.maybe_reselect(model, epoch)
        for x, y in loader:
            loss = criterion(model(x), y)
            parts["optimizer"].zero_grad()
            loss.backward()
            parts["optimizer"].step()
        save({"next": epoch + 1} | {n: part.state_dict() for n, part in parts.items()}, path)
    return model


def lightning(folder: Path, subset: dict[str, Any]) -> nn.Module:
    import lightning.pytorch as pl
    from adaptive_subset.integrations.lightning_callback import SubsetCallback
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.criterion = net(), nn.CrossEntropyLoss()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            loss: Tensor = self.criterion(self.net(x), y)
            return loss

        def configure_optimizers(self) -> Any:
            return sgd(self.net)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            SubsetCallback(**subset, model="net"),
            ModelCheckpoint(folder, "{step:03d}", every_n_train_steps=2, save_top_k=-1),
        ],
    )
    task = Task()
    whole = [path for path in sorted(folder.glob("*.ckpt")) if _reads(path)]
    loader = DataLoader(Pairs(), batch_size=BATCH, shuffle=True)
    trainer.fit(task, loader, ckpt_path=whole[-1] if whole else None)
    return task.net


def _reads(path: Path) -> bool:
    """Lightning writes in place: a kill while it writes leaves what is no checkpoint."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def transformers(folder: Path, subset: dict[str, Any]) -> nn.Module:
    from adaptive_subset.integrations.transformers_trainer import SubsetTrainer
    from transformers import TrainingArguments

    args = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        save_strategy="steps",
        save_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        learning_rate=0.1,
    )
    model = WithLoss()
    trainer = SubsetTrainer(
        model, args, train_dataset=Fields(), criterion=nn.CrossEntropyLoss(), **subset
    )
    numbers = [int(path.parent.name[11:]) for path in folder.glob("*/trainer_state.json")]
    trainer.train(str(folder / f"checkpoint-{max(numbers)}") if numbers else None)
    return trainer.model


def accelerate(folder: Path, subset: dict[str, Any]) -> nn.Module:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from adaptive_subset.integrations.accelerate_loader import SubsetLoader

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    model = net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    loader = DataLoader(Pairs(), batch_size=BATCH, shuffle=True)
    options = {"epochs": EPOCHS, **subset}
    reading = SubsetLoader(accelerator, loader, nn.CrossEntropyLoss(), **options)
    saved = sorted(folder.glob("step-*"))
    if saved:
        accelerator.load_state(saved[-1])
    steps = int(saved[-1].name[5:]) if saved else 0
    for epoch in range(reading.epoch, EPOCHS):
        for x, y in reading.batches(model, epoch):
            loss = reading.criterion(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps % 2 == 0:
                draft = folder / f"draft-{steps:03d}-{os.getpid()}"
                accelerator.save_state(draft)
                if not (folder / f"step-{steps:03d}").exists():
                    draft.replace(folder / f"step-{steps:03d}")
    return model


Train = Callable[[Path, dict[str, Any]], nn.Module]


def _child(
    train: Train, folder: Path, subset: dict[str, Any], step: int | None, late: float
) -> None:
    """Train; this process is killed `late` seconds after the call of the loss numbered `step`."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    calls, forward = [0], WeightedLoss.forward

    def counted(loss: WeightedLoss, *args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == step:
            threading.Timer(late, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return forward(loss, *args, **kwargs)

    WeightedLoss.forward = counted  # type: ignore[method-assign, assignment]
    model = train(folder, subset)
    save((calls[0], parameters_to_vector(model.parameters()).detach()), folder / "end")
    if step is None or calls[0] < step:
        os._exit(0)  # without what a fork has inherited from the tests
    signal.pause()  # the kill is on its way


def run(
    train: Train, folder: Path, subset: dict[str, Any], step: int | None = None, late: float = 0.0
) -> int:
    """Its exit code."""
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(train, folder, subset, step, late)
    )
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


@functools.cache
def _load_all(train: Train) -> None:
    """Once in this process, so that those forked from it need not load what is loaded lazily."""
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), SUBSET)


def assert_resumes(train: Train, subset: dict[str, Any], tmp_path: Path, kills: int) -> None:
    _load_all(train)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(train, whole, subset) == 0
    steps, expected = torch.load(whole / "end")
    draw = random.Random(0)
    for _ in range(kills):
        code = run(train, killed, subset, draw.randint(1, steps // 2), draw.uniform(0, 0.03))
        if code == 0:  # it had come to its end
            break
        assert code == -signal.SIGKILL
    else:
        (killed / "end").unlink(missing_ok=True)  # where the kill came behind the last step
        assert run(train, killed, subset) == 0
    resumed, parameters = torch.load(killed / "end")
    assert resumed < steps, "it began anew, which would prove nothing"
    assert torch.equal(parameters, expected)


@pytest.mark.parametrize("name", RAW)
def test_a_loop_of_ones_own(name: str, tmp_path: Path) -> None:
    assert_resumes(raw, RAW[name], tmp_path, kills=2)


@pytest.mark.parametrize("train", [lightning, transformers, accelerate])
def test_a_framework(train: Train, tmp_path: Path) -> None:
    assert_resumes(train, SUBSET, tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradmatch", "order-dp"])
@pytest.mark.parametrize("train", [lightning, transformers, accelerate])
def test_a_framework_again_and_again(train: Train, name: str, tmp_path: Path) -> None:
    assert_resumes(train, RAW[name], tmp_path, kills=8)
