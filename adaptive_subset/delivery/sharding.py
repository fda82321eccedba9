"""How the processes of a run share an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from adaptive_subset.checks import natural, whole
from adaptive_subset.distributed import world
from adaptive_subset.strategies import Strategy


@dataclass(frozen=True)
class Sharding:
    """What the caller said about it; None where nothing was.

    Args:
        said: num_replicas and rank.
    """

    said: tuple[int, int] | None

    @classmethod
    def of(cls, num_replicas: int | None, rank: int | None) -> Sharding:
        """What the arguments of `AdaptiveSubsetSampler` say.

        Raises:
            TypeError: one of them is no whole number.
            ValueError: one is missing or out of range.
        """
        if num_replicas is None and rank is None:
            return cls(None)
        if num_replicas is None or rank is None:
            raise ValueError(
                "`num_replicas` and `rank` must be given together, got "
                f"num_replicas={num_replicas} and rank={rank}."
            )
        num_replicas, rank = natural("num_replicas", num_replicas, 1), whole("rank", rank)
        if not 0 <= rank < num_replicas:
            raise ValueError(f"`rank` must be in [0, {num_replicas - 1}], got {rank}.")
        return cls((num_replicas, rank))

    def shares(self) -> tuple[int, int]:
        """How many processes share an epoch, and which one this is.

        Asked for when it is used: a process group may start after the sampler was made.

        Raises:
            RuntimeError: a run of several processes, and nothing was said.
        """
        if self.said is not None:
            return self.said
        processes, rank = world()
        if processes > 1:
            raise RuntimeError(
                f"`num_replicas` and `rank` must be given in a run of {processes} processes, got "
                f"neither: use num_replicas={processes}, rank={rank} where this sampler gives each "
                "process its share, num_replicas=1, rank=0 where a framework (Accelerate, Hugging "
                "Face's Trainer) shards the loader by itself."
            )
        return 1, 0

    def check(self, strategy: Strategy, size: int) -> None:
        """Raise a ValueError where a process gets nothing of an epoch of `size` samples."""
        shares, unit = self.shares()[0], strategy.unit
        if size // unit < shares:
            raise ValueError(
                f"`budget` must give each of {shares} ranks at least {unit} samples, got {size}. "
                "Choose a larger budget."
            )

    def check_losses(self, strategy: Strategy) -> None:
        """Raise a RuntimeError where `strategy` would miss the losses of other shares."""
        shares, processes = self.shares()[0], world()[0]
        if strategy.needs_losses and shares > processes:
            raise RuntimeError(
                f"`num_replicas` must be at most the {processes} processes of torch.distributed, "
                f"through which the losses for {strategy!r} are exchanged, got {shares}. Call "
                "init_process_group before maybe_reselect."
            )
