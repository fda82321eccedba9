"""What a whole selection costs, in units of a bare inference pass over the same data.

    python -m benchmarks.selection --data mnist --out runs/selection.json

Both sides read the same dataset through a DataLoader of the same batch size, in turns in one
process. The network is trained for one epoch first, since gradients of an untrained one are not
typical. Medians of `--repeats`; raw figures and the environment are saved.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import GradMatch, GradMatchPB, Selector
from examples import data, models


def seconds(run: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="mnist", help="as in examples/train.py (mnist)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/selection.json"))
    options = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load(options.data)
    model = models.build(models.default(images.shape), images.shape, images.classes).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for x, y in DataLoader(images.plain, 128, shuffle=True):
        optimizer.zero_grad()
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    model.eval()

    @torch.inference_mode()
    def bare() -> None:
        for x, _ in DataLoader(images.plain, options.batch_size, pin_memory=device.type == "cuda"):
            model(x.to(device, non_blocking=True))

    cases = [(s, f) for f in (0.1, 0.01) for s in (GradMatch(), GradMatchPB())]
    rows: list[dict[str, Any]] = []
    passes: list[list[float]] = [[] for _ in cases]
    totals: list[list[float]] = [[] for _ in cases]
    solvers: list[list[float]] = [[] for _ in cases]
    bare()
    for _ in range(options.repeats):
        for i, (strategy, fraction) in enumerate(cases):
            selector = Selector(
                images.plain,
                strategy,
                fraction=fraction,
                criterion=criterion,
                batch_size=options.batch_size,
            )
            passes[i].append(seconds(bare))
            totals[i].append(seconds(lambda selector=selector: selector.select(model, 0)))
            assert selector.selection is not None
            solvers[i].append(selector.selection.solver_seconds)
    for i, (strategy, fraction) in enumerate(cases):
        ratios = [t / p for t, p in zip(totals[i], passes[i], strict=True)]
        rows.append(
            {
                "strategy": type(strategy).__name__,
                "fraction": fraction,
                "inference_seconds": passes[i],
                "selection_seconds": totals[i],
                "solver_seconds": solvers[i],
                "ratio": statistics.median(ratios),
            }
        )
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "machine": platform.machine(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    print("| strategy | fraction | inference pass | selection | of it solver | ratio |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        times = [
            statistics.median(row[name])
            for name in ("inference_seconds", "selection_seconds", "solver_seconds")
        ]
        cells = " | ".join(f"{value:.2f} s" for value in times)
        print(f"| {row['strategy']} | {row['fraction']} | {cells} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()
