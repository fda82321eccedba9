"""Energy of training: pyJoules itself, on a kernel interface and a GPU library of our own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def energy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import energy

    return energy


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
            self.set(name, 0)
        self.gpu = 0  # millijoules

    def set(self, name: str, microjoules: int) -> None:
        (self.files[name] / "energy_uj").write_text(f"{microjoules}\n")


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


def test_stretches_add_up_in_joules(energy: ModuleType, counters: Counters) -> None:
    meter = energy.Meter()
    meter.start()
    counters.set("package-0", 5_000_000)
    counters.set("core", 4_000_000)  # part of the package: not counted twice
    counters.set("dram", 1_000_000)
    counters.gpu = 2_000
    meter.stop()
    assert meter.joules == pytest.approx(5 + 1 + 2)
    counters.set("package-0", 50_000_000)  # between stretches: not counted
    meter.start()
    counters.set("package-0", 51_000_000)
    meter.stop()
    assert meter.joules == pytest.approx(9)


def test_a_counter_that_starts_again_from_zero(energy: ModuleType, counters: Counters) -> None:
    meter = energy.Meter()
    counters.set("package-0", 999_000_000)
    counters.set("dram", 998_000_000)
    meter.start()
    counters.set("package-0", 2_000_000)
    counters.set("dram", 0)
    meter.stop()
    assert meter.joules == pytest.approx(3 + 2)


def test_a_machine_without_counters_is_one_line(
    energy: ModuleType, counters: Counters, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pyJoules.device.rapl_device.RAPL_API_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("pyJoules.device.nvidia_device.pynvml.nvmlDeviceGetCount", lambda: 0)
    with pytest.raises(energy.EnergyError, match="no energy counter found"):
        energy.Meter()


def test_counters_for_root_only_are_one_line(
    energy: ModuleType, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "energy_uj")

    monkeypatch.setattr("pyJoules.energy_meter.EnergyMeter.start", refuse)
    with pytest.raises(energy.EnergyError, match="energy_uj may be read by root only"):
        energy.Meter()


@pytest.mark.slow
def test_the_comparison_reports_energy(
    energy: ModuleType, counters: Counters, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import train

    arguments = ["--methods", "random", "--epochs", "1", "--seeds", "0", "--energy"]
    train.main([*arguments, "--out", str(tmp_path / "out")])
    assert "energy" in capsys.readouterr().out
