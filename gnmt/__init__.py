"""A GNMT-style translator in PyTorch: see docs/architecture.md for the path of a sentence."""
