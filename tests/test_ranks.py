"""Ranks that select together choose what one process chooses, whatever the strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adaptive_subset import (
    CRAIG,
    CRAIGPB,
    GLISTER,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    PerEpoch,
    Random,
    Selection,
    Selector,
    Strategy,
    TokenLoss,
)
from adaptive_subset.gradients import GradientSource
from adaptive_subset.strategies import draws, scores
from tests import models
from tests.rank_runs import in_ranks, outcome

# The processes are shared: they start once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

N, CLASSES = 90, 5


def data(n: int = N, seed: int = 0) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator) * torch.rand(n, generator=generator)
    return TensorDataset(torch.randn(n, 6, generator=generator), labels.round().long())


def soft(n: int = N) -> Dataset[Any]:
    (x, y), generator = data(n)[:], torch.Generator().manual_seed(1)
    targets = torch.rand(len(y), CLASSES, generator=generator).softmax(1)
    return TensorDataset(x, targets)


def tagged(n: int = N, seed: int = 0) -> Dataset[Any]:
    """A label for each of the 6 numbers of a sample, some of them none."""
    (x, _), generator = data(n, seed)[:], torch.Generator().manual_seed(seed + 2)
    labels = torch.randint(-1, CLASSES, x.shape, generator=generator)
    return TensorDataset(x, labels.masked_fill(labels < 0, -100))


@dataclass(frozen=True)
class Mine(Strategy):
    """A user's own strategy: knows nothing of ranks, and asks for whatever it likes."""

    needs_gradients = True

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        assert candidates.classes is not None
        alike = candidates.atoms.correlate(candidates.target) - candidates.classes
        positions = alike.topk(budget).indices
        return Choice(positions, torch.full((budget,), candidates.n / budget))


@dataclass(frozen=True)
class Alike(scores.Score):
    """A user's own score of gradients."""

    needs_losses = False
    needs_gradients = True

    def of(self, candidates: Candidates) -> Tensor:
        return candidates.atoms.correlate(candidates.target).cpu()


