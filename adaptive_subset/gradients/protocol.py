from adaptive_subset.gradients.factored import FactoredGradients

Gradients = FactoredGradients
