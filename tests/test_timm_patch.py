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
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaptive_subset import STRATEGIES, Choice, WeightedLoss, WeightedTarget
from adaptive_subset.integrations import timm_flags, timm_patch

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
    return f"""--data-dir {images} --model resnet10t --num-classes {CLASSES} --img-size 32 -b {BATCH}
        --epochs 4 --warmup-epochs 0 --lr 0.01 --device cpu -j 1 --log-interval 1000
        --output {tmp_path} --experiment run""".split()


def rows(folder, experiment="run"):
    with open(folder / experiment / "summary.csv") as file:
        return list(csv.DictReader(file))


def script_of(request):
    return request.param


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
    "jsd": "--aug-splits 3 --jsd-loss --aa rand-m9-mstd0.5-inc1",
    "jsd, no smoothing": "--aug-splits 2 --jsd-loss --smoothing 0",
    "aug splits": "--aug-splits 2",
    "amp": "--amp --amp-dtype bfloat16 --channels-last",
    "ema, accumulation, clipping": "--model-ema --grad-accum-steps 2 --clip-grad 1.0",
    "bfloat16": "--model-dtype bfloat16",
    "compile": "--torchcompile",
    "two heads": "--model deit_tiny_distilled_patch16_224",
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
