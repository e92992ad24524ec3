"""Translation of files of any size: chunks, and resuming after an interruption."""

from __future__ import annotations

import io
import logging
import os
import signal
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError, Interrupted
from gnmt.fileio import read_lines
from gnmt.signals import interrupt_on_signals
from gnmt.translation import partial_output
from gnmt.translation.jobs import Job
from gnmt.translation.partial_output import PartialOutput
from gnmt.translation.translate_files import lines_in_chunks, split_into_chunks

# Chunks


def test_every_chunk_is_translated_once_with_its_line_number(home):
    translator = StubTranslator()
    translate(translator)
    assert (home / "a.de").read_text() == expected()
    assert translator.calls == [(1, 4), (5, 4), (9, 4), (13, 4), (17, 2)]
    assert translator.paths == {"a.en"}
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_no_line_is_read_before_its_chunk_is_needed():
    read = []
    lines = (read.append(n) or str(n) for n in range(100))
    chunks = split_into_chunks(lines, 3, iter("abcdefgh"))
    assert next(chunks) == (0, 1, ["0", "1", "2"], ["a", "b", "c"])
    assert next(chunks) == (1, 4, ["3", "4", "5"], ["d", "e", "f"])
    assert len(read) == 6


@pytest.mark.parametrize(("chunks", "lines"), [(set(), 0), ({0, 2}, 8), ({4}, 2), ({0, 1, 2, 3, 4}, 18)])
def test_lines_of_chunks(chunks, lines):
    assert lines_in_chunks(chunks, 4, NUM_LINES) == lines


def test_an_empty_input_gives_an_empty_output(home):
    (home / "a.en").write_bytes(b"")
    translate(StubTranslator())
    assert (home / "a.de").read_bytes() == b""


def test_memory_does_not_grow_with_the_input(home):
    peaks = []
    for num_lines in (1_000, 8_000):
        (home / "a.en").write_text("a line of some fifty letters that is written often\n" * num_lines)
        tracemalloc.start()
        translate(StubTranslator(chunk_lines=100))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (home / "a.de").stat().st_size > 400_000
    assert peaks[1] < 1.2 * peaks[0]


# Resuming


@pytest.mark.parametrize("line", [1, 4, 5, 12, 18])
@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
def test_killed_and_resumed_gives_the_same_bytes(home, line, kind):
    translate(StubTranslator(), kind=kind)
    complete = (home / "a.de").read_bytes()
    (home / "a.de").write_text("old\n")
    with pytest.raises(Killed):
        translate(kill_at(line), kind=kind)
    assert (home / "a.de").read_text() == "old\n"
    again = StubTranslator()
    translate(again, kind=kind)
    assert (home / "a.de").read_bytes() == complete
    num_done = (line - 1) // 4
    assert again.calls == [(1 + 4 * n, min(4, NUM_LINES - 4 * n)) for n in range(num_done, 5)]
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_killed_once_at_every_line(home):
    """Each command is killed one line later, so that the chunks are made by many commands."""
    for line in range(1, NUM_LINES + 1):
        with pytest.raises(Killed):
            translate(kill_at(line))
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_an_incomplete_chunk_file_is_deleted(home):
    """A chunk file has a temporary name until it is complete."""
    with pytest.raises(Killed):
        translate(kill_at(9))
    (home / "a.de.partial" / ".chunk-000002.77.tmp").write_bytes(b'{"unfinished"')
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_killed_during_the_merge(home, monkeypatch):
    merge = PartialOutput.merge

    def killed_midway(self, heading):
        (self.folder / "merged").write_bytes(b"1:1 en")
        raise Killed

    monkeypatch.setattr(PartialOutput, "merge", killed_midway)
    with pytest.raises(Killed):
        translate(StubTranslator())
    assert not (home / "a.de").exists()
    monkeypatch.setattr(PartialOutput, "merge", merge)
    again = StubTranslator()
    translate(again)
    assert again.calls == []
    assert (home / "a.de").read_text() == expected()


def test_ctrl_c_says_how_to_resume(home):
    with pytest.raises(
        KeyboardInterrupt, match=r"a\.de\.partial keeps 2 chunks, and the same command resumes from there"
    ):
        translate(kill_at(10, KeyboardInterrupt))


def send_sigterm_at(line):
    def before(number):
        if number == line:
            os.kill(os.getpid(), signal.SIGTERM)

    return StubTranslator(before=before)


def test_sigterm_says_how_to_resume_and_has_its_own_exit_code(home):
    """Slurm's signal ended a job without a message."""
    message = r"^SIGTERM: stopped; .*a\.de\.partial keeps 2 chunks, and the same command resumes from there"
    with pytest.raises(Interrupted, match=message) as caught, interrupt_on_signals():
        translate(send_sigterm_at(10))
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_sigterm_before_the_first_chunk_leaves_nothing(home):
    with pytest.raises(Interrupted, match=r"^SIGTERM: stopped$"), interrupt_on_signals():
        translate(send_sigterm_at(2))
    assert names(home) == ["a.en", "best.pt"]


