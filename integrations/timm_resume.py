"""The files that lie beside timm's checkpoints: one small one a selection."""

from __future__ import annotations

from pathlib import Path

import torch

from adaptive_subset import AdaptiveSubsetSampler


def save(sampler: AdaptiveSubsetSampler, folder: str | Path | None) -> None:
    """Write the current selection, so that every checkpoint finds the one it was trained with."""
    if folder and sampler.selection is not None:
        torch.save(sampler.state_dict(), Path(folder) / f"subset-{sampler.selection.epoch}.pth")


def load_before(epoch: int, sampler: AdaptiveSubsetSampler, folder: Path) -> bool:
    """Load the newest selection in `folder` that was made before `epoch`; whether there is one."""
    saved = {int(path.stem.removeprefix("subset-")): path for path in folder.glob("subset-*.pth")}
    earlier = [made for made in saved if made < epoch]
    if earlier:
        sampler.load_state_dict(torch.load(saved[max(earlier)], weights_only=True))
    return bool(earlier)
