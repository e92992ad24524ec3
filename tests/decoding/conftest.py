"""Make this folder's oracle and stub models, and the checks of Triton kernels, importable by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))  # triton_checks.py
