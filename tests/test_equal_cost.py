"""The examples that compare methods at equal cost: their rules, and each of them once."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


class Counted(nn.Linear):
    """Counts the samples that it is trained on, and its updates."""

    updates = samples = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.updates += 1
            self.samples += len(x)
        return super().forward(x)


def test_all_methods_but_the_full_one_make_as_many_updates(load: Callable[[str], Any]) -> None:
    equal_cost = load("equal_cost")
    plan = equal_cost.Plan(epochs=4, fraction=0.25, batch_size=5, every=2)
    data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
    for method in equal_cost.METHODS:
        model = Counted(3, 2)
        before = model.weight.clone()
        equal_cost.fit(model, data, nn.CrossEntropyLoss(), method, 1e-2, plan)
        updates = 32 if method == "full" else 8
        assert (model.updates, model.samples) == (updates, 5 * updates)
        assert plan.updates(method, 40) == updates
        assert not torch.equal(model.weight, before)


def test_rates_are_chosen_on_validation_data_with_the_first_seed(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    equal_cost, seen = load("equal_cost"), []

    def train(method: str, rate: float, seed: int) -> Any:
        seen.append((method, rate, seed))
        validation = -abs(rate - 0.1)
        return equal_cost.Run(method, rate, seed, validation, test=rate + seed, seconds=2.0)

    plan = equal_cost.Plan(epochs=4, fraction=0.25, batch_size=5, every=2)
    experiment = equal_cost.Experiment(lambda *_: train, 40, plan, (1.0, 0.1, 0.01), "accuracy")
    runs = list(experiment.runs((3, 4)))
    assert seen[:4] == [("full", 1.0, 3), ("full", 0.1, 3), ("full", 0.01, 3), ("full", 0.1, 4)]
    assert len(seen) == 4 * len(equal_cost.METHODS)
    rates = [(run.rate, run.test) for run in runs if run.method == "full"]
    assert rates == [(0.1, 3.1), (1.0, None), (0.01, None), (0.1, 4.1)]
    equal_cost.save(tmp_path / "runs.jsonl", runs)
    saved = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    table = list(equal_cost.table([equal_cost.Run(**line) for line in saved], "accuracy"))
    assert table[0] == "| method | learning rate | accuracy | seconds |"
    assert table[2] == "| `full` | 0.1 | 3.600 ± 0.500 | 2 |"
    assert len(table) == 2 + len(equal_cost.METHODS)


@pytest.mark.parametrize("best", [0.001, 0.1, 30.0])
def test_a_rate_beyond_those_given_is_tried_where_the_best_is_at_their_edge(
    load: Callable[[str], Any], best: float
) -> None:
    equal_cost = load("equal_cost")

    def train(method: str, rate: float, seed: int) -> Any:
        diverged = rate > 5 * best
        validation = math.nan if diverged else -abs(math.log(rate / best))
        return equal_cost.Run(method, rate, seed, validation, 0.0, 0.0)

    first, *others = equal_cost.by_rate(train, "full", 0, (1.0, 0.1), 10)
    assert first.rate == pytest.approx(best) or abs(math.log10(first.rate / best)) < 0.5
    rates = [run.rate for run in others]
    assert min(rates) < first.rate < max(rates)


def test_finished_runs_are_saved_before_the_next_one(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equal_cost = load("equal_cost")

    def train(method: str, rate: float, seed: int) -> Any:
        if method != "full":
            raise KeyboardInterrupt
        return equal_cost.Run(method, rate, seed, -abs(rate - 0.1), 0.5, 2.0)

    plan = equal_cost.Plan(epochs=4, fraction=0.25, batch_size=5, every=2)
    experiment = equal_cost.Experiment(lambda *_: train, 40, plan, (1.0, 0.1, 0.01), "accuracy")
    out = tmp_path / "runs.jsonl"
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "0", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        experiment.main("What it does.")
    assert [json.loads(line)["rate"] for line in out.read_text().splitlines()] == [0.1, 1.0, 0.01]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1", "-1"], "--seeds must be at least 0, got -1"),
        (["--out", "nowhere/runs.jsonl"], "--out must be a file in a folder that there is"),
    ],
)
def test_a_comparison_refuses_before_it_trains(
    load: Callable[[str], Any],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    experiment = load("equal_cost").Experiment(pytest.fail, 40, None, (), "accuracy")
    with pytest.raises(SystemExit, match="2"):
        experiment.main("What it does.")
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language_model", "segmentation", "text_classification"])
def test_the_examples_run(load: Callable[[str], Any], name: str) -> None:
    example, equal_cost = load(name), load("equal_cost")
    plan = equal_cost.Plan(epochs=2, fraction=0.25, batch_size=8, every=1)
    train = example.EXPERIMENT.prepare(32, plan)
    for method in equal_cost.METHODS:
        run = train(method, 1e-3, 0)
        assert (run.method, run.rate, run.seed) == (method, 1e-3, 0)
        assert all(math.isfinite(figure) for figure in (run.validation, run.test, run.seconds))


# ---- train.py of timm, which another test file runs; here a script that only reports


SCRIPT = """
import pathlib, sys
flags = dict(zip(sys.argv, sys.argv[1:]))
top1 = {"0.05": 40, "0.1": 50, "0.2": 60, "0.4": 55}[flags["--lr"]] + int(flags["--seed"]) % 1000
folder = pathlib.Path(flags["--output"], flags["--experiment"])
folder.mkdir(parents=True)
(folder / "summary.csv").write_text(f"epoch,eval_top1\\n0,1.0\\n1,{top1}\\n")
with open(pathlib.Path(flags["--output"], "commands"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""


def test_timm_on_cifar10_sees_the_test_images_at_the_chosen_rate_only(
    load: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example, out = load("timm_cifar10"), tmp_path / "out"
    for split, name in itertools.product(("train", "test"), range(20)):
        (tmp_path / "data" / split / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / split / "cat" / f"{name}.png").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    module = "adaptive_subset.integrations.timm_patch"
    plain = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", module]
        return plain([command[0], *command[3:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    given = ["x", str(tmp_path / "script.py"), str(tmp_path / "data"), "--output", str(out)]
    monkeypatch.setattr(
        sys, "argv", [*given, "--lr", "0.1", "--epochs", "20", "--sched-on-updates"]
    )
    example.main()
    commands = (out / "commands").read_text().splitlines()
    assert len(commands) == len(example.METHODS) * (4 + 3)
    for line in commands:
        held_out = "--val-split validation" in line
        assert held_out == (f"--data-dir {out / 'held_out'}" in line) == ("--seed 1000" in line)
        assert held_out or "--lr 0.2 " in line
        assert ("--subset-strategy" in line) == ("fresh-random" in line or "order-dp" in line)
    assert "| `full-short` | 0.2 | 61.00 ± 0.58 |" in capsys.readouterr().out
    assert len(list((out / "held_out" / "train" / "cat").iterdir())) == 18
    assert len(list((out / "held_out" / "validation" / "cat").iterdir())) == 2
    example.main()  # nothing is run twice
    assert (out / "commands").read_text().splitlines() == commands
    monkeypatch.setattr(sys, "argv", [*given, "--epochs", "10"])
    with pytest.raises(SystemExit, match="other flags"):
        example.main()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--lr": "0"}, "--lr must be at least"),
        ({"--fraction": "2"}, "--fraction must be in (0, 1], got 2.0"),
        ({"--epochs": "0"}, "--epochs must be at least 1, got 0"),
        ({"--seeds": "0"}, "--seeds must be at least 1, got 0"),
        ({"--methods": "infobatch"}, "invalid choice: 'infobatch'"),
        ({"script": "nowhere.py"}, "script must be timm's train.py, got nowhere.py"),
        ({"data": "nowhere"}, "data must have folders train and test, got nowhere"),
    ],
)
def test_timm_on_cifar10_refuses_in_one_line(
    load: Callable[[str], Any],
    change: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
    (tmp_path / "script.py").touch()
    given = {"script": str(tmp_path / "script.py"), "data": str(tmp_path / "data")} | change
    arguments = [given.pop("script"), given.pop("data"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, *itertools.chain(*given.items())])
    with pytest.raises(SystemExit, match="2"):
        load("timm_cifar10").main()
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
