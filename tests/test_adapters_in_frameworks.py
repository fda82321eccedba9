"""The adapters in their frameworks: what they refuse, log, save, resume and leave as it was."""

from __future__ import annotations

import copy
import importlib
import math
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import lightning.pytorch as pl
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from adaptive_subset.integrations.accelerate_loader import SubsetLoader
from adaptive_subset.integrations.lightning_callback import SubsetCallback
from adaptive_subset.integrations.transformers_trainer import FILE, SubsetTrainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from adaptive_subset import (
    GradMatch,
    InfoBatch,
    OrderDP,
    PixelLoss,
    RandomSizes,
    TokenLoss,
    WeightedTarget,
)
from tests.framework_recipes import BATCH, Fields, Pairs, WithLoss, net

pytestmark = [
    pytest.mark.xdist_group("frameworks"),  # each takes seconds to import
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]
SUBSET: dict[str, Any] = {"strategy": GradMatch(), "fraction": 0.1, "every": 2}


def vector(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach()


# ---- Lightning


class Task(pl.LightningModule):
    def __init__(self, criterion: Any = None) -> None:
        super().__init__()
        self.net = net()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.seen: dict[int, list[int]] = {}

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.setdefault(self.current_epoch, []).extend(y.sample_indices.tolist())
        loss: Tensor = self.criterion(self(x), y)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(task: Any, callback: Any, *, epochs: int = 3, path: Any = None, **options: Any) -> Any:
    loader = options.pop("loader", None) or DataLoader(Pairs(), batch_size=BATCH, shuffle=True)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [callback, *options.pop("callbacks", [])]
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **quiet | options)
    trainer.fit(task, loader, ckpt_path=path)
    return trainer


def test_lightning_finds_the_module_as_it_was() -> None:
    for criterion in (nn.CrossEntropyLoss(), F.cross_entropy):
        task = Task(criterion)
        keys = list(task.state_dict())
        callback = SubsetCallback(**SUBSET)
        fit(task, callback)
        assert task.criterion is criterion
        assert list(task.state_dict()) == keys
        assert [entry["epoch"] for entry in callback.sampler.history] == [0, 2]
        assert all(len(set(seen)) == 12 for seen in task.seen.values())


