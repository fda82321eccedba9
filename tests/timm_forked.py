"""One run of a training script in processes that are forked off this one, which has imported timm.

As torchrun would start them, without its half a minute of imports a run.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.timm_run import observed_run

SECONDS = 240


def prepare(script: Path) -> None:
    """Import the timm beside `script`, once for all runs; no timm may be imported yet."""
    torch.set_num_threads(1)  # before forks, which threads do not outlive
    sys.path.insert(0, str(script.parent))
    importlib.import_module("timm.models")


def run(
    script: Path, flags: list[str], processes: int, log: Path
) -> tuple[list[int | None], list[dict[str, Any]]]:
    """Exit codes of the processes of one run, and the reports of those that end well.

    Files `log`-RANK hold what they say.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=one_rank, args=(script, flags, rank, processes, port, log))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + SECONDS
    while any(rank.is_alive() for rank in ranks):
        failed = [rank for rank in ranks if rank.exitcode]
        for rank in ranks if failed or time.monotonic() > end else ():
            rank.join(5)  # what has failed fails on all
            rank.kill()
        time.sleep(0.1)
    codes = [rank.exitcode for rank in ranks]
    reports = []
    for number in range(processes):
        with suppress(FileNotFoundError):
            reports.append(json.loads(Path(f"{log}-{number}.json").read_text()))
    return codes, reports


def one_rank(script: Path, flags: list[str], rank: int, of: int, port: int, log: Path) -> None:
    with open(f"{log}-{rank}", "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if of > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ["MASTER_ADDR"] = "localhost"
    try:
        report = observed_run(script, flags, patched=any("--subset" in f for f in flags))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    Path(f"{log}-{rank}.json").write_text(json.dumps(report))
