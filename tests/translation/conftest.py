"""Make the stubs of this folder and of tests/decoding importable by name, and provide a folder with an input file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))  # the stubs of models

from stub_translator import NUM_LINES


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a.en of NUM_LINES lines and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.en").write_text("".join(f"line {n}\n" for n in range(1, NUM_LINES + 1)), encoding="utf-8")
    (tmp_path / "best.pt").write_bytes(b"weights")
    return tmp_path
