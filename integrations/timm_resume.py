"""The files that lie beside timm's checkpoints: one an epoch, as long as its checkpoint is kept."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from adaptive_subset.integrations.timm_flags import Refusal, flag_of, subset_flags

from adaptive_subset import AdaptiveSubsetSampler

_FOLDER = flag_of("storage_dir")


def folder_of(resume: str) -> Path:
    """Where the run that wrote the checkpoint `resume`, or what that links to, keeps its files."""
    return Path(resume).resolve().parent


def has_subset(resume: str) -> bool:
    """Whether the run that wrote the checkpoint `resume` had a subset."""
    return bool(_files(folder_of(resume)))


def plan_of(resume: str) -> dict[str, Any]:
    """What the run that wrote the checkpoint `resume` was planned with; empty if it had no subset.

    Its ``epochs``, on which a warm start depends, its ``batch_size`` and its ``flags``.
    """
    files = _files(folder_of(resume)) if resume else {}
    if not files:
        return {}
    plan: dict[str, Any] = _read(files[max(files)])["plan"]
    return plan


def plan(args: argparse.Namespace, planned: Mapping[str, Any]) -> dict[str, Any]:
    """What this run is planned with: as `planned`, where it goes on with another.

    Raises:
        Refusal: other flags than those of the interrupted run.
    """
    here = {flag_of(name): value for name, value in subset_flags(args).items()}
    here["--seed"] = args.seed
    here[_FOLDER] = None  # where gradients are kept for a while chooses nothing
    saved = {**planned.get("flags", {}), _FOLDER: None}
    names = [name for name in (here | saved) if here.get(name) != saved.get(name)]
    if planned and names:
        differing = ", ".join(f"{n} {saved.get(n)} there and {here.get(n)} here" for n in names)
        raise Refusal(
            f"--resume must go on with the flags of the interrupted run, got {differing}. Give the "
            "same ones; to select anew from this checkpoint on, move the subset-*.pth beside it "
            "away."
        )
    return {
        "epochs": planned.get("epochs", args.epochs),
        "batch_size": planned.get("batch_size", args.batch_size),
        "flags": here,
    }


def save(
    sampler: AdaptiveSubsetSampler, folder: str | Path, epoch: int, planned: Any, keep: int
) -> None:
    """Write what a checkpoint of the state after `epoch` needs to be gone on with.

    Files of earlier epochs go when their checkpoint has gone; the last `keep` stay, which is how
    many epochs the newest checkpoint can be behind.
    """
    folder = Path(folder)
    path = folder / f"subset-{epoch}.pth"
    half = path.with_suffix(".tmp")
    torch.save({"plan": planned, "sampler": sampler.state_dict()}, half)
    os.replace(half, path)  # never half a file
    for earlier, file in _files(folder).items():
        checkpoint = folder / f"checkpoint-{earlier}.pth.tar"
        if earlier < epoch - keep and not checkpoint.exists():
            file.unlink()


def load_before(epoch: int, sampler: AdaptiveSubsetSampler, folder: Path) -> int | None:
    """Load the newest state in `folder` from before `epoch`; of which epoch it is, if any."""
    files = _files(folder)
    last = max((saved for saved in files if saved < epoch), default=None)
    if last is not None:
        sampler.load_state_dict(_read(files[last])["sampler"])
    return last


def remove(folder: str | Path) -> int:
    """Remove the files of an earlier run from the folder of a new one; how many there were."""
    files = _files(Path(folder))
    for file in files.values():
        file.unlink()
    return len(files)


def _files(folder: Path) -> dict[int, Path]:
    named = {path.stem.removeprefix("subset-"): path for path in folder.glob("subset-*.pth")}
    return {int(epoch): path for epoch, path in named.items() if epoch.isdecimal()}


def _read(path: Path) -> dict[str, Any]:
    try:
        state: Any = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError):  # damaged, each in its own way
        state = None
    if not isinstance(state, dict) or not state.keys() >= {"plan", "sampler"}:
        raise Refusal(
            f"--resume must find what this version wrote, got another {path.name} beside the "
            "checkpoint, or a damaged one. Move it away to select anew."
        )
    return state
