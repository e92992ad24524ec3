"""Translation of files of any size: chunks, and resuming after an interruption."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError, Interrupted
from gnmt.fileio import read_lines
from gnmt.signals import interrupt_on_signals
from gnmt.translation import partial_output
from gnmt.translation.jobs import Input, Job
from gnmt.translation.partial_output import PartialOutput
from gnmt.translation.translate_files import Progress, split_into_chunks

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
    chunks = split_into_chunks(Input(lines), StubTranslator(chunk_lines=3), iter("abcdefgh"))
    assert next(chunks) == (0, 1, ["0", "1", "2"], ["a", "b", "c"])
    assert next(chunks) == (1, 4, ["3", "4", "5"], ["d", "e", "f"])
    assert len(read) == 6


def test_a_chunk_of_long_lines_holds_fewer_of_them(home):
    """A chunk had any length: a file of lines of a megabyte worked for 15 minutes before anything was kept."""
    lengths = [3, 4, 5, 9, 30, 1, 2, 3, 4]
    (home / "a.en").write_text("".join(f"{'x' * length}\n" for length in lengths))
    translator = StubTranslator(chunk_characters=10)
    with pytest.raises(Killed):
        translate(kill_at(5, chunk_characters=10))
    translate(translator)
    assert translator.calls == [(4, 2), (6, 4)]
    assert (home / "a.de").read_text() == "".join(f"{n}:{'x' * length}\n" for n, length in enumerate(lengths, start=1))


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


class Writer(threading.Thread):
    """A program that writes texts to a pipe, and after each one waits for its answer to come back.

    Attributes:
        input: The end of the pipe to read from.
        output: A standard output whose number of lines is the number of answers.
        received: The number of answers before each text was written.
    """

    def __init__(self, texts):
        super().__init__(daemon=True)
        end_of_reader, self._pipe = os.pipe()
        self.input = io.TextIOWrapper(io.BufferedReader(io.FileIO(end_of_reader)))
        self.output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        self.received, self._texts = [], texts
        self.start()

    def run(self):
        num_sent, give_up = 0, time.monotonic() + 20
        for text in self._texts:
            while self._num_received() < num_sent and time.monotonic() < give_up:
                time.sleep(0.001)
            self.received.append(self._num_received())
            os.write(self._pipe, text)
            num_sent += text.count(b"\n")
        os.close(self._pipe)

    def _num_received(self):
        return self.output.buffer.getvalue().count(b"\n")


def translate_from(writer, monkeypatch, **options):
    monkeypatch.setattr("sys.stdin", writer.input)
    monkeypatch.setattr("sys.stdout", writer.output)
    translator = StubTranslator(**options)
    translate(translator, Job("-", "-"))
    writer.join()
    return translator


def test_a_program_that_waits_for_the_translation_of_each_line_gets_it(home, monkeypatch):
    """It waited forever: 256 lines were read before the first one was translated."""
    writer = Writer([b"one\n", b"\n", b"two\nthree\n", b"four"])
    translator = translate_from(writer, monkeypatch, chunk_lines=256)
    assert writer.received == [0, 1, 2, 4]
    assert [first for first, _ in translator.calls] == [1, 2, 3, 5]
    assert writer.output.buffer.getvalue().decode() == "1:eno\n2:\n3:owt\n4:eerht\n5:ruof\n"


def test_complete_lines_are_translated_before_the_line_that_is_still_being_written(home, monkeypatch):
    writer = Writer([b"one\ntw", b"o\n"])
    translate_from(writer, monkeypatch, chunk_lines=256)
    assert writer.received == [0, 1]
    assert writer.output.buffer.getvalue().decode() == "1:eno\n2:owt\n"


def test_lines_that_are_waiting_in_a_pipe_are_translated_together(home, monkeypatch):
    writer = Writer([b"".join(b"line %d\n" % n for n in range(1, NUM_LINES + 1))])
    translator = translate_from(writer, monkeypatch)
    assert writer.output.buffer.getvalue().decode() == expected()
    assert translator.calls == [(1, 4), (5, 4), (9, 4), (13, 4), (17, 2)]


def test_a_named_pipe_is_answered_like_standard_input(home, monkeypatch):
    os.mkfifo("in")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    received = []

    def write():
        with open("in", "wb", buffering=0) as pipe:
            for line in (b"one\n", b"two\n"):
                pipe.write(line)
                give_up = time.monotonic() + 20
                while not received and time.monotonic() < give_up:
                    time.sleep(0.001)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    translator = StubTranslator(before=received.append, chunk_lines=256)
    translate(translator, Job("in", "-"))
    writer.join()
    assert translator.calls == [(1, 1), (2, 1)]


def test_a_stream_to_a_file_replaces_it_at_the_end(home, monkeypatch):
    (home / "a.de.gz").write_bytes(b"before")
    for translator, error in ((kill_at(9), Killed), (StubTranslator(), None)):
        with open("a.en", encoding="utf-8") as given, pytest.raises(error) if error else nullcontext():
            monkeypatch.setattr("sys.stdin", given)
            translate(translator, Job("-", "a.de.gz"))
        if error:
            assert (home / "a.de.gz").read_bytes() == b"before"
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


def test_the_speed_of_very_long_lines_is_not_0(caplog, monkeypatch):
    """Lines of a megabyte: `2.8 of 7 lines translated, 0.0 lines/s`."""
    progress = Progress(total=7, num_done=0, shown=True)
    monkeypatch.setattr(progress, "_started", progress._started - 120)
    monkeypatch.setattr("gnmt.translation.translate_files._LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        progress.reach(2.8)
        progress.summarize("a.de", num_unfinished=0)
    assert caplog.messages[0].startswith("2.8 of 7 lines translated, 0.023 lines/s, 0")
    assert caplog.messages[1].endswith(" 0.023 lines per second")


@pytest.mark.parametrize("output", ["a.de", "-"])
def test_the_number_of_translations_that_pairs_leaves_out_is_told(home, caplog, output):
    """A bad teacher gave 3 pairs for 300 lines, and the command reported 300 lines. It counts earlier chunks too."""
    job = Job("a.en", output)
    if job.resumable:
        with pytest.raises(Killed):
            translate(kill_at(14, n_best=2), job, kind="pairs")
    with caplog.at_level(logging.WARNING):
        translate(StubTranslator(n_best=2), job, kind="pairs")
    assert caplog.messages[-1] == "format=pairs left out 3 translations that are empty or cut off"


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
