"""Many small operations on a GPU as one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

LOOK = 64  # steps of a solver from one look of the host at its state to the next


class Recorded:
    """Calls `run` once as it is, and from then on replays its operations as a CUDA graph.

    Starting an operation takes longer than a small one runs. `run` must do the same each time, to
    the same tensors in place, and never wait for the device.
    """

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._graph is None:
            self._run()  # loads what the recording must not load
            self._graph = self._record()
        else:
            self._graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        # Not `torch.cuda.graph`, which collects garbage and empties the caller's cache of memory.
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph
