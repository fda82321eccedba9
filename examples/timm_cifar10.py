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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    """The same share of the run for warm-up and the same number of evaluations for all."""
    epochs = args.epochs
    if method == "full-short":
        epochs = max(1, round(epochs * args.fraction))
    flags = ["--epochs", epochs, "--warmup-epochs", round(epochs / 20)]
    flags += ["--val-interval", max(1, epochs // 20)]
    if method not in ("full", "full-short"):
        flags += ["--subset-fraction", args.fraction, "--subset-strategy", method]
    return [str(flag) for flag in flags]


def run(
    method: str, lr: float, seed: int, data: Path, evaluated_on: str, args: argparse.Namespace
) -> dict[str, float]:
    """Top-1 after the last epoch in percent, and the seconds of the whole command."""
    name = f"{method}-lr{lr:g}-seed{seed}"
    command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", args.script]
    command += ["--data-dir", str(data), "--output", str(args.output), "--experiment", name]
    command += f"""--train-split train --val-split {evaluated_on} --num-classes 10
        --model resnet10t --img-size 32 --opt sgd --lr {lr} --batch-size 128 --scale 0.6 1
        --cooldown-epochs 0 --seed {seed}""".split()
    command += [*flags_of(method, args), *args.more]
    done = args.output / name / "done.json"
    if not done.exists():
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        with open(args.output / name / "summary.csv") as file:
            top1 = float(list(csv.DictReader(file))[-1]["eval_top1"])
        done.write_text(json.dumps({"command": command, "top1": top1, "seconds": seconds}))
    result = json.loads(done.read_text())
    if result.pop("command") != command:
        raise SystemExit(f"{done.parent} was run with other flags: give another --output")
    return dict(result)


def best_lr(top1: Callable[[float], float], rates: Sequence[float]) -> float:
    """The learning rate with the highest top-1; half or twice of one at the edge is tried too."""
    tried = {lr: top1(lr) for lr in rates}
    while True:
        best = max(tried, key=tried.__getitem__)
        if best / 2 < min(tried):
            tried[best / 2] = top1(best / 2)
        elif best * 2 > max(tried):
            tried[best * 2] = top1(best * 2)
        else:
            return best


def table(lines: list[dict[str, Any]]) -> str:
    """Top-1 on the test images in percent, mean ± standard error over the seeds."""
    rows = ["| method | learning rate | top-1, % | seconds |", "|---|---|---|---|"]
    for method in dict.fromkeys(line["method"] for line in lines):
        tests = [line for line in lines if line["method"] == method and line["split"] == "test"]
        reached = [line["top1"] for line in tests]
        mean = f"{statistics.mean(reached):.2f}"
        if len(reached) > 1:
            mean += f" ± {statistics.stdev(reached) / len(reached) ** 0.5:.2f}"
        seconds = statistics.mean(line["seconds"] for line in tests)
        rows.append(f"| `{method}` | {tests[0]['lr']:g} | {mean} | {seconds:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("script", help="timm's train.py")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/timm_cifar10"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, nargs="+", default=(0.05, 0.1))
    parser.add_argument("--seeds", type=int, default=3)
    args, more = parser.parse_known_args()
    args.more = more
    hold_out(args.data, held_out := args.output / "held_out")
    lines = []

    def top1(method: str, lr: float, seed: int, split: str) -> float:
        data = held_out if split == "validation" else args.data
        result = run(method, lr, seed, data, split, args)
        lines.append({"method": method, "lr": lr, "seed": seed, "split": split, **result})
        return result["top1"]

    for method in args.methods:
        lr = best_lr(partial(top1, method, seed=CHOICE_SEED, split="validation"), args.lr)
        for seed in range(args.seeds):
            top1(method, lr, seed, "test")
    runs = args.output / "runs.jsonl"
    runs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print("\n" + table(lines))


if __name__ == "__main__":
    main()
