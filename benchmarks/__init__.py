"""Benchmarks against plain baselines, run by scripts/benchmark.py. Not part of the package."""
