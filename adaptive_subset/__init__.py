"""Train PyTorch models on a small, weighted, adaptively chosen subset of the data."""

from adaptive_subset.delivery.dataset import TaggedDataset
from adaptive_subset.delivery.epoch import TaggedIndex
from adaptive_subset.delivery.retag import retag
from adaptive_subset.delivery.sampler import AdaptiveSubsetSampler
from adaptive_subset.delivery.tags import WeightedTarget
from adaptive_subset.delivery.weighted_loss import WeightedLoss
from adaptive_subset.gradients.position_losses import PixelLoss, TokenLoss
from adaptive_subset.in_batch import select_in_batch
from adaptive_subset.selection import Selection
from adaptive_subset.selector import Selector
from adaptive_subset.strategies import (
    CRAIG,
    CRAIGPB,
    GLISTER,
    STRATEGIES,
    Balanced,
    Borderline,
    Candidates,
    Choice,
    FreshRandom,
    GradientNorm,
    GradMatch,
    GradMatchPB,
    InfoBatch,
    InfoBatchByBatch,
    Kakurenbo,
    LossSampling,
    OrderDP,
    PerEpoch,
    Random,
    RandomSizes,
    SeTa,
    SeTaByBatch,
    Strategy,
    Validation,
)

__version__ = "0.1.0"

__all__ = [
    "CRAIG",
    "CRAIGPB",
    "GLISTER",
    "STRATEGIES",
    "AdaptiveSubsetSampler",
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
    "PixelLoss",
    "Random",
    "RandomSizes",
    "SeTa",
    "SeTaByBatch",
    "Selection",
    "Selector",
    "Strategy",
    "TaggedDataset",
    "TaggedIndex",
    "TokenLoss",
    "Validation",
    "WeightedLoss",
    "WeightedTarget",
    "retag",
    "select_in_batch",
]
