"""Train on all the data and on small subsets of them, and compare accuracy and time.

    python examples/train.py                                    # 8 × 8 digits
    python examples/train.py --data digits-noisy                # a fifth of the labels wrong
    python examples/train.py --data mnist --epochs 100 --fraction 0.1
    python examples/train.py --data path/to/folder --methods full fresh-random gradmatch-warm

Methods: `full` trains on everything, `full-short` on everything for as many steps as a subset run
has; the others on subsets, chosen by the strategy of that name: `random` once for all, the others
as often as the strategy asks for, or every `--every` epochs where it chooses by gradients.
`infobatch`, `seta` and `kakurenbo` size their epochs themselves, whatever --fraction says, and
train on most of the data in each; they are not at equal cost with the others. With `-warm` behind
it, a method spends its first epochs on shuffled shards of all the data.
Finished runs are kept in `--out` and are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import data
import models
import torch
from equal_cost import check_least
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive_subset import STRATEGIES, AdaptiveSubsetSampler, Selector, WeightedLoss
from adaptive_subset.energy import EnergyError, EnergyMeter

try:
    import report
    from rich.console import Console
    from rich.progress import track
except ImportError as error:
    raise SystemExit(f"{error.name} is missing; {data.EXTRA}") from error

FULL = ("full", "full-short")
# What selects in every epoch, from all the data, is warm as it is.
WARM = tuple(f"{name}-warm" for name, kind in STRATEGIES.items() if kind.every > 1)
METHODS = (*FULL, *STRATEGIES, *WARM)


def subset_sampler(
    method: str, images: data.Data, options: argparse.Namespace, seed: int
) -> AdaptiveSubsetSampler:
    """The sampler of one method; it draws `fraction` of the training set in every epoch."""
    name = method.removesuffix("-warm")
    arguments = {"batch_size": options.batch_size, "epochs": options.epochs}
    known = {field.name for field in dataclasses.fields(STRATEGIES[name])}  # type: ignore[arg-type]
    strategy = STRATEGIES[name](**{k: v for k, v in arguments.items() if k in known})
    selector = Selector(
        images.train,
        strategy,
        fraction=None if strategy.sizes_itself else options.fraction,
        pool=images.plain,  # choose by the images as they are, not augmented
        pool_fraction=options.pool_fraction if strategy.needs_gradients else 1.0,
        groups=images.train.labels if strategy.needs_groups else None,
        num_workers=options.workers,
        seed=seed,
    )
    every = options.every if strategy.needs_gradients else None
    warm_start = options.warm_start if method.endswith("-warm") else 0.0
    return AdaptiveSubsetSampler(
        selector, every=every, epochs=options.epochs, warm_start=warm_start, seed=seed
    )


def train(method: str, images: data.Data, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one network; the time includes every selection and leaves out the evaluation."""
    torch.manual_seed(seed)
    device = options.device
    model = models.build(options.model, images.shape, images.classes).to(device)

    loading: dict[str, Any] = {"batch_size": options.batch_size, "num_workers": options.workers}
    criterion: nn.Module
    epochs = options.epochs
    if method == "full-short":
        epochs = max(1, round(options.fraction * epochs))
    if method in FULL:
        sampler = None
        loader = DataLoader(images.train, shuffle=True, **loading)
        criterion = nn.CrossEntropyLoss()
    else:
        sampler = subset_sampler(method, images, options, seed)
        loader = DataLoader(sampler.dataset, sampler=sampler, **loading)
        criterion = WeightedLoss(nn.CrossEntropyLoss(), sampler.selector)

    optimizer = torch.optim.SGD(
        model.parameters(), options.lr, momentum=0.9, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    seconds, curve = 0.0, []
    meter = EnergyMeter() if options.energy else None
    for epoch in track(range(epochs), f"{method}, seed {seed}", transient=True):
        start = clock(device)
        model.train()
        if sampler is not None:
            with counted("selection", meter):
                sampler.maybe_reselect(model, epoch)
        with counted("training", meter):
            for x, y in loader:
                loss = criterion(model(x.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        seconds += clock(device) - start
        # Training on all the data may be stopped after any epoch, at the time of a subset run.
        if method in FULL or (epoch + 1) % max(1, epochs // 20) == 0 or epoch + 1 == epochs:
            reached = accuracy(model, images.test, device)
            curve.append({"epoch": epoch + 1, "seconds": seconds, "accuracy": reached})

    history = sampler.history if sampler is not None else []
    return {
        "accuracy": curve[-1]["accuracy"],
        "seconds": seconds,
        "joules": None if meter is None else meter.total(),
        "joules_by_phase": None if meter is None else meter.joules,
        "selection_seconds": sum(s["forward_seconds"] + s["solver_seconds"] for s in history),
        "curve": curve,
        "selections": history,
    }


@torch.inference_mode()
def accuracy(model: nn.Module, test: data.Images, device: torch.device) -> float:
    """The share of test images that the model classifies correctly."""
    model.eval()

    def hits(x: Tensor, y: Tensor) -> int:
        return int((model(x.to(device)).argmax(1) == y.to(device)).sum())

    return sum(hits(x, y) for x, y in DataLoader(test, batch_size=1000)) / len(test)


def counted(phase: str, meter: EnergyMeter | None) -> AbstractContextManager[None]:
    """Counts energy as that of `phase`, if any is measured."""
    return nullcontext() if meter is None else meter.phase(phase)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for, skip what is done already, and report."""
    options = parse(arguments)
    try:
        images = data.load(options.data)
        options.model = options.model or models.default(images.shape)
        model = models.build(options.model, images.shape, images.classes).to(options.device)
        x = torch.zeros(options.batch_size, *images.shape, device=options.device)
        model(x).sum().backward()  # warm up: what comes first would seem slower
        if options.energy:
            EnergyMeter()  # now, if there is none
        for method in set(options.methods).difference(FULL):
            subset_sampler(method, images, options, seed=0)  # what its sizes do not fit, now too
    except (data.DataError, models.ModelError, EnergyError, ValueError) as error:
        raise SystemExit(str(error)) from error

    aside = ("methods", "seeds", "device", "out")
    settings = {name: value for name, value in vars(options).items() if name not in aside}
    environment = report.environment(options.device)
    run_kind = hashlib.sha256(json.dumps([settings, environment]).encode()).hexdigest()[:8]
    finished = options.out / "finished"
    finished.mkdir(parents=True, exist_ok=True)

    console = Console()
    runs: report.Runs = {method: [] for method in options.methods}
    for seed in options.seeds:
        for method in options.methods:
            path = finished / f"{method}-seed{seed}-{run_kind}.json"
            name, note = f"{method}, seed {seed}", "done before"
            if not path.exists():
                report.write_json(path, train(method, images, options, seed))
                note = ""
            run = json.loads(path.read_text())
            runs[method].append(run)
            console.print(f"{name}: {run['accuracy']:.2%} in {run['seconds']:.1f} s {note}")

    amount = f"{100 * options.fraction:.3g} % of {len(images.train):,} images"
    title = (
        f"{Path(options.data).name}, {options.model}, {options.epochs} epochs; subsets: {amount}"
    )
    results = {"settings": settings, "seeds": options.seeds, "environment": environment}
    report.write_json(options.out / "results.json", results | {"runs": runs})
    report.plot(runs, title, options.out / "accuracy.png")
    console.print(report.table(runs, title))
    console.print(f"plot and figures: {options.out}/accuracy.png, {options.out}/results.json")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is not given depends on the data."""
    description, _, methods = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=methods,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", help=f"{', '.join(data.NAMES)}, or a folder (digits)")
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS),
        default=["full", "random", "fresh-random", "gradmatch"])  # fmt: skip
    add("--fraction", type=float, default=0.1, help="size of the subset (0.1)")
    add("--every", type=int, metavar="R",
        help="epochs between selections by gradients (the strategy's own: 20)")  # fmt: skip
    add("--pool-fraction", type=float, default=1.0,
        help="share of the data that a selection looks at, drawn afresh (1)")  # fmt: skip
    add("--warm-start", type=float, default=0.5, help="warm share of a -warm method (0.5)")
    add("--epochs", type=int, default=100, help="epochs of every method (100)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    add("--lr", type=float, default=0.01, help="learning rate at the start (0.01)")
    add("--weight-decay", type=float, default=5e-4, help="(5e-4)")
    add("--batch-size", type=int, help="(128; 32 for digits)")
    add("--model", choices=models.NAMES, help="(by the size of the images)")
    add("--device", default="auto", help="(cuda where there is one, else cpu)")
    add("--workers", type=int, default=0, help="processes that load data (0)")
    add("--energy", action="store_true", help="measure energy too (Intel RAPL, NVML; pyJoules)")
    add("--out", type=Path, help="folder for the results (runs/DATA)")
    options = parser.parse_args(arguments)

    check_least(parser, options, epochs=1, every=1, batch_size=1)
    check_least(parser, options, seeds=0, lr=0, weight_decay=0, workers=0)
    if not 0 < options.fraction <= 1:
        parser.error(f"--fraction must be in (0, 1], got {options.fraction}")
    if not options.fraction <= options.pool_fraction <= 1:
        parser.error(f"--pool-fraction must be in [--fraction, 1], got {options.pool_fraction}")
    if not 0 <= options.warm_start <= 1:
        parser.error(f"--warm-start must be in [0, 1], got {options.warm_start}")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        options.device = torch.device(options.device)
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: {str(error).splitlines()[0]}")
    options.methods = list(dict.fromkeys(options.methods))
    options.seeds = list(dict.fromkeys(options.seeds))
    options.batch_size = options.batch_size or (32 if options.data in data.SMALL else 128)
    options.out = options.out or Path("runs") / Path(options.data).resolve().name
    return options


if __name__ == "__main__":
    main()
