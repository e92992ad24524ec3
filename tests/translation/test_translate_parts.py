"""What is done of a file: which commands go on from it, and how it is dropped."""

from __future__ import annotations

import contextlib
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError
from gnmt.translation import translate_files as resumable
from gnmt.translation.partial_output import PartFolder
from gnmt.translation.translate_files import Job, Window


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
        (lambda translator, home: setattr(translator, "chunk_lines", 8), "chunk_lines: 4 → 8"),
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
        translate(StubTranslator(chunk_lines=4, before=change))
    assert not (home / "a.de").exists()


def another_text_for_a_while(home):
    """A command that stamps a.en and then reads another text, which leaves two windows; a.en is put back."""
    own = (home / "a.en").read_bytes()
    stamp = resumable.settings_of

    def exchanged(*arguments):
        settings = stamp(*arguments)
        (home / "a.en").write_text("another\n" * NUM_LINES)
        return settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable, "settings_of", exchanged)
        with pytest.raises(Killed):
            translate(kill_at(10))
    (home / "a.en").write_bytes(own)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_windows_of_another_text_do_not_enter_the_output(home, caplog):
    """They stood under the stamp of the text that had been there before it was read, and were taken for its own."""
    another_text_for_a_while(home)
    assert b"rehtona" in (home / "a.de.part" / "window-000000").read_bytes()
    again = StubTranslator()
    translate(again)
    assert (home / "a.de").read_text() == expected()
    assert len(again.calls) == 5
    [warning] = [text for text in warnings(caplog) if "other lines" in text]
    assert "a.de.part keeps of a.en from line 1 on was made of other lines than there are now" in warning


def test_windows_of_other_prefixes_do_not_enter_the_output(home):
    (home / "p.de").write_text("p\n" * NUM_LINES)
    job = Job("a.en", "a.de", "p.de")
    with pytest.raises(Killed):
        translate(kill_at(10), job)
    window = home / "a.de.part" / "window-000001"
    head, _, data = window.read_bytes().partition(b"\n")
    of_others = Window(1, 5, [f"line {n}" for n in range(5, 9)], ["q"] * 4).sha256()
    window.write_bytes(json.dumps(json.loads(head) | {"sha256": of_others}).encode() + b"\n" + data)
    again = StubTranslator()
    translate(again, job)
    assert again.calls == [(5, 4), (9, 4), (13, 4), (17, 2)]


@pytest.mark.parametrize("head", [b'{"unfinished": 0}', b"", b"\xff", b"5"])
def test_windows_that_do_not_say_what_they_are_of_are_translated_anew(home, caplog, head):
    """Those of an earlier version, or damaged ones."""
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "a.de.part" / "window-000000").write_bytes(head + b"\n1: foreign\n" * 4)
    again = StubTranslator()
    translate(again)
    assert again.calls == [(1, 4), (9, 4), (13, 4), (17, 2)]
    assert (home / "a.de").read_text() == expected()
    assert "or does not say of which" in " ".join(warnings(caplog))


def test_a_window_that_becomes_another_before_the_end_does_not_enter_the_output(home, caplog):
    """Where processes share the work, the first one trusts nobody's window unseen."""

    def exchange(number):
        if number == 17:
            (home / "a.de.part" / "window-000001").write_bytes(b'{"unfinished": 0, "sha256": "5a"}\n5: foreign\n')

    again = StubTranslator(before=exchange)
    translate(again)
    assert again.calls[-1] == (5, 4)
    assert (home / "a.de").read_text() == expected()
    assert "from line 5 on" in " ".join(warnings(caplog))


