"""A draw within each group of samples: classes, domains, lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from adaptive_subset.checks import check_one_each, digest, shown
from adaptive_subset.strategies.division import Shares, check_shares, shared
from adaptive_subset.strategies.draws import Draw
from adaptive_subset.strategies.strategy import Choice


@dataclass(frozen=True, eq=False, repr=False)
class ByGroup(Draw):
    """Another draw within each group of samples: classes, domains, lengths.

    A score is compared with those of its own group only, so that what one group finds hard does not
    crowd out another; with equal shares rare groups count as much as frequent ones.

    Args:
        within: the draw in each group; one that does not size itself.
        groups: (n,) whole numbers, the group of each sample of the dataset.
        shares: of the budget: "proportional" to the sizes of the groups, or "equal". Groups count
            in training by their share of it.

    Raises:
        TypeError, ValueError: they are not.
    """

    within: Draw
    groups: Tensor
    shares: Shares = "proportional"

    def __post_init__(self) -> None:
        if not isinstance(self.within, Draw) or self.within.sizes_itself:
            raise TypeError(
                "`within` must be a draw of a given number of samples, got "
                f"{self.within!r}. Pass an instance of one that takes a budget."
            )
        if not isinstance(self.groups, Tensor) or self.groups.is_floating_point():
            raise TypeError(
                f"`groups` must be a tensor of whole numbers, got {shown(self.groups)}. Pass the "
                "class labels of the dataset: torch.as_tensor(dataset.targets)."
            )
        if self.groups.ndim != 1:
            raise ValueError(
                "`groups` must hold one number for each sample of the dataset, got shape "
                f"{tuple(self.groups.shape)}."
            )
        check_shares(self.shares)
        object.__setattr__(self, "groups", self.groups.detach().to("cpu", torch.int64, copy=True))

    def __repr__(self) -> str:
        return f"ByGroup({self.within!r}, {digest(self.groups)}, {self.shares!r})"

    def draw(self, scores: Tensor, budget: int, *, epoch: int, generator: Generator) -> Choice:
        """See `Draw.draw`."""
        n = len(scores)
        check_one_each("groups", self.groups, n)
        order = self.groups.argsort(stable=True)
        sizes = torch.unique(self.groups, return_counts=True)[1].tolist()
        positions, weights = [], []
        budgets = shared(sizes, budget, self.shares)
        for members, size in zip(torch.split(order, sizes), budgets, strict=True):
            if size:
                choice = self.within.draw(scores[members], size, epoch=epoch, generator=generator)
                positions.append(members[choice.positions])
                weights.append(choice.weights * (size / len(members)) * (n / budget))
        return Choice(torch.cat(positions), torch.cat(weights))
