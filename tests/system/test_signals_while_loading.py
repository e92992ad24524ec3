"""Signals that a command receives while it imports its libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# A stub of a library that takes long to import: it prints a line and sleeps.
SLOW_LIBRARY = "import sys, time\nprint('loading', flush=True)\ntime.sleep(300)\n"


@pytest.fixture
def slow_libraries(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which hydra and torch are slow stubs. Every script imports one of them first."""
    for name in ("hydra", "torch"):
        (tmp_path / f"{name}.py").write_text(SLOW_LIBRARY)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SCRIPTS.parent)])}


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_ctrl_c_prints_one_line_and_no_traceback(script: str, slow_libraries: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPTS / script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=slow_libraries, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted while loading: nothing was done\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)]
)
def test_a_job_that_is_stopped_while_it_loads_is_requeued(
    number: signal.Signals, code: int, slow_libraries: dict[str, str]
) -> None:
    """The job was killed without a message, and the batch script of docs/slurm.md, which expects 75, gave it up."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, str(SCRIPTS / "train.py")]
    with subprocess.Popen(command, env=slow_libraries, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    message = f"{number.name}: stopped while loading: nothing was done\n"
    assert (process.returncode, err) == (code, message)


def test_a_program_that_uses_the_library_keeps_its_own_handlers() -> None:
    code = (
        "import signal, gnmt.signals\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPTS.parent)


def test_after_loading_ctrl_c_can_be_caught(tmp_path: Path) -> None:
    """The handler of loading ends the process at once. Later, a stopped command must be able to save."""
    (tmp_path / "scripts").mkdir()
    program = tmp_path / "scripts" / "program.py"
    program.write_text(
        "import os, signal\n"
        "import gnmt.signals\n"
        "assert signal.getsignal(signal.SIGINT) is gnmt.signals.exit_while_loading\n"
        "try:\n"
        "    with gnmt.signals.interrupt_on_signals(): os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('caught')\n"
    )
    # The handler is installed for scripts beside the package only, so link the package there.
    (tmp_path / "gnmt").symlink_to(SCRIPTS.parent / "gnmt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "caught\n"
