"""Adaptive subsets inside other training frameworks, built on the public API only."""
