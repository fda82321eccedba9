"""What the selections of a run were like, and whether they pay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from adaptive_subset.checks import check_state
from adaptive_subset.selection import Selection


class History:
    """The figures of each selection and the seconds of training.

    Args:
        n: samples of the dataset.
    """

    def __init__(self, n: int) -> None:
        self.selections: list[dict[str, Any]] = []
        self.train_seconds = 0.0
        self._n = n
        self._warned = False

    def note(self, selection: Selection) -> None:
        """Enter a new selection."""
        self.selections.append(selection.summary())

    def note_training(self, seconds: float) -> None:
        """Enter an epoch that was read to its end."""
        self.train_seconds += seconds

    def go_on(self, later: History) -> None:
        """Enter the selections of `later`, which were made since."""
        self.selections += later.selections

    def warn_if_wasteful(self, every: int) -> None:
        """Say so once where selections took longer than the smaller epochs saved.

        Seconds are known of epochs that are read to their end; without any nothing is said.
        """
        spent = sum(entry["forward_seconds"] + entry["solver_seconds"] for entry in self.selections)
        saved = self.train_seconds * (self._n / self.selections[-1]["size"] - 1)
        is_known = len(self.selections) > 1 and self.train_seconds > 0
        if not self._warned and is_known and spent > saved:
            self._warned = True
            warnings.warn(
                f"selections have taken {spent:.3g} s so far, more than the {saved:.3g} s that the "
                f"smaller epochs saved. Select less often (every is {every} now), speed up the "
                "pass over the pool (batch_size=, num_workers=) or choose a strategy without "
                "gradients.",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Copies, plain values only."""
        return {
            "selections": [dict(entry) for entry in self.selections],
            "train_seconds": self.train_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is corrupt.
        """
        check_state("History", state, {"selections": list, "train_seconds": (int, float)})
        figures = {"size": int, "forward_seconds": (int, float), "solver_seconds": (int, float)}
        for entry in state["selections"]:
            check_state("History", entry, figures)
        self.selections = [dict(entry) for entry in state["selections"]]
        self.train_seconds = float(state["train_seconds"])
