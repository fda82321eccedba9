"""Model and data in, last-layer gradients out."""
