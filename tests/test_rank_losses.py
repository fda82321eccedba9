"""Strategies that learn from the losses of training choose on ranks what one process chooses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from adaptive_subset import (
    AdaptiveSubsetSampler,
    InfoBatch,
    InfoBatchByBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    PerEpoch,
    Selector,
    SeTa,
    SeTaByBatch,
    Strategy,
    WeightedLoss,
)
from adaptive_subset.loss_record import LossRecord
from adaptive_subset.strategies import draws, scores
from tests.rank_runs import in_ranks, outcome

# The processes are shared: they start once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

N, BATCH, EPOCHS = 72, 3, 4
STRATEGIES: dict[str, Strategy] = {
    "loss-sampling": LossSampling(),
    "loss-sampling, unbiased": LossSampling(unbiased=True),
    "order-dp": OrderDP(),
    "infobatch": InfoBatch(epochs=8),
    "infobatch-by-batch": InfoBatchByBatch(epochs=8),
    "seta": SeTa(epochs=8),
    "seta-by-batch": SeTaByBatch(epochs=8),
    "kakurenbo": Kakurenbo(epochs=8, confidence=0.2),
    "moving average": PerEpoch(scores.MovingAverage(0.5), draws.LargestOfPool(0.6)),
    "change": PerEpoch(scores.LossChange(), draws.LargestOfPool(0.6)),
}


class Run:
    """A run of one of so many ranks; the averages of gradients are DDP's, written out."""

    def __init__(self, name: str, ranks: int, rank: int) -> None:
        torch.manual_seed(0)
        self.ranks, self.rank = ranks, rank
        data = TensorDataset(torch.randn(N, 6, dtype=torch.float64), torch.arange(N) % 4)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
        strategy = STRATEGIES[name]
        size = {} if strategy.sizes_itself else {"budget": 36}
        self.selector = Selector(data, strategy, **size)  # type: ignore[arg-type]
        self.sampler = AdaptiveSubsetSampler(self.selector, num_replicas=ranks, rank=rank)
        self.criterion = WeightedLoss(nn.CrossEntropyLoss(), self.selector)
        self.selections: list[Any] = []

    @property
    def record(self) -> LossRecord:
        assert self.selector.losses is not None
        return self.selector.losses

    def begin(self, epoch: int, most: int = 6) -> list[list[int]]:
        """The batches of an epoch, as many samples on each of up to `most` ranks."""
        self.sampler.maybe_reselect(self.model, epoch)
        assert self.sampler.selection is not None
        self.selections.append(self.sampler.selection)
        indices, batch = list(self.sampler), BATCH
        if self.ranks == 1 and dist.is_initialized() is False:  # the reference of `most` ranks
            indices, batch = indices[: len(indices) // most * most], BATCH * most
        return [indices[start : start + batch] for start in range(0, len(indices), batch)]

    def train(self, batches: list[list[int]]) -> None:
        for batch in batches:
            x, y = default_collate([self.sampler.dataset[index] for index in batch])
            loss = self.criterion(self.model(x), y)
            for p, grad in zip(
                self.model.parameters(),
                torch.autograd.grad(loss, list(self.model.parameters())),
                strict=True,
            ):
                if self.ranks > 1:
                    dist.all_reduce(grad)
                p.data -= 0.3 / self.ranks * grad

    def finish(self) -> dict[str, Any]:
        self.sampler.maybe_reselect(self.model, EPOCHS)
        return {
            "selections": self.selections,
            "values": self.record.values,
            "kept": self.record.kept,
            "parameters": nn.utils.parameters_to_vector(self.model.parameters()).detach(),
        }


def whole(name: str, ranks: int, rank: int, most: int) -> dict[str, Any]:
    run = Run(name, ranks, rank)
    for epoch in range(EPOCHS):
        run.train(run.begin(epoch, most))
    return run.finish()


def saved(run: Run) -> Any:
    """A checkpoint as a file has it."""
    file = io.BytesIO()
    torch.save({"sampler": run.sampler.state_dict(), "model": run.model.state_dict()}, file)
    file.seek(0)
    return torch.load(file)


def resumed(name: str, ranks: int, rank: int, state: Any) -> Run:
    run = Run(name, ranks, rank)
    run.model.load_state_dict(state["model"])
    run.sampler.load_state_dict(state["sampler"])
    return run


def interrupted(name: str, ranks: int, rank: int, *, exchanged: bool) -> Any:
    """Saved in the middle of epoch 2 and resumed from there: each rank, or all from rank 0's."""
    run = Run(name, ranks, rank)
    for epoch in range(2):
        run.train(run.begin(epoch))
    batches = run.begin(2)
    run.train(batches[:2])
    if exchanged:
        run.selector.exchange_losses()
    states: list[Any] = [None] * ranks
    dist.all_gather_object(states, saved(run))
    again = resumed(name, ranks, rank, states[0 if exchanged else rank])
    assert again.sampler.maybe_reselect(again.model, 2) is None
    again.train(batches[2:])
    again.selections = run.selections
    again.train(again.begin(3))
    return again.finish()


def _work(rank: int) -> dict[str, Any]:
    ranks = dist.get_world_size()
    results: dict[str, Any] = {name: whole(name, ranks, rank, 0) for name in STRATEGIES}
    for name in ("order-dp", "infobatch-by-batch"):
        for exchanged in (False, True):
            key = f"{name}, {'exchanged' if exchanged else 'each its own'}"
            results[key] = interrupted(name, ranks, rank, exchanged=exchanged)
    run = Run("order-dp", ranks, rank)
    run.train(run.begin(0)[:2])
    states: list[Any] = [None] * ranks
    dist.all_gather_object(states, saved(run))
    results["rank 0's"] = outcome(lambda: resumed("order-dp", ranks, rank, states[0]) and "loaded")
    results["unexchanged"] = run.record.values.isnan().all()
    run.selector.exchange_losses()
    results["state"] = saved(run)
    results["seen"] = run.record.values
    return results


@pytest.fixture(scope="module", params=[2, 3])
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_ranks(request.param, _work, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone() -> Callable[[str, int], dict[str, Any]]:
    """What one process learns and selects that trains on the batches of all ranks together."""
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def run(name: str, ranks: int) -> dict[str, Any]:
        if (name, ranks) not in known:
            known[name, ranks] = whole(name, 1, 0, ranks)
        return known[name, ranks]

    return run


def _check(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    for mine, other in zip(got["selections"], wanted["selections"], strict=True):
        assert mine.indices.tolist() == other.indices.tolist()
        torch.testing.assert_close(mine.weights, other.weights)
    for name in ("values", "kept"):
        torch.testing.assert_close(got[name], wanted[name], equal_nan=True)
    torch.testing.assert_close(got["parameters"], wanted["parameters"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", STRATEGIES)
def test_ranks_learn_what_one_process_learns(results: Any, alone: Any, name: str) -> None:
    wanted = alone(name, len(results))
    assert not bool(wanted["values"].isnan().all())
    for each in results:
        _check(each[name], wanted)
        first = results[0][name]["values"]
        assert torch.equal(each[name]["values"].nan_to_num(-1), first.nan_to_num(-1))


@pytest.mark.parametrize("how", ["each its own", "exchanged"])
@pytest.mark.parametrize("name", ["order-dp", "infobatch-by-batch"])
def test_a_run_resumes_in_the_middle_of_an_epoch(
    results: Any, alone: Any, name: str, how: str
) -> None:
    for each in results:
        _check(each[f"{name}, {how}"], alone(name, len(results)))


def test_a_state_that_lacks_losses_of_other_ranks_is_refused(results: Any) -> None:
    first, *others = (each["rank 0's"] for each in results)
    assert first == "loaded"
    for rank, said in enumerate(others, start=1):
        assert said.startswith("ValueError: `state` must be that of the same rank")
        assert f"got that of rank 0 of {len(results)} on rank {rank} of {len(results)}" in said
        assert "call selector.exchange_losses() on all ranks" in said


def test_losses_are_entered_when_the_ranks_exchange_them(results: Any) -> None:
    assert all(each["unexchanged"] for each in results)
    assert int((~results[0]["seen"].isnan()).sum()) == 2 * BATCH * len(results)


def test_an_exchanged_state_goes_on_in_one_process(results: Any) -> None:
    run = resumed("order-dp", 1, 0, results[-1]["state"])
    assert torch.equal(run.record.values.nan_to_num(), results[0]["seen"].nan_to_num())


def test_a_sample_that_two_ranks_train_on_in_one_step_counts_once(tmp_path: Path) -> None:
    for values, kept in in_ranks(2, _twice, tmp_path):
        assert values.tolist() == [2.0, 4.0, 8.0]
        assert kept.tolist() == pytest.approx([2.5, 3.0, 8.0])


def _twice(rank: int) -> tuple[Tensor, Tensor | None]:
    """Sample 0 in the first step of both ranks; the last step is rank 1's alone."""
    from adaptive_subset.distributed import Ranks

    record = LossRecord(3, scores.BatchLoss(0.5))
    record.note(torch.tensor([0, -1]), torch.tensor([1.0 + 2 * rank, 9.0]))
    record.note(torch.tensor([0, 1] if rank == 0 else [1, 1]), torch.tensor([2.0, 5.0]))
    if rank == 1:
        record.note(torch.tensor([2]), torch.tensor([8.0]))
    record.exchange(Ranks.of_run())
    return record.values, record.kept


def test_ranks_that_learn_different_things_raise(tmp_path: Path) -> None:
    for silent, loaded in in_ranks(2, _apart, tmp_path):
        assert silent.startswith("RuntimeError: `criterion` must be what the training step")
        assert "computed none on rank 0 of 2." in silent
        assert loaded.startswith("RuntimeError: every rank must know the same losses of training")


def _apart(rank: int) -> tuple[Any, Any]:
    """Only rank 1 trains on its WeightedLoss; only rank 1 loads a state."""
    from adaptive_subset.distributed import Ranks

    ranks, record = Ranks.of_run(), LossRecord(3)
    if rank == 1:
        record.note(torch.tensor([0]), torch.tensor([1.0]))
    silent = outcome(lambda: record.exchange(ranks))
    record = LossRecord(3)
    record.exchange(ranks)  # nothing on both is no difference
    if rank == 1:
        record.load_state_dict({"values": torch.ones(3)})
    return silent, outcome(lambda: record.exchange(ranks))
