"""What happens to one of the ranks that select together ends all of them, and soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import Dataset

from adaptive_subset import (
    CRAIG,
    GradMatch,
    GradMatchPB,
    Selector,
    Strategy,
    distributed,
    selector,
)
from adaptive_subset.strategies import gradmatch, spread
from tests import models
from tests.rank_runs import in_ranks, outcome
from tests.test_ranks import CLASSES, Mine, data

# The processes are shared: they start once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]


class Odd(Exception):
    def __init__(self, code: int, reason: str) -> None:  # unpickled with one argument
        super().__init__(f"{reason} ({code})")


class Broken(Dataset[Any]):
    """The samples of the tests, of which one does something else when it is read."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        self.samples, self.at, self.act = data(), at, act

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            self.act()
        return self.samples[index]


class Recording(Strategy):
    """Fails where only rank 0 is."""

    needs_gradients = True

    def select(self, *args: Any, **kwargs: Any) -> Any:
        raise LookupError(f"no choice on rank {dist.get_rank()}")


def raises(error: BaseException, *args: Any, **kwargs: Any) -> Any:
    raise error


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(6), models.mlp(classes=CLASSES))


def select(model: nn.Module, strategy: Strategy, dataset: Any = None, **options: Any) -> int:
    options = {"fraction": 0.3, "criterion": nn.CrossEntropyLoss(), "batch_size": 8, **options}
    return len(
        Selector(data() if dataset is None else dataset, strategy, **options).select(model, 1)
    )


LAST = 80  # a sample that rank 1 of 2 reads, and rank 2 of 3
SHARE = {
    "share": ValueError("broken sample"),
    "odd": Odd(7, "broken sample"),
    "interrupt": KeyboardInterrupt("stop"),
}
# Raised on rank 1 alone, in whatever it does there.
INSIDE: dict[str, tuple[Any, str, Strategy]] = {
    "solver": (gradmatch, "omp", GradMatch()),
    "between": (spread, "fair_owners", CRAIG()),
    "batches": (spread.SpreadCandidates, "_batches", GradMatchPB(batch_size=4)),
    "end": (selector, "as_selection", GradMatch()),
}


def _work(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    model = network()

    def tried(strategy: Strategy, dataset: Any = None, net: nn.Module = model, **more: Any) -> Any:
        return outcome(partial(select, net, strategy, dataset, **more))

    for name, error in SHARE.items():
        results[name] = tried(GradMatch(), Broken(LAST, partial(raises, error)))
    results["validation"] = tried(
        GradMatch(), validation=Broken(LAST, partial(raises, SHARE["share"]))
    )
    for name, (place, function, strategy) in INSIDE.items():
        with pytest.MonkeyPatch.context() as patches:
            if rank == 1:
                error = ValueError(f"broken {function}")
                patches.setattr(place, function, partial(raises, error))
            results[name] = tried(strategy)
    results["one's own"] = tried(Recording())
    other = network()
    with torch.no_grad():
        other[1][0].weight[0, 0] += rank
    results["parameters"] = tried(GradMatch(), net=other)
    shape = network()
    shape.register_buffer("cache", torch.zeros(rank))
    results["shape"] = tried(GradMatch(), net=shape)
    results["no model"] = tried(GradMatch(), net=None if rank else model)  # type: ignore[arg-type]
    results["after all"] = tried(Mine())
    return results


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What each rank got, by scenario."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    results = in_ranks(request.param, _work, folder)
    return lambda name: [each[name] for each in results]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("share", "ValueError: broken sample"),
        ("validation", "ValueError: broken sample"),
        *((name, f"ValueError: broken {what[1]}") for name, what in INSIDE.items()),
        ("one's own", "LookupError: no choice on rank 0"),
        (
            "parameters",
            "RuntimeError: `model` must have the same parameters and shapes on all ranks",
        ),
        ("shape", "RuntimeError: `model` must have the same parameters and shapes on all ranks"),
        ("no model", "TypeError: `model` must be a torch.nn.Module, got a NoneType"),
    ],
)
def test_what_one_rank_raises_ends_all(outcomes: Any, name: str, message: str) -> None:
    for got in outcomes(name):
        assert isinstance(got, str)
        assert got.startswith(message)


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("odd", "Odd: broken sample (7)", "failed: Odd: broken sample (7)"),
        ("interrupt", "KeyboardInterrupt: stop", "failed: KeyboardInterrupt: stop"),
    ],
)
def test_what_cannot_travel_is_named(outcomes: Any, name: str, own: str, others: str) -> None:
    *rest, last = outcomes(name)
    assert last == own
    assert all(got == f"RuntimeError: rank {len(rest)} {others}" for got in rest)


def test_the_ranks_go_on_after_that(outcomes: Any) -> None:
    assert set(outcomes("after all")) == {27}


def _killed(rank: int, folder: Path, name: str) -> None:
    """Rank 1 of 3 kills itself in its share or in the solver; the others say when they ended."""
    torch.set_num_threads(1)
    group = {"init_method": f"file://{folder}/group", "rank": rank, "world_size": 3}
    dist.init_process_group("gloo", **group)  # type: ignore[arg-type]
    select(network(), GradMatch())  # all have met

    def die(*args: Any, **kwargs: Any) -> None:
        if rank == 1:
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    dataset: Any = None
    if name == "share":
        dataset = Broken(40, die)
    elif rank == 1:
        gradmatch.omp = die  # type: ignore[assignment, attr-defined]
    said = outcome(partial(select, network(), GradMatch(), dataset))
    ended = time.time()
    torch.save((said, ended), folder / str(rank))
    os._exit(1)


@pytest.mark.parametrize("name", ["share", "solver"])
def test_a_killed_rank_ends_the_others_within_seconds(name: str, tmp_path: Path) -> None:
    context = mp.start_processes(  # type: ignore[attr-defined]
        _killed, (tmp_path, name), nprocs=3, start_method="fork", join=False
    )
    for process in context.processes:
        process.join(120)
    died = float((tmp_path / "died").read_text())
    for rank in (0, 2):
        said, ended = torch.load(tmp_path / str(rank), weights_only=False)
        assert said.startswith("RuntimeError: all 3 ranks must take part in a selection"), said
        assert "one of them has ended" in said
        assert ended - died < 10
        print(f"killed in the {name}: rank {rank} ended after {ended - died:.2f} s")


def _slow(rank: int) -> list[Any]:
    """A selection longer than the run's own group waits, and one longer than ours does."""
    slow = Broken(LAST, partial(time.sleep, 6)) if rank == 1 else None
    results = [outcome(partial(select, network(), GradMatch(), slow))]
    distributed._beside.clear()
    distributed.TIMEOUT = timedelta(seconds=2)
    return [*results, outcome(partial(select, network(), GradMatch(), slow))]


def test_ranks_wait_for_as_long_as_they_say(tmp_path: Path) -> None:
    (first, hung), (other, _) = in_ranks(2, _slow, tmp_path, timeout=4)
    assert first == other == 27
    assert hung.startswith("RuntimeError: all 2 ranks must take part in a selection")
    assert "did not come within 0:00:02, while rank 0 waited for it" in hung


def _sharded(rank: int) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model: Any = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    text: str = outcome(partial(select, model, GradMatch()))
    return text


def test_a_sharded_model_is_refused_by_name(tmp_path: Path) -> None:
    for said in in_ranks(2, _sharded, tmp_path):
        assert said.startswith("ValueError: `model` must hold its parameters whole, got sharded")
        assert "DTensor" in said
