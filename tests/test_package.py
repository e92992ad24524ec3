"""Attributes of the package, and modules that must be imported fast."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import gnmt
from gnmt.decoding.translator import Translator


def test_the_package_offers_the_translator_and_its_version():
    assert gnmt.Translator is Translator
    assert gnmt.__version__ == importlib.metadata.version("gnmt")
    with pytest.raises(AttributeError, match="module 'gnmt' has no attribute 'Translater'"):
        _ = gnmt.Translater


@pytest.mark.parametrize("module", ["gnmt", "gnmt.errors", "gnmt.signals", "gnmt.logs", "gnmt.fileio"])
def test_modules_that_scripts_import_first_import_no_library(module):
    """With an import of torch, `--help` took seconds."""
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'hydra', 'tqdm'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_the_package_is_fast():
    """Measure the CPU time of the import in a fresh process."""
    code = "import time; started = time.process_time(); import gnmt; print(time.process_time() - started)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2


def test_generated_folders_are_ignored_by_git():
    """A preprocessed demo folder once entered the repository; with another format, the demo then failed in a clone."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    for folder in ("preprocessed", "runs", "downloads", "multirun"):
        ignored = subprocess.run(["git", "-C", str(root), "check-ignore", "--quiet", f"{folder}/x"], check=False)
        assert ignored.returncode == 0, folder
        tracked = subprocess.run(
            ["git", "-C", str(root), "ls-files", folder], capture_output=True, text=True, check=True
        )
        assert tracked.stdout == "", folder
