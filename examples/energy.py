"""Energy of training in joules, by pyJoules: Intel's RAPL for CPU and memory, NVML for the GPUs.

It is the energy of the whole machine: keep others off it while you measure.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

EXTRA = "install the extra: pip install 'adaptive-subset[energy]'"
# Package energy includes that of cores and graphics, so these domains are left out.
PARTS = ("core", "uncore")


class EnergyError(Exception):
    """Why energy cannot be measured, in one line."""


class Meter:
    """Adds up the joules between `start` and `stop`."""

    def __init__(self) -> None:
        logging.disable(logging.WARNING)  # pyJoules warns when there is no NVIDIA library
        try:
            from pyJoules.device import DeviceFactory
            from pyJoules.energy_meter import EnergyMeter
        except ImportError as error:
            raise EnergyError(f"{error.name} is missing; {EXTRA}") from error
        finally:
            logging.disable(logging.NOTSET)
        self.joules = 0.0
        try:
            every = DeviceFactory.create_devices()
            domains = [d for device in every for d in device.get_configured_domains()]
            whole = [d for d in domains if str(d).rpartition("_")[0] not in PARTS]
            if not whole:
                raise EnergyError("no energy counter found: neither Intel RAPL nor an NVIDIA GPU")
            self._domains = {str(domain): domain for domain in whole}
            self._meter = EnergyMeter(DeviceFactory.create_devices(whole))
            self._meter.start()
        except PermissionError as error:
            raise EnergyError(f"{error.filename} may be read by root only; allow it") from error

    def start(self) -> None:
        """Begin a stretch."""
        self._meter.start()

    def stop(self) -> None:
        """End the stretch and add its energy to `joules`."""
        self._meter.stop()
        for name, used in self._meter.get_trace()[0].energy.items():
            if name.startswith("nvidia"):
                self.joules += used / 1e3  # NVML counts millijoules
                continue
            if used < 0:  # RAPL's counters start again from zero every hour or so
                used += _counter_range(self._domains[name])
            self.joules += used / 1e6  # microjoules


def _counter_range(domain: Any) -> int:
    from pyJoules.device.rapl_device import RAPL_API_DIR

    names = (domain.get_domain_name(), str(domain).replace("_", "-"))
    for path in Path(RAPL_API_DIR).glob(f"intel-rapl:{domain.socket}/**/name"):
        if path.read_text().strip() in names:
            return int((path.parent / "max_energy_range_uj").read_text())
    raise EnergyError(f"the range of the counter of {domain} is not known")