def test_lightning_finds_the_module_as_it_was_after_an_error() -> None:
    class Failing(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise ArithmeticError("stop")

    task = Failing()
    criterion = task.criterion
    with pytest.raises(ArithmeticError, match="stop"):
        fit(task, SubsetCallback(**SUBSET))
    assert task.criterion is criterion


class OfTheClass(Task):
    def __init__(self) -> None:
        super().__init__()
        del self.criterion

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


@pytest.mark.parametrize(
    ("task", "options", "trainer", "message"),
    [
        (Task, {"criterion": "loss"}, {}, "`criterion` must name the training loss of Task"),
        (OfTheClass, {}, {}, "must name an attribute of the module itself"),
        (Task, {}, {"overfit_batches": 1}, "`overfit_batches` must be 0"),
        (Task, {}, {"loader": [DataLoader(Pairs())] * 2}, "must be one DataLoader, got a list"),
        (Task, {"warm_start": 0.5}, {"epochs": -1, "max_steps": 3}, "`epochs` must be"),
    ],
)
def test_lightning_refuses(task: Any, options: Any, trainer: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fit(task(), SubsetCallback(**{**SUBSET, **options}), **trainer)


def test_lightning_refuses_loaders_over_new_data() -> None:
    class Anew(Task):
        def train_dataloader(self) -> Any:
            return DataLoader(Pairs(), batch_size=BATCH, shuffle=True)

    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[SubsetCallback(**SUBSET)],
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    with pytest.raises(
        ValueError, match=r"`train_dataloader` must return .* one dataset, got anoth"
    ):
        trainer.fit(Anew())


def test_lightning_refuses_an_option_at_once() -> None:
    with pytest.raises(TypeError, match=r"got \['evry'\]"):
        SubsetCallback(GradMatch(), fraction=0.1, evry=3)


def test_lightning_logs_the_figures(tmp_path: Path) -> None:
    callback = SubsetCallback(**SUBSET)
    trainer = fit(Task(), callback, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    rows = (Path(trainer.logger.log_dir) / "metrics.csv").read_text().splitlines()
    names, *values = (row.split(",") for row in rows)
    logged = [dict(zip(names, row, strict=True)) for row in values]
    errors = {int(r["step"]): float(r["subset/relative_error"]) for r in logged}
    history = callback.sampler.history
    assert errors == {3 * entry["epoch"]: entry["relative_error"] for entry in history}


def saving(folder: Path, **options: Any) -> dict[str, Any]:
    keep = {"save_top_k": -1, "filename": "{step}", "auto_insert_metric_name": False, **options}
    return {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(folder, **keep)]}


class Estimating(Task):
    """Asks for the number of steps, for which Lightning requests the loader, and reads ahead."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == -1
        return super().configure_optimizers()


@pytest.mark.parametrize("kind", [Task, Estimating])
@pytest.mark.parametrize("when", ["every_n_epochs", "every_n_train_steps"])
def test_lightning_resumes_where_epochs_differ_in_length(
    kind: type[Task], when: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"strategy": InfoBatch(epochs=4)}
    whole = kind()
    fit(whole, SubsetCallback(**options), epochs=4, **saving(tmp_path, **{when: 1}))
    lengths = [len(whole.seen[epoch]) for epoch in range(4)]
    assert len(set(lengths)) > 1
    for epoch in range(1, 4):
        path = tmp_path / f"{sum(math.ceil(n / BATCH) for n in lengths[:epoch])}.ckpt"
        task = kind()
        fit(task, SubsetCallback(**options), epochs=4, path=path)
        assert task.seen == {later: whole.seen[later] for later in range(epoch, 4)}
        assert torch.equal(vector(task), vector(whole))


class Scheduled(Task):
    """Asks for the number of steps before a checkpoint is loaded, which requests the loader."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(self.steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_a_schedule_over_steps(workers: int, tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Pairs(), batch_size=BATCH, shuffle=True, num_workers=workers)

    whole = Scheduled()
    save = saving(tmp_path, every_n_train_steps=1)
    fit(whole, SubsetCallback(**SUBSET), epochs=4, loader=loader(), **save)
    assert whole.steps == 12
    for steps in (3, 4, 9) if workers else range(1, 12):
        task = Scheduled()
        path = tmp_path / f"{steps}.ckpt"
        fit(task, SubsetCallback(**SUBSET), epochs=4, loader=loader(), path=path)
        assert torch.equal(vector(task), vector(whole)), steps


class Opening(Pairs):
    """Opens its file when it is first read, as readers of HDF5 do."""

    is_open = False

    def __getitem__(self, index: int) -> Any:
        self.is_open = True
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_and_accelerate_read_where_training_reads(workers: int, accelerator: Any) -> None:
    for framework in ("lightning", "accelerate"):
        loader = DataLoader(data := Opening(), batch_size=BATCH, shuffle=True, num_workers=workers)
        if framework == "lightning":
            fit(Task(), SubsetCallback(**SUBSET), epochs=1, loader=loader)
        else:
            subset = SubsetLoader(accelerator(), loader, nn.CrossEntropyLoss(), **SUBSET)
            for x, y in subset.batches(model := net(), 0):
                subset.criterion(model(x), y)
        assert data.is_open == (workers == 0)


def test_lightning_goes_on_for_more_epochs(tmp_path: Path) -> None:
    warm = {**SUBSET, "warm_start": 0.5}
    fit(Task(), SubsetCallback(**warm), epochs=4, **saving(tmp_path, every_n_epochs=1))
    callback = SubsetCallback(**warm)
    task = Task()
    fit(task, callback, epochs=6, path=tmp_path / "12.ckpt")
    assert list(task.seen) == [4, 5]
    assert callback.sampler is not None
    assert callback.sampler.warm_epochs == 2


def test_lightning_refuses_the_checkpoints_of_others(tmp_path: Path) -> None:
    task = Task()
    trainer = fit(task, SubsetCallback(**SUBSET), epochs=1)
    path = tmp_path / "own.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(ValueError, match="with the same arguments"):
        fit(Task(), SubsetCallback(OrderDP(), fraction=0.1), path=path)
    saved = torch.load(path)
    del saved["callbacks"]["SubsetCallback"]["sampler"]["selector"]
    torch.save(saved, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match="a dict without 'selector'"):
        fit(Task(), SubsetCallback(**SUBSET), path=tmp_path / "damaged.ckpt")
    del saved["callbacks"]["SubsetCallback"]
    torch.save(saved, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="must be of a run with this SubsetCallback"):
        fit(Task(), SubsetCallback(**SUBSET), path=tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("kind", [Task, Scheduled])
def test_lightning_trains_after_a_search_as_without_one(kind: type[Task], tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Pairs(), batch_size=BATCH, shuffle=True)

    def trainer(*callbacks: Any) -> Any:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
        quiet |= {"enable_checkpointing": False, "default_root_dir": tmp_path}
        chosen = [SubsetCallback(**SUBSET), *callbacks]
        return pl.Trainer(max_epochs=3, callbacks=chosen, accelerator="cpu", **quiet)

    class Found(kind):  # type: ignore[misc,valid-type]
        lr = 0.1

    plain, task, other = kind(), Found(), Found()
    fit(plain, SubsetCallback(**SUBSET))
    search: dict[str, Any] = {"update_attr": False}  # of more than two of the epochs of 3 steps
    tuned, criterion = trainer(), task.criterion
    Tuner(tuned).lr_find(task, loader(), num_training=7, **search)
    assert task.criterion is criterion
    assert not list(tmp_path.glob(".lr_find*"))
    task.seen.clear()
    tuned.fit(task, loader())
    assert task.seen == plain.seen
    assert torch.equal(vector(task), vector(plain))
    trainer(LearningRateFinder(num_training_steps=7, **search)).fit(other, loader())
    assert torch.equal(vector(other), vector(plain))  # of a search at the start of the fit too


@pytest.mark.parametrize("strategy", [GradMatch(), OrderDP()])
def test_lightning_trains_after_a_search_for_the_batch_size(strategy: Any, tmp_path: Path) -> None:
    class Found(Task):
        batch_size = 1

        def __init__(self) -> None:
            super().__init__()
            self.data = Pairs()

        def train_dataloader(self) -> Any:
            return DataLoader(self.data, batch_size=self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return self.train_dataloader()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    def subset() -> SubsetCallback:
        return SubsetCallback(strategy, fraction=0.1)

    found = Found()
    search = BatchSizeFinder(steps_per_trial=7, init_val=2, max_trials=3)  # of 2, 4 and 8
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "default_root_dir": tmp_path, "accelerator": "cpu"}
    pl.Trainer(max_epochs=3, callbacks=[subset(), search], **quiet).fit(found)
    plain = Task()
    fit(plain, subset(), loader=DataLoader(Pairs(), batch_size=8, shuffle=True))
    assert found.batch_size == 8
    assert torch.equal(vector(found), vector(plain))


# ---- Hugging Face's Trainer


def trainer_of(folder: Path, **options: Any) -> Any:
    training = {"num_train_epochs": 3, "save_strategy": "no", **options.pop("training", {})}
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **training,
    )
    given = {"train_dataset": Fields(), "criterion": nn.CrossEntropyLoss(), **SUBSET, **options}
    return SubsetTrainer(given.pop("model", None) or WithLoss(), args, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_loss_func": print}, "`compute_loss_func` must be left out"),
        ({"train_dataset": None}, "`train_dataset` must be given"),
        ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, "be a mean .* got reduction='sum'"),
        ({"criterion": nn.CrossEntropyLoss(reduction="none")}, "be a mean .* got reduction='none'"),
        ({"criterion": partial(F.cross_entropy, reduction="sum")}, "got reduction='sum'"),
        ({"criterion": TokenLoss("sum")}, 'got "sum"'),
        ({"criterion": TokenLoss("mean-per-sample")}, 'got "mean-per-sample"'),
        ({"criterion": PixelLoss("mean-per-sample")}, "got reduction='mean-per-sample'"),
        ({"training": {"label_smoothing_factor": 0.1}}, "`label_smoothing_factor` must be 0"),
        (
            {"training": {"train_sampling_strategy": "sequential"}},
            "`train_sampling_strategy` must be \"random\", got 'sequential'",
        ),
        (
            {"training": {"accelerator_config": {"split_batches": True}}},
            "`accelerator` must leave the batches of each process to its loader",
        ),
        (
            {"strategy": InfoBatch(epochs=3), "fraction": None, "every": None},
            "`strategy` must select as many samples each time",
        ),
    ],
)
def test_the_trainer_refuses(options: Any, message: str, tmp_path: Path) -> None:
    class Model(WithLoss):
        config = type("Config", (), {})()

    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model=Model(), **options)


