"""Log lines on stderr, and progress bars."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from gnmt.logs import StderrHandler, configure_logging, format_duration, progress_bar


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (59.9, "00:59"), (60, "01:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_a_duration_is_written_in_hours_minutes_and_seconds(seconds, text):
    assert format_duration(seconds) == text


def test_a_bar_counts_but_is_not_drawn_without_a_terminal(capsys):
    assert list(progress_bar(range(3), unit="line")) == [0, 1, 2]
    with progress_bar(description="translating", unit="line", total=3) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_log_line_goes_to_the_current_stderr(capsys):
    StderrHandler().emit(logging.LogRecord("gnmt", logging.INFO, __file__, 0, "update %d", (7,), None))
    assert capsys.readouterr().err == "update 7\n"


def test_a_log_line_needs_no_tqdm():
    code = (
        "import logging, sys; from gnmt.logs import configure_logging\n"
        "configure_logging(); logging.info('update 7'); assert 'tqdm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "update 7\n"


def test_log_messages_go_to_stderr_and_to_the_run_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging(tmp_path / "old" / "train.log")
    configure_logging(tmp_path / "new" / "train.log")
    logging.getLogger("gnmt.x").info("step 1")
    logging.getLogger("gnmt.x").warning("slow")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "step 1\nwarning: slow\n")
    lines = (tmp_path / "new" / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO gnmt.x: step 1", "WARNING gnmt.x: slow"]
    assert (tmp_path / "old" / "train.log").read_text(encoding="utf-8") == ""


def test_rank_0_logs_and_the_other_ranks_only_warn(monkeypatch, capsys):
    for rank in ("0", "3"):
        monkeypatch.setenv("RANK", rank)
        configure_logging()
        logging.getLogger("gnmt").info("update 1 of rank %s", rank)
        logging.getLogger("gnmt").warning("rank %s is short of memory", rank)
    monkeypatch.delenv("RANK")
    configure_logging()
    assert capsys.readouterr().err.splitlines() == [
        "update 1 of rank 0",
        "warning: rank 0 is short of memory",
        "warning: rank 3: rank 3 is short of memory",
    ]


def test_a_path_that_is_not_utf8_does_not_end_the_log_file(tmp_path, monkeypatch):
    """The log file missed all lines after the first such path."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging(tmp_path / "train.log")
    logging.getLogger("gnmt").info("reading caf\udce9.en")
    logging.getLogger("gnmt").info("update 7")
    configure_logging()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("gnmt: ")[2] for line in lines] == ["reading caf\\udce9.en", "update 7"]


def test_a_signal_that_logs_while_a_line_is_written_loses_no_line(tmp_path):
    """A closed terminal sends SIGHUP when a line has just been written; its handler logged inside of a flush.

    The file's buffer refused the reentrant call, and the run's log ended there.
    """
    program = """
import logging, signal, sys
from gnmt.logs import RunFileHandler
handler = RunFileHandler(sys.argv[1], encoding="utf-8")
logger = logging.getLogger("test")
logger.addHandler(handler)
logger.setLevel(logging.INFO)
num_signals = 0
def receive(number, frame):
    global num_signals
    num_signals += 1
    logger.info("signal %d", num_signals)
signal.signal(signal.SIGALRM, receive)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
for line in range(20000):
    logger.info("line %d", line)
signal.setitimer(signal.ITIMER_REAL, 0)
print(num_signals)
"""
    path = tmp_path / "train.log"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert int(done.stdout) > 10
    assert len(lines) == 20000 + int(done.stdout)
    assert done.stderr == ""
