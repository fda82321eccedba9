"""The experiments of GRAD-MATCH's paper (Killamsetty et al., ICML 2021), on the arena's runner."""