Options = dict[str, Any]
VALIDATED: Options = {"validation": data(37, seed=1)}
GROUPS: Options = {"groups": torch.arange(N) * 7 % 5 // 2}  # 0, 1, 2 of 36, 36 and 18
TOKENS: Options = {"dataset": tagged(), "model": models.Positions, "criterion": TokenLoss()}
MSE: Options = {"dataset": soft(), "criterion": nn.MSELoss()}
CASES: dict[str, Options] = {
    "gradmatch": {"strategy": GradMatch()},
    "gradmatch per class": {"strategy": GradMatch(scope="per-class")},
    "gradmatch global": {"strategy": GradMatch(scope="global")},
    "gradmatch, equal shares": {"strategy": GradMatch(shares="equal")},
    "gradmatch, filled": {"strategy": GradMatch(epsilon=0.1)},
    "gradmatch, fewer than classes": {"strategy": GradMatch(), "fraction": None, "budget": 3},
    "gradmatch, half": {"strategy": GradMatch(), "storage_dtype": torch.float16},
    "gradmatch, matched": {"strategy": GradMatch(), "weights": "matched"},
    "gradmatch, no classes": {"strategy": GradMatch(), **MSE},
    "gradmatch, two heads": {
        "strategy": GradMatch(scope="per-class"),
        "model": models.TwoHeads,
        "head": ["1.head", "1.head_dist"],
    },
    "gradmatch-pb, means": {"strategy": GradMatchPB(batch_size=6)},
    "gradmatch-pb, samples": {"strategy": GradMatchPB(batch_size=2)},
    "craig": {"strategy": CRAIG()},
    "craig per gradient": {"strategy": CRAIG(scope="per-gradient")},
    "craig global": {"strategy": CRAIG(scope="global")},
    "craig, random": {"strategy": CRAIG(epsilon=0.5)},
    "craig-pb": {"strategy": CRAIGPB(batch_size=4)},
    "craig-pb, samples": {"strategy": CRAIGPB(batch_size=2)},
    "glister": {"strategy": GLISTER()},
    "glister global": {"strategy": GLISTER(scope="global")},
    "gradient-norm": {"strategy": GradientNorm()},
    "largest norms": {"strategy": PerEpoch(scores.LastLayerNorm(), draws.LargestOfPool(0.9))},
    "random": {"strategy": Random()},
    "fresh random": {"strategy": FreshRandom()},
    "one's own": {"strategy": Mine()},
    "one's own score": {"strategy": PerEpoch(Alike(), draws.LargestOfPool(0.9))},
    "two batches": {"strategy": GradMatch(), "batch_size": 64},
    "one batch": {"strategy": GLISTER(), "batch_size": 256, **VALIDATED},
    "a loader": {"strategy": CRAIG(), "pool": DataLoader(data(), 16), "batch_size": 256},
    "loaders": {
        "strategy": GradMatch(),
        "pool": DataLoader(data(), 16),
        "validation": DataLoader(data(37, seed=1), 7),
    },
    **{
        f"{name}, {what}": {"strategy": strategy, **more}
        for what, more in {
            "validation": VALIDATED,
            "a part": {"pool_fraction": 0.7},
            "both": {"pool_fraction": 0.7, **VALIDATED},
            "tolerance": {"tolerance": 0.3, "fraction": None},
        }.items()
        for name, strategy in {
            "gradmatch": GradMatch(),
            "gradmatch per class": GradMatch(scope="per-class"),
            "gradmatch global": GradMatch(scope="global"),
            "gradmatch-pb": GradMatchPB(batch_size=4),
            "craig": CRAIG(),
            "craig-pb": CRAIGPB(batch_size=4),
            "glister": GLISTER(),
            "gradient-norm": GradientNorm(),
            "one's own": Mine(),
        }.items()
        if not (what in ("validation", "both") and name == "craig-pb")
        and not (what == "tolerance" and name in ("glister", "one's own", "gradient-norm"))
    },
    **{
        f"{name}, groups{what}": {"strategy": strategy, **GROUPS, **more}
        for what, more in {
            "": {},
            " and validation": VALIDATED,
            " of a part": {"pool_fraction": 0.7, **VALIDATED},
        }.items()
        for name, strategy in {
            "gradmatch": GradMatch(),
            "craig": CRAIG(shares="equal"),
            "glister": GLISTER(),
            "gradient-norm": GradientNorm(),
            "drawn": PerEpoch(scores.Equal(), shares="equal"),
        }.items()
        if not (what and name in ("gradient-norm", "drawn"))
    },
    **{
        f"{name}, {how}{what}": {"strategy": strategy, **TOKENS, **size, **more}
        for how, size in {"tokens": {}, "sketches": {"sketch": 16}}.items()
        for what, more in {
            "": {},
            " and groups": GROUPS,
            " and validation": {"validation": tagged(37, seed=1)},
            " and both": {"validation": tagged(37, seed=1), **GROUPS},
        }.items()
        for name, strategy in {
            "gradmatch": GradMatch(),
            "gradmatch-pb": GradMatchPB(batch_size=6),
            "craig": CRAIG(),
            "gradient-norm": GradientNorm(),
        }.items()
        if not (name == "gradmatch-pb" and what in (" and groups", " and both"))
    },
}


def network(case: Options) -> Any:
    torch.manual_seed(0)
    head = case.get("model", models.mlp)(classes=CLASSES)
    return nn.Sequential(nn.BatchNorm1d(6), head).eval()


def select(case: Options, model: nn.Module) -> Selection:
    options: Options = {"dataset": data(), "fraction": 0.3, "criterion": nn.CrossEntropyLoss()}
    options |= {"batch_size": 8, **case}
    options.pop("model", None)
    return Selector(options.pop("dataset"), options.pop("strategy"), **options).select(model, 1)


def _work(rank: int) -> dict[str, Any]:
    """Each selection, and whether it left the program of this rank as it was."""
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        model = network(case).train()
        model[0].running_mean += rank  # buffers differ between ranks, as in real runs
        torch.manual_seed(rank)
        before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        selection = outcome(partial(select, case, model))
        after = model.state_dict()
        same = all(torch.equal(after[key], value) for key, value in before[0].items())
        same = same and model[0].training and torch.equal(before[1], torch.get_rng_state())
        results[name] = selection, same
    return results


@pytest.fixture(scope="module", params=[2, 3])
def spread(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """What each of 2 or 3 ranks selected, by case."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    results = in_ranks(request.param, _work, folder)
    return lambda name: [each[name] for each in results]


@pytest.mark.parametrize("name", CASES)
def test_ranks_select_what_one_process_selects(spread: Any, name: str) -> None:
    alone = select(CASES[name], network(CASES[name]))
    for selection, left_as_it_was in spread(name):
        assert selection.indices.tolist() == alone.indices.tolist()
        torch.testing.assert_close(selection.weights, alone.weights, rtol=1e-5, atol=1e-6)
        for figure, value in alone.summary().items():
            if not figure.endswith("seconds"):
                close = value if value is None else pytest.approx(value, rel=1e-4)
                assert selection.summary()[figure] == close, figure
        assert left_as_it_was


@pytest.mark.parametrize("name", ["gradmatch", "craig, validation", "glister, a part"])
def test_classes_are_solved_from_the_same_numbers_bit_for_bit(spread: Any, name: str) -> None:
    alone = select(CASES[name], network(CASES[name]))
    assert all(torch.equal(selection.weights, alone.weights) for selection, _ in spread(name))


def test_filling_up_was_tried() -> None:
    case = CASES["gradmatch, filled"]
    assert select(case, network(case)).filled == 5


def test_gradients_do_not_depend_on_how_a_pool_is_cut_into_batches() -> None:
    """So a stretch could end anywhere; whole batches make it exact."""
    images = TensorDataset(torch.randn(20, 3, 8, 8), torch.arange(20) % 4)
    model = models.cnn().double().train()
    whole, cut = (
        GradientSource(images, batch_size=size).read(model, nn.CrossEntropyLoss()).gradients
        for size in (20, 3)
    )
    weights = torch.rand(20, dtype=torch.float64)
    torch.testing.assert_close(cut.sum(weights), whole.sum(weights), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(cut.squared_norms(), whole.squared_norms(), rtol=1e-10, atol=1e-12)
