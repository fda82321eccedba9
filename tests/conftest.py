"""Every test draws the same numbers, alone or in company."""

from __future__ import annotations

import os
import random

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
