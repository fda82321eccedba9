"""Draws within groups of samples."""

from __future__ import annotations

import pytest
import torch

from adaptive_subset import Candidates, PerEpoch
from adaptive_subset.randomness import Purpose, seeded
from adaptive_subset.strategies import draws
from adaptive_subset.strategies.by_group import ByGroup
from adaptive_subset.strategies.division import Shares

GROUPS = torch.tensor([2] * 60 + [7] * 30 + [0] * 10)[
    torch.randperm(100, generator=torch.Generator().manual_seed(0))
]
LOSSES = torch.rand(100, generator=torch.Generator().manual_seed(1))


def sizes(positions: torch.Tensor) -> list[int]:
    return [int((GROUPS[positions] == group).sum()) for group in (0, 2, 7)]


@pytest.mark.parametrize(
    ("shares", "expected"), [("proportional", [3, 18, 9]), ("equal", [10, 10, 10])]
)
@pytest.mark.parametrize("within", [draws.LargestOfPool(0.5, 0.2), draws.Proportional(0.5)])
def test_groups_have_their_shares(within: draws.Draw, shares: Shares, expected: list[int]) -> None:
    strategy = PerEpoch(draw=ByGroup(within, GROUPS, shares))
    choice = strategy.choose(Candidates(100, losses=LOSSES), 30, seed=0, epoch=4)
    assert sizes(choice.positions) == expected
    assert float(choice.weights.sum()) == pytest.approx(100)
    assert choice.weights.tolist() == pytest.approx([100 / 30] * 30)


def test_each_group_is_drawn_from_as_if_it_were_alone() -> None:
    within = draws.LargestOfPool(0.5, 0.2)
    draw = ByGroup(within, GROUPS, "proportional")
    generator = seeded(0, 3, Purpose.SELECTION)
    found = draw.draw(LOSSES, 30, epoch=3, generator=generator)
    again = seeded(0, 3, Purpose.SELECTION)
    expected = []
    for group, size in ((0, 3), (2, 18), (7, 9)):
        members = torch.nonzero(GROUPS.eq(group))[:, 0]
        part = within.draw(LOSSES[members], size, epoch=3, generator=again)
        expected += members[part.positions].tolist()
    assert found.positions.tolist() == expected


def test_what_one_group_finds_hard_does_not_crowd_out_another() -> None:
    hard = LOSSES + 10 * (GROUPS == 2)
    plain, grouped = draws.LargestOfPool(0.3), ByGroup(draws.LargestOfPool(0.3), GROUPS)
    found = [
        PerEpoch(draw=draw).choose(Candidates(100, losses=hard), 30, seed=0, epoch=0).positions
        for draw in (plain, grouped)
    ]
    assert sizes(found[0])[1] == 30
    assert sizes(found[1]) == [3, 18, 9]


def test_unbiased_weights_stay_unbiased_within_a_group() -> None:
    draw = ByGroup(draws.Proportional(0.5, unbiased=True), GROUPS)
    total = torch.zeros(100, dtype=torch.float64)
    for epoch in range(2000):
        generator = torch.Generator().manual_seed(epoch)
        choice = draw.draw(LOSSES, 30, epoch=epoch, generator=generator)
        total[choice.positions] += choice.weights
    assert float((total / 2000 - 1).abs().max()) < 0.3
    assert float((total / 2000).mean()) == pytest.approx(1, abs=0.02)


def test_other_groups_are_another_configuration() -> None:
    groups = GROUPS.clone()
    draw = ByGroup(draws.LargestOfPool(), groups)
    name = repr(draw)
    groups[0] = 5
    assert repr(draw) == name
    assert repr(ByGroup(draws.LargestOfPool(), groups)) != name
    assert len(name) < 120


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="`within` must be a draw of a given number"):
        ByGroup(draws.BelowMeanDropped(), GROUPS)
    with pytest.raises(TypeError, match="`groups` must be a tensor of whole numbers, got a list"):
        ByGroup(draws.Proportional(), [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one number for each sample .* got shape \(50, 2\)"):
        ByGroup(draws.Proportional(), GROUPS.view(50, 2))
    with pytest.raises(ValueError, match="`shares` must be"):
        ByGroup(draws.Proportional(), GROUPS, "same")  # type: ignore[arg-type]
    short = PerEpoch(draw=ByGroup(draws.Proportional(), GROUPS[:99]))
    with pytest.raises(ValueError, match="each of the 100 samples of the dataset, got 99"):
        short.choose(Candidates(100, losses=LOSSES), 30, seed=0, epoch=0)
