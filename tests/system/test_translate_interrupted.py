"""translate.py is killed, and then resumed by two processes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "translate.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SENTENCES = ["The old man reads a book.", "Does the child see the house?", "A dog sleeps."]

pytestmark = pytest.mark.slow


def start(command: tuple[str, ...], settings: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, str(SCRIPT), *settings],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(command: tuple[str, ...], settings: list[str], cwd: Path) -> str:
    """Run the command and return its stderr."""
    process = start(command, settings, cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert out == b""
    return err.decode()


def kill_after(num_chunks: int, partial: Path, process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL as soon as this number of chunks is finished."""
    deadline = time.monotonic() + 240
    while len(list(partial.glob("chunk-*"))) < num_chunks:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_two_processes_resume_what_one_killed_process_began(tiny, tmp_path) -> None:
    """The output equals that of one uninterrupted process."""
    lines = [f"{SENTENCES[n % 3]} {n}" if n % 4 == 0 else "" for n in range(3 * 256)]  # three chunks of 256 lines
    (tmp_path / "a.en").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    settings = [
        f"checkpoint={tiny.folder}/best.pt",
        "input=a.en",
        "batch_size=1",
        "format=jsonl",
        "decoding.beam_size=1",
    ]
    alone = (sys.executable,)
    partial = tmp_path / "a.jsonl.partial"
    kill_after(1, partial, start(alone, [*settings, "output=a.jsonl"], tmp_path))
    assert not (tmp_path / "a.jsonl").exists()
    done = len(list(partial.glob("chunk-*")))
    assert 1 <= done < 3
    err = run(TORCHRUN, [*settings, "output=a.jsonl"], tmp_path)
    assert f"a.jsonl: {256 * done} of 768 lines are done, resuming from" in err
    assert not partial.exists()
    run(alone, [*settings, "output=complete.jsonl"], tmp_path)
    output = (tmp_path / "a.jsonl").read_bytes()
    assert output == (tmp_path / "complete.jsonl").read_bytes()
    assert [json.loads(line)["source"] for line in output.decode().splitlines()] == lines
    assert {path.name for path in tmp_path.iterdir()} == {"a.en", "a.jsonl", "complete.jsonl"}


def test_an_error_ends_all_processes_with_its_message(tiny, tmp_path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo \xff\n")
    settings = [f"checkpoint={tiny.folder}/best.pt", "input=a.en", "output=a.de"]
    process = start(TORCHRUN, settings, tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert b"error: a.en:2: not UTF-8: byte 0xff" in err
    assert err.count(b"not UTF-8") == 1, "the other process repeated the message"
    assert not (tmp_path / "a.de").exists()
