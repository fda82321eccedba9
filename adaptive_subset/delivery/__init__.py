"""A selection in, weighted batches and their loss out."""
