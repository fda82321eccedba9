"""Train PyTorch models on a small, weighted, adaptively chosen subset of the data."""
