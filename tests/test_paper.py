"""The experiments of the paper: every cell once, a fair clock, an honest page."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_subset.energy import EnergyError
from benchmarks.arena import crew, data, networks, price
from benchmarks.arena import tasks as arena_tasks
from benchmarks.arena.crew import Worker
from benchmarks.arena.methods import Method, Plan
from benchmarks.arena.phases import SELECTION, TRAINING, Phases
from benchmarks.arena.race import ALL, run
from benchmarks.arena.results import Cell, Results, prices_beside
from benchmarks.arena.run import train
from benchmarks.paper import __main__ as command
from benchmarks.paper import presets, report
from benchmarks.paper.experiment import STEPS, Experiment
from benchmarks.paper.figures import STOPPED, Against, Entry, as_fast, compared, entries
from benchmarks.paper.presets import PRESETS, SMALL, Heat, Preset, variants, with_bf16
from benchmarks.paper.printed import Printed
from benchmarks.paper.verdicts import judged
from tests.test_arena import TINY, blobs

CPU = torch.device("cpu")
FRACTIONS = (0.1, 0.3)


def referenced(*_: Path) -> data.Data:
    return replace(blobs(), reference=blobs().validation)


SHORT = replace(
    TINY, load=referenced, reference=True, rates=(presets.RATE,), points=10, points_full=8
)


def tiny() -> Preset:
    methods = variants(2)
    heats = [Heat("blobs", fraction, tuple(methods)) for fraction in FRACTIONS]
    return Preset("0a", {"blobs": SHORT}, methods, heats, "Blobs.")


def experiment(path: Path) -> Experiment:
    preset = tiny()
    return Experiment(preset, preset.heats, (0, 1), *files(path))


def files(path: Path) -> tuple[Results, Results]:
    return Results(path), prices_beside(path)


def line(seed: int, test: float, seconds: float, **more: Any) -> dict[str, Any]:
    curve = [[seconds * i / 10, 10 * i, 0.0, test * i / 10] for i in range(1, 11)]
    both = {"seconds": 2 * seconds, "selection_seconds": 0.0}
    both |= {"processor_seconds": seconds, "selection_processor_seconds": seconds / 4}
    known = {"steps": 100, "samples": 1600, "validation": test, "diverged": False, "curve": curve}
    place = {"device": "cpu", "processes": 1}
    return {"seed": seed, "test": test, **both, **known, "environment": place, **more}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time: the more data, the better and the slower."""

    def fake(task: Any, method: Method, fraction: float, rate: float, seed: int, *_: Any) -> Any:
        made = line(seed, 0.9 + 0.08 * fraction - 0.001 * seed, 100 * fraction)
        return {k: v for k, v in made.items() if k not in ("seed", "environment")}

    monkeypatch.setattr(crew, "train", fake)


