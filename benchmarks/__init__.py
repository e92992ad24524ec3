"""What speed is measured against, and how. Not part of the package: scripts/benchmark.py runs it."""
