"""Energy of training: pyJoules itself, on a kernel interface and a GPU library of our own."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adaptive_subset.energy import EnergyError, EnergyMeter

EXAMPLES = Path(__file__).parents[1] / "examples"


class Counters:
    """RAPL's files as the kernel lays them out, and the counter of one GPU."""

    def __init__(self, folder: Path) -> None:
        package = folder / "intel-rapl:0"
        self.files = {
            "package-0": package,
            "core": package / "intel-rapl:0:0",
            "dram": package / "intel-rapl:0:1",
        }
        for name, path in self.files.items():
            path.mkdir(parents=True)
            (path / "name").write_text(f"{name}\n")
            (path / "max_energy_range_uj").write_text("1000000000\n")
            (path / "energy_uj").write_text(f"{0:010}\n")
        self.gpu = 0  # millijoules

    def set(self, name: str, microjoules: int | str) -> None:
        """In one write, and never shorter: somebody may be reading."""
        with (self.files[name] / "energy_uj").open("r+b", buffering=0) as file:
            file.write(f"{microjoules:010}\n".encode())


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counters:
    nvidia = pytest.importorskip("pyJoules.device.nvidia_device")
    made = Counters(tmp_path)
    monkeypatch.setattr("pyJoules.device.rapl_device.RAPL_API_DIR", str(tmp_path))
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: made.gpu,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(nvidia.pynvml, name, answer)
    return made


def test_phases_add_up_in_joules(counters: Counters) -> None:
    meter = EnergyMeter()
    with meter.phase("training"):
        counters.set("package-0", 5_000_000)
        counters.set("core", 4_000_000)  # part of the package: not counted twice
        counters.set("dram", 1_000_000)
        counters.gpu = 2_000
    counters.set("package-0", 50_000_000)  # between phases: not counted
    with meter.phase("selection"):
        counters.set("package-0", 53_000_000)
    with meter.phase("training"):
        counters.set("package-0", 54_000_000)
    training = {"package_0": 5.0 + 1.0, "dram_0": 1.0, "nvidia_gpu_0": 2.0}
    assert meter.joules["training"] == pytest.approx(training)
    assert meter.total("training") == pytest.approx(9)
    assert meter.total("selection") == pytest.approx(3)
    assert meter.total() == pytest.approx(12)
    assert meter.total("evaluation") == 0


def test_what_the_caller_has_silenced_stays_so(counters: Counters) -> None:
    logging.disable(logging.ERROR)
    try:
        EnergyMeter()
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


def test_a_counter_that_starts_again_from_zero(counters: Counters) -> None:
    meter = EnergyMeter()
    counters.set("package-0", 999_000_000)
    counters.set("dram", 998_000_000)
    with meter.phase("training"):
        counters.set("package-0", 2_000_000)
        counters.set("dram", 0)
    assert meter.total() == pytest.approx(3 + 2)


def test_a_counter_that_starts_again_several_times(counters: Counters) -> None:
    meter = EnergyMeter(interval=0.01)
    with meter.phase("training"):
        for turn in range(6):  # 400 J each, of a counter that holds 1000
            counters.set("package-0", (turn + 1) * 400_000_000 % 1_000_000_000)
            deadline = time.monotonic() + 60
            while meter.total() < 400 * (turn + 1) - 1e-6:
                assert time.monotonic() < deadline
                time.sleep(0.005)
    assert meter.total() == pytest.approx(2400)


def test_a_counter_that_could_not_be_read_in_a_phase_is_told_at_its_end(
    counters: Counters,
) -> None:
    meter = EnergyMeter(interval=0.01)

    def broken_for_a_while() -> None:
        with meter.phase("training"):
            counters.set("package-0", "broken")
            (reader,) = (t for t in threading.enumerate() if t.name == "energy")
            reader.join(60)
            counters.set("package-0", 1_000_000)

    with pytest.raises(EnergyError, match="energy of 'training' is not known"):
        broken_for_a_while()
    with meter.phase("training"):  # and the next one can begin
        pass


def test_a_phase_that_fails_counts_and_ends(counters: Counters) -> None:
    meter = EnergyMeter()

    def fail() -> None:
        with meter.phase("training"):
            counters.set("dram", 7_000_000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with meter.phase("training"):
        pass
    assert meter.total() == pytest.approx(7)


def test_a_phase_within_another_would_count_twice(counters: Counters) -> None:
    meter = EnergyMeter()
    with (
        meter.phase("training"),
        pytest.raises(RuntimeError, match="`phase` must not lie inside another"),
        meter.phase("selection"),
    ):
        pass


def test_a_machine_without_counters_says_what_is_missing(
    counters: Counters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none")
    monkeypatch.setattr("pyJoules.device.rapl_device.RAPL_API_DIR", missing)
    meter = EnergyMeter()
    assert meter.missing == [f"{missing} is missing"]
    with meter.phase("training"):
        counters.gpu = 1_500
    assert meter.joules == {"training": {"nvidia_gpu_0": pytest.approx(1.5)}}
    monkeypatch.setattr("pyJoules.device.nvidia_device.pynvml.nvmlDeviceGetCount", lambda: 0)
    with pytest.raises(EnergyError, match=f"can be read: {missing} is missing; NVML finds no GPU"):
        EnergyMeter()


def test_counters_for_root_only_say_so(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "energy_uj")

    monkeypatch.setattr("pyJoules.device.rapl_device.RaplDevice.get_energy", refuse)
    assert EnergyMeter().missing == [
        "package_0 cannot be read: [Errno 13] Permission denied: 'energy_uj'"
    ]


@pytest.mark.slow
def test_the_comparison_reports_energy(
    counters: Counters,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import train

    arguments = ["--methods", "random", "--epochs", "1", "--seeds", "0", "--energy"]
    train.main([*arguments, "--out", str(tmp_path / "out")])
    assert "energy" in capsys.readouterr().out