@pytest.mark.parametrize(
    "criterion",
    [nn.KLDivLoss(reduction="batchmean"), partial(F.cross_entropy, reduction="mean"), TokenLoss()],
)
def test_the_trainer_takes_any_mean(criterion: Any, tmp_path: Path) -> None:
    assert trainer_of(tmp_path, criterion=criterion).subset.criterion.criterion is criterion


def test_the_trainer_needs_labels_and_logits(tmp_path: Path) -> None:
    class Odd(WithLoss):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x).logits

    with pytest.raises(ValueError, match="`logits` from the model, got a Tensor without logits"):
        trainer_of(tmp_path, model=Odd()).train()


def test_the_trainer_logs_the_figures(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    logged = [e["subset/relative_error"] for e in trainer.state.log_history if "subset/size" in e]
    assert logged == [entry["relative_error"] for entry in trainer.sampler.history]
    assert len(logged) == 2


def test_the_trainer_goes_on_for_more_epochs_and_refuses_others(tmp_path: Path) -> None:
    save = {"save_strategy": "epoch", "num_train_epochs": 4}
    trainer_of(tmp_path, training=save, warm_start=0.5).train()
    folder = str(tmp_path / "checkpoint-12")
    longer = trainer_of(tmp_path, training=save | {"num_train_epochs": 6}, warm_start=0.5)
    longer.train(folder)
    assert (longer.state.global_step, longer.sampler.warm_epochs) == (18, 2)
    other = trainer_of(tmp_path, fraction=0.2)
    with pytest.raises(ValueError, match="must be of a run of 5 steps an epoch"):
        other.train(folder)
    with pytest.raises(ValueError, match="with the same arguments"):
        trainer_of(tmp_path, strategy=OrderDP(), every=None).train(folder)
    path = Path(folder) / FILE
    state = torch.load(path)
    torch.save({**state, "sampler": {}}, path)
    fresh = trainer_of(tmp_path, warm_start=0.5, training=save)
    with pytest.raises(ValueError, match="must be what the state_dict"):
        fresh.train(folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"without {FILE}"):
        fresh.train(folder)
    assert fresh.sampler.epoch == 0
    longer.train(True)  # from the last there is, checkpoint-18: nothing is left to do
    assert longer.state.global_step == 18


def test_the_trainer_goes_on_in_the_middle(tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 4}
    whole = trainer_of(tmp_path, training=training)
    whole.train()
    for steps in (1, 2, 3, 8):  # of three an epoch
        resumed = trainer_of(tmp_path / "resumed", training={"num_train_epochs": 4})
        resumed.train(str(tmp_path / f"checkpoint-{steps}"))
        assert torch.equal(vector(resumed.model), vector(whole.model)), steps


class Words(Dataset[Any]):
    """Sequences of several lengths, which a collator must pad."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": [1 + index % 7] * (1 + index % 5), "labels": index % 4}


def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    rows = [torch.tensor(item["tokens"]) for item in items]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"tokens": tokens, "labels": torch.tensor([int(item["labels"]) for item in items])}


class Bag(WithLoss):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 6, padding_idx=0)
        self.net = self.net.float()

    def forward(self, tokens: Tensor) -> Any:  # type: ignore[override]
        return super().forward(self.embedding(tokens).mean(1))


def test_the_trainer_pads_with_any_collator(tmp_path: Path) -> None:
    """In training, where weights must come through, and in the pass over the pool."""
    trainer = trainer_of(tmp_path, model=Bag(), train_dataset=Words(), data_collator=padded)
    trainer.train()
    assert trainer.state.global_step == 3
    assert len(trainer.sampler.history) == 2


def test_the_trainer_pads_the_validation_data_too(tmp_path: Path) -> None:
    given = {"train_dataset": Words(), "data_collator": padded, "validation": Words()}
    trainer = trainer_of(tmp_path, model=Bag(), **given)
    trainer.train()
    alone = trainer_of(tmp_path, model=Bag(), **{**given, "validation": None})
    alone.train()
    errors = [[e["relative_error"] for e in t.sampler.history] for t in (trainer, alone)]
    assert errors[0] == pytest.approx(errors[1])  # the same data
    part = trainer_of(tmp_path, model=Bag(), **{**given, "pool_fraction": 0.75})
    part.train()
    assert len(part.sampler.history) == len(errors[0])


def test_the_trainer_counts_labels_of_several_columns_once(tmp_path: Path) -> None:
    class Many(Fields):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            return {**item, "labels": F.one_hot(torch.tensor(item["labels"]), 4).double()}

    trainer = trainer_of(tmp_path, train_dataset=Many(), criterion=nn.BCEWithLogitsLoss())
    batch = {"x": torch.randn(5, 6).double(), "labels": Many()[3]["labels"].expand(5, 4)}
    weights = torch.tensor([0.5, 1.0, 1.5, 1.0, 1.0])
    batch["labels"] = WeightedTarget(batch["labels"].clone(), weights)
    total = trainer._get_num_items_in_batch([batch, batch], torch.device("cpu"))
    outputs = trainer.model(batch["x"])
    loss = trainer._weighted_loss(outputs, batch["labels"], total)
    each = F.binary_cross_entropy_with_logits(
        outputs.logits, batch["labels"].plain(), reduction="none"
    ).mean(1)
    torch.testing.assert_close(loss, (weights.double() * each).sum() / 10)


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "criterion",
    [
        TokenLoss(),
        TokenLoss(ignore_index=0),
        TokenLoss(shift=True, ignore_index=0),
        shifted,
        nn.CrossEntropyLoss(ignore_index=0),
        partial(F.cross_entropy, ignore_index=0),
    ],
)
def test_the_trainer_trains_on_the_mean_whatever_the_model(
    criterion: Any, is_causal: bool, tmp_path: Path
) -> None:
    """It counts labels by the class of the model, and not as the criterion does."""
    trainer = trainer_of(tmp_path, criterion=criterion)
    trainer._loss_shifts_labels = is_causal
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 4, generator=generator, requires_grad=True)
    labels = torch.randint(4, (5, 7), generator=generator)
    if not isinstance(criterion, TokenLoss) and criterion is not shifted:
        logits = logits.mT.detach().requires_grad_()
    batch = {"labels": WeightedTarget(labels, torch.ones(5))}
    total = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer._weighted_loss(SimpleNamespace(logits=logits), batch["labels"], total)
    torch.testing.assert_close(loss, criterion(logits, labels))


def test_the_trainer_trains_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, training={"num_train_epochs": 1, "save_strategy": "epoch"})
    trainer.train()
    with pytest.raises(RuntimeError, match="`resume_from_checkpoint` must be given where training"):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)


def test_the_trainer_evaluates_without_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=Fields())
    trainer.train()
    data = Fields()
    logits = trainer.model(data.x).logits.detach()
    expected = F.cross_entropy(logits, data.y).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


# ---- Accelerate


@pytest.fixture
def accelerator() -> Callable[..., accelerate.Accelerator]:
    def make(**options: Any) -> accelerate.Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        return accelerate.Accelerator(cpu=True, **options)

    return make


def reading(accelerator: Any, **options: Any) -> SubsetLoader:
    loader = DataLoader(Pairs(), batch_size=BATCH, shuffle=True)
    return SubsetLoader(accelerator, loader, nn.CrossEntropyLoss(), **{**SUBSET, **options})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_stateful_dataloader": True}, "`use_stateful_dataloader` must be False"),
        ({"split_batches": True}, "split_batches=True"),
        ({"dispatch_batches": True}, "dispatch_batches=True"),
    ],
)
def test_accelerate_refuses(config: Any, message: str, accelerator: Any) -> None:
    own = accelerator(dataloader_config=DataLoaderConfiguration(**config))
    with pytest.raises(ValueError, match=message):
        reading(own)


def test_accelerate_logs_the_figures(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = accelerator()
    logged: dict[int, dict[str, float]] = {}
    monkeypatch.setattr(own, "log", lambda values, step: logged.update({step: values}))
    subset, model = reading(own), net()
    for epoch in range(4):
        for x, y in subset.batches(model, epoch):
            subset.criterion(model(x), y)
    history = subset.sampler.history
    assert list(logged) == [0, 2 * 3]
    assert [v["subset/trained_error"] for v in logged.values()] == [
        entry["trained_error"] for entry in history
    ]


def test_accelerate_counts_the_batches_before_a_selection(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trackers drop what comes at an earlier step; epochs of RandomSizes get ever shorter."""
    steps: list[int] = []

    def begin() -> tuple[Any, Any]:
        own = accelerator()
        monkeypatch.setattr(own, "log", lambda values, step: steps.append(step))
        return own, reading(own, strategy=RandomSizes(epochs=4), fraction=0.4, every=None)

    (own, subset), model = begin(), net()
    trained, expected = 0, []
    for epoch in range(4):
        if epoch == 2:  # killed and resumed
            own.save_state(tmp_path)
            own, subset = begin()
            own.load_state(tmp_path)
        expected.append(trained)
        for x, y in subset.batches(model, epoch):
            subset.criterion(model(x), y)
            trained += 1
    assert steps == expected
    assert len(set(subset.sampler.sizes(4))) == 4
    state = subset.state_dict()
    del state["before"]  # as the first version saved it
    subset.load_state_dict(state)
    assert subset.state_dict()["before"] == 3 * state["length"]


def test_accelerate_goes_on_in_the_middle(accelerator: Any, tmp_path: Path) -> None:
    own, model = accelerator(), net()
    whole = reading(own)
    seen: list[tuple[int, list[int]]] = []
    for epoch in range(3):
        for step, (x, y) in enumerate(whole.batches(model, epoch)):
            whole.criterion(model(x), y)
            seen.append((epoch, y.sample_indices.tolist()))
            own.save_state(tmp_path / f"{epoch}-{step}")
    places = [(epoch, step) for epoch in range(3) for step in range(3)]
    for epoch, step in places:
        own = accelerator()
        resumed = reading(own)
        own.load_state(tmp_path / f"{epoch}-{step}")
        assert resumed.epoch == epoch + (step == 2)
        rest = []
        for later in range(resumed.epoch, 3):
            for x, y in resumed.batches(model, later):
                resumed.criterion(model(x), y)
                rest.append((later, y.sample_indices.tolist()))
        assert rest == seen[3 * epoch + step + 1 :]


def test_accelerate_gathers_all_of_an_epoch(accelerator: Any) -> None:
    own, model = accelerator(), net()
    loader = DataLoader(Pairs(), batch_size=9, shuffle=True)  # 120 samples leave 3 over
    subset = SubsetLoader(own, loader, nn.CrossEntropyLoss(), GradMatch(), budget=24)
    gathered = []
    for x, y in subset.batches(model, 0):
        subset.criterion(model(x), y)
        gathered.append(len(own.gather_for_metrics(x)))
    assert gathered == [9, 9, 6]


def test_accelerate_refuses_other_states(accelerator: Any, tmp_path: Path) -> None:
    own, model = accelerator(), net()
    subset = reading(own)
    for x, y in subset.batches(model, 0):
        subset.criterion(model(x), y)
    own.save_state(tmp_path)
    other = accelerator()
    reading(other, fraction=0.2)
    with pytest.raises(ValueError, match="with the same arguments"):
        other.load_state(tmp_path)
    state = subset.state_dict()
    damaged = copy.deepcopy(state)
    damaged["sampler"]["selector"]["selection"]["indices"] = torch.arange(12) + 200
    with pytest.raises(ValueError, match="indices from 200 to 211"):
        subset.load_state_dict(damaged)
    assert subset.state_dict()["sampler"]["epoch"] == state["sampler"]["epoch"]
    with pytest.raises(RuntimeError, match="must not go back, got 0 after 1"):
        [list(subset.batches(model, epoch)) for epoch in (1, 0)]


def test_accelerate_notices_a_loss_that_is_not_called(accelerator: Any) -> None:
    with pytest.raises(RuntimeError, match="`criterion` must be what the training step"):
        list(reading(accelerator()).batches(net(), 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_the_examples_run(
    name: str, tmp_path: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator()  # as in a process of its own
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = importlib.import_module(f"with_{name}")
    if name == "accelerate":
        assert example.main(4, tmp_path) < example.main(12, tmp_path)  # it goes on
        assert (tmp_path / "selections.png").stat().st_size > 10_000
    else:
        assert example.main(12) > 0.3


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_the_examples_refuse_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[1] / "examples" / f"with_{name}.py"
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--epochs", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(path), run_name="__main__")
    assert "--epochs must be at least 1, got 0" in capsys.readouterr().err.splitlines()[-1]
