"""`--help` and `--cfg job` of every script answer at once: they import no torch and nothing else that is slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gnmt.config.schema import SCHEMAS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "matplotlib", "sacrebleu", "sentencepiece", "tensorboard")
CHILD = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit_:
    assert not exit_.code, exit_.code
print("loaded:", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]], ids=" ".join)
@pytest.mark.parametrize("script", SCHEMAS)
def test_no_heavy_module_is_imported(script: str, arguments: list[str], tmp_path: Path) -> None:
    """They took 3 to 5 seconds of CPU time."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == "loaded: []\n"
