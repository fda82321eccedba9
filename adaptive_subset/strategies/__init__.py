"""Selection strategies: those that match gradients, one paper a file, and combinations.

What trains on a fresh subset in every epoch is a combination of `scores`, `draws` and `sizes`, see
`PerEpoch`; `methods` is the table of those with names.
"""

import difflib
import inspect
import re
from typing import Any

from adaptive_subset.strategies.candidates import Candidates, Choice, Validation
from adaptive_subset.strategies.craig import CRAIG, CRAIGPB
from adaptive_subset.strategies.glister import GLISTER
from adaptive_subset.strategies.gradmatch import GradMatch, GradMatchPB
from adaptive_subset.strategies.methods import (
    Balanced,
    Borderline,
    GradientNorm,
    InfoBatch,
    InfoBatchByBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    RandomSizes,
    SeTa,
    SeTaByBatch,
)
from adaptive_subset.strategies.per_epoch import PerEpoch
from adaptive_subset.strategies.random import FreshRandom, Random
from adaptive_subset.strategies.strategy import Strategy

#: Every strategy by the name that command lines use.
STRATEGIES: dict[str, type[Strategy]] = {
    "random": Random,
    "fresh-random": FreshRandom,
    "gradmatch": GradMatch,
    "gradmatch-pb": GradMatchPB,
    "craig": CRAIG,
    "craig-pb": CRAIGPB,
    "glister": GLISTER,
    "gradient-norm": GradientNorm,
    "loss-sampling": LossSampling,
    "order-dp": OrderDP,
    "borderline": Borderline,
    "balanced": Balanced,
    "infobatch": InfoBatch,
    "infobatch-by-batch": InfoBatchByBatch,
    "seta": SeTa,
    "seta-by-batch": SeTaByBatch,
    "kakurenbo": Kakurenbo,
    "random-sizes": RandomSizes,
}


def instance_of(strategy: Strategy | str) -> Strategy:
    """`strategy`, or the one of that name with its default arguments.

    Raises:
        TypeError: neither.
        ValueError: it keeps something of losses that it does not ask for.
    """
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]()
    if not isinstance(strategy, Strategy):
        raise TypeError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}, or an instance of a Strategy "
            f"such as GradMatch(), got {strategy!r}.{_meant(strategy)}"
        )
    if strategy.keeps is not None and not strategy.needs_losses:
        raise ValueError(
            "`strategy` must say needs_losses = True where it keeps something of the losses of "
            f"training, got {strategy!r} that keeps {strategy.keeps!r}."
        )
    return strategy


def _meant(strategy: Any) -> str:
    """A guess at what was meant: an instance of a class, or a name that is written like it."""
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        return "" if inspect.isabstract(strategy) else f" Did you mean {strategy.__name__}()?"
    names = {name.replace("-", ""): name for name in STRATEGIES}
    letters = re.sub(r"\W|_", "", strategy).lower() if isinstance(strategy, str) else ""
    near = difflib.get_close_matches(letters, names, n=1)
    return f' Did you mean "{names[near[0]]}"?' if near else ""


__all__ = [
    "CRAIG",
    "CRAIGPB",
    "GLISTER",
    "STRATEGIES",
    "Balanced",
    "Borderline",
    "Candidates",
    "Choice",
    "FreshRandom",
    "GradMatch",
    "GradMatchPB",
    "GradientNorm",
    "InfoBatch",
    "InfoBatchByBatch",
    "Kakurenbo",
    "LossSampling",
    "OrderDP",
    "PerEpoch",
    "Random",
    "RandomSizes",
    "SeTa",
    "SeTaByBatch",
    "Strategy",
    "Validation",
    "instance_of",
]
