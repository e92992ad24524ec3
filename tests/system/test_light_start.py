"""`--help` and `--cfg job` of every script start fast, because they import neither torch nor other slow modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gnmt.config.schema import SCHEMAS

ROOT = Path(__file__).parents[2]
SLOW_MODULES = ("torch", "numpy", "matplotlib", "sacrebleu", "sentencepiece", "tensorboard")
CHILD = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit_:
    assert not exit_.code, exit_.code
print("loaded:", [name for name in {SLOW_MODULES} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]], ids=" ".join)
@pytest.mark.parametrize("script", SCHEMAS)
def test_help_and_config_import_no_slow_module(script: str, arguments: list[str], tmp_path: Path) -> None:
    """They took 3 to 5 seconds of CPU time when they did."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == "loaded: []\n"
