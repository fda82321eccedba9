"""timm's train.py on adaptive subsets.

By default a script of our own stands in for train.py, which is in no package. To run the same
tests on real ones, name them (each uses the timm in its folder, if there is one):

    TIMM_TRAIN=path/to/train.py[:path…] pytest tests/test_timm_patch.py
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm.task
import torch
import yaml
from adaptive_subset.integrations import timm_flags, timm_patch, timm_weights
from timm.data import AugMixDataset, create_dataset, create_loader
from torch.utils.data import DataLoader

from tests import timm_run
from tests.timm_run import CLASSES, observed_run, refusal

# Nothing is saved on a few tiny images.
pytestmark = pytest.mark.filterwarnings("ignore:selections have taken")

OWN = Path(__file__).with_name("timm_train_script.py")
REAL = [Path(path) for path in os.environ.get("TIMM_TRAIN", "").split(os.pathsep) if path]
PER_CLASS, BATCH = 12, 8
SUBSET = ["--subset-fraction", "0.5", "--subset-strategy", "by-class", "--subset-every", "2"]
WORKER = ["-j", "1"]  # older versions need one; without one our own script runs faster


@functools.cache
def process_of(path):
    """A process for each real script, which imports the timm that belongs to it."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, timm_run.set_environment)


def call(function, path, flags):
    if path == OWN:
        return function(path, flags)
    return process_of(path).submit(function, path, [*flags, *WORKER]).result()


def run(path, flags):
    report = call(observed_run, path, flags)
    if (path.parent / "timm").is_dir():
        assert Path(report["timm"]).is_relative_to(path.parent)
    return report


def run_distributed(path, flags, folder, count):
    """The same in processes that are connected by gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", timm_run.__file__, str(path), *flags, *WORKER]
    environment = {**os.environ, **timm_run.ENVIRONMENT, "REPORT": str(folder / "report")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"report{rank}").read_text()) for rank in range(count)]


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
        -b {BATCH} --epochs 4 --warmup-epochs 0 --lr 0.01 --device cpu --log-interval 1000
        --output {tmp_path} --experiment run""".split()


def rows(folder, experiment="run"):
    with open(folder / experiment / "summary.csv") as file:
        return list(csv.DictReader(file))


scripts = pytest.mark.parametrize("script", [OWN, *REAL], ids=lambda p: p.parent.name)

