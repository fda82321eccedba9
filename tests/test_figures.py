"""Figures in the documentation are those of the results that are committed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as everything
from benchmarks import tables
from benchmarks.arena import report
from benchmarks.arena.figures import Difference, Entry, at_equal_steps, at_equal_time, entries
from benchmarks.arena.methods import METHODS
from benchmarks.arena.race import Race
from benchmarks.arena.results import Results, prices_beside
from benchmarks.arena.tasks import TASKS

ROOT = Path(__file__).parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"


def one_line(page: Path) -> str:
    """All of a page as one line."""
    return " ".join(page.read_text().split())


def test_the_page_of_benchmarks_is_that_of_the_results() -> None:
    assert everything.page() == (DOCS / "benchmarks.md").read_text()


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: table.files[0])
def test_tables_of_other_pages_are_those_of_the_results(table: tables.Table) -> None:
    page = (DOCS / table.page).read_text()
    assert page.count(table.head) == 1  # by which it is found
    if table.is_measured(RESULTS):
        assert table.text(RESULTS) + "\n\n" in page


def test_a_table_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    pages = {table.page for table in tables.TABLES}
    for name in pages:
        text = (DOCS / name).read_text()
        (tmp_path / name).write_text(text.replace("| CRAIG | 5.3", "| CRAIG | 1"))
    tables.write(tmp_path, RESULTS)
    for name in pages:
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("of", "page"), [("arena", "comparison.md"), ("paper", "paper.md")])
def test_a_page_of_runs_is_that_of_the_results(
    of: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = importlib.import_module(f"benchmarks.{of}.plot")
    drawn: list[Path] = []
    for name, value in vars(plot).items():
        if getattr(value, "__module__", "") == plot.__name__:
            monkeypatch.setattr(plot, name, lambda *given, **_: drawn.append(image_of(given)))
    monkeypatch.setattr("torch.set_num_threads", int)
    results = str(RESULTS / f"{of}.jsonl")
    command = importlib.import_module(f"benchmarks.{of}.__main__")
    command.main(["--report", results, "--page", str(tmp_path / page)])
    assert (tmp_path / page).read_text() == (DOCS / page).read_text()
    assert drawn
    assert all((DOCS / image.name).is_file() for image in drawn)


def image_of(given: tuple[Any, ...]) -> Path:
    (image,) = (value for value in given if isinstance(value, Path))
    return image


# ---- the comparison, where it is told elsewhere

COLUMNS = ("fashion-mnist", "cifar10", "cifar10-noisy", "fashion-mnist-long-tail")
GAINS = dict(zip(COLUMNS, ("order-dp", "order-dp", "borderline", "balanced"), strict=True))
SEEDS_AT_THIRTY = {"cifar10-noisy": 5}  # of what has more than three
ROWS = ("full-short", "full-short", "fresh-random", "order-dp", "borderline", "balanced")


@pytest.fixture(scope="module")
def arena() -> Race:
    path = RESULTS / "arena.jsonl"
    results, prices = Results(path), prices_beside(path)
    return Race(TASKS, METHODS, results.fractions(), results.seeds(), 5, results, prices)


def at_budget(race: Race, task: str, fraction: float = 0.1) -> dict[str, Entry]:
    return report.at_budget(entries(race, task), fraction)


def test_the_first_table_of_the_readme_is_that_of_the_runs(arena: Race) -> None:
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index("| a tenth") :].split("\n\n")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(table) == len(ROWS)
    assert table[0][0] == "all data at full length, ten times the steps"
    for (i, row), method in zip(enumerate(table), ROWS, strict=True):
        for cell, task in zip(row[1:], COLUMNS, strict=True):
            if cell:
                found = at_budget(arena, task, 0.1 if i else 1)[method]
                seeds = " (1 seed)" if len(found.accuracy) == 1 else ""
                assert cell.strip("*") == report.reached(found) + seeds
                assert cell.startswith("**") == (i > 2 and is_ahead(arena, task, found))


def is_ahead(race: Race, task: str, entry: Entry) -> bool:
    """Whether it beats both baselines."""
    fresh = at_equal_steps(entry, at_budget(race, task)["fresh-random"])
    return report.outcome(at_equal_time(entry, entries(race, task)), fresh) == report.WINS


def test_what_the_page_of_strategies_tells_of_the_runs(arena: Race) -> None:
    page = one_line(DOCS / "choosing.md")
    found = at_budget(arena, "fashion-mnist")
    matched, mean_one = found["gradmatch-matched"], found["gradmatch"]
    rates = f"five times as high there ({matched.rate:g} and {mean_one.rate:g})"
    assert f"{rates}, and at these both are about equal " in page
    assert f"({matched.mean:.2f} and {mean_one.mean:.2f} %, one seed)" in page
    assert matched.rate == pytest.approx(5 * mean_one.rate)
    assert report.by_budget(arena).strip().split("\n\n")[-1] in (DOCS / "choosing.md").read_text()
    assert "seeds that ran only afterwards gained about as much on each" in page
    for task, method in GAINS.items():
        everything = entries(arena, task)
        ours = report.at_budget(everything, 0.1)[method]
        later = report.later_seeds(ours, report.SEEN.get(task, report.SEEN_ELSEWHERE))
        gain, afterwards = (report.over_both(entry, everything) for entry in (ours, later))
        assert gain is not None
        assert afterwards is not None
        assert afterwards.mean > 0.8 * gain.mean
    fresh = at_equal_steps(found["order-dp"], found["fresh-random"])
    assert fresh is not None
    assert f"not told from fresh random subsets alone (p {fresh.p:.2f})" in page
    tail = at_budget(arena, "fashion-mnist-long-tail")
    lost = tail["full-short"].accuracy[0] - tail["gradmatch-reference"].mean
    assert "with 20 samples of each class it lost four points" in page
    assert round(lost) == 4
    counted = "won 39 of 39"  # of runs with one seed
    assert f"`gradmatch-warm` {counted} against other methods" in (DOCS / "paper.md").read_text()
    assert f"after a warm start {counted} comparisons" in page


def test_what_is_said_of_thirty_percent_is_so(arena: Race) -> None:
    readme = one_line(ROOT / "README.md")
    gains, behind = {}, {}
    runs = {name: entries(arena, name) for name in TASKS if not TASKS[name].on_gpu}
    for task, found in runs.items():
        of, full = report.at_budget(found, 0.3), report.whole(found)
        ours = of[report.recommended(task)]
        seeds = {len(of[m].accuracy) for m in ("full-short", "fresh-random", ours.method)}
        assert seeds == {SEEDS_AT_THIRTY.get(task, 3)}
        gain = report.over_both(ours, found)
        assert gain is not None
        assert full is not None
        gains[task], behind[task] = gain, full.mean - of["full-short"].mean
    as_good = {task for task, points in behind.items() if abs(points) < 0.2}
    assert as_good == {*behind} - {"cifar10", "cifar10-noisy"}
    won = {task for task, gain in gains.items() if gain.sure and gain.mean > 0}
    assert won == {"cifar10-noisy"}
    told = {task: f"{gain.mean:.2f} ± {gain.error:.2f}" for task, gain in gains.items()}
    lost = told["fashion-mnist"].removeprefix("-")
    assert lost != told["fashion-mnist"]
    assert f"`OrderDP()` lost {lost} points on Fashion-MNIST" in readme
    gaps = f"{behind['cifar10']:.1f} points behind, or {behind['cifar10-noisy']:.1f} with wrong"
    unsure = f"{told['cifar10']} (p {gains['cifar10'].p:.2f})"
    assert f"{gaps} labels, {unsure} and {told['cifar10-noisy']} were gained" in readme
    wide = report.at_budget(entries(arena, "cifar10-wide"), 0.3)
    elsewhere = at_equal_steps(wide["order-dp"], wide["full-short"])
    assert elsewhere is not None
    assert elsewhere.mean < 0 < apart("timm-cifar10", "full-short", "order-dp").mean
    assert "in two other networks there the shorter training was ahead of `OrderDP()`" in readme
    assert {round(points) for points in behind.values() if points > 1} == {3, 4}
    assert "within 0.2 points of the full one on four of six tasks" in readme
    page = one_line(DOCS / "choosing.md")
    assert "as good as the full one on four of six tasks" in page
    noisy = runs["cifar10-noisy"]
    trimmed = report.over_both(report.at_budget(noisy, 0.3)["order-dp-trimmed"], noisy)
    assert trimmed is not None
    assert trimmed.sure
    assert len(trimmed.each) == 3
    gained = f"{trimmed.mean:.2f} ± {trimmed.error:.2f} at equal steps"
    assert f"gained about as much there ({gained}, three seeds, p {trimmed.p:.3f})" in page
    ahead = set()
    for task, found in runs.items():
        of = report.at_budget(found, 0.3)
        for method, entry in of.items():
            leads = (at_equal_steps(entry, of[peer]) for peer in ("full-short", "fresh-random"))
            if report.outcome(*leads) == report.WINS:
                ahead.add((task, method))
    assert ahead == {("cifar10-noisy", "borderline"), ("cifar10-noisy", "order-dp-trimmed")}
    assert "No other of those that were best at a tenth was ahead of both anywhere" in page
    unrun = {task for task, found in runs.items() if report.unrun(arena, task, found)}
    assert unrun <= {"fashion-mnist", "fashion-mnist-long-tail", "fashion-mnist-redundant"}
    assert "on Fashion-MNIST most did not run" in page


def apart(example: str, ours: str, theirs: str) -> Difference:
    """What two methods of an example differ by, over paired seeds."""
    reached: dict[str, dict[int, float]] = {}
    for row in tables.figures(RESULTS / f"{example}.jsonl"):
        if row["test"] is not None:
            reached.setdefault(row["method"], {})[row["seed"]] = row["test"]
    return Difference(tuple(value - reached[theirs][s] for s, value in reached[ours].items()))


@pytest.mark.parametrize(
    ("page", "example", "ours", "theirs", "words"),
    [
        ("timm", "timm-cifar10", "full-short", "order-dp", "{:.1f} ± {:.1f} points of paired"),
        ("choosing", "timm-cifar10", "full-short", "order-dp", "was {:.1f} ± {:.1f} points behind"),
        ("tokens", "language-model", "gradmatch", "order-dp", "was {:.3f} ± {:.3f} behind"),
        ("tokens", "segmentation", "order-dp", "gradmatch", "{:.3f} ± {:.3f} ahead of it"),
        ("tokens", "segmentation", "order-dp", "full-short", "{:.3f} ± {:.3f} ahead of the short"),
    ],
)
def test_differences_in_examples_are_those_of_paired_seeds(
    page: str, example: str, ours: str, theirs: str, words: str
) -> None:
    found = apart(example, ours, theirs)
    text = one_line(DOCS / f"{page}.md")
    assert words.format(found.mean, found.error) in text


def test_no_difference_to_the_short_schedule_is_told_in_small_transformers() -> None:
    assert "No difference to that schedule has a p below 0.05" in one_line(DOCS / "tokens.md")
    for example in ("language-model", "text-classification", "segmentation"):
        for method in ("fresh-random", "order-dp", "gradmatch"):
            p = apart(example, method, "full-short").p
            assert p is not None
            assert p > 0.05


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


# ---- sums


def test_the_model_of_many_ranks_adds_up() -> None:
    page = (DOCS / "distributed.md").read_text()
    lines = page[page.index("| R | pass |") :].split("\n\n")[0].splitlines()[2:]
    n, features = 1_281_167, 2049
    for line in lines:
        ranks, *told = (float(cell.strip(" s")) for cell in line.strip("|").split("|"))
        moved = 2 * 4 * n * (1 + features) / 1e9 / ranks if ranks > 1 else 0.0
        waits = 20 * 1.4e-3 * ranks if ranks > 1 else 0.0
        apart = n / 1000 / ranks, moved, 216 / ranks, 80 / ranks, waits
        for figure, expected in zip(told, (*apart, sum(apart)), strict=True):
            assert figure == pytest.approx(expected, rel=0.1, abs=0.05)
