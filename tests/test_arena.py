"""The arena: fair budgets, honest choice of the learning rate, and runs that survive a kill."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from adaptive_subset import Candidates, Choice, FreshRandom, OrderDP
from benchmarks.arena import crew, data, figures, price, report, text
from benchmarks.arena import race as arena_race
from benchmarks.arena.crew import Worker
from benchmarks.arena.methods import METHODS, Method, Plan, RandomSizes
from benchmarks.arena.race import Race, beyond_edge, run
from benchmarks.arena.results import Cell, Results, best_rate, clock, prices_beside
from benchmarks.arena.run import train
from benchmarks.arena.tasks import Task, crop_and_flip

CPU = torch.device("cpu")


def blobs(*_: Path) -> data.Data:
    """Four classes around the corners of a square, with noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 4
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    points = corners[labels] + 0.7 * torch.randn(1200, 2, generator=generator)
    rows = torch.arange(1200)
    given = data.Samples(points, labels)
    return data.split(given.take(rows[:1000]), given.take(rows[1000:]))


TINY = Task(
    blobs,
    lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4)),
    about="blobs",
    epochs=4,
    rates=(0.05, 0.1),
    batch_size=16,
)


def race(path: Path, **changes: object) -> Race:
    made = Race(
        tasks={"blobs": TINY},
        methods={name: METHODS[name] for name in ("full-short", "fresh-random", "order-dp")},
        fractions=(0.2,),
        seeds=(0, 1),
        finalists=1,
        results=Results(path),
        prices=prices_beside(path),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time, best on validation at a rate of 0.2 and on test at 0.05."""

    def fake(
        task: Task, method: Method, fraction: float, rate: float, seed: int, *_: object
    ) -> dict[str, object]:
        validation, test = (0.9 - 0.01 * abs(math.log(rate / best)) for best in (0.2, 0.05))
        seconds = ["seconds", "selection_seconds"]
        seconds += ["processor_seconds", "selection_processor_seconds"]
        return {
            "steps": 40,
            "samples": 640,
            **dict.fromkeys(seconds, 1.0 + rate),
            "validation": validation,
            "test": test - 0.001 * seed,
            "diverged": False,
            "curve": [],
        }

    monkeypatch.setattr(crew, "train", fake)


def go(made: Race, limit: int | None = None) -> list[str]:
    """What `run` says, killed after `limit` runs."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == limit:
            raise KeyboardInterrupt

    worker = Worker(lambda cell: (made.tasks[cell.task], made.methods[cell.method]), Path(), Path())
    run(made, worker, {"device": "cpu"}, say)
    return said


def test_a_killed_race_goes_on_without_repeating(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(race(path), limit=3)
    with path.open("a") as file:
        file.write('{"task": "blobs", "meth')  # killed while writing the fourth
    said = go(race(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 3 + len(said)
    cells = Counter((r["method"], r["rate"], r["seed"]) for r in lines)
    assert set(cells.values()) == {1}
    assert go(race(path)) == []
    assert "0 more in this round" in said[-1]


def tiny(cell: Cell) -> tuple[Task, Method]:
    return TINY, METHODS[cell.method]


def test_several_processes_make_the_runs_of_one(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        made = race(tmp_path / f"{processes}.jsonl", methods={"full-short": METHODS["full-short"]})
        run(made, Worker(tiny, Path(), Path()), {"device": "cpu"}, lambda _: None, processes)
        lines = made.results.lines()
        found.append({(line["rate"], line["seed"]): line["test"] for line in lines})
        assert len(lines) == len((tmp_path / f"{processes}.jsonl").read_text().splitlines())
    assert found[0] == found[1]
    assert len(found[0]) > 2


def test_cells_of_all_tasks_can_be_given_out_at_once(quick: None, tmp_path: Path) -> None:
    tasks = {"blobs": TINY, "others": replace(TINY, about="others")}
    made = race(tmp_path / "arena.jsonl", tasks=tasks, fractions=(0.2, 0.5))
    assert [cell.task for cell in made.missing()] == ["blobs"] * 6 + ["others"] * 6
    go(race(tmp_path / "arena.jsonl", fractions=(0.2,)))
    made = race(tmp_path / "arena.jsonl", tasks=tasks, fractions=(0.2, 0.5))
    assert [(cell.task, cell.fraction) for cell in made.missing()][:7] == [
        *[("others", 0.2)] * 6,
        ("blobs", 0.5),
    ]


def test_a_changed_recipe_is_another_cell(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    go(race(path))
    longer = race(path, tasks={"blobs": replace(TINY, epochs=5)})
    assert len(longer.missing()) == 6


def line(rate: float, seed: int, validation: float, test: float) -> dict[str, float]:
    return {"rate": rate, "seed": seed, "validation": validation, "test": test}


def test_the_best_rate_is_chosen_on_validation_and_not_on_test() -> None:
    lines = [line(0.1, 0, 0.8, 0.9), line(0.2, 0, 0.9, 0.7), line(0.5, 0, 0.7, 0.95)]
    assert best_rate(lines) == 0.2


def test_rates_are_compared_over_the_same_seeds() -> None:
    lines = [line(0.1, 0, 0.90, 0), line(0.1, 1, 0.50, 0), line(0.2, 0, 0.89, 0)]
    assert best_rate(lines) == 0.1  # the only one with two seeds
    assert best_rate([*lines, line(0.2, 1, 0.52, 0)]) == 0.2
    with pytest.raises(ValueError, match="no seed in common"):
        best_rate([line(0.1, 0, 0.9, 0), line(0.2, 1, 0.9, 0)])


def test_rates_that_one_seed_does_not_tell_apart_all_go_on(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = race(tmp_path / "arena.jsonl")
    monkeypatch.setattr(arena_race, "NEAR", 0.007)  # 0.2 and 0.1 differ by 0.0069
    go(made)
    lines = made.runs("blobs", "full-short", 0.2)
    assert {(r["rate"], r["seed"]) for r in lines if r["seed"]} == {(0.1, 1), (0.2, 1)}


def test_a_rate_that_fails_with_other_seeds_gives_way_to_the_next(tmp_path: Path) -> None:
    made = race(tmp_path / "arena.jsonl")
    known = arena_race.settings(TINY, METHODS["order-dp"], 0.2)

    def ran(rate: float, seed: int, validation: float) -> list[float]:
        measured = {"validation": validation, "test": 0.5, "diverged": False}
        made.results.add(Cell("blobs", "order-dp", 0.2, rate, seed), known, measured)
        return made._contenders("blobs", "order-dp", 0.2)

    for rate, validation in ((0.02, 0.90), (0.05, 0.961), (0.1, 0.963), (0.2, 0.97)):
        contenders = ran(rate, 0, validation)
    assert contenders == [0.2]
    assert ran(0.2, 1, 0.96) == [0.2]  # 0.965 on average
    assert ran(0.2, 1, 0.71) == [0.2, 0.1, 0.05]
    assert ran(0.1, 1, 0.97) == [0.2, 0.1, 0.05]


def test_a_run_that_is_no_longer_missing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = race(tmp_path / "arena.jsonl")
    first, second = (Cell("blobs", "order-dp", 0.2, rate, 0) for rate in (0.05, 0.1))
    measured = {"validation": 0.5, "test": 0.5, "diverged": False, "seconds": 1.0}
    done: dict[Cell, Future[Any]] = {first: Future(), second: Future()}
    done[first].set_result((measured, 1.0))
    rounds = iter([[first, second], []])

    def missing(_: Race) -> list[Cell]:
        if done[first].done() and made.results.lines() and not done[second].done():
            done[second].set_result((measured, 1.0))
        return next(rounds, [])

    @contextmanager
    def at_work(*_: object) -> Iterator[Callable[[Cell], Future[Any]]]:
        yield done.__getitem__

    monkeypatch.setattr(Race, "missing", missing)
    monkeypatch.setattr(arena_race, "at_work", at_work)
    run(made, Worker(tiny, Path(), Path()), {"device": "cpu"}, lambda _: None, processes=2)
    assert {line["rate"] for line in made.results.lines()} == {0.05, 0.1}


def test_rates_go_on_beyond_the_edge_where_the_best_is_there() -> None:
    assert beyond_edge(0.1, (0.02, 0.05, 0.1)) == [0.2]
    assert beyond_edge(0.02, (0.02, 0.05, 0.1)) == [0.01]
    assert beyond_edge(0.05, (0.02, 0.05, 0.1)) == []


def test_rates_go_on_where_more_seeds_find_the_best_at_the_edge(tmp_path: Path) -> None:
    made = race(tmp_path / "arena.jsonl")
    known = arena_race.settings(TINY, METHODS["order-dp"], 0.1)
    for seed, reached in enumerate([(0.5, 0.6, 0.55), (0.9, 0.6, 0.5)]):
        for rate, validation in zip((0.05, 0.1, 0.2), reached, strict=True):
            measured = {"validation": validation, "test": 0.5, "diverged": False}
            made.results.add(Cell("blobs", "order-dp", 0.1, rate, seed), known, measured)
    assert made._rates("blobs", "order-dp", 0.1) == [0.02, 0.05, 0.1, 0.2]


def test_methods_enter_where_the_data_have_what_they_need(tmp_path: Path) -> None:
    tasks = {
        "plain": TINY,
        "clean": replace(TINY, reference=True),
        "uneven": replace(TINY, uneven=True),
    }
    names = ("full-short", "balanced", "gradmatch-reference")
    entered = race(
        tmp_path / "arena.jsonl", tasks=tasks, methods={name: METHODS[name] for name in names}
    )
    assert {task: entered.entrants(task, 0.2) for task in tasks} == {
        "plain": ["full-short"],
        "clean": ["full-short", "gradmatch-reference"],
        "uneven": ["full-short", "balanced"],
    }


def test_a_race_finds_the_best_rate_on_validation(quick: None, tmp_path: Path) -> None:
    made = race(tmp_path / "arena.jsonl")
    go(made)
    for entry in figures.entries(made, "blobs"):
        assert entry.rate == 0.2
        assert set(entry.rates) == {0.05, 0.1, 0.2, 0.5}
        assert not entry.at_edge


def test_the_table_counts_seeds_and_runs(quick: None, tmp_path: Path) -> None:
    made = race(tmp_path / "arena.jsonl", finalists=0)
    go(made)
    found = figures.entries(made, "blobs")
    seeds = {entry.method: len(entry.accuracy) for entry in found}
    assert seeds == {"full-short": 2, "fresh-random": 2, "order-dp": 1}
    rows = {
        row.split(" | ")[0]: row.split(" | ") for row in report.table(found, found).splitlines()
    }
    assert rows["| `fresh-random`"][1] == "2"
    assert rows["| `order-dp`"][1] == "1"
    assert "±" not in rows["| `order-dp`"][3]
    assert "±" in rows["| `full-short`"][3]


@pytest.mark.slow
def test_the_page_is_written(quick: None, tmp_path: Path) -> None:
    made = race(tmp_path / "arena.jsonl")
    go(made)
    report.write(made, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert (tmp_path / "arena-blobs.png").exists()
    assert "### 20 % for 4 epochs, 40 steps" in page


def test_the_page_names_who_did_not_go_on(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    go(race(path, fractions=(0.1, 1)))
    baselines = {name: METHODS[name] for name in ("full-short", "fresh-random")}
    go(race(path, fractions=(0.3,), methods=baselines))
    go(race(path, fractions=(0.5,), methods={"full-short": METHODS["full-short"]}))
    made = race(path, fractions=(0.1, 0.3, 0.5, 1))
    assert report.unrun(made, "blobs", figures.entries(made, "blobs")) == [
        "- At 30 % did not run, where +0.00 points were left to win: `order-dp`."
    ]
    go(race(path, fractions=(0.3,)))
    made = race(path, fractions=(0.1, 0.3, 0.5, 1))
    assert report.unrun(made, "blobs", figures.entries(made, "blobs")) == []


@dataclass(frozen=True)
class Slow(FreshRandom):
    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        start = time.process_time()
        while time.process_time() < start + 0.05:
            pass
        return super().select(candidates, budget, seed=seed, epoch=epoch)


def test_the_cost_includes_selection() -> None:
    measured = train(TINY, Method(lambda plan: Slow()), 0.2, 0.1, 0, blobs(), CPU)
    for kind in ("", "processor_"):
        assert measured[f"selection_{kind}seconds"] >= 4 * 0.05
        assert measured[f"{kind}seconds"] > measured[f"selection_{kind}seconds"]
    assert clock(measured | {"environment": {"device": "cpu"}})[0] >= 4 * 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_the_same_number_of_steps(name: str) -> None:
    measured = train(TINY, METHODS[name], 0.2, 0.1, 0, blobs(), CPU)
    assert (measured["steps"], measured["samples"]) == (40, 640)  # 4 epochs of 10 batches of 16
    assert measured["validation"] > 0.5


def test_seeds_pair_the_methods() -> None:
    """The first step is from the same weights, whatever the method."""
    seen: list[Tensor] = []

    def network() -> nn.Module:
        model = nn.Linear(2, 4)
        seen.append(model.weight.detach().clone())
        return model

    for name in ("full-short", "order-dp", "gradmatch"):
        train(replace(TINY, network=network), METHODS[name], 0.2, 0.1, 3, blobs(), CPU)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["full-short", "gradmatch", "order-dp"])
def test_a_run_that_diverges_counts_as_worst(name: str) -> None:
    broken = replace(TINY, weight_decay=1e30)
    measured = train(broken, METHODS[name], 0.2, 1e30, 0, blobs(), CPU)
    assert measured["diverged"]
    assert measured["validation"] == measured["test"] == 0


def test_the_validation_set_is_cut_from_training_and_stratified() -> None:
    labels = torch.tensor([0] * 700 + [1] * 300)
    given = data.Samples(torch.arange(1000.0)[:, None], labels)
    found = data.split(given, given.take(torch.arange(5)))
    both = torch.cat([found.train.inputs, found.validation.inputs])[:, 0]
    assert torch.equal(both.sort().values, torch.arange(1000.0))
    assert torch.bincount(found.validation.labels).tolist() == [140, 60]


def test_wrong_labels_are_wrong_and_as_many_as_asked() -> None:
    clean = blobs()
    noisy = data.map_train(lambda samples: data.wrong_labels(0.2, samples), clean)
    assert int((noisy.train.labels != clean.train.labels).sum()) == 160
    assert torch.equal(noisy.validation.labels, clean.validation.labels)


def test_the_long_tail_keeps_a_clean_balanced_reference_in_training() -> None:
    tail = data.long_tail(10, 5, blobs())
    assert torch.bincount(tail.train.labels).tolist() == [200, 93, 43, 20]
    assert tail.reference is not None
    assert torch.bincount(tail.reference.labels).tolist() == [5] * 4
    trained = set(map(tuple, tail.train.inputs.tolist()))
    assert all(tuple(row) in trained for row in tail.reference.inputs.tolist())


def test_near_duplicates_are_shifted_copies_of_few_images() -> None:
    given = data.Samples(torch.randn(40, 1, 6, 6), torch.arange(40))
    found = data.near_duplicates(4, given)
    assert torch.bincount(found.labels, minlength=40).unique().tolist() == [0, 4]
    for image, label in zip(found.inputs, found.labels, strict=True):
        original = given.inputs[label]
        shifts = (original.roll((i, j), (-2, -1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
        assert min(float((image - moved).abs().mean()) for moved in shifts) < 0.2


def test_the_transformer_is_berts() -> None:
    shapes = {
        **{f"attention.self.{name}": (384, 384) for name in ("query", "key", "value")},
        **{"attention.output.dense": (384, 384), "attention.output.LayerNorm": (384,)},
        **{"intermediate.dense": (1536, 384), "output.dense": (384, 1536)},
        "output.LayerNorm": (384,),
    }
    w = {f"encoder.layer.0.{k}.weight": torch.randn(s) / 20 for k, s in shapes.items()}
    w |= {f"encoder.layer.0.{k}.bias": torch.randn(s[0]) for k, s in shapes.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        key = f"encoder.layer.0.{name}"
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        key = f"encoder.layer.0.{name}.LayerNorm"
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / centred.square().mean(-1, keepdim=True).sqrt() * w[f"{key}.weight"]
            + w[f"{key}.bias"]
        )

    x = torch.randn(2, 5, 384)
    q, k, v = (
        linear(x, f"attention.self.{name}").view(2, 5, 12, 32).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    attended = (q @ k.transpose(2, 3) / 32**0.5).softmax(-1) @ v
    attended = attended.transpose(1, 2).reshape(2, 5, 384)
    middle = norm(x + linear(attended, "attention.output.dense"), "attention.output")
    wide = nn.functional.gelu(linear(middle, "intermediate.dense"))
    expected = norm(middle + linear(wide, "output.dense"), "output")
    torch.testing.assert_close(text._layer(w, 0)(x), expected, atol=1e-3, rtol=1e-4)


def test_words_of_a_mail_are_its_subject_and_its_body_without_markup() -> None:
    mail = "From: a\nSubject: Re: hello\nContent-Type: text/html\n\n<b>good</b>  day\n"
    assert text._words(mail).split() == ["Re:", "hello", "good", "day"]


def test_crops_are_those_of_the_padded_image() -> None:
    x = torch.randn(50, 3, 8, 8)
    padded = nn.functional.pad(x, (4, 4, 4, 4), "reflect")
    for image, whole in zip(
        crop_and_flip(x, torch.Generator().manual_seed(0)), padded, strict=True
    ):
        crops = (whole[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9))
        assert any(torch.equal(image, c) or torch.equal(image, c.flip(-1)) for c in crops)


def test_order_dp_takes_the_largest_losses_of_a_random_pool() -> None:
    losses = torch.arange(100.0)
    losses[3] = torch.nan  # not seen yet
    choice = OrderDP(0.5).select(Candidates(100, losses=losses), 50, seed=0, epoch=0)
    assert sorted(choice.positions.tolist()) == [3, *range(51, 100)]


def test_random_sizes_fall_and_add_up() -> None:
    strategy = RandomSizes(0.1, 20)
    sizes = [
        len(strategy.select(Candidates(10_000), 10_000, seed=0, epoch=t).positions)
        for t in range(20)
    ]
    assert sizes[0] == 10_000
    assert sizes == sorted(sizes, reverse=True)
    assert sum(size for size in sizes if size > 256) == pytest.approx(20_000, rel=0.05)


def entry(method: str, seconds: float, *accuracy: float) -> figures.Entry:
    by_seed = dict(enumerate(accuracy))
    return figures.Entry(method, 0.1, {0.1: 0.5}, 0.1, by_seed, 10, 100, seconds, 0.0)


def test_at_equal_time_the_baseline_is_interpolated_seed_by_seed() -> None:
    points = [entry("full-short", 10, 80, 82), entry("full-short", 40, 90, 94)]
    ours = entry("gradmatch", 20, 86, 87)
    difference = figures.at_equal_time(ours, [*points, ours])
    assert difference is not None
    assert difference.each == pytest.approx((1, -1))
    assert difference.error == pytest.approx(1)
    dear = entry("craig", 50, 99, 99)
    assert figures.at_equal_time(dear, points) is None
    cheap = figures.at_equal_time(entry("random", 5, 81, 81), points)
    assert cheap is not None
    assert cheap.each == pytest.approx((1, -1))  # against the cheapest, which had more time


def test_at_equal_time_all_seeds_count_where_few_have_the_dearer_budget() -> None:
    """Their gain is that of all, and the error of it is in that of the difference."""
    low = entry("full-short", 10, 80, 82, 81, 81)
    high = entry("full-short", 1000, 84, 88)  # gains of 4 and 6, half of them at 100 seconds
    ours = entry("balanced", 100, 84, 86, 85, 85)  # four more than the cheaper, at each seed
    difference = figures.at_equal_time(ours, [low, high])
    assert difference is not None
    assert len(difference.each) == 4
    assert difference.mean == pytest.approx(4 - 0.5 * 5)
    # The error of a half of the mean gain, of which there are two; the gain of one has none.
    of_two = stdev((4, 6)) / math.sqrt(2)
    assert difference.error == pytest.approx(0.5 * of_two, rel=0.2)
    alone = figures.at_equal_time(ours, [low, entry("full-short", 1000, 84)])
    assert alone is not None
    assert alone.each == pytest.approx((2,))


def test_few_seeds_need_more_than_two_errors() -> None:
    three = figures.Difference((0.9, 1.6, 2.5))  # 3.6 standard errors, p 0.07
    assert three.in_errors is not None
    assert three.in_errors > 3.5
    assert not three.sure
    assert figures.Difference((1.0, 1.1, 1.2)).sure
    assert not figures.Difference((0.5, -0.5, 0.5, -0.4)).sure
    assert not figures.Difference((9.0,)).sure
    assert report.outcome(three, figures.Difference((1.0, 1.1, 1.2))) == report.OPEN
    assert report.outcome(None, figures.Difference((-1.0, -1.1, -1.2))) == report.LOSES


def test_what_loses_at_equal_steps_loses_without_a_time_too() -> None:
    baselines = [entry("full-short", 10, 91, 92), entry("fresh-random", 10, 90, 92)]
    behind = replace(entry("borderline", 10, 90, 91.02), beside=False)  # −1.00 and −0.98
    assert f"{report.LOSES}: `borderline`" in report.verdict([*baselines, behind])


def test_a_method_costs_what_it_takes_beside_the_short_schedule(tmp_path: Path) -> None:
    """Not what it took alone, when the machine may have been three times as fast."""
    path = tmp_path / "arena.jsonl"
    made = race(path, methods={**race(path).methods, "slow": Method(lambda plan: Slow())})
    worker = Worker(lambda cell: (TINY, made.methods[cell.method]), Path(), Path())
    environment = {"device": "cpu"}
    for method in made.methods:
        for seed in (0, 1) if method != "order-dp" else (0,):
            cell = Cell("blobs", method, 0.2, 0.05, seed)
            took = 3.0 if method == "full-short" else 1.0
            spent = dict.fromkeys(("processor_seconds", "selection_processor_seconds"), took)
            spent |= {"steps": 44, "samples": 704, "validation": 0.5, "test": 0.5}
            known = arena_race.settings(TINY, made.methods[method], 0.2)
            made.results.add(cell, known, {**spent, "diverged": False, "environment": environment})
    said: list[str] = []
    price.run(made.tasks, made.methods, made.several(), made.prices, worker, said.append)
    assert [text.split(":")[0] for text in said] == [
        f"blobs 20 % {name}" for name in ("full-short", "fresh-random", "slow")
    ]
    lines = {line["method"]: line for line in Results(made.prices.path).lines()}
    slow = lines["slow"]
    assert slow["selection_processor_seconds"] >= 4 * 0.05
    share = slow["processor_seconds"] / slow["beside"]["processor_seconds"]
    found = {e.method: e for e in figures.entries(made, "blobs")}
    assert found["full-short"].seconds == pytest.approx(3)
    assert found["slow"].seconds == pytest.approx(3 * share)
    assert found["slow"].selecting > 0.5 * found["slow"].seconds
    assert found["slow"].beside
    assert not found["order-dp"].beside
    assert figures.at_equal_time(found["order-dp"], list(found.values())) is None
    table = report.table(list(found.values()), list(found.values()))
    assert next(row for row in table.splitlines() if "`order-dp`" in row).split(" | ")[4] == "1 ‡"
    price.run(made.tasks, made.methods, made.several(), made.prices, worker, said.append)
    assert len(said) == 3  # it has them all


@dataclass(frozen=True)
class Told(FreshRandom):
    name: str = ""
    epochs: ClassVar[list[tuple[str, int]]] = []

    def select(self, candidates: Candidates, budget: int, *, seed: int, epoch: int) -> Choice:
        self.epochs.append((self.name, epoch))
        return super().select(candidates, budget, seed=seed, epoch=epoch)


def _told(name: str, plan: Plan) -> Told:
    return Told(name)


def test_methods_are_timed_epoch_by_epoch_in_turns() -> None:
    Told.epochs.clear()
    methods = {name: Method(partial(_told, name)) for name in "ab"}
    made = price.in_turns(TINY, methods, 0.2, 0.05, 0, blobs(), CPU)
    assert Told.epochs == [(name, epoch) for epoch in range(4) for name in "ab"]
    assert made["a"]["beside"] == made["b"]["beside"]


def test_a_method_that_breaks_down_has_no_price() -> None:
    methods = {name: METHODS[name] for name in ("order-dp",)}
    assert price.in_turns(TINY, methods, 0.2, 1e9, 0, blobs(), CPU) == {}


def test_the_paired_test_is_students() -> None:
    difference = figures.Difference((0.35, 0.64, 0.79))
    assert difference.p == pytest.approx(0.0453, abs=2e-3)  # t = 4.6 with 2 degrees of freedom


def test_nothing_on_the_front_is_beaten() -> None:
    found = [entry("a", 1, 80), entry("b", 2, 79), entry("c", 3, 85), entry("d", 3, 84)]
    assert [e.method for e in figures.pareto(found)] == ["a", "c"]


def test_runs_on_another_kind_of_machine_have_no_time(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    go(race(path, methods={"full-short": METHODS["full-short"]}))
    made = race(path)
    run(made, Worker(tiny, Path(), Path()), {"device": "H100"}, lambda _: None)
    found = {e.method: e for e in figures.entries(race(path), "blobs")}
    assert found["full-short"].timed
    assert not found["order-dp"].timed
    both = list(found.values())
    assert figures.at_equal_time(found["order-dp"], both) is None
    assert figures.at_equal_steps(found["order-dp"], found["full-short"]) is not None
    assert figures.pareto(both) == [found["full-short"]]
    page = tmp_path / "page.md"
    report.write(race(path), page)
    row = next(text for text in page.read_text().splitlines() if text.startswith("| `order-dp`"))
    assert row.split(" | ")[4:6] == ["–", "–"]
    assert "Rows without seconds were made on another kind of machine" in page.read_text()


@pytest.mark.parametrize(
    ("third", "head", "ahead", "behind"),
    [
        ((95, 95.2, 95.1), "reached", 3, 0),
        ((91, 91.6, 93), "missed, too few won", 2, 0),  # ahead by 3.2 errors, which are too few
        ((89, 90.2, 90), "missed, too few won", 2, 0),  # by less than an error behind
        ((88.4, 89.8, 89.6), "missed, too few won and some lost", 2, 1),  # by 1.7
    ],
)
def test_the_goal_counts_tasks_by_standard_errors(
    third: tuple[float, ...], head: str, ahead: int, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    baselines = [entry(name, 10, 90, 90, 90) for name in ("full-short", "fresh-random")]
    found = {
        "one": [*baselines, entry("order-dp", 10, 91, 91.2, 91.1)],
        "cifar10-noisy": [
            *baselines,
            entry("order-dp", 10, 80, 80.2, 80.1),
            entry("borderline", 10, 91, 91.2, 91.1),
        ],
        "three": [*baselines, entry("order-dp", 10, *third)],
        "not-run": baselines,
    }
    full = replace(entry("full-short", 100, 95, 95, 95), fraction=1.0)
    found["one"].append(full)
    made: Any = SimpleNamespace(tasks={name: replace(TINY, about=name) for name in found})
    monkeypatch.setattr(report, "entries", lambda _, name: found[name])
    told = report.goal(made)
    assert f"## The goal: {head}\n" in told
    assert f"Ahead on {ahead} of 3: one; cifar10-noisy" in told
    assert f"Behind on {behind}: " in told
    assert "| one | `order-dp` | +19.1 | +19.1 | +1.10 ± 0.06 (p 0.0027) | +5.00 |" in told
    assert "| cifar10-noisy | `borderline` | +19.1 | +19.1 | +1.10 ± 0.06 (p 0.0027) | – |" in told


def test_the_goal_tells_what_makes_it_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    short, fresh = entry("full-short", 10, *[90] * 5), entry("fresh-random", 10, 91, *[90.4] * 4)
    ours = entry("order-dp", 10, 99, 99, 99, 91.2, 91.4)  # the first seeds flatter it
    found = {"one": [short, fresh, ours]}
    found["large"] = [replace(e, fraction=0.3) for e in found["one"]]
    found["one"] += [replace(e, fraction=0.05) for e in found["one"]]
    tasks = {"one": TINY, "large": replace(TINY, title="a large one", on_gpu=True)}
    monkeypatch.setattr(report, "entries", lambda _, name: found[name])
    made: Any = SimpleNamespace(tasks=tasks)
    told = report.goal(made)
    row = next(text for text in told.splitlines() if text.startswith("| blobs |"))
    assert row.endswith("| +1.10 ± 0.10 (p 0.058) |")  # of the last two seeds
    assert "1 of 1 differences have a p below 0.05, the least 0.012" in told
    assert "a large one" not in told  # made on a GPU


def test_gains_are_told_by_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    short, fresh = entry("full-short", 10, 90, 90), entry("fresh-random", 10, 91, 90.4, 95)
    ours = entry("order-dp", 10, 91, 92, 93)
    some = [short, fresh, ours]
    found = {
        "one": [*(replace(e, fraction=0.3) for e in some), *some],
        "other": [replace(e, fraction=0.05) for e in some],
        "lone": [ours],
    }
    monkeypatch.setattr(report, "entries", lambda _, name: found[name])
    made: Any = SimpleNamespace(tasks={name: replace(TINY, about=name) for name in found})
    told = report.by_budget(made).splitlines()
    gain = "+1.15 ± 0.65 (p 0.33)"  # of the two seeds that all have
    assert told[-4:] == [
        "| task | recommended | 5 % | 10 % | 30 % |",
        "|---|---|---|---|---|",
        f"| one | `order-dp` | – | {gain} | {gain} |",
        f"| other | `order-dp` | {gain} | – | – |",
    ]


def test_one_seed_alone_is_as_good_as_all_data_by_luck_only() -> None:
    full = replace(entry("full-short", 100, 95), fraction=1.0)
    lucky = entry("seta", 10, 95)
    untimed = replace(entry("borderline", 10, 95, 95), beside=False)
    assert not lucky.settled
    assert not untimed.settled
    assert figures.lossless([full, lucky, untimed]) == full
    told = report.verdict([full, lucky, untimed])
    assert "(95.00 of 1 seed, 100 s), at most 0.1 points worse, of several seeds and" in told
    assert told.endswith(": nothing.")
    sound = entry("order-dp", 20, 94.9, 95)
    assert figures.lossless([full, lucky, untimed, sound]) == sound
    told = report.verdict([full, sound])
    assert told.endswith(": `order-dp` at 10 %, 94.95 ± 0.05, 20 s.")


def test_a_title_is_for_readers_only() -> None:
    named = replace(TINY, title="Blobs")
    assert named.settings() == TINY.settings()
    assert (TINY.name, named.name) == ("blobs", "Blobs")


def test_settings_tell_methods_apart() -> None:
    plan = Plan(epochs=100, fraction=0.1, batch_size=128)
    settings = [json.dumps(METHODS[name].settings(plan)) for name in METHODS]
    assert len(set(settings)) == len(settings)
    assert Cell("a", "b", 0.1, 0.1, 0) == Cell("a", "b", 0.1, 0.1, 0)
