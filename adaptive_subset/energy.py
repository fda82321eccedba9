"""Energy in joules, phase by phase, by pyJoules: RAPL for processor and memory, NVML for GPUs.

Needs the extra ``energy``. Counters are those of the whole machine: keep others off it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

INSTALL = "pip install 'adaptive-subset[energy]'"
# The energy of a package includes that of its cores and graphics.
PARTS = ("core", "uncore")


class EnergyError(RuntimeError):
    """Why energy cannot be measured, in one line."""


class EnergyMeter:
    """Adds up what the processor packages, the memory and the GPUs use in each phase.

    What is measured is what the counters say; nothing is estimated. Work that was given to a GPU
    is waited for at both ends of a phase.

    Args:
        interval: seconds between two readings within a phase. RAPL's counters start again from zero
            after some 260 kJ, which a large machine uses in minutes; one wrap a reading is seen.

    Attributes:
        joules: J by phase and counter, as ``{"training": {"package_0": 5120.3, "dram_0": 411.0,
            "nvidia_gpu_0": 20800.1}}``.
        missing: for each kind of counter that cannot be read, why.

    Raises:
        EnergyError: no counter can be read; it says which file or library was missing.

    Examples:
        >>> meter = EnergyMeter()  # doctest: +SKIP
        >>> with meter.phase("selection"):  # doctest: +SKIP
        ...     sampler.maybe_reselect(model, epoch)
        >>> meter.total("selection")  # doctest: +SKIP
        311.4
    """

    def __init__(self, interval: float = 60.0) -> None:
        if not interval > 0:
            raise ValueError(f"`interval` must be positive, got {interval}.")
        self.interval = interval
        self.joules: dict[str, dict[str, float]] = {}
        self.missing: list[str] = []
        self._devices = [device for kind in ("rapl", "nvidia") for device in self._found(kind)]
        if not self._devices:
            raise EnergyError(f"no energy counter can be read: {'; '.join(self.missing)}")
        self._ranges = {
            name: _range(domain) for name, domain in self._domains() if not _is_gpu(name)
        }
        self._lock = threading.Lock()
        self._last: dict[str, int] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is used inside the ``with`` block as that of `name`; phases add up.

        Raises:
            RuntimeError: inside another phase, whose energy would count twice.
            EnergyError: a counter could not be read in between; what was counted is too little.
        """
        if self._last is not None:
            raise RuntimeError(
                f"`phase` must not lie inside another one, got {name!r}. Leave that first."
            )
        _wait_for_gpus()
        self._last = self._read()
        over, failures = threading.Event(), list[Exception]()
        reader = threading.Thread(
            target=self._keep_reading, args=(name, over, failures), name="energy", daemon=True
        )
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()
            try:
                _wait_for_gpus()
                self._count(name)
            finally:
                self._last = None
        if failures:
            raise EnergyError(
                f"the energy of {name!r} is not known, since a counter could not be read in it: "
                f"{failures[0]}"
            ) from failures[0]

    def total(self, name: str | None = None) -> float:
        """J of a phase, or of all of them."""
        phases = self.joules.values() if name is None else [self.joules.get(name, {})]
        return sum(sum(phase.values()) for phase in phases)

    def _keep_reading(self, name: str, over: threading.Event, failures: list[Exception]) -> None:
        try:
            while not over.wait(self.interval):
                self._count(name)
        except Exception as error:  # whoever leaves the phase is told: wraps may have been missed
            failures.append(error)

    def _count(self, name: str) -> None:
        """Add what was used since the last reading to the phase."""
        with self._lock:
            now, before = self._read(), self._last
            assert before is not None
            used = {key: now[key] - before[key] for key in now}
            for key, size in self._ranges.items():
                used[key] %= size  # a counter that started again from zero
            self._last = now
        phase = self.joules.setdefault(name, dict.fromkeys(used, 0.0))
        for key, value in used.items():  # NVML counts millijoules, RAPL microjoules
            phase[key] += value / (1e3 if _is_gpu(key) else 1e6)

    def _domains(self) -> Iterator[tuple[str, Any]]:
        for device in self._devices:
            yield from ((str(domain), domain) for domain in device.get_configured_domains())

    def _read(self) -> dict[str, int]:
        values = [value for device in self._devices for value in device.get_energy()]
        return {name: value for (name, _), value in zip(self._domains(), values, strict=True)}

    def _found(self, kind: str) -> list[Any]:
        """The device of that kind, tried once; else why there is none goes to `missing`."""
        try:
            return [_device(kind)]
        except EnergyError as error:
            self.missing.append(str(error))
            return []


def _device(kind: str) -> Any:
    """pyJoules' device with its counters, which were read once."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))  # pyJoules warns where NVIDIA's library is not
    try:
        from pyJoules.device import rapl_device
        from pyJoules.exception import NoSuchDeviceError
    except ImportError as error:
        raise EnergyError(f"the library {error.name} is missing: {INSTALL}") from error
    finally:
        logging.disable(before)
    try:
        if kind == "rapl":
            device: Any = rapl_device.RaplDevice
            every = device.available_domains()
            domains = [d for d in every if str(d).rpartition("_")[0] not in PARTS]
            nothing = f"no package or dram in {rapl_device.RAPL_API_DIR}"
        else:
            from pyJoules.device.nvidia_device import NvidiaGPUDevice

            device = NvidiaGPUDevice
            domains, nothing = device.available_domains(), "NVML finds no GPU"
    except NoSuchDeviceError as error:
        no_rapl = f"{rapl_device.RAPL_API_DIR} is missing"
        raise EnergyError(no_rapl if kind == "rapl" else "the NVML library is missing") from error
    except ImportError as error:
        raise EnergyError(f"the library {error.name} is missing: {INSTALL}") from error
    if not domains:
        raise EnergyError(nothing)
    try:
        made = device()
        made.configure(domains)
        made.get_energy()
    except Exception as error:  # a file for root only, or NVML's own: GPUs before Volta
        raise EnergyError(f"{domains[0]} cannot be read: {error}") from error
    return made


def _range(domain: Any) -> int:
    """Where RAPL's counter of `domain` starts again, in microjoules."""
    from pyJoules.device.rapl_device import RAPL_API_DIR

    names = (domain.get_domain_name(), str(domain).replace("_", "-"))
    for path in Path(RAPL_API_DIR).glob(f"intel-rapl:{domain.socket}/**/name"):
        if path.read_text().strip() in names:
            return int((path.parent / "max_energy_range_uj").read_text())
    raise EnergyError(f"the range of the counter of {domain} is not known")


def _is_gpu(name: str) -> bool:
    return name.startswith("nvidia")


def _wait_for_gpus() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
