"""Model and data in, last-layer gradients out."""

from adaptive_subset.gradients.factored import BatchGradients, FactoredGradients
from adaptive_subset.gradients.protocol import Gradients
from adaptive_subset.gradients.source import GradientSource

__all__ = ["BatchGradients", "FactoredGradients", "GradientSource", "Gradients"]
