"""InfoBatch: what it keeps, with what weights, and where its losses come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import (
    AdaptiveSubsetSampler,
    Candidates,
    InfoBatch,
    Selector,
    WeightedLoss,
)
from adaptive_subset.loss_record import LossRecord

N = 40
DATA = TensorDataset(torch.arange(float(N))[:, None], torch.zeros(N, 1))


def losses() -> torch.Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(0))


def chosen(losses: torch.Tensor, strategy: InfoBatch | None = None, epoch: int = 0) -> torch.Tensor:
    """The weight of every sample, 0 where it is left out."""
    strategy = strategy or InfoBatch()
    choice = strategy.select(Candidates(N, losses=losses), N, seed=0, epoch=epoch)
    assert len(choice.positions.unique()) == len(choice.positions)
    return torch.zeros(N).index_copy(0, choice.positions, choice.weights)


def test_half_of_the_learned_samples_stand_for_all_of_them() -> None:
    weights, learned = chosen(losses()), losses() < losses().mean()
    assert (weights[~learned] == 1).all()
    assert int((weights[learned] == 0).sum()) == int(learned.sum()) // 2
    kept = weights[learned & (weights > 0)]
    assert (kept == kept[0]).all()
    assert float(kept[0]) == pytest.approx(2, rel=0.1)
    assert float(weights.sum()) == pytest.approx(N)


def test_the_draw_is_fresh_in_every_epoch_and_unbiased() -> None:
    draws = torch.stack([chosen(losses(), epoch=e) for e in range(400)])
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[1], chosen(losses(), epoch=1))
    torch.testing.assert_close(draws.mean(0), torch.ones(N), rtol=0, atol=0.2)


def test_samples_that_were_not_seen_are_kept() -> None:
    assert (chosen(torch.full((N,), torch.nan)) == 1).all()
    some = losses()
    some[::2] = torch.nan
    assert (chosen(some)[::2] == 1).all()
    assert (chosen(some) == 0).any()


def test_nothing_is_left_out_in_the_last_eighth() -> None:
    strategy = InfoBatch(epochs=16)
    assert [bool((chosen(losses(), strategy, e) == 0).any()) for e in (0, 13, 14, 15)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("value", [1.0, 0.1, 0.3, 2.3, 1e-6, -0.7])
@pytest.mark.parametrize("n", [3, 7, N])
def test_equal_losses_leave_all(value: float, n: int) -> None:
    known = torch.full((N,), torch.nan)
    known[:n] = value  # the mean of these is another number in single precision
    assert (chosen(known) == 1).all()


def test_a_ratio_of_zero_leaves_all() -> None:
    assert (chosen(losses(), InfoBatch(ratio=0.0)) == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, r"`ratio` must be in \[0, 1\), got 1.0"),
        ({"epochs": 0}, r"`epochs` must be at least 1, got 0"),
        ({"full": 2.0}, r"`full` must be in \[0, 1\], got 2.0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoBatch(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_training(workers: int) -> None:
    net, selector = nn.Linear(1, 1), Selector(DATA, InfoBatch())
    sampler = AdaptiveSubsetSampler(selector, every=1)
    loader = DataLoader(sampler.dataset, 7, sampler=sampler, num_workers=workers)
    criterion = WeightedLoss(nn.MSELoss(), selector)
    assert selector.losses is not None
    assert selector.losses.values.isnan().all()
    sizes, expected = [], torch.full((N,), torch.nan)
    for epoch in range(3):
        sampler.maybe_reselect(net, epoch)
        sizes.append(len(sampler))
        for x, y in loader:
            output = net(x)
            criterion(output, y)
            expected[x[:, 0].long()] = (output - y).detach().square()[:, 0]
        torch.testing.assert_close(selector.losses.values, expected)
    assert sizes[0] == N
    assert sizes[1] < N
    with torch.no_grad():  # an evaluation on the same loader leaves them as they are
        for x, y in loader:
            criterion(net(x) + 1, y)
    torch.testing.assert_close(selector.losses.values, expected)


def test_samples_without_an_index_are_not_noted() -> None:
    record = LossRecord(N)
    record.note(torch.tensor([3, -1]), torch.tensor([0.5, 9.0]))
    assert record.values.nansum() == 0.5
    assert len(record) == len(record.values) == N


def test_a_sample_with_several_rows_is_noted_with_their_mean() -> None:
    record = LossRecord(3)
    record.note(torch.tensor([1, 0, 1, -1, 1]), torch.tensor([3.0, 7.0, 4.0, 9.0, 5.0]))
    assert record.values[:2].tolist() == [7.0, 4.0]
    record.note(torch.tensor([1]), torch.tensor([2.0]))
    assert record.values[:2].tolist() == [7.0, 2.0]


def test_losses_of_shares_that_no_process_exchanges_are_refused() -> None:
    sampler = AdaptiveSubsetSampler(Selector(DATA, InfoBatch()), num_replicas=2, rank=0)
    with pytest.raises(
        RuntimeError, match=r"`num_replicas` must be at most the 1 processes.*got 2"
    ):
        sampler.maybe_reselect(nn.Linear(1, 1), 0)


def test_the_length_is_not_known_before_the_first_selection() -> None:
    selector = Selector(DATA, InfoBatch())
    WeightedLoss(nn.MSELoss(), selector)
    sampler = AdaptiveSubsetSampler(selector, every=1)
    with pytest.raises(TypeError, match="follows from the first selection"):
        len(sampler)
    sampler.maybe_reselect(nn.Linear(1, 1), 0)
    assert len(sampler) == len(list(sampler)) == N
    with pytest.raises(ValueError, match=r"`warm_start` must be 0"):
        AdaptiveSubsetSampler(Selector(DATA, InfoBatch()), warm_start=0.5, epochs=4)