def test_a_thread_can_translate_too(home):
    """Only the main thread can install signal handlers."""

    def translate_as_a_command():
        with interrupt_on_signals():
            translate(StubTranslator())

    with ThreadPoolExecutor(1) as executor:
        executor.submit(translate_as_a_command).result()
    assert (home / "a.de").read_text() == expected()


@pytest.mark.parametrize("error", [InputError("x"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_command_without_a_finished_chunk_leaves_nothing(home, error):
    with pytest.raises(type(error)):
        translate(kill_at(2, error))
    assert names(home) == ["a.en", "best.pt"]


def test_a_link_is_followed_and_stays(home):
    (home / "far").mkdir()
    (home / "a.de").symlink_to("far/a.de")
    translate(StubTranslator())
    assert (home / "a.de").is_symlink()
    assert (home / "far" / "a.de").read_text() == expected()


# Streams


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_at_a_terminal_each_line_is_translated_before_the_next_is_read(home, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    answered = []

    class Typed(io.BytesIO):
        def __next__(self):
            answered.append(out.buffer.getvalue().count(b"\n"))
            return super().__next__()

    monkeypatch.setattr("sys.stdin", Terminal(Typed(b"one\n\ntwo\n")))
    monkeypatch.setattr("sys.stdout", out)
    translator = StubTranslator()
    translate(translator, Job("-", "-"))
    assert translator.calls == [(1, 1), (2, 1), (3, 1)]
    assert answered == [0, 1, 2, 3]


def test_a_pipe_is_translated_chunk_by_chunk(home, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((home / "a.en").read_bytes())))
    monkeypatch.setattr("sys.stdout", out)
    translator = StubTranslator()
    translate(translator, Job("-", "-"))
    assert out.buffer.getvalue().decode() == expected()
    assert translator.calls[-1] == (17, 2)


def test_a_stream_to_a_file_replaces_it_at_the_end(home, monkeypatch):
    (home / "a.de.gz").write_bytes(b"before")
    for translator, error in ((kill_at(9), Killed), (StubTranslator(), None)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((home / "a.en").read_bytes())))
        if error:
            with pytest.raises(error):
                translate(translator, Job("-", "a.de.gz"))
            assert (home / "a.de.gz").read_bytes() == b"before"
        else:
            translate(translator, Job("-", "a.de.gz"))
    assert list(read_lines("a.de.gz")) == expected().splitlines()
    assert names(home) == ["a.de.gz", "a.en", "best.pt"]


# Progress


def test_a_summary_names_lines_and_speed_and_warns_of_unfinished_translations(home, caplog):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    resuming, done, cut_off = [record.getMessage() for record in caplog.records]
    assert resuming.startswith("a.de: 8 of 18 lines are done, resuming from ")
    assert done.startswith("a.de: 10 lines in ")
    assert "lines per second, after 8 that were done" in done
    assert cut_off == "3 of 18 translations were cut off by the length limit"


def test_the_summary_counts_lines_including_blank_ones(home, caplog):
    """The summary counted sentences, and said `1 sentences`."""
    (home / "a.en").write_text("\n")
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    assert caplog.records[-1].getMessage().startswith("a.de: 1 line in ")


def test_log_lines_give_the_remaining_time(home, caplog, monkeypatch):
    monkeypatch.setattr("gnmt.translation.translate_files._LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    lines = [record.getMessage() for record in caplog.records if "lines/s" in record.getMessage()]
    counts = dict.fromkeys(line.split(",")[0] for line in lines)  # each line, and the last of each chunk twice
    assert list(counts) == [f"{n} of 18 lines translated" for n in range(1, NUM_LINES + 1)]
    assert all(line.endswith(" left") for line in lines)


def test_a_full_disk_keeps_the_finished_chunks(home, monkeypatch):
    write = partial_output.write_atomically

    def full(path, data):
        if path.name == "chunk-000003":
            raise OSError(28, os.strerror(28))
        write(path, data)

    monkeypatch.setattr(partial_output, "write_atomically", full)
    message = r"output=a\.de cannot be written \(No space left on device\); .*a\.de\.partial keeps 3 chunks"
    with pytest.raises(InputError, match=message):
        translate(StubTranslator())
    monkeypatch.setattr(partial_output, "write_atomically", write)
    again = StubTranslator()
    translate(again)
    assert again.calls == [(13, 4), (17, 2)]
    assert Path("a.de").read_text() == expected()
