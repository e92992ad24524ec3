"""Commands as separate processes, in other folders and in pipes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from gnmt.decoding.translator import Translator

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.slow


def process(script: str, *overrides: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, SCRIPTS / f"{script}.py", *overrides],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_pipe_holds_only_translations(tiny, tmp_path) -> None:
    hostile = "\ufeffThe dog\u2028sleeps.\r\n\n\0\x85\n😴".encode()
    done = process("translate", f"checkpoint={tiny.folder}/best.pt", cwd=tmp_path, stdin=hostile)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode("utf-8").split("\n")
    assert len(lines) == 5
    assert lines[1] == lines[4] == ""
    assert list(tmp_path.iterdir()) == []


def test_all_commands_work_from_another_folder(tiny, tmp_path) -> None:
    settings = [text for text in tiny.overrides if not text.startswith("name=")]
    trained = process("train", *settings, "trainer.max_steps=1", "name=far", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr.decode()
    assert b"checkpoint: runs/far/best.pt" in trained.stdout
    evaluated = process("evaluate", "checkpoint=runs/far/best.pt", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr.decode()
    assert b"test, 5 sentences" in evaluated.stdout
    inspected = process("inspect_checkpoint", "checkpoint=runs/far/best.pt", cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stderr.decode()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "preprocessed"}


def test_wrong_input_ends_a_process_with_code_2_and_one_message(tmp_path) -> None:
    done = process("translate", "checkpoint=no.pt", "input=-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: checkpoint no.pt is not a file; . has no *.pt either\n"


def test_spawned_processes_get_a_translator(tiny) -> None:
    """It could not be pickled."""
    translator = Translator.load(tiny.folder / "best.pt", device="cpu", precision="fp32", beam_size=2)
    lines = [["The old man reads a book."], ["Does the child see the house?"]]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(translator.translate, lines))
    assert found == [translator.translate(line) for line in lines]
