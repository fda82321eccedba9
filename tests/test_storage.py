"""Gradients in a file: the same numbers, in no memory of the process, gone with them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptive_subset import GradMatchPB, Selector, TokenLoss
from adaptive_subset.gradients import GradientSource
from adaptive_subset.gradients.collect import last_layer_gradients
from tests import models
from tests.test_last_layer import dense

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(7) % 4


@pytest.mark.parametrize("size", [len(X), None])
@pytest.mark.parametrize("stored", [None, torch.float16])
def test_gradients_may_be_kept_in_a_file(
    tmp_path: Path, size: int | None, stored: torch.dtype | None
) -> None:
    model, batches, criterion = models.mlp(), [(X[:4], Y[:4]), (X[4:], Y[4:])], F.cross_entropy
    options: Any = {"size": size, "storage_dtype": stored}
    expected = last_layer_gradients(model, batches, criterion, **options)[0]
    found = last_layer_gradients(model, batches, criterion, storage_dir=tmp_path, **options)[0]
    for factor, other in zip(found.rows(), expected.rows(), strict=True):
        assert torch.equal(factor, other)
        assert factor.dtype == other.dtype
    maps = Path("/proc/self/maps").read_text().splitlines()
    mine = [line for line in maps if str(tmp_path) in line]
    assert len(mine) == 2  # δ and h
    assert all(line.endswith("(deleted)") for line in mine)
    assert not list(tmp_path.iterdir())
    del found, factor
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_sums_over_positions_may_be_kept_in_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    batches = [(torch.arange(12).view(2, 6) % 7, torch.arange(12).view(2, 6) % 5)]
    expected = last_layer_gradients(model, batches, TokenLoss(), size=2)[0]
    found = last_layer_gradients(model, batches, TokenLoss(), size=2, storage_dir=tmp_path)[0]
    assert torch.equal(dense(found), dense(expected))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_a_disk_without_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"`storage_dir` must have room for 0.00 GiB.*No space left"):
        last_layer_gradients(models.mlp(), [(X, Y)], F.cross_entropy, storage_dir=tmp_path)
    with pytest.raises(ValueError, match="`storage_dir` must be a folder that exists, got '/none'"):
        GradientSource(TensorDataset(X, Y), storage_dir="/none")


def test_a_system_that_reserves_no_room_keeps_gradients_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS, which has no such call."""
    monkeypatch.delattr(os, "posix_fallocate")
    model, batches = models.mlp(), [(X, Y)]
    found = last_layer_gradients(model, batches, F.cross_entropy, storage_dir=tmp_path)[0]
    assert torch.equal(
        dense(found), dense(last_layer_gradients(model, batches, F.cross_entropy)[0])
    )
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("strategy", ["gradmatch", "gradmatch-pb", "craig", "glister"])
def test_a_selection_from_a_file_is_that_from_memory(tmp_path: Path, strategy: str) -> None:
    model, found = models.mlp(), []
    for folder in (None, tmp_path):
        selector = Selector(
            TensorDataset(X, Y),
            GradMatchPB(batch_size=2) if strategy == "gradmatch-pb" else strategy,
            budget=4,
            criterion=nn.CrossEntropyLoss(),
            storage_dir=folder,
        )
        found.append(selector.select(model, 0))
    assert torch.equal(found[0].indices, found[1].indices)
    assert torch.equal(found[0].weights, found[1].weights)
