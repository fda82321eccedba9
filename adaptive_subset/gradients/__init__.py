"""Model and data in, last-layer gradients out."""

from adaptive_subset.gradients.dense import DenseGradients
from adaptive_subset.gradients.factored import FactoredGradients
from adaptive_subset.gradients.mini_batches import BatchGradients
from adaptive_subset.gradients.protocol import Gradients
from adaptive_subset.gradients.source import GradientSource

__all__ = [
    "BatchGradients",
    "DenseGradients",
    "FactoredGradients",
    "GradientSource",
    "Gradients",
]
