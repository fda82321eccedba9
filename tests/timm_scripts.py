"""timm's train.py to run the tests on, and the images and flags that every run needs.

By default a script of our own stands in for train.py, which is in no package. To run the same
tests on real ones, name them (each uses the timm in its folder, if there is one):

    TIMM_TRAIN=path/to/train.py[:path…] pytest tests/test_timm_*.py
"""

from __future__ import annotations

import csv
import functools
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import timm_run
from tests.timm_run import CLASSES, observed_run

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


def run_distributed(path, flags, folder, count, kill=None):
    """The same in processes that are connected by gloo; `kill` a rank at that step of its."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", timm_run.__file__, str(path), *flags, *WORKER]
    environment = {**os.environ, **timm_run.ENVIRONMENT, "REPORT": str(folder / "report")}
    environment |= {"KILL": "{} {}".format(*kill)} if kill else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if kill is not None:
        assert done.returncode != 0
        return []
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"report{rank}").read_text()) for rank in range(count)]


def make_images(folder):
    """A folder of splits of classes of images that can be told apart."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("validation", 2), ("clean", 3)):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 128, (40, 36, 3)) + 40 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / f"class{label}" / f"{i}.png")


def base_flags(images, output):
    """What every run needs."""
    return f"""--data-dir {images} --model resnet10t --num-classes {CLASSES} --img-size 32
        -b {BATCH} --epochs 4 --warmup-epochs 0 --lr 0.01 --device cpu --log-interval 1000
        --output {output} --experiment run""".split()


def rows(folder, experiment="run"):
    with open(folder / experiment / "summary.csv") as file:
        return list(csv.DictReader(file))


scripts = pytest.mark.parametrize("script", [OWN, *REAL], ids=lambda p: p.parent.name)


def options_of(script, options):
    """`options` as the script takes them; skips where it lacks one of them."""
    source = script.read_text().replace('"', "'")
    if script != OWN:  # which alone has to be told how to train
        options = [option for option in options if option != "--task"]
    named = {option for option in options if option.startswith("--")}
    lacking = [o for o in named if not o.startswith("--subset") and f"'{o}'" not in source]
    if lacking:
        pytest.skip(f"{script.parent.name} has no {lacking}")
    return options
