"""Every test draws the same numbers, alone or in company."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The first example of a test can take long, where the machine is busy or torch loads something.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

# Each of several workers, and what it starts, has one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders for timm."""
    from tests.timm_scripts import make_images

    make_images(folder := tmp_path_factory.mktemp("images"))
    return folder


@pytest.fixture
def flags(images: Path, tmp_path: Path) -> list[str]:
    """What every run of timm's train.py needs."""
    from tests.timm_scripts import base_flags

    return base_flags(images, tmp_path)