MODES = {
    "plain": "-j 1",
    "no prefetcher": "--no-prefetcher",
    "mixup batch": "--mixup 0.5 --cutmix 1 --smoothing 0 -j 1",
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
    "jsd": "--aug-splits 3 --jsd-loss -j 1",
    "jsd, no smoothing": "--aug-splits 2 --jsd-loss --smoothing 0",
    "aug splits": "--aug-splits 2",
    "amp": "--amp --amp-dtype bfloat16 --channels-last",
    "ema, accumulation, clipping": "--model-ema --grad-accum-steps 2 --clip-grad 1.0",
    "bfloat16": "--model-dtype bfloat16",
    "compile": "--torchcompile aot_eager",
    "head by name": "--subset-head fc",
    "two heads": "--model deit_tiny_distilled_patch16_224 --model-kwargs img_size=32 depth=2",
}


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("mode", MODES)
def test_weights_reach_the_loss_with_their_samples(script, mode, flags, tmp_path):
    options = MODES[mode].split()
    skip_without(script, options)
    report = run(script, [*flags, *SUBSET, "--subset-warm-start", "0.25", *options])
    n, k = CLASSES * PER_CLASS, CLASSES * PER_CLASS // 2
    assert [len(set(epoch)) for epoch in report["seen"]] == [k] * 4
    assert set(report["lengths"]) == {k // BATCH}
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


def skip_without(script, options):
    source = script.read_text().replace('"', "'")
    options = {option for option in options if option.startswith("--")}
    lacking = [o for o in options if not o.startswith("--subset") and f"'{o}'" not in source]
    if lacking:
        pytest.skip(f"{script.parent.name} has no {lacking}")


@pytest.mark.slow
@scripts
def test_without_flags_the_run_is_that_of_the_script(script, flags, tmp_path):
    flags += [*WORKER, "--epochs", "2"]
    command = [sys.executable, str(script), *flags, "--experiment", "script"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", str(script)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "script" / "summary.csv").read_bytes()
    assert len(expected.splitlines()) == 3
    assert (tmp_path / "run" / "summary.csv").read_bytes() == expected


@pytest.mark.slow
@scripts
def test_a_resumed_run_goes_on_with_the_same_subset(script, flags, tmp_path):
    flags = [*flags, *SUBSET]  # chosen before the epochs 0 and 2
    whole = run(script, [*flags, "--experiment", "whole"])
    for last, made, kept in ((0, ["2"], {0, 2}), (2, [], {2})):
        checkpoint = tmp_path / "whole" / f"checkpoint-{last}.pth.tar"
        name = f"after-{last}"
        rest = run(script, [*flags, "--resume", str(checkpoint), "--experiment", name])
        assert rest["seen"] == whole["seen"][last + 1 :]
        assert rest["selection"] == whole["selection"]
        assert [line.split()[1] for line in rest["log"] if "Subset" in line] == made
        epochs = [str(epoch) for epoch in range(last + 1, 4)]
        assert [row["epoch"] for row in rows(tmp_path, name)] == epochs
        files = {file.name for file in (tmp_path / name).glob("subset-*")}
        assert files == {f"subset-{epoch}.pth" for epoch in kept}


@pytest.mark.slow
@scripts
def test_two_processes_share_one_subset(script, flags, tmp_path):
    first, second = run_distributed(script, [*flags, *SUBSET, "-b", "4"], tmp_path, 2)
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
    report = run(script, [*flags, "--config", str(config)])
    assert [len(epoch) for epoch in report["seen"]] == [16] * 4
    saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    subset = {name: value for name, value in saved.items() if name.startswith("subset_")}
    assert subset == {
        "subset_fraction": None,
        "subset_budget": 16,
        "subset_strategy": "gradmatch-pb",
        "subset_every": None,
        "subset_warm_start": 0.0,
        "subset_lam": 0.1,
        "subset_head": None,
    }


@pytest.mark.slow
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
            def watch(*_):
                enabled = torch.is_autocast_enabled("cpu")
                seen.append((images.dtype, enabled, torch.get_autocast_dtype("cpu")))

            hook = self.model.register_forward_pre_hook(watch)
            output = super().forward(images)
            hook.remove()
            return output

    monkeypatch.setattr(timm_weights, "AsTrained", Watching)
    observed_run(OWN, [*flags, *SUBSET, "--amp", "--amp-dtype", "bfloat16"])
    assert set(seen) == {(torch.float32, True, torch.bfloat16)}


REFUSALS = {
    "--subset-every 5": "exactly one of --subset-fraction and --subset-budget",
    "--subset-fraction 0.5 --subset-budget 8": "exactly one of",
    "--subset-fraction 0.5 --subset-strategy best": "must be one of .*gradmatch-pb.* got best",
    "--subset-fraction 0.5 --subset-strategy random --subset-lam 1": "no meaning for random",
    # train.py would drop the only batch and train on nothing.
    "--subset-budget 7 --subset-strategy random": "at least one batch of 8 on each process, got 7",
    "--subset-fraction 0.5 --use-multi-epochs-loader": "--use-multi-epochs-loader cannot go with",
    "--subset-fraction 0.5 --aug-repeats 3": "--aug-repeats cannot go with",
    "--subset-fraction 0.5 --torchscript": "--torchscript cannot go with",
    "--subset-fraction 0.5 --naflex-loader": "--naflex-loader cannot go with",
    "--subset-fraction 0.5 --train-img-sizes 32 48": "--train-img-sizes cannot go with",
    "--subset-fraction 0.5 --kd-model-name resnet18": "--kd-model-name cannot go with",
}


@scripts
@pytest.mark.parametrize("options", REFUSALS)
def test_what_cannot_go_together_is_refused_before_training(script, options, flags):
    skip_without(script, options.split())
    assert re.search(REFUSALS[options], call(refusal, script, [*flags, *options.split()]))


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


def test_a_stream_is_refused():
    class Stream(torch.utils.data.IterableDataset[int]):
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


@pytest.mark.slow
def test_resuming_without_a_saved_selection_is_told(flags, tmp_path):
    observed_run(OWN, flags, patched=False)
    checkpoint = str(tmp_path / "run" / "checkpoint-1.pth.tar")
    report = observed_run(OWN, [*flags, *SUBSET, "--resume", checkpoint])
    assert any("no subset-*.pth of an earlier epoch beside" in line for line in report["log"])


@scripts
def test_figures_go_to_wandb(script, flags):
    report = run(script, [*flags, *SUBSET, "--log-wandb"])
    logged = [(figures, commit) for figures, commit in report["wandb"] if "subset_size" in figures]
    assert [figures["subset_epoch"] for figures, _ in logged] == [0, 2]
    assert logged[0][0]["subset_size"] == CLASSES * PER_CLASS // 2
    assert logged[0][1] is False  # with the figures of the epoch


@pytest.mark.slow
def test_importing_the_patch_imports_no_timm():
    code = "import sys, adaptive_subset.integrations.timm_patch; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