def test_two_commands_do_not_translate_to_the_same_file(home):
    def second_command(number):
        if number == 6:
            translate(StubTranslator())

    with pytest.raises(InputError, match=r"a\.de\.part is in use: another process translates to .*a\.de"):
        translate(StubTranslator(before=second_command))
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_who_is_refused_takes_nothing_from_who_holds_the_part(home, monkeypatch):
    """Started together, the second found no folder, was refused by the lock, and removed the first one's folder."""
    make, first, second = Path.mkdir, PartFolder(home / "a.de"), PartFolder(home / "a.de")
    with contextlib.ExitStack() as locks:

        def overtaken(path, **options):
            monkeypatch.undo()
            locks.enter_context(first.locked())
            make(path, **options)

        monkeypatch.setattr(Path, "mkdir", overtaken)
        with pytest.raises(InputError, match="is in use"), second.locked():
            pass
        first.begin({}, "auto", "a machine")
        first.keep(0, "5a", b"1\n", 0)
        assert names(first.folder) == ["lock", "manifest.json", "window-000000"]
    assert names(first.folder) == ["manifest.json", "window-000000"]


def test_a_folder_that_goes_before_it_is_locked_is_made_again(home, monkeypatch):
    make, part = Path.mkdir, PartFolder(home / "a.de")

    def undone(path, **options):
        monkeypatch.undo()
        make(path, **options)
        path.rmdir()  # by the command before, at its end

    monkeypatch.setattr(Path, "mkdir", undone)
    with part.locked():
        assert names(part.folder) == ["lock"]
    assert not part.folder.exists()


def test_a_folder_that_goes_while_it_is_being_made_is_made_again(home, monkeypatch):
    """mkdir(exist_ok=True) looks again at what was in its way, and where it is gone by then, raises."""
    part = PartFolder(home / "a.de")
    part.folder.mkdir()

    def in_the_way(path, **_):
        monkeypatch.undo()
        path.rmdir()  # by the command before, at its end
        raise FileExistsError(path)

    monkeypatch.setattr(Path, "mkdir", in_the_way)
    with part.locked():
        assert names(part.folder) == ["lock"]
    assert not part.folder.exists()


def test_what_is_no_folder_is_not_tried_for_ever(home):
    part = PartFolder(home / "a.de")
    part.folder.write_text("a file")
    with pytest.raises(NotADirectoryError), part.locked():
        pass
    part.folder.unlink()
    part.folder.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError), part.locked():
        pass


def test_a_part_is_locked_by_one_at_a_time(home):
    """Each time the holder removes the folder while others try to lock it."""
    inside, rounds, failures = [], [], []

    def command():
        part = PartFolder(home / "a.de")
        for _ in range(100):
            try:
                with part.locked():
                    inside.append(1)
                    part.begin({}, "never", "a machine")
                    failures.extend([len(inside)] if len(inside) > 1 else [])
                    part.remove()
                    rounds.append(inside.pop())
            except InputError as error:
                failures.extend([] if "is in use" in str(error) else [error])

    with ThreadPoolExecutor(4) as pool:
        for running in [pool.submit(command) for _ in range(4)]:
            running.result()
    assert not failures
    assert len(rounds) >= 100 / 4
    assert names(home) == ["a.en", "best.pt"]


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
        with monkeypatch.context() as patch:
            Unplugged(patch, 2)  # when the output is there, and some windows are
            with pytest.raises(Killed):
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
    with pytest.raises(InputError, match=r"holds 1 window and no manifest\.json.*resume=never"):
        translate(StubTranslator())
    assert names(home / "a.de.part") == ["window-000000"]
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


def test_another_processor_is_a_warning_and_no_obstacle(home, monkeypatch, caplog):
    with pytest.raises(Killed):
        translate(kill_at(10))
    monkeypatch.setattr(resumable, "device_name", lambda device: "Abacus 9")
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][:1]
    assert "goes on on Abacus 9: scores may differ in their last digits" in warning


def test_a_checkpoint_that_is_gone_is_no_fault_of_the_output(home):
    (home / "best.pt").unlink()
    with pytest.raises(InputError, match=r"^checkpoint best\.pt cannot be read \(No such file or directory\)$"):
        translate(StubTranslator())
    assert names(home) == ["a.en"]
