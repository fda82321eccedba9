"""timm's unmodified train.py on an image folder: adaptive subsets beside all the data.

    git clone --depth 1 https://github.com/huggingface/pytorch-image-models
    python examples/timm_cifar10.py pytorch-image-models/train.py path/to/cifar10

The folder holds train/CLASS and test/CLASS. Compared are `full` (all the data), `full-short` (all
the data for as many updates as a subset gets), `fresh-random` and the default, `order-dp`. Each
takes the learning rate that is best with a seed of its own, then is run with the others. What is in
--output already is not run again. Other flags go to train.py as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

METHODS = ("full", "full-short", "fresh-random", "order-dp")
TUNING_SEED = 1000


def flags_of(method: str, args: argparse.Namespace) -> list[str]:
    """The same share of the run for warm-up and the same number of evaluations for all."""
    epochs = round(args.epochs * args.fraction) if method == "full-short" else args.epochs
    flags = ["--epochs", epochs, "--warmup-epochs", round(epochs / 20)]
    flags += ["--val-interval", max(1, epochs // 20)]
    if method not in ("full", "full-short"):
        flags += ["--subset-fraction", args.fraction, "--subset-strategy", method]
    return [str(flag) for flag in flags]


def run(method: str, lr: float, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Top-1 after the last epoch in percent, and the seconds of the whole command."""
    name = f"{method}-lr{lr:g}-seed{seed}"
    done = args.output / name / "done.json"
    if not done.exists():
        command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", args.script]
        command += f"""--data-dir {args.data} --train-split train --val-split test --num-classes 10
            --model resnet10t --img-size 32 --opt sgd --lr {lr} --batch-size 128 --scale 0.6 1
            --cooldown-epochs 0 --seed {seed} --output {args.output} --experiment {name}""".split()
        start = time.perf_counter()
        subprocess.run([*command, *flags_of(method, args), *args.more], check=True)
        seconds = time.perf_counter() - start
        with open(args.output / name / "summary.csv") as file:
            top1 = float(list(csv.DictReader(file))[-1]["eval_top1"])
        done.write_text(json.dumps({"top1": top1, "seconds": seconds}))
    result: dict[str, float] = json.loads(done.read_text())
    return result


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("script", help="timm's train.py")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/timm_cifar10"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, nargs="+", default=(0.02, 0.05, 0.1, 0.2))
    parser.add_argument("--seeds", type=int, default=3)
    args, more = parser.parse_known_args()
    args.more = more
    rows = []
    for method in args.methods:
        lr = args.lr[0]
        if len(args.lr) > 1:
            lr = max(args.lr, key=lambda lr: run(method, lr, TUNING_SEED, args)["top1"])
        results = [run(method, lr, seed, args) for seed in range(args.seeds)]
        top1 = [result["top1"] for result in results]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        seconds = statistics.mean(result["seconds"] for result in results)
        rows.append(
            f"| `{method}` | {lr:g} | {statistics.mean(top1):.2f}{spread} | {seconds:.0f} |"
        )
    print("\n| method | learning rate | top-1, % | seconds |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
