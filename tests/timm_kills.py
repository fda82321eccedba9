"""Kill a run of timm's training script on two processes in mid-epoch, again and again, and resume.

    python -m tests.timm_kills path/to/train.py [--times 10] [--strategy NAME …] [-j WORKERS]

One process, now this and now the other, gets SIGKILL in the epoch after each checkpoint; the run
then goes on from that. In the end weights, optimiser and subset must be, bit by bit, those of a run
that nobody disturbed. Without augmentation, which train.py draws anew when it resumes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.timm_forked import prepare, run
from tests.timm_run import CLASSES
from tests.timm_scripts import PER_CLASS, base_flags, make_images, process_of

BATCH, PROCESSES = 4, 2
STEPS = CLASSES * PER_CLASS // 2 // PROCESSES // BATCH  # of an epoch, on half of the images


def kill_and_resume(script: Path, times: int, options: list[str], folder: Path) -> str:
    """What differs in the end; in a process that has not imported timm yet."""
    prepare(script)
    make_images(images := folder / "images")
    flags = [*base_flags(images, folder), "-b", str(BATCH), "--epochs", str(times + 2), "--no-aug"]
    flags += ["--subset-fraction", "0.5", *options]
    codes, _ = run(script, [*flags, "--experiment", "whole"], PROCESSES, folder / "whole.log")
    assert codes == [0, 0], codes
    flags += ["--experiment", "killed"]
    last = folder / "killed" / "last.pth.tar"
    for kill in range(times):
        os.environ["KILL"] = f"{STEPS + 1 + kill % (STEPS - 1)} {kill // 2 % PROCESSES}"
        go_on = ["--resume", str(last)] if kill else []
        codes, _ = run(script, [*flags, *go_on], PROCESSES, folder / f"killed-{kill}.log")
        assert codes[kill // 2 % PROCESSES] == -9, codes
        assert torch.load(last, weights_only=False)["epoch"] == kill
    del os.environ["KILL"]
    go_on = ["--resume", str(last)]
    codes, _ = run(script, [*flags, *go_on], PROCESSES, folder / "end.log")
    assert codes == [0, 0], codes
    return difference(folder / "whole", folder / "killed", times + 1)


def difference(whole: Path, killed: Path, epoch: int) -> str:
    """Of two runs' last checkpoints and subsets."""
    compared, differing = 0, []
    for name, keys in (
        ("last.pth.tar", ("state_dict", "optimizer", "epoch")),
        (f"subset-{epoch}.pth", ("sampler",)),
    ):
        one, other = (torch.load(run_ / name, weights_only=False) for run_ in (whole, killed))
        for key in keys:
            pairs = zip(leaves(one[key]), leaves(other[key]), strict=True)
            for (path, a), (other_path, b) in pairs:
                compared += 1
                is_tensor = isinstance(a, torch.Tensor)
                same = path == other_path and type(a) is type(b)
                if not same or not (torch.equal(a, b) if is_tensor else a == b):
                    differing.append(f"{key}{path}")
    return f"{len(differing)} of {compared} values differ {differing[:5] or ''}".strip()


def leaves(state: Any, path: str = "") -> list[tuple[str, Any]]:
    """The values of a nested state, with their places; times apart."""
    if isinstance(state, dict):
        items = [(key, value) for key, value in state.items() if "seconds" not in str(key)]
    elif isinstance(state, (list, tuple)):
        items = list(enumerate(state))
    else:
        return [(path, state)]
    return [leaf for key, value in items for leaf in leaves(value, f"{path}/{key}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("script", type=lambda path: Path(path).resolve())
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--strategy", nargs="+", default=["order-dp", "gradmatch-pb"])
    parser.add_argument("-j", "--workers", default="2")
    args = parser.parse_args()
    for strategy in args.strategy:
        options = ["--subset-strategy", strategy, "-j", args.workers]
        if strategy.startswith("gradmatch"):
            options += ["--subset-every", "3"]
        with tempfile.TemporaryDirectory() as folder:
            job = process_of(args.script).submit(
                kill_and_resume, args.script, args.times, options, Path(folder)
            )
            print(f"{strategy}, killed {args.times} times: {job.result()}", flush=True)


if __name__ == "__main__":
    main()
