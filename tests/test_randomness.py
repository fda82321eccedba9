"""Draws: by seed, epoch and purpose, and walks through the data that repeat nothing too early."""

from __future__ import annotations

import itertools

import pytest
import torch

from adaptive_subset import AdaptiveSubsetSampler, FreshRandom, Selector
from adaptive_subset.randomness import Purpose, seeded, shard
from tests import models
from tests.test_sampler import data


def walk(n: int, size: int, epochs: int, seed: int) -> list[list[int]]:
    """`shard` as it is defined: passes dealt out sample by sample, nothing twice in an epoch."""
    dealt: list[list[int]] = []
    passes, left = itertools.count(), list[int]()
    for _ in range(epochs):
        epoch = list[int]()
        while len(epoch) < size:
            if not left:
                generator = seeded(seed, next(passes), Purpose.PASS)
                left = torch.randperm(n, generator=generator).tolist()
                first = [i for i in left if i not in epoch][: size - len(epoch)] if epoch else []
                left = first + [i for i in left if i not in first]
            epoch.append(left.pop(0))
        dealt.append(epoch)
    return dealt


@pytest.mark.parametrize(
    ("n", "size"), [(n, k) for n in (1, 2, 5, 7, 10, 13) for k in range(1, n + 1)]
)
def test_shards_are_the_walk(n: int, size: int) -> None:
    epochs = [shard(n, size, epoch, seed=3).tolist() for epoch in range(30)]
    assert epochs == walk(n, size, 30, seed=3)
    assert all(len(set(epoch)) == size for epoch in epochs)
    seen = torch.bincount(torch.tensor(epochs).flatten(), minlength=n)
    assert int(seen.max() - seen.min()) <= 1


@pytest.mark.parametrize(("n", "size"), [(10, 9), (101, 60), (100, 99), (40, 40), (41, 7)])
def test_a_late_epoch_takes_no_walk_through_all_before(
    n: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, draw = list[int](), torch.randperm

    def counted(of: int, generator: torch.Generator) -> torch.Tensor:
        made.append(of)
        return draw(of, generator=generator)

    monkeypatch.setattr(torch, "randperm", counted)
    for epoch in range(2000, 2020):
        assert len(shard(n, size, epoch, seed=3).unique()) == size
    assert len(made) <= 20 * 2 * n


def test_no_sample_comes_twice_in_an_epoch() -> None:
    """Neither in a warm start nor with fresh random subsets, where a pass ends inside the epoch."""
    for strategy, warm_start in ((FreshRandom(), 0.0), (FreshRandom(), 1.0)):
        selector = Selector(data(), strategy, budget=15)
        sampler = AdaptiveSubsetSampler(selector, epochs=20, warm_start=warm_start)
        for epoch in range(20):
            sampler.maybe_reselect(models.mlp(), epoch)
            assert len(set(map(int, sampler))) == 15


def test_draws_for_different_purposes_differ() -> None:
    draws = {
        tuple(torch.randperm(50, generator=seeded(0, epoch, purpose)).tolist())
        for epoch in range(3)
        for purpose in Purpose
    }
    assert len(draws) == 3 * len(Purpose)
