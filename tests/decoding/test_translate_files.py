"""Files of any size: windows, and parts that outlive the process."""

from __future__ import annotations

import contextlib
import gzip
import threading
import tracemalloc
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate
from torch.distributed import HashStore

from gnmt.decoding.files import Job, resumable
from gnmt.decoding.files.part import PartFolder
from gnmt.decoding.files.resumable import lines_in
from gnmt.decoding.files.windows import cut_windows
from gnmt.distributed import Ranks
from gnmt.types import InputError

# Windows


def test_every_window_is_translated_once_with_its_place(home):
    translator = StubTranslator()
    translate(translator)
    assert (home / "a.de").read_text() == expected()
    assert translator.calls == [(1, 4), (5, 4), (9, 4), (13, 4), (17, 2)]
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
        translate(StubTranslator(window_lines=100))
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


@pytest.mark.parametrize("error", [InputError("x"), KeyboardInterrupt(), ZeroDivisionError()])
def test_nothing_stays_of_a_command_that_did_nothing(home, error):
    with pytest.raises(type(error)):
        translate(kill_at(2, error))
    assert names(home) == ["a.en", "best.pt"]


def test_another_input_is_told_from_a_resume(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with (home / "a.en").open("a") as file:
        file.write("one more\n")
    with pytest.raises(InputError, match=r"a\.de\.part holds 2 windows.*(?s:.*)input\.num_lines: 18 → 19") as caught:
        translate(StubTranslator())
    assert "input.sha256" in str(caught.value)
    assert "resume=never" in str(caught.value)
    translate(StubTranslator(), resume="never")
    assert (home / "a.de").read_text() == expected() + "19:erom eno\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda translator, home: setattr(translator, "batch_size", 3), "batch_size: 2 → 3"),
        (lambda translator, home: setattr(translator, "window_lines", 8), "window_lines: 4 → 8"),
        (lambda translator, home: (home / "best.pt").write_bytes(b"others"), "checkpoints: "),
        (lambda translator, home: setattr(resumable.torch, "get_num_threads", lambda: 77), "num_threads: .* → 77"),
        (lambda translator, home: translator.__init__(beam_size=3), "decoding.beam_size: 5 → 3"),
    ],
)
def test_other_settings_are_told_from_a_resume(home, monkeypatch, change, message):
    with pytest.raises(Killed):
        translate(kill_at(10))
    monkeypatch.setattr(resumable.torch, "get_num_threads", resumable.torch.get_num_threads)  # put back afterwards
    translator = StubTranslator()
    change(translator, home)
    with pytest.raises(InputError, match=message):
        translate(translator)
    assert len(PartFolder(home / "a.de").windows()) == 2
    translate(translator, resume="never")
    assert (home / "a.de").read_text() == expected()


