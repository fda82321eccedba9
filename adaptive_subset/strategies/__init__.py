"""Selection strategies, one paper a file."""

from adaptive_subset.strategies.craig import CRAIG, CRAIGPB
from adaptive_subset.strategies.glister import GLISTER
from adaptive_subset.strategies.gradmatch import GradMatch, GradMatchPB
from adaptive_subset.strategies.importance import GradientNorm, LossSampling
from adaptive_subset.strategies.infobatch import InfoBatch
from adaptive_subset.strategies.random import FreshRandom, Random
from adaptive_subset.strategies.strategy import Candidates, Choice, Strategy, Validation

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
    "infobatch": InfoBatch,
}

__all__ = [
    "CRAIG",
    "CRAIGPB",
    "GLISTER",
    "STRATEGIES",
    "Candidates",
    "Choice",
    "FreshRandom",
    "GradMatch",
    "GradMatchPB",
    "GradientNorm",
    "InfoBatch",
    "LossSampling",
    "Random",
    "Strategy",
    "Validation",
]
