"""Ctrl-C and full disks: finished files stay intact, and the message tells how to resume."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gnmt.checkpoint.file import read_checkpoint
from gnmt.decoding.translator import Translator

SCRIPTS = Path(__file__).parents[2] / "scripts"


# A full disk


def test_training_continues_when_checkpoints_do_not_fit_on_the_disk(
    run_command, tiny, tmp_path, file_size_limit
) -> None:
    run = tiny.copied_to(tmp_path)
    old = {path: path.read_bytes() for path in run.folder.rglob("*.pt") if not path.is_symlink()}
    with file_size_limit((run.folder / "best.pt").stat().st_size // 2):
        done = run_command("train", *run.overrides, "trainer.max_steps=6", cwd=tmp_path)
    assert done.code == 2, done.err
    assert re.search(r"error: the checkpoint of update 6 was not written \(.*\); the previous one stays", done.err)
    assert re.search(
        r"error: runs/tiny: the checkpoint of update 6.* could not be written \(the reason is logged above\); "
        r"best\.pt is of update \d, and the newest checkpoint is of update 4: make room on the disk, and the same "
        r"command resumes from there",
        done.err,
    )
    assert {path: path.read_bytes() for path in run.folder.rglob("*.pt") if not path.is_symlink()} == old
    assert list(run.folder.rglob("*.tmp")) == []
    again = run_command("train", *run.overrides, "trainer.max_steps=6", cwd=tmp_path)
    assert "from update 4" in again.err
    assert read_checkpoint(run.folder / "last.pt")["step"] == 6


@pytest.mark.slow
def test_training_continues_when_curves_do_not_fit_on_the_disk(tiny, tmp_path) -> None:
    """The training runs in a separate process, to capture the output of threads and to see that they let it exit."""
    run = tiny.copied_to(tmp_path)
    limit = (run.folder / "config.json").stat().st_size + 100
    done = subprocess.run(
        [sys.executable, SCRIPTS / "train.py", *run.overrides, "trainer.max_steps=6"],
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("TensorBoard's events cannot be written") == 1
    assert "the checkpoint of update 6 was not written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr


def test_a_translation_that_does_not_fit_keeps_the_old_file(run_command, tiny, tmp_path, file_size_limit) -> None:
    (tmp_path / "a.en").write_text("The old man sees the house.\n" * 100, encoding="utf-8")
    (tmp_path / "a.de").write_text("what was there\n", encoding="utf-8")
    command = ["translate", f"checkpoint={tiny.folder}/best.pt", "input=a.en", "output=a.de"]
    with file_size_limit(20):
        done = run_command(*command, cwd=tmp_path)
    assert done.code == 2
    assert re.search(r"error: output=a\.de cannot be written \(.*\); the existing file is unchanged", done.err)
    assert "Traceback" not in done.err
    assert (tmp_path / "a.de").read_text(encoding="utf-8") == "what was there\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.en", "a.de"}


def test_an_evaluation_that_does_not_fit_is_a_message(run_command, tiny, tmp_path, file_size_limit) -> None:
    with file_size_limit(20):
        done = run_command("evaluate", f"checkpoint={tiny.folder}/best.pt", "output=out", cwd=tmp_path)
    assert done.code == 2
    assert re.search(r"error: out/test-\S+\.txt cannot be written \(.*\): choose another folder with output=", done.err)
    assert "Traceback" not in done.err


def test_a_figure_that_does_not_fit_is_a_message_and_the_scores_stay(
    run_command, tiny, tmp_path, file_size_limit
) -> None:
    """It was reported by a traceback."""
    with file_size_limit(6000):
        done = run_command(
            "evaluate", f"checkpoint={tiny.folder}/best.pt", "output=out", "num_alignments=2", cwd=tmp_path
        )
    assert done.code == 2
    assert re.search(
        r"^error: out/\S+\.alignment-1\.png cannot be written \(.*\): choose another folder", done.err, re.M
    )
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".tsv", ".txt"]


def test_an_evaluation_whose_file_names_are_too_long_is_refused_before_it_translates(
    run_command, tiny, tmp_path, monkeypatch
) -> None:
    """The names contain that of the source file and the options that differ from the recorded ones."""
    monkeypatch.setattr(Translator, "translate", lambda *_, **__: pytest.fail("it translated"))
    text = tmp_path / ("x" * 230)
    text.write_text("The old man sees the house.\n", encoding="utf-8")
    pair = (f"source={text}", f"target={text}")
    done = run_command("evaluate", f"checkpoint={tiny.folder}/best.pt", "output=out", *pair, cwd=tmp_path)
    assert done.code == 2
    assert "cannot be written (File name too long): choose another path" in done.err
    assert list((tmp_path / "out").iterdir()) == []


def test_preprocessed_data_that_does_not_fit_leaves_no_unfinished_folder(
    run_command, tiny, tmp_path, file_size_limit
) -> None:
    with file_size_limit(2000):
        done = run_command("prepare", *tiny.overrides[:4], cwd=tmp_path)
    assert done.code == 2
    assert re.search(r"error: preprocessed/demo-\w+: cannot be preprocessed: ", done.err)
    # Finished intermediate files stay in a hidden folder, from which the same command resumes.
    assert [path for path in (tmp_path / "preprocessed").iterdir() if not path.name.startswith(".")] == []
    assert run_command("prepare", *tiny.overrides[:4], cwd=tmp_path).code == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_standard_output_is_a_message(tiny, tmp_path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, SCRIPTS / "translate.py", f"checkpoint={tiny.folder}/best.pt"],
            input=b"The old man sees the house.\n",
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written (No space left on device)\n"


@pytest.mark.slow
def test_a_closed_pipe_ends_the_translation_with_one_line(tiny, tmp_path) -> None:
    """`translate.py | head -1` closes the pipe like this."""
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "translate.py", f"checkpoint={tiny.folder}/best.pt", "batch_size=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(b"The old man sees the house.\n" * 100)
    assert err == b"error: standard output cannot be written (Broken pipe)\n"
    assert process.returncode == 2


# Ctrl-C and closed terminals


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_resumes(run_command, tiny, wait_for, tmp_path) -> None:
    run = tiny.copied_to(tmp_path)
    overrides = (*run.overrides, "trainer.save_every_steps=1000000", "trainer.evaluate_every_steps=1000000")
    command = [sys.executable, str(SCRIPTS / "train.py"), *overrides, "trainer.max_steps=1000000"]
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=err, stdout=err, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            wait_for("update 6/", tmp_path / "err", process)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    output = (tmp_path / "err").read_text(encoding="utf-8")
    assert "Traceback" not in output
    stopped = re.search(r"stopped after update (\d+), saved.*: the same command resumes from there", output)
    assert stopped is not None
    step = int(stopped[1])
    assert step >= 6
    assert read_checkpoint(run.folder / "last.pt")["step"] == step
    again = run_command("train", *overrides, f"trainer.max_steps={step + 1}", cwd=tmp_path)
    assert again.code == 0, again.err
    assert f"1 update from update {step}" in again.err
    # The weights equal those of an uninterrupted run.
    straight = run_command(
        "train", *overrides[:-3], "name=straight", *overrides[-3:], f"trainer.max_steps={step + 1}", cwd=tmp_path
    )
    assert straight.code == 0, straight.err
    weights = [read_checkpoint(tmp_path / "runs" / name / "last.pt")["model"] for name in ("tiny", "straight")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def close_terminal(terminal: int, text: bytes) -> None:
    """Read the terminal until it shows the text, and then close it."""
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 1 << 12)  # an OSError if the process has ended
    os.close(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_loses_no_update(tiny, tmp_path, nohup) -> None:
    """A closed ssh connection killed the run. With nohup, its writes to the terminal ended it with a traceback."""
    run = tiny.copied_to(tmp_path)
    seldom = ("trainer.save_every_steps=1000000", "trainer.evaluate_every_steps=1000000")
    overrides = (*run.overrides, *seldom, f"trainer.max_steps={30 if nohup else 1000000}")
    pid, terminal = pty.fork()
    if pid == 0:
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir(tmp_path)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, str(SCRIPTS / "train.py"), *overrides])
    close_terminal(terminal, b"update 6/")
    if not nohup:
        os.kill(pid, signal.SIGHUP)  # a shell sends it too; the kernel has sent the first one
    status = os.waitpid(pid, 0)[1]
    log = (run.folder / "train.log").read_text(encoding="utf-8")
    assert os.waitstatus_to_exitcode(status) == (0 if nohup else 129), log
    step = read_checkpoint(run.folder / "last.pt")["step"]
    if nohup:
        assert step == 30
        assert "best on dev, at update" in log
    else:
        assert step >= 6
        assert f"SIGHUP: stopped after update {step}, saved up to {step}: the same command resumes" in log, log
