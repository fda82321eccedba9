"""timm's unmodified train.py on an image folder: adaptive subsets beside all the data.

    git clone --depth 1 https://github.com/huggingface/pytorch-image-models
    python examples/timm_cifar10.py pytorch-image-models/train.py path/to/cifar10

The folder holds train/CLASS and test/CLASS. Compared are `full` (all the data), `full-short` (all
the data for as many updates as a subset gets), `fresh-random` and the default, `order-dp`. Each
trains at the learning rate that is best, with a seed of its own, on a tenth of the training images
that is held out of that choice; then on all of them with the other seeds. Only these last runs see
the test images. What is in --output already is not run again, and every run goes to its runs.jsonl.
Other flags go to train.py: --device cpu, --val-interval, another --model.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from adaptive_subset.integrations.timm_flags import strategy_names
from equal_cost import Run, by_rate, check_least, save, table

METHODS = ("full", "full-short", "fresh-random", "order-dp")
CHOICE_SEED = 1000


def hold_out(data: Path, folder: Path) -> None:
    """Links to the training images: each tenth of a class in validation/, the rest in train/."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sorted((data / "train").iterdir()):
        for split in ("train", "validation"):
            (folder / split / source.name).mkdir(parents=True)
        for number, image in enumerate(sorted(source.iterdir())):
            split = "train" if number % 10 else "validation"
            (folder / split / source.name / image.name).symlink_to(image.resolve())


def flags_of(method: str, args: argparse.Namespace) -> list[str]:
    """The same schedule over the updates, and the same number of evaluations, for all."""
    epochs = args.epochs
    if method == "full-short":
        epochs = max(1, round(epochs * args.fraction))
    flags = ["--epochs", epochs, "--val-interval", max(1, epochs // 20)]
    if method not in ("full", "full-short"):
        flags += ["--subset-fraction", args.fraction, "--subset-strategy", method]
    return [str(flag) for flag in flags]


def run(
    method: str, lr: float, seed: int, data: Path, evaluated_on: str, args: argparse.Namespace
) -> Run:
    """Top-1 after the last epoch in percent, and the seconds of the whole command."""
    name = f"{method}-lr{lr:g}-seed{seed}"
    command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", args.script]
    command += ["--data-dir", str(data), "--output", str(args.output), "--experiment", name]
    command += f"""--train-split train --val-split {evaluated_on} --num-classes 10
        --model resnet10t --img-size 32 --opt sgd --lr {lr} --batch-size 128 --scale 0.6 1
        --sched-on-updates --warmup-epochs 0 --cooldown-epochs 0 --seed {seed}""".split()
    command += [*flags_of(method, args), *args.more]
    done = args.output / name / "done.json"
    if not done.exists():
        start = time.perf_counter()
        if code := subprocess.run(command).returncode:
            raise SystemExit(f"{name} failed with exit status {code}; it says why above")
        seconds = time.perf_counter() - start
        with open(args.output / name / "summary.csv") as file:
            top1 = float(list(csv.DictReader(file))[-1]["eval_top1"])
        done.write_text(json.dumps({"command": command, "top1": top1, "seconds": seconds}))
    result = json.loads(done.read_text())
    if result.pop("command") != command:
        raise SystemExit(f"{done.parent} was run with other flags: give another --output")
    reached = {"validation": None, "test": None, evaluated_on: result["top1"]}
    return Run(method, lr, seed, **reached, seconds=result["seconds"])


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("script", help="timm's train.py")
    parser.add_argument("data", type=Path, help="folder of train/CLASS and test/CLASS")
    parser.add_argument("--output", type=Path, default=Path("runs/timm_cifar10"))
    names = ("full", "full-short", *strategy_names())
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=names, metavar="METHOD",
        help=", ".join(names))  # fmt: skip
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, nargs="+", default=(0.1, 0.2))
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    args, more = parser.parse_known_args()
    args.more = more
    check_least(parser, args, epochs=1, seeds=1, lr=1e-12)
    if not 0 < args.fraction <= 1:
        parser.error(f"--fraction must be in (0, 1], got {args.fraction}")
    if not Path(args.script).is_file():
        parser.error(f"script must be timm's train.py, got {args.script}, which is no file")
    if not all((args.data / split).is_dir() for split in ("train", "test")):
        parser.error(f"data must have folders train and test, got {args.data}")
    hold_out(args.data, held_out := args.output / "held_out")
    choosing = partial(run, data=held_out, evaluated_on="validation", args=args)
    runs = []
    for method in args.methods:
        tried = by_rate(choosing, method, CHOICE_SEED, args.lr, 2)
        lr = tried[0].rate
        runs += tried
        runs += [run(method, lr, seed, args.data, "test", args) for seed in range(args.seeds)]
    save(args.output / "runs.jsonl", runs)
    print("\n" + "\n".join(table(runs, "top-1, %", digits=2)))


if __name__ == "__main__":
    main()
