"""Files of any size: windows, and parts that outlive the process."""

from __future__ import annotations

import os
import signal
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError, Interrupted
from gnmt.translation.partial_output import PartFolder
from gnmt.translation.translate_files import cut_windows, lines_in

# Windows


def test_every_window_is_translated_once_with_its_place(home):
    translator = StubTranslator()
    translate(translator)
    assert (home / "a.de").read_text() == expected()
    assert translator.calls == [(1, 4), (5, 4), (9, 4), (13, 4), (17, 2)]
    assert translator.paths == {"a.en"}
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_windows_are_read_no_further_than_they_are_asked_for():
    read = []
    lines = (read.append(n) or str(n) for n in range(100))
    windows = cut_windows(lines, 3, iter("abcdefgh"))
    assert next(windows) == (0, 1, ["0", "1", "2"], ["a", "b", "c"])
    assert next(windows) == (1, 4, ["3", "4", "5"], ["d", "e", "f"])
    assert len(read) == 6


@pytest.mark.parametrize(("windows", "lines"), [(set(), 0), ({0, 2}, 8), ({4}, 2), ({0, 1, 2, 3, 4}, 18)])
def test_lines_of_windows(windows, lines):
    assert lines_in(windows, 4, NUM_LINES) == lines


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


# Going on


@pytest.mark.parametrize("line", [1, 4, 5, 12, 18])
@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
def test_killed_and_continued_is_the_same_to_the_byte(home, line, kind):
    translate(StubTranslator(), kind=kind)
    whole = (home / "a.de").read_bytes()
    (home / "a.de").write_text("what was there\n")
    with pytest.raises(Killed):
        translate(kill_at(line), kind=kind)
    assert (home / "a.de").read_text() == "what was there\n"
    again = StubTranslator()
    translate(again, kind=kind)
    assert (home / "a.de").read_bytes() == whole
    num_done = (line - 1) // 4
    assert again.calls == [(1 + 4 * n, min(4, NUM_LINES - 4 * n)) for n in range(num_done, 5)]
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_killed_at_every_line_one_after_another(home):
    """Each command gets one line further, so that windows are done by many commands."""
    for line in range(1, NUM_LINES + 1):
        with pytest.raises(Killed):
            translate(kill_at(line))
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_a_window_that_was_being_written_is_done_again(home, monkeypatch):
    """The file of a window has its name only when it is whole; a torn one has another name and is cleared away."""
    with pytest.raises(Killed):
        translate(kill_at(9))
    (home / "a.de.part" / ".window-000002.77.tmp").write_bytes(b'{"unfinished"')
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_killed_while_the_output_is_put_together(home, monkeypatch):
    finish = PartFolder.finish

    def torn(self, heading, num_windows):
        (self.folder / "merged").write_bytes(b"1:1 en")
        raise Killed

    monkeypatch.setattr(PartFolder, "finish", torn)
    with pytest.raises(Killed):
        translate(StubTranslator())
    assert not (home / "a.de").exists()
    monkeypatch.setattr(PartFolder, "finish", finish)
    again = StubTranslator()
    translate(again)
    assert again.calls == []
    assert (home / "a.de").read_text() == expected()


def test_ctrl_c_says_where_it_goes_on(home):
    with pytest.raises(KeyboardInterrupt, match=r"a\.de\.part keeps 2 windows, from where the same command goes on"):
        translate(kill_at(10, KeyboardInterrupt))


def send_sigterm_at(line):
    def before(number):
        if number == line:
            os.kill(os.getpid(), signal.SIGTERM)

    return StubTranslator(before=before)


def test_sigterm_says_the_same_and_has_its_own_exit_code(home):
    """Slurm's signal ended a job without a word."""
    message = r"^SIGTERM: stopped; .*a\.de\.part keeps 2 windows, from where the same command goes on"
    with pytest.raises(Interrupted, match=message) as caught:
        translate(send_sigterm_at(10))
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_sigterm_before_the_first_window_leaves_nothing(home):
    with pytest.raises(Interrupted, match=r"^SIGTERM: stopped$"):
        translate(send_sigterm_at(2))
    assert names(home) == ["a.en", "best.pt"]


def test_a_handler_of_the_programs_own_stays(home):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        translate(send_sigterm_at(10))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]
    assert (home / "a.de").read_text() == expected()


def test_a_thread_can_translate_too(home):
    """Signals are the main thread's."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(translate, StubTranslator()).result()
    assert (home / "a.de").read_text() == expected()


@pytest.mark.parametrize("error", [InputError("x"), KeyboardInterrupt(), ZeroDivisionError()])
def test_nothing_stays_of_a_command_that_did_nothing(home, error):
    with pytest.raises(type(error)):
        translate(kill_at(2, error))
    assert names(home) == ["a.en", "best.pt"]


def test_a_link_is_followed_and_stays(home):
    (home / "far").mkdir()
    (home / "a.de").symlink_to("far/a.de")
    translate(StubTranslator())
    assert (home / "a.de").is_symlink()
    assert (home / "far" / "a.de").read_text() == expected()
