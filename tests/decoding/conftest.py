"""Make this folder's oracle and stub models importable by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