def go(made: Experiment, limit: int | None = None) -> int:
    """How many runs it made, killed after `limit`."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == limit:
            raise KeyboardInterrupt

    worker = Worker(lambda cell: (made.tasks[cell.task], made.methods[cell.method]), Path(), Path())
    run(made, worker, {"device": "cpu", "processes": 1}, say)
    return len(said)


def cells(*paths: Path) -> Counter[tuple[str, float, int]]:
    lines = [json.loads(text) for path in paths for text in path.read_text().splitlines()]
    return Counter((r["method"], r["fraction"], r["seed"]) for r in lines)


def test_a_killed_run_goes_on_without_repeating(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "paper.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(experiment(path), limit=5)
    with path.open("a") as file:
        file.write('{"task": "blobs", "meth')  # killed while writing
    total = 2 * (1 + 2 * len(tiny().methods))
    assert go(experiment(path)) == total - 5
    assert go(experiment(path)) == 0
    assert set(cells(path).values()) == {1}
    assert len(cells(path)) == total


def test_a_file_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    other = tmp_path / "paper-1.jsonl"
    Results(other).add(Cell("blobs", ALL, 1.0, 0.01, 0), {}, line(0, 0.9, 1))
    with other.open("a") as file:
        file.write('{"task"')
    assert len(Results(tmp_path / "paper-0.jsonl", [other]).lines()) == 1
    assert other.read_text().endswith('{"task"')  # which is its writer's to mend


def test_presets_select_every_20_epochs_as_the_paper_does() -> None:
    for name, preset in PRESETS.items():
        for heat in preset.heats:
            task = preset.tasks[heat.task]
            plan = Plan(task.epochs, heat.fraction, task.batch_size)
            if name not in ("ablations", "cifar10-brief") and not heat.beside:
                assert preset.methods["gradmatch-pb-warm"].every(plan) == 20
    plan = Plan(300, 0.05, 128)
    ablated = PRESETS["ablations"].methods
    assert [ablated[f"craig{part}"].every(plan) for part in ("", ", R / 2", ", R / 4")] == [
        20,
        10,
        5,
    ]


def test_every_method_of_every_preset_has_settings_of_its_own() -> None:
    for preset in (*PRESETS.values(), *SMALL.values()):
        plan = Plan(next(iter(preset.tasks.values())).epochs, 0.1, 128)
        found = [json.dumps(method.settings(plan)) for method in preset.methods.values()]
        assert len(set(found)) == len(found)


def test_in_imbalance_gradients_are_matched_to_the_validation_set() -> None:
    for name in ("mnist-imbalance", "cifar10-imbalance"):
        methods = PRESETS[name].methods
        matched = {method for method, made in methods.items() if made.reference}
        assert matched == {
            f"{base}{warm}"
            for base in ("gradmatch", "gradmatch-pb", "glister")
            for warm in ("", "-warm")
        }


def test_cut_classes_keep_a_tenth_and_others_all() -> None:
    given = data.Samples(torch.zeros(1000, 1), torch.arange(1000) % 10)
    counts = torch.bincount(data.cut_classes(0.3, given).labels).tolist()
    assert sorted(counts) == [10] * 3 + [100] * 7


def test_a_tenth_is_the_validation_set_and_the_reference(tmp_path: Path) -> None:
    inputs, labels = torch.arange(400.0)[:, None], torch.arange(400) % 4
    torch.save([inputs.half(), labels, inputs[:8].half(), labels[:8]], tmp_path / "some.pt")
    found = data.with_tenth("some", tmp_path, tmp_path, few=200)
    assert (len(found.train), len(found.validation)) == (180, 20)
    assert found.reference is found.validation
    assert torch.bincount(found.validation.labels).tolist() == [5] * 4
    both = torch.cat([found.train.inputs, found.validation.inputs])
    assert len(both.unique()) == 200


def test_runs_of_the_arena_keep_their_keys() -> None:
    """Precision and points are new: what was run before them is not run again."""
    kept = Results(Path(__file__).parents[1] / "benchmarks" / "results" / "arena.jsonl").lines()
    recipe = arena_tasks.TASKS["fashion-mnist"].settings()
    assert any(r["settings"]["task"] == recipe for r in kept if r["task"] == "fashion-mnist")


def test_bf16_is_another_cell() -> None:
    plain, other = (
        p.tasks["mnist"].settings() for p in (PRESETS["mnist"], with_bf16(PRESETS["mnist"]))
    )
    assert "precision" not in plain
    assert other == {**plain, "precision": "bfloat16"}


def test_under_bf16_the_network_runs_in_bfloat16() -> None:
    seen = set()

    def network() -> torch.nn.Module:
        model = SHORT.network()
        last = list(model.children())[-1]
        last.register_forward_hook(lambda _m, _x, output: seen.add(output.dtype))
        return model

    made = replace(SHORT, network=network, precision="bfloat16")
    train(made, variants(2)["gradmatch-pb-warm"], 0.3, 0.1, 0, referenced(), CPU)
    assert torch.bfloat16 in seen
    assert torch.float32 not in seen  # float64 is in which a head is checked


@pytest.mark.slow
@pytest.mark.parametrize("name", variants(2))
def test_every_variant_makes_the_same_number_of_steps(name: str) -> None:
    measured = train(SHORT, variants(2)[name], 0.2, 0.1, 0, referenced(), CPU)
    assert (measured["steps"], len(measured["curve"])) == (40, 10)


def test_the_resnet_is_the_paper_s() -> None:
    model = networks.resnet18(10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("network", "parameters", "last"),
    [(networks.mobilenet_v1, 3_217_226, 2), (networks.mobilenet_v2, 2_236_682, 4)],
)
def test_the_mobilenets_are_those_of_small_images(network: Any, parameters: int, last: int) -> None:
    model, sizes = network(10), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _x, output: sizes.append(output.shape[-1]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (sizes[0], sizes[-1]) == (32, last)


class Meter:
    """Counts a joule each time that a phase is entered."""

    def __init__(self) -> None:
        self.joules: dict[str, dict[str, float]] = {}
        self.missing = ["no RAPL"]
        self.inside = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        yield
        self.inside = False
        counter = self.joules.setdefault(name, {"gpu": 0.0})
        counter["gpu"] += 1


def test_what_is_in_no_phase_is_not_counted() -> None:
    phases = Phases(CPU)
    for phase in (TRAINING, None, SELECTION, None):
        phases.enter(phase)
        time.sleep(0.02 if phase else 0.3)
    phases.enter(None)
    for seconds in phases.wall.values():
        assert 0.02 <= seconds < 0.2


def test_joules_are_those_of_each_phase() -> None:
    meter = Meter()
    method = variants(2)["gradmatch"]
    measured = train(SHORT, method, 0.2, 0.1, 0, referenced(), CPU, meter)  # type: ignore[arg-type]
    assert measured["joules"] == meter.joules
    assert {SELECTION, TRAINING} == set(meter.joules)
    assert measured["energy_missing"] == ["no RAPL"]
    assert not meter.inside


def test_a_failed_run_leaves_no_phase_open() -> None:
    meter = Meter()

    def broken(*_: Any) -> Any:
        raise KeyError("augment")

    made = replace(SHORT, augment=broken)
    with pytest.raises(KeyError):
        train(made, Method(None), 0.2, 0.1, 0, referenced(), CPU, meter)  # type: ignore[arg-type]
    assert not meter.inside


def entry(method: str, tests: list[float], seconds: float, **more: Any) -> Entry:
    full = [line(seed, 0.98, 100, joules={TRAINING: {"gpu": 50.0}}) for seed in range(len(tests))]
    lines = [line(seed, test, seconds, **more) for seed, test in enumerate(tests)]
    return Entry("blobs", method, 0.1, lines, full)


def test_gains_are_ratios_to_all_data_by_processor_time() -> None:
    found = entry("gradmatch", [0.97, 0.96], 10, joules={TRAINING: {"gpu": 4.0, "package": 1.0}})
    assert found.lost == pytest.approx(1.5)
    assert found.relative_error == pytest.approx(150 / 98)
    assert found.speedup == pytest.approx(10)
    assert found.energy_ratio == pytest.approx(10)
    assert found.selecting == pytest.approx(0.25)
    assert entry("craig", [0.97], 10).energy_ratio is None


def test_a_slow_machine_makes_no_method_dear() -> None:
    """Where a step was timed beside one on all data, selections count in steps of their run."""
    found = entry("gradmatch", [0.97, 0.96], 10)
    slow = [{**each, "steps": 20} for each in entry("gradmatch", [0.97, 0.96], 30).lines]
    found = replace(found, lines=slow, step=1.1)
    # 100 s for 100 steps on all data; a quarter of a run selects, so 20 steps are three quarters.
    assert found.seconds == pytest.approx(1.1 * 20 * 4 / 3)
    assert replace(found, step=None).seconds == 30


def test_a_step_is_timed_beside_one_on_all_data(quick: None, tmp_path: Path) -> None:
    made = experiment(tmp_path / "paper.jsonl")
    assert list(made.to_price()) == [("blobs", "random", 0.1)]
    assert made.step_price("blobs", "cpu") is None
    worker = Worker(lambda cell: (SHORT, STEPS[cell.method]), Path(), Path())
    said: list[str] = []
    price.run(made.tasks, STEPS, made.to_price(), made.prices, worker, said.append)
    took = made.step_price("blobs", "cpu")
    assert took is not None
    assert 0.2 < took < 5
    assert len(said) == 1
    assert made.step_price("blobs", "H100") is None
    go(made)
    found = {e.method: e for e in entries(made, made.heats[0])}
    assert found["gradmatch"].step == took
    assert found[ALL].step == 1
    price.run(made.tasks, STEPS, made.to_price(), made.prices, worker, said.append)
    assert len(said) == 1


def test_on_a_gpu_the_clock_on_the_wall_counts() -> None:
    found = entry("gradmatch", [0.97], 10)
    for each in (*found.lines, *found.full):
        each["environment"] = {"device": "GPU", "processes": 1}
    assert found.seconds == 20
    assert found.selecting == 0


def test_all_data_are_stopped_at_the_last_point_before() -> None:
    found = entry("gradmatch", [0.97, 0.96], 10)
    assert found.stopped(4) == pytest.approx({0: 0.98 * 20, 1: 0.98 * 20})  # 25 of 100 steps
    assert found.stopped(11) == {}  # no point as early as that


def test_methods_are_compared_by_seed_and_with_all_data() -> None:
    found = [entry("a", [0.97, 0.96], 10), entry("b", [0.95, 0.97], 10)]
    against = {each.other: each.differences for each in compared(found, "a")}
    assert against["b"] == pytest.approx((2, -1))
    assert against["all data in full"] == pytest.approx((-1, -2))
    assert against[STOPPED] == pytest.approx((97 - 9.8, 96 - 9.8))
    assert compared(found, "c") == []


def test_what_lost_least_is_sought_at_all_budgets_but_never_among_slower_ones() -> None:
    slow = replace(entry("a", [0.98], 50), fraction=0.3)
    some = [slow, entry("a", [0.95], 5), replace(entry("b", [0.97], 9), fraction=0.2)]
    assert as_fast(some, 10) is some[2]
    assert as_fast(some, 12) is some[1]
    assert as_fast(some, 2) is slow
    assert as_fast(some, 30) is None
    told = report._as_fast({"mnist": some}, Printed("", "blobs", "a", 0.1, 10, 0))
    assert told == "`b` at 20 %: 11.1 ×, 1.00 lost"


def test_runs_by_smaller_batches_stand_beside_those_of_the_task_and_say_so() -> None:
    usual = replace(entry("a", [0.95], 5), task="mnist")
    smaller = replace(entry("a", [0.97], 9), task="mnist-batches-of-20")
    told = report._beside({"mnist": [usual], "other": [smaller]}, "mnist", "", "a", 0.1)
    assert told == "20.0 ×, 3.00 lost; 11.1 ×, 1.00 lost (batches of 20)"
    assert report._beside({"other": [smaller]}, "mnist", "-small", "a", 0.1) == "not run"


def test_the_test_is_wilcoxons() -> None:
    assert Against("b", tuple(range(1, 7))).p == pytest.approx(2 / 2**6)
    assert Against("b", (0.0, 0.0)).p is None


def test_what_was_seen_of_each_claim_is_counted_from_the_runs() -> None:
    found = [
        entry("gradmatch-pb-warm", [0.97, 0.96], 10),
        entry("gradmatch", [0.98, 0.97], 20),
        entry("gradmatch-pb", [0.95, 0.97], 10),
        entry("gradmatch-pb, R / 2", [0.96, 0.97], 25),
        entry("random", [0.96, 0.94], 1),
        entry("glister", [0.98, 0.96], 10),
    ]
    told = judged({"tiny": found})
    assert (
        "`tiny`: `gradmatch-pb-warm` won 2 of 2 against random, 0 of 2 against glister, "
        f"2 of 2 against {STOPPED}." in told
    )
    assert "`tiny`: a warm start added, as a mean over methods, +0.50 at 10 %." in told
    assert (
        "`tiny`: R / 2 in place of the usual, in points: `gradmatch-pb` +0.50 for 2.5 × the time."
        in told
    )
    assert (
        "`tiny`: per batch selected in 0.50 × the time per sample, with -1.50 points on average."
        in told
    )
    assert told.count("Not run.") == 3  # imbalance, twice the subset, smaller models


def test_a_larger_subset_is_judged_against_more_selections() -> None:
    found = [
        entry("gradmatch, R / 4", [0.95, 0.94], 30),
        entry("gradmatch", [0.93, 0.92], 10),
        replace(entry("gradmatch", [0.97, 0.96], 15), fraction=0.2),
        entry("craig, R / 4", [0.95, 0.94], 30),
    ]
    told = judged({"tiny": found})
    assert "against R / 4: `gradmatch` +2.00 for 0.5 × the time.\n" in told


def test_smaller_networks_are_judged_beside_the_subset() -> None:
    found = [
        entry("gradmatch-pb-warm", [0.97, 0.96], 20),
        replace(entry(ALL, [0.96, 0.94], 50), fraction=1.0, kind="narrow"),
    ]
    told = judged({"tiny": found})
    assert "`tiny`: narrow 2.0 ×, 3.00 lost; `gradmatch-pb-warm` at 10 % 5.0 ×, 1.50 lost." in told


def test_extended_training_stands_beside_all_data_of_the_usual_length(tmp_path: Path) -> None:
    preset = PRESETS["extended"]
    made = Experiment(preset, preset.heats, (0,), *files(tmp_path / "paper.jsonl"))
    assert [(cell.task, cell.fraction) for cell in made.cells()] == [
        ("cifar100", 1.0),
        ("cifar100", 0.3),
        ("cifar100-extended", 0.3),
    ]


def test_a_smaller_network_is_shown_beside_the_full_one(quick: None, tmp_path: Path) -> None:
    preset = tiny()
    small = replace(SHORT, about="blobs, narrow")
    heats = [
        Heat("blobs", 0.1, ("gradmatch-pb-warm",)),
        Heat("blobs, narrow", 1.0, (ALL,), "narrow", "blobs"),
    ]
    preset = replace(preset, tasks={**preset.tasks, "blobs, narrow": small}, heats=heats)
    made = Experiment(preset, heats, (0,), *files(tmp_path / "paper.jsonl"))
    assert [(c.task, c.method, c.fraction) for c in made.cells()] == [
        ("blobs", ALL, 1.0),
        ("blobs, narrow", ALL, 1.0),
        ("blobs", "gradmatch-pb-warm", 0.1),
    ]
    go(made)
    (found,) = entries(made, heats[1])
    assert found.name == "all data, narrow"
    assert found.full == made.runs("blobs", ALL, 1.0) != found.lines
    assert found.speedup == pytest.approx(1)
    text = report._section("tiny", made, tmp_path / "page.md", {})
    assert text is not None
    assert "#### narrow, all data" in text
    assert text.count("![Relative error") == 1
    alone = replace(made, preset=replace(preset, heats=heats[1:]), heats=heats[1:])
    assert "gradmatch-pb-warm" not in (report._section("alone", alone, tmp_path / "a.md", {}) or "")


def test_imbalance_is_judged_by_the_variant_that_the_paper_names() -> None:
    found = [entry("gradmatch-warm", [0.99, 0.96], 10), entry("craig", [0.98, 0.97], 10)]
    told = judged({"tiny-imbalance": found})
    assert (
        "`tiny-imbalance`: `gradmatch-warm` won 1 of 2 against other methods, and 1 of 2 against "
        "all data, with -0.50 points on average." in told
    )
    assert "won 2 of 2" not in told


@pytest.fixture
def only_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (report, command, presets):
        monkeypatch.setattr(module, "PRESETS", {"tiny": tiny(), "later": PRESETS["svhn"]})
        monkeypatch.setattr(module, "SMALL", {})


@pytest.mark.slow
def test_the_command_runs_and_writes_the_page(
    quick: None, only_tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_meter() -> None:
        raise EnergyError("no energy counter can be read: /sys/none is missing")

    monkeypatch.setattr(command, "EnergyMeter", no_meter)
    command.main(["--preset", "tiny", "--out", str(tmp_path), "--energy"])
    page = tmp_path / "page.md"
    command.main(["--report", str(tmp_path / "paper.jsonl"), "--page", str(page)])
    text = page.read_text()
    assert "No energy was measured (no energy counter can be read: /sys/none is missing)" in text
    assert "## tiny, figure 0a" in text
    assert "87 of 87 runs are made, with 3 seed(s)" in text
    assert "## Not run\n\n`later`" in text
    row = next(r for r in text.splitlines() if r.startswith("| `gradmatch` |")).split(" | ")
    assert row[1:4] == ["3", "90.70 ± 0.10", "+7.20"]  # of 97.90 with all data
    assert row[7] == "10.0 ×"
    assert (tmp_path / "paper-tiny-speed-up.png").exists()
    assert "27 ×, 0.35 lost | not run | not run | not run |" in text


def test_runs_of_another_device_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds runs on H100, this is cpu"):
        command.check_same_device([{"environment": {"device": "H100"}}], "cpu", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --preset and --report"),
        (["--preset", "mnist", "--processes", "2", "--energy"], "measures the whole machine"),
        (["--preset", "svhn", "--small"], "not for svhn"),
        (["--preset", "mnist", "--methods", "best"], "mnist has no best"),
        (["--preset", "mnist", "--fractions", "0.2"], "mnist has no 0.2"),
    ],
)
def test_a_wrong_command_line_says_so(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert said in capsys.readouterr().err