def test_another_format_is_told_from_a_resume(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with pytest.raises(InputError, match=r'format: "?text"? → "?tsv"?'):
        translate(StubTranslator(), kind="tsv")


def test_the_same_text_packed_or_with_other_line_ends_is_no_change(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "b.en.gz").write_bytes(gzip.compress((home / "a.en").read_bytes().replace(b"\n", b"\r\n")))
    translate(StubTranslator(), Job("b.en.gz", "a.de"))
    assert (home / "a.de").read_text() == expected()


def test_an_input_that_changes_on_the_way_is_found(home):
    def change(number):
        if number == 6:
            (home / "a.en").write_text("another\n" * NUM_LINES)

    with pytest.raises(InputError, match=r"a\.en was changed while it was translated"):
        translate(StubTranslator(window_lines=4, before=change))
    assert not (home / "a.de").exists()


def test_two_commands_do_not_translate_to_the_same_file(home):
    def second_command(number):
        if number == 6:
            translate(StubTranslator())

    with pytest.raises(InputError, match=r"a\.de\.part is in use: another process translates to .*a\.de"):
        translate(StubTranslator(before=second_command))
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_a_folder_of_somebody_else_stays(home):
    (home / "a.de.part").mkdir()
    (home / "a.de.part" / "thesis.tex").write_text("years")
    for resume in ("auto", "never"):
        with pytest.raises(InputError, match=r"a\.de\.part is in the way.*thesis\.tex"):
            translate(StubTranslator(), resume=resume)
    assert (home / "a.de.part" / "thesis.tex").read_text() == "years"


class Unplugged:
    """Path.unlink, but the process ends before the `last`-th file is gone."""

    def __init__(self, monkeypatch, last):
        unlink, self.left = Path.unlink, last

        def counted(path, missing_ok=False):
            if path.parent.name == "a.de.part" and path.exists():
                if self.left == 0:
                    raise Killed
                self.left -= 1
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", counted)


@pytest.mark.parametrize("num_unlinked", range(7))
@pytest.mark.parametrize("case", ["never", "output replaced", "end"])
def test_killed_while_a_part_is_dropped(home, monkeypatch, num_unlinked, case):
    """The manifest went first, and the windows that stayed without it were taken for somebody else's folder."""
    other = StubTranslator(beam_size=3)
    if case == "never":
        with pytest.raises(Killed):
            translate(kill_at(18))
        options = {"resume": "never"}
    else:
        with pytest.raises(Killed), monkeypatch.context() as patch:
            Unplugged(patch, 2)  # when the output is there, and some windows are
            translate(StubTranslator())
        if case == "output replaced":
            (home / "a.de").write_text("of another command\n")
        other, options = StubTranslator(), {}
    with monkeypatch.context() as patch:
        Unplugged(patch, num_unlinked)
        with contextlib.suppress(Killed):
            translate(other, **options)
    with contextlib.suppress(InputError):  # what is left may be the old translation's
        translate(other)
    translate(other, **options)
    assert (home / "a.de").read_text() == expected()
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_windows_without_a_manifest_are_dropped_by_resume_never(home):
    (home / "a.de.part").mkdir()
    (home / "a.de.part" / "window-000000").touch()
    with pytest.raises(InputError, match=r"holds 1 windows and no manifest\.json.*resume=never"):
        translate(StubTranslator())
    assert names(home / "a.de.part") == ["lock", "window-000000"]
    translate(StubTranslator(), resume="never")
    assert (home / "a.de").read_text() == expected()


def test_a_file_of_somebody_else_in_a_part_stays(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    for name in ("notes.txt", "window-of-mine"):
        (home / "a.de.part" / name).write_text("years")
    translate(StubTranslator(beam_size=3), resume="never")
    assert (home / "a.de").read_text() == expected()
    assert names(home / "a.de.part") == ["notes.txt", "window-of-mine"]


def test_a_part_without_a_window_is_no_obstacle_to_other_settings(home):
    """A command was killed in its first window; with another beam it was refused for the 0 windows that there were."""
    with pytest.raises(Killed):
        translate(kill_at(10))
    for window in (home / "a.de.part").glob("window-*"):
        window.unlink()
    with pytest.raises(Killed):
        translate(StubTranslator(beam_size=3, before=kill_at(6).before))
    with pytest.raises(InputError, match=r"decoding\.beam_size: 3 → 5"):  # the new one's settings are written down
        translate(StubTranslator())


def test_other_settings_for_a_finished_file_of_several_are_told_from_a_resume(home):
    (home / "b.en").write_bytes((home / "a.en").read_bytes())
    jobs = [Job("a.en", "a.de"), Job("b.en", "b.de")]
    with pytest.raises(InputError):
        translate(StubTranslator(), *jobs, Job("missing.en", "c.de"))
    with pytest.raises(
        InputError, match=r"says that a\.de is complete, and was begun otherwise:\n  decoding\.beam_size"
    ):
        translate(StubTranslator(beam_size=3), *jobs)


def test_a_damaged_manifest_is_a_message(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "a.de.part" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged: give resume=never"):
        translate(StubTranslator())
    translate(StubTranslator(), resume="never")
    assert (home / "a.de").read_text() == expected()


def test_a_link_is_followed_and_stays(home):
    (home / "far").mkdir()
    (home / "a.de").symlink_to("far/a.de")
    translate(StubTranslator())
    assert (home / "a.de").is_symlink()
    assert (home / "far" / "a.de").read_text() == expected()


# Several processes


def run_ranks(translators, **options):
    """What each rank's translate_files raised, or None; the ranks are threads."""
    store = HashStore()
    raised = [None] * len(translators)

    def run(rank):
        try:
            translate(translators[rank], ranks=Ranks(rank, len(translators), rank, store), **options)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(translators))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_ranks_share_the_windows_and_write_what_one_process_does(home):
    translators = [StubTranslator(), StubTranslator(), StubTranslator()]
    assert run_ranks(translators, kind="tsv") == [None] * 3
    shared = (home / "a.de").read_bytes()
    assert [translator.calls for translator in translators] == [[(1, 4), (13, 4)], [(5, 4), (17, 2)], [(9, 4)]]
    translate(StubTranslator(), kind="tsv")
    assert (home / "a.de").read_bytes() == shared
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_another_number_of_ranks_goes_on(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    translators = [StubTranslator(), StubTranslator()]
    assert run_ranks(translators) == [None, None]
    assert [translator.calls for translator in translators] == [[(9, 4), (17, 2)], [(13, 4)]]
    assert (home / "a.de").read_text() == expected()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_rank_ends_all(home, failing):
    """One left the loop alone, and the others waited for ever."""

    def before(number):
        raise InputError("no more memory")

    translators = [StubTranslator(), StubTranslator()]
    translators[failing].before = before
    raised = run_ranks(translators)
    assert str(raised[failing]) == "no more memory"
    assert str(raised[1 - failing]) == f"stopped, because rank {failing} did: no more memory"
    assert run_ranks([StubTranslator(), StubTranslator()]) == [None, None]
    assert (home / "a.de").read_text() == expected()


def test_what_only_the_first_rank_finds_ends_all(home):
    with pytest.raises(Killed):
        translate(kill_at(10), kind="tsv")
    raised = run_ranks([StubTranslator(), StubTranslator()])
    assert all("resume=never" in str(error) for error in raised)


def test_ranks_need_files(home):
    with pytest.raises(InputError, match="2 processes need plain files as input= and output=, found input=- output=a"):
        translate(StubTranslator(), Job("-", "a.de"), ranks=Ranks(0, 2, 0, HashStore()))
