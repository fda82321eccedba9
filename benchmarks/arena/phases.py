"""What training and selection each take: seconds, and joules where a meter is given."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch

from adaptive_subset.energy import EnergyMeter

TRAINING, SELECTION = "training", "selection"


class Phases:
    """Counts what is between two calls of `enter` as the phase that was entered.

    Only where the phase changes is a GPU waited for. The end of its ``with`` block enters none.

    Args:
        device: that the work is done on.
        meter: of energy, that counted nothing yet; None to count time only.

    Attributes:
        wall, processor: seconds by phase, of the clock on the wall and of the processor.
    """

    def __init__(self, device: torch.device, meter: EnergyMeter | None = None) -> None:
        self.device, self._meter = device, meter
        self.wall, self.processor = ({TRAINING: 0.0, SELECTION: 0.0} for _ in range(2))
        self._phase: str | None = None
        self._start = 0.0, 0.0
        self._measuring = ExitStack()

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *_: object) -> None:
        self.enter(None)

    def enter(self, phase: str | None) -> None:
        """From now on count for `phase`, or for none, as in evaluation."""
        if phase == self._phase:
            return
        self._wait()
        if self._phase is not None:
            self.wall[self._phase] += time.perf_counter() - self._start[0]
            self.processor[self._phase] += time.process_time() - self._start[1]
            self._measuring.close()
        self._phase = phase
        if phase is not None:
            if self._meter is not None:
                self._measuring.enter_context(self._meter.phase(phase))
            self._start = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        """Seconds of all phases and of selection, on the wall and of the processor."""
        return {
            "seconds": sum(self.wall.values()),
            "selection_seconds": self.wall[SELECTION],
            "processor_seconds": sum(self.processor.values()),
            "selection_processor_seconds": self.processor[SELECTION],
        }

    def energy(self) -> dict[str, Any]:
        """Joules by phase and counter, and why other counters were not read."""
        if self._meter is None:
            return {}
        return {"joules": self._meter.joules, "energy_missing": self._meter.missing}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
