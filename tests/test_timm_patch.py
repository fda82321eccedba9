"""timm's train.py on adaptive subsets.

By default a script of our own stands in for train.py, which is in no package. To run the same
tests on real ones, name them (each uses the timm in its folder, if there is one):

    TIMM_TRAIN=path/to/train.py[:path…] pytest tests/test_timm_patch.py
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm.task
import torch
import yaml
from adaptive_subset.integrations import timm_flags, timm_patch, timm_weights
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.data.loader import fast_collate
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from adaptive_subset import STRATEGIES, Choice, WeightedLoss, WeightedTarget

OWN = Path(__file__).with_name("timm_train_script.py")
REAL = [Path(path) for path in os.environ.get("TIMM_TRAIN", "").split(os.pathsep) if path]
CLASSES, PER_CLASS, BATCH = 4, 12, 8
SUBSET = ["--subset-fraction", "0.5", "--subset-strategy", "by-class", "--subset-every", "2"]


# The weight of a sample is made a linear function of its class. Mixup mixes one-hot classes as it
# mixes images, so at the loss the weights must be the same function of the soft targets, whatever
# happened in between.


@dataclass(frozen=True)
class ByClass:
    needs_gradients = True  # also goes through the pool and the head
    batch_size = None

    def select(self, candidates, budget, *, seed, epoch):
        generator = torch.Generator().manual_seed(seed + epoch)
        positions = torch.randperm(candidates.n, generator=generator)[:budget]
        return Choice(positions, 1.0 + candidates.classes.cpu()[positions])


class Spy:
    """Checks the weights in each call of the training loss."""

    def __init__(self):
        self.calls, self.forward = [], WeightedLoss.forward

    def __call__(self, loss, output, target):
        y = target.plain()
        soft = nn.functional.one_hot(y, CLASSES) if y.ndim == 1 else y
        function = soft.to(target.weights) @ torch.arange(1.0, CLASSES + 1, device=y.device)
        if bool((target.weights == target.weights[0]).all()):  # warm start, or one class only
            self.calls.append(len(y))
        else:
            ratio = target.weights / function
            assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=0.02), (function, ratio)
            self.calls.append(-len(y))
        return self.forward(loss, output, target)


class DDPOnCPU(DistributedDataParallel):
    """train.py passes device_ids=[cpu], which DDP refuses."""

    def __init__(self, module, device_ids=None, **kwargs):
        super().__init__(module, **kwargs)


def observed_run(path, flags, task=False, patched=True):
    """Run a script with patch and spy in this process and tell what was seen."""
    report = {"seen": [], "log": []}
    with pytest.MonkeyPatch.context() as patches:
        spy = Spy()
        patches.setattr(
            WeightedLoss, "forward", torch.compiler.disable(lambda *arguments: spy(*arguments))
        )
        patches.setitem(STRATEGIES, "by-class", ByClass)
        patches.setattr(torch.nn.parallel, "DistributedDataParallel", DDPOnCPU)
        patches.setattr(sys, "argv", [str(path), *flags])
        patches.setattr(sys, "path", sys.path[:])
        patches.setitem(sys.modules, path.stem, None)  # to be removed in the end
        del sys.modules[path.stem]
        handler = logging.Handler()
        handler.emit = lambda record: report["log"].append(record.getMessage())
        logging.getLogger("train").addHandler(handler)
        logging.getLogger("train").setLevel(logging.INFO)
        script = timm_patch.load(path)
        if task:
            script.train_one_epoch = script.train_one_epoch_of_task
        if patched:
            training, train = timm_patch.patch(script), script.train_one_epoch

            def train_one_epoch(*args, **kwargs):
                kwargs.setdefault("device", torch.device("cpu"))  # 0.9.16 trains on CUDA only
                result = train(*args, **kwargs)
                report["length"] = len(args[2])
                report["seen"].append([int(index) for index in training.sampler or ()])
                return result

            script.train_one_epoch = train_one_epoch
        try:
            script.main()
        finally:
            logging.getLogger("train").removeHandler(handler)
            logging.getLogger("adaptive_subset").setLevel(logging.NOTSET)
    report["calls"] = spy.calls
    if patched and training.sampler is not None and training.sampler.selection is not None:
        report["selection"] = training.sampler.selection.indices.tolist()
    return report


def in_processes(path, flags, folder, count=1):
    """The same in processes of their own, connected by gloo if there are several."""
    command = [sys.executable, __file__, str(path), *flags]
    if count > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command[1:1] = torchrun
    environment = {**os.environ, "REPORT": str(folder / "report"), "OMP_NUM_THREADS": "1"}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # for --resume of older versions
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"report{rank}").read_text()) for rank in range(count)]


def run(path, flags, folder):
    return observed_run(path, flags) if path == OWN else in_processes(path, flags, folder)[0]


if __name__ == "__main__":
    result = observed_run(Path(sys.argv[1]), sys.argv[2:])
    Path(os.environ["REPORT"] + os.environ.get("RANK", "0")).write_text(json.dumps(result))
    sys.exit()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    from PIL import Image

    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("validation", 2)):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 128, (40, 36, 3)) + 40 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / f"class{label}" / f"{i}.png")
    return folder


@pytest.fixture
def flags(images, tmp_path):
    """What every run needs."""
    return f"""--data-dir {images} --model resnet10t --num-classes {CLASSES} --img-size 32
        -b {BATCH} --epochs 4 --warmup-epochs 0 --lr 0.01 --device cpu -j 1 --log-interval 1000
        --output {tmp_path} --experiment run""".split()


def rows(folder, experiment="run"):
    with open(folder / experiment / "summary.csv") as file:
        return list(csv.DictReader(file))


scripts = pytest.mark.parametrize("script", [OWN, *REAL], ids=lambda p: p.parent.name)

MODES = {
    "plain": "",
    "no prefetcher": "--no-prefetcher",
    "mixup batch": "--mixup 0.5 --cutmix 1 --smoothing 0",
    "mixup pair": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode pair --mixup-off-epoch 3",
    "mixup elem": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode elem --bce-loss",
    "mixup half": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode half",
    "mixup batch, no prefetcher": "--mixup 0.5 --cutmix 1 --smoothing 0 --no-prefetcher",
    "mixup pair, no prefetcher": "--mixup 0.5 --smoothing 0 --no-prefetcher --mixup-mode pair "
    "--mixup-off-epoch 3",
    "mixup elem, no prefetcher": "--cutmix 1 --smoothing 0 --no-prefetcher --mixup-mode elem",
    "bce": "--bce-loss --bce-target-thresh 0.2",
    "bce sum": "--bce-loss --bce-sum",
    "cross-entropy": "--smoothing 0",
    "jsd": "--aug-splits 3 --jsd-loss",
    "jsd, no smoothing": "--aug-splits 2 --jsd-loss --smoothing 0",
    "aug splits": "--aug-splits 2",
    "amp": "--amp --amp-dtype bfloat16 --channels-last",
    "ema, accumulation, clipping": "--model-ema --grad-accum-steps 2 --clip-grad 1.0",
    "bfloat16": "--model-dtype bfloat16",
    "compile": "--torchcompile",
    "two heads": "--model deit_tiny_distilled_patch16_224 --model-kwargs img_size=32 depth=2",
}


@scripts
@pytest.mark.parametrize("mode", MODES)
def test_weights_reach_the_loss_with_their_samples(script, mode, flags, tmp_path):
    options = MODES[mode].split()
    lacking = [o for o in options if o.startswith("--") and f"'{o}'" not in quoted(script)]
    if lacking:
        pytest.skip(f"{script.parent.name} has no {lacking}")
    report = run(script, [*flags, *SUBSET, "--subset-warm-start", "0.25", *options], tmp_path)
    n, k = CLASSES * PER_CLASS, CLASSES * PER_CLASS // 2
    assert [len(set(epoch)) for epoch in report["seen"]] == [k] * 4
    assert report["length"] == k // BATCH
    assert report["seen"][0] != report["seen"][1]
    assert set(report["seen"][1]) == set(report["seen"][2]) != set(report["seen"][3])
    assert set(report["seen"][3]) == set(report["selection"])
    weighted = [-size for size in report["calls"] if size < 0]
    assert len(report["calls"]) == 4 * k // BATCH
    assert len(weighted) >= 2 * k // BATCH
    assert set(weighted) == {BATCH if "half" not in mode else BATCH // 2} or "splits" in mode
    lines = [line for line in report["log"] if line.startswith("Subset:")]
    assert [line.split()[1] for line in lines] == ["1", "3"]
    assert f"[  {k}/{n} ( 50%)]" in lines[0]
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def quoted(script):
    return script.read_text().replace('"', "'")


@scripts
def test_without_flags_the_run_is_that_of_the_script(script, flags, tmp_path):
    command = [sys.executable, str(script), *flags, "--experiment", "script"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", str(script)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "script" / "summary.csv").read_bytes()
    assert len(expected.splitlines()) == 5
    assert (tmp_path / "run" / "summary.csv").read_bytes() == expected


@scripts
def test_a_resumed_run_goes_on_with_the_same_subset(script, flags, tmp_path):
    flags = [*flags, *SUBSET, "--subset-every", "3"]
    whole = run(script, [*flags, "--experiment", "whole"], tmp_path)
    checkpoint = tmp_path / "whole" / "checkpoint-1.pth.tar"
    rest = run(script, [*flags, "--resume", str(checkpoint)], tmp_path)
    assert rest["seen"] == whole["seen"][2:]
    assert rest["selection"] == whole["selection"]
    assert [line.split()[1] for line in rest["log"] if "Subset" in line] == ["3"]
    assert [row["epoch"] for row in rows(tmp_path)] == ["2", "3"]
    assert {file.name for file in (tmp_path / "run").glob("subset-*")} == {
        "subset-0.pth",
        "subset-3.pth",
    }


@scripts
def test_two_processes_share_one_subset(script, flags, tmp_path):
    first, second = in_processes(script, [*flags, *SUBSET, "-b", "4"], tmp_path, 2)
    k = CLASSES * PER_CLASS // 2
    assert first["selection"] == second["selection"]
    for own, other in zip(first["seen"], second["seen"], strict=True):
        assert len(own) == len(other) == k // 2
        assert not set(own) & set(other)
    assert first["seen"][2] != first["seen"][0]
    assert set(first["seen"][3] + second["seen"][3]) == set(first["selection"])
    assert len([line for line in first["log"] if "Subset" in line]) == 2
    assert not [line for line in second["log"] if "Subset" in line]


@scripts
def test_flags_from_a_config_file(script, flags, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"subset_budget": 16, "subset_lam": 0.1}))
    report = run(script, [*flags, "--config", str(config)], tmp_path)
    assert [len(epoch) for epoch in report["seen"]] == [16] * 4
    saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    subset = {name: value for name, value in saved.items() if name.startswith("subset_")}
    assert subset == {
        "subset_fraction": None,
        "subset_budget": 16,
        "subset_strategy": "gradmatch-pb",
        "subset_every": 20,
        "subset_warm_start": 0.0,
        "subset_lam": 0.1,
        "subset_head": None,
    }


@scripts
def test_help_shows_the_flags(script):
    file = timm_patch.__file__  # a file, too, can be run
    done = subprocess.run([sys.executable, file, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--subset-fraction F" in done.stdout
    assert "--batch-size" in done.stdout


def test_a_task_holds_the_weighted_criterion(flags):
    report = observed_run(OWN, [*flags, *SUBSET, "--task"], task=True)
    assert any(size < 0 for size in report["calls"])


# What can only be seen close up.


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("prefetcher", [True, False])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_weights(mode, prefetcher, kind):
    n, c = 8, 10
    options = {f"{kind}_alpha": 1.0, "mode": mode, "num_classes": c, "label_smoothing": 0.1}
    options.setdefault("mixup_alpha", 0.0)
    images = torch.randint(0, 256, (n, 3, 12, 12), dtype=torch.uint8)
    labels = torch.randperm(c)[:n]
    weights = torch.rand(n) + 0.1
    if prefetcher:
        plain = FastCollateMixup(**options)
        ours = timm_weights.weighted_collate(plain)
        batch = [(image.numpy(), int(label)) for image, label in zip(images, labels, strict=True)]
        tagged = [
            (image, WeightedTarget(torch.tensor(label), float(weight)))
            for (image, label), weight in zip(copy.deepcopy(batch), weights, strict=True)
        ]
        calls = [lambda: plain(batch), lambda: ours(tagged)]
    else:
        plain = Mixup(**options)
        ours = timm_weights.WeightedMixup(plain)
        x, y = images.float(), WeightedTarget(labels, weights)
        calls = [lambda: plain(x.clone(), labels), lambda: ours(x.clone(), y)]
    np.random.seed(0)
    expected, soft = calls[0]()
    np.random.seed(0)
    mixed, target = calls[1]()
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(target.plain(), soft)
    # All labels differ, so the share of a sample can be read off its own class.
    m = len(soft)
    share = (soft[range(m), labels[:m]] - 0.1 / c).float() / 0.9
    torch.testing.assert_close(
        target.weights, share * weights[:m] + (1 - share) * weights.flip(0)[:m]
    )
    ours.mixup_enabled = False
    _, target = calls[1]()
    torch.testing.assert_close(target.weights, weights[:m])


LOSSES = {
    "label smoothing": (LabelSmoothingCrossEntropy(0.1), "labels"),
    "cross-entropy": (nn.CrossEntropyLoss(), "labels"),
    "soft targets": (SoftTargetCrossEntropy(), "soft"),
    "bce": (BinaryCrossEntropy(0.1), "labels"),
    "bce soft": (BinaryCrossEntropy(), "soft"),
    "bce sum": (BinaryCrossEntropy(0.1, sum_classes=True), "labels"),
    "bce sum soft": (BinaryCrossEntropy(sum_classes=True), "soft"),
    "bce threshold": (BinaryCrossEntropy(target_threshold=0.2, pos_weight=2.0), "soft"),
    "jsd": (JsdCrossEntropy(3, smoothing=0.1), "splits"),
    "jsd, no smoothing": (JsdCrossEntropy(2, smoothing=0.0), "splits"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weighted_losses_have_the_weighted_gradient(name):
    loss, kind = LOSSES[name]
    n, c = 6, 5
    splits = loss.num_splits if kind == "splits" else 1
    output = torch.randn(splits * n, c, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(0, c, (n,)), torch.rand(n)
    target = torch.rand(n, c, dtype=torch.float64) if kind == "soft" else labels.repeat(splits)
    value = timm_weights.weighted(loss)(output, WeightedTarget(target, weights.repeat(splits)))
    rows = [list(range(i, splits * n, n)) for i in range(n)]  # the views of a sample
    expected = sum(w * loss(output[r], target[r]) for w, r in zip(weights, rows, strict=True)) / n
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(v, output)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients)
    ones = WeightedTarget(target, torch.ones(splits * n))
    torch.testing.assert_close(timm_weights.weighted(loss)(output, ones), loss(output, target))


def test_augmentation_splits_share_the_weight_of_their_sample():
    batch = [((np.zeros((3, 2, 2), np.uint8),) * 3, 2), ((np.ones((3, 2, 2), np.uint8),) * 3, 1)]
    tagged = [(x, WeightedTarget(torch.tensor(y), 0.5 * y)) for x, y in batch]
    x, target = timm_weights.weighted_collate(fast_collate)(tagged)
    assert torch.equal(x, fast_collate(batch)[0])
    assert target.tolist() == [2, 1] * 3
    assert target.weights.tolist() == [1.0, 0.5] * 3


@pytest.mark.parametrize("splits", [0, 3])
def test_the_pool_is_the_training_set_as_evaluation_sees_it(images, splits):
    root = str(images / "train")
    options = {"input_size": (3, 24, 24), "num_workers": 1, "device": torch.device("cpu")}
    options.update(batch_size=5, persistent_workers=False)
    dataset = create_dataset("", root)
    if splits:
        dataset = AugMixDataset(dataset, splits)
    training = create_loader(dataset, is_training=True, num_aug_splits=splits, **options)
    transform = copy.copy(dataset.transform)
    pool = timm_weights.EvaluationPool(dataset, lambda twin: create_loader(twin, **options))
    seen = [torch.cat(parts) for parts in zip(*pool, strict=True)]
    plain = create_loader(create_dataset("", root), **options)
    expected = [torch.cat(parts) for parts in zip(*plain, strict=True)]
    assert torch.equal(seen[0], expected[0])
    assert torch.equal(seen[1], expected[1])
    assert dataset.transform.transforms == transform.transforms
    assert len(next(iter(training))[0]) == max(1, splits) * 5


def test_the_selection_runs_under_the_autocast_of_training(flags, monkeypatch):
    seen = []

    class Watching(timm_weights.AsTrained):
        def forward(self, images):
            output = super().forward(images)
            seen.append((images.dtype, output.dtype, images.device.type))
            return output

    monkeypatch.setattr(timm_weights, "AsTrained", Watching)
    observed_run(OWN, [*flags, *SUBSET, "--amp", "--amp-dtype", "bfloat16"])
    assert set(seen) == {(torch.float32, torch.bfloat16, "cpu")}


def test_matching_uses_the_loss_of_unmixed_labels():
    output, labels = torch.randn(6, 4), torch.randint(0, 4, (6,))
    mixup = Mixup(num_classes=4, label_smoothing=0.1)
    loss = timm_weights.selection_loss(SoftTargetCrossEntropy(), mixup)
    torch.testing.assert_close(
        loss(output, labels), LabelSmoothingCrossEntropy(0.1)(output, labels)
    )
    jsd = timm_weights.selection_loss(JsdCrossEntropy(3, smoothing=0.0), None)
    torch.testing.assert_close(jsd(output, labels), nn.CrossEntropyLoss()(output, labels))


REFUSALS = {
    "--subset-every 5": "exactly one of --subset-fraction and --subset-budget",
    "--subset-fraction 0.5 --subset-budget 8": "exactly one of",
    "--subset-fraction 0.5 --subset-strategy best": "must be one of .*gradmatch-pb.* got best",
    "--subset-fraction 0.5 --subset-strategy random --subset-lam 1": "no meaning for random",
    "--subset-fraction 0.5 --use-multi-epochs-loader": "--use-multi-epochs-loader cannot go with",
}


@pytest.mark.parametrize("options", REFUSALS)
def test_flags_that_cannot_go_together(options, flags, capsys):
    with pytest.raises(SystemExit):
        observed_run(OWN, [*flags, *options.split()])
    assert re.search(REFUSALS[options], capsys.readouterr().err)


@pytest.mark.parametrize("option", timm_flags.REFUSED)
def test_options_that_are_refused_say_why(option):
    parser = argparse.ArgumentParser()
    timm_flags.add_flags(parser)
    args = parser.parse_args(["--subset-fraction", "0.5"])
    setattr(args, option, 3)
    with pytest.raises(
        ValueError, match=rf"--{option.replace('_', '-')} cannot go with a subset: .*\."
    ):
        timm_flags.strategy_of(args)


def test_a_subset_smaller_than_a_batch_is_refused_before_training(flags):
    small = ["--subset-budget", str(BATCH - 1), "--subset-strategy", "random"]
    with pytest.raises(ValueError, match="at least one batch of 8 on each process, got 7"):
        observed_run(OWN, [*flags, *small])


def test_a_stream_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    module = a_script(create_loader=create_loader)
    timm_patch.patch(module)
    module.parser.parse_args(["--subset-fraction", "0.5"])
    with pytest.raises(ValueError, match=r"access by index, got a stream \(Stream\)"):
        module.create_loader(Stream(), 24, 4, is_training=True)


def test_a_sampler_that_would_be_lost_is_refused(images):
    def with_repeats(dataset, is_training=False):
        return DataLoader(dataset, sampler=[0, 0, 1])

    module = a_script(create_loader=with_repeats)
    timm_patch.patch(module)
    module.parser.parse_args(["--subset-fraction", "0.5"])
    with pytest.raises(ValueError, match="the place of a sampler that shuffles, got list"):
        module.create_loader(create_dataset("", str(images / "train")), is_training=True)


def test_another_task_is_refused(flags, monkeypatch):
    class LogitDistillationTask(timm.task.ClassificationTask):
        pass

    monkeypatch.setattr(timm.task, "ClassificationTask", LogitDistillationTask)
    with pytest.raises(ValueError, match="got LogitDistillationTask: losses outside the criterion"):
        observed_run(OWN, [*flags, *SUBSET, "--task"], task=True)


def a_script(**names):
    module = ModuleType("script")
    parser = argparse.ArgumentParser()
    for flag, default in (("--batch-size", 8), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    vars(module).update({"parser": parser, "main": None, "train_one_epoch": lambda loader: None})
    vars(module).update(names)
    return module


@pytest.mark.parametrize("name", ["parser", "main", "create_loader", "train_one_epoch"])
def test_a_script_that_lacks_a_name(name):
    module = a_script(create_loader=create_loader)
    delattr(module, name)
    with pytest.raises(ValueError, match=rf"got script without {name}\. Tested are .* 1\.0\.28"):
        timm_patch.patch(module)


def test_patching_twice():
    module = a_script(create_loader=create_loader)
    timm_patch.patch(module)
    with pytest.raises(ValueError, match="patched once, got script a second time"):
        timm_patch.patch(module)


def test_another_loader_is_refused():
    module = a_script(create_loader=create_loader)
    timm_patch.patch(module)
    module.parser.parse_args(["--subset-fraction", "0.5"])
    with pytest.raises(ValueError, match=r"got another list\. Tested are the scripts of timm"):
        module.train_one_epoch([])


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"got nowhere/train\.py: no such file"):
        timm_patch.load("nowhere/train.py")


def test_resuming_without_a_saved_selection_is_told(flags, tmp_path):
    observed_run(OWN, flags, patched=False)
    checkpoint = str(tmp_path / "run" / "checkpoint-1.pth.tar")
    report = observed_run(OWN, [*flags, *SUBSET, "--resume", checkpoint])
    assert any("no subset-*.pth of an earlier epoch beside" in line for line in report["log"])


def test_figures_go_to_wandb(flags, monkeypatch):
    logged = []
    wandb = ModuleType("wandb")
    wandb.log = lambda figures, commit: logged.append((figures, commit))
    loaded = timm_patch.load

    def load(path):
        script = loaded(path)
        script.has_wandb, script.wandb = True, wandb
        return script

    monkeypatch.setattr(timm_patch, "load", load)
    observed_run(OWN, [*flags, *SUBSET, "--log-wandb"])
    assert [figures["subset_epoch"] for figures, _ in logged] == [0, 2]
    assert logged[0][0]["subset_size"] == CLASSES * PER_CLASS // 2
    assert logged[0][1] is False


def test_importing_the_patch_imports_no_timm():
    code = "import sys, adaptive_subset.integrations.timm_patch; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
