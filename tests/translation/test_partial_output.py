"""Partial outputs: which commands resume from them, and how they are deleted."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError
from gnmt.translation import translate_files as module
from gnmt.translation.jobs import Job
from gnmt.translation.partial_output import Chunk, PartialOutput, TranslatedChunk


def test_another_input_is_refused_on_resume(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with (home / "a.en").open("a") as file:
        file.write("one more\n")
    with pytest.raises(InputError, match=r"a\.de\.partial holds 2 chunks.*(?s:.*)input\.num_lines: 18 → 19") as caught:
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
        (lambda translator, home: setattr(module.torch, "get_num_threads", lambda: 77), "num_threads: .* → 77"),
        (lambda translator, home: translator.__init__(beam_size=3), "decoding.beam_size: 5 → 3"),
    ],
)
def test_other_settings_are_refused_on_resume(home, monkeypatch, change, message):
    with pytest.raises(Killed):
        translate(kill_at(10))
    monkeypatch.setattr(module.torch, "get_num_threads", module.torch.get_num_threads)  # put back afterwards
    translator = StubTranslator()
    change(translator, home)
    with pytest.raises(InputError, match=message):
        translate(translator)
    assert len(PartialOutput(home / "a.de").finished_chunks()) == 2
    translate(translator, resume="never")
    assert (home / "a.de").read_text() == expected()


def test_another_format_is_refused_on_resume(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with pytest.raises(InputError, match=r'format: "?text"? → "?tsv"?'):
        translate(StubTranslator(), kind="tsv")


def test_the_same_text_compressed_or_with_other_line_ends_resumes(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "b.en.gz").write_bytes(gzip.compress((home / "a.en").read_bytes().replace(b"\n", b"\r\n")))
    translate(StubTranslator(), Job("b.en.gz", "a.de"))
    assert (home / "a.de").read_text() == expected()


def test_an_input_that_changes_while_it_is_translated_is_refused(home):
    def change(number):
        if number == 6:
            (home / "a.en").write_text("another\n" * NUM_LINES)

    with pytest.raises(InputError, match=r"a\.en was changed while it was translated"):
        translate(StubTranslator(chunk_lines=4, before=change))
    assert not (home / "a.de").exists()


def translate_another_text(home):
    """Translate two chunks of another text under the fingerprint of a.en, as if a.en had changed for a while."""
    own = (home / "a.en").read_bytes()
    settings_of = module.output_settings

    def exchanged(*arguments):
        settings = settings_of(*arguments)
        (home / "a.en").write_text("another\n" * NUM_LINES)
        return settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "output_settings", exchanged)
        with pytest.raises(Killed):
            translate(kill_at(10))
    (home / "a.en").write_bytes(own)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_chunks_of_another_text_do_not_enter_the_output(home, caplog):
    """They had been made after the fingerprint was taken, and were merged as chunks of the first text."""
    translate_another_text(home)
    assert b"rehtona" in (home / "a.de.partial" / "chunk-000000").read_bytes()
    again = StubTranslator()
    translate(again)
    assert (home / "a.de").read_text() == expected()
    assert len(again.calls) == 5
    [warning] = [text for text in warnings(caplog) if "other lines" in text]
    assert "a.de.partial: the chunk from line 1 of a.en was made from other lines" in warning


def test_chunks_of_other_prefixes_do_not_enter_the_output(home):
    (home / "p.de").write_text("p\n" * NUM_LINES)
    job = Job("a.en", "a.de", "p.de")
    with pytest.raises(Killed):
        translate(kill_at(10), job)
    chunk = home / "a.de.partial" / "chunk-000001"
    head, _, data = chunk.read_bytes().partition(b"\n")
    of_others = Chunk(1, 5, [f"line {n}" for n in range(5, 9)], ["q"] * 4).sha256()
    chunk.write_bytes(json.dumps(json.loads(head) | {"sha256": of_others}).encode() + b"\n" + data)
    again = StubTranslator()
    translate(again, job)
    assert again.calls == [(5, 4), (9, 4), (13, 4), (17, 2)]


@pytest.mark.parametrize("head", [b'{"unfinished": 0}', b"", b"\xff", b"5"])
def test_chunks_without_a_valid_hash_are_translated_again(home, caplog, head):
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "a.de.partial" / "chunk-000000").write_bytes(head + b"\n1: foreign\n" * 4)
    again = StubTranslator()
    translate(again)
    assert again.calls == [(1, 4), (9, 4), (13, 4), (17, 2)]
    assert (home / "a.de").read_text() == expected()
    assert "or has no valid hash" in " ".join(warnings(caplog))


def test_a_chunk_that_is_exchanged_before_the_merge_does_not_enter_the_output(home, caplog):
    """Rank 0 checks every chunk before the merge."""

    def exchange(number):
        if number == 17:
            (home / "a.de.partial" / "chunk-000001").write_bytes(b'{"unfinished": 0, "sha256": "5a"}\n5: foreign\n')

    again = StubTranslator(before=exchange)
    translate(again)
    assert again.calls[-1] == (5, 4)
    assert (home / "a.de").read_text() == expected()
    assert "the chunk from line 5 of a.en was made from other lines" in " ".join(warnings(caplog))


def test_two_commands_do_not_translate_to_the_same_file(home):
    def second_command(number):
        if number == 6:
            translate(StubTranslator())

    with pytest.raises(InputError, match=r"a\.de\.partial is in use: another process translates to .*a\.de"):
        translate(StubTranslator(before=second_command))
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()


def test_a_refused_command_removes_nothing_from_the_holder_of_the_lock(home, monkeypatch):
    """Of two commands started together, the second was refused by the lock and then removed the folder of the first."""
    make, first, second = Path.mkdir, PartialOutput(home / "a.de"), PartialOutput(home / "a.de")
    with contextlib.ExitStack() as locks:

        def overtaken(path, **options):
            monkeypatch.undo()
            locks.enter_context(first.locked())
            make(path, **options)

        monkeypatch.setattr(Path, "mkdir", overtaken)
        with pytest.raises(InputError, match="is in use"), second.locked():
            pass
        first.prepare({}, "auto", "a machine")
        first.write_chunk(Chunk(0, 1, ["a"]), TranslatedChunk(b"1\n", 0))
        assert names(first.folder) == ["chunk-000000", "lock", "manifest.json"]
    assert names(first.folder) == ["chunk-000000", "manifest.json"]


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(home, monkeypatch):
    make, partial = Path.mkdir, PartialOutput(home / "a.de")

    def undone(path, **options):
        monkeypatch.undo()
        make(path, **options)
        path.rmdir()  # by an earlier command, at its end

    monkeypatch.setattr(Path, "mkdir", undone)
    with partial.locked():
        assert names(partial.folder) == ["lock"]
    assert not partial.folder.exists()


def test_a_folder_that_is_removed_while_it_is_made_is_made_again(home, monkeypatch):
    """mkdir(exist_ok=True) raises FileExistsError if the folder is removed between its two checks."""
    partial = PartialOutput(home / "a.de")
    partial.folder.mkdir()

    def in_the_way(path, **_):
        monkeypatch.undo()
        path.rmdir()  # by an earlier command, at its end
        raise FileExistsError(path)

    monkeypatch.setattr(Path, "mkdir", in_the_way)
    with partial.locked():
        assert names(partial.folder) == ["lock"]
    assert not partial.folder.exists()


def test_a_path_that_cannot_be_a_folder_is_refused(home):
    partial = PartialOutput(home / "a.de")
    partial.folder.write_text("a file")
    with pytest.raises(InputError, match=r"a\.de cannot be written \(Not a directory\)"), partial.locked():
        pass
    partial.folder.unlink()
    partial.folder.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"a\.de cannot be written \(No such file or directory\)"), partial.locked():
        pass


def test_a_partial_output_is_locked_by_one_at_a_time(home):
    """The holder removes the folder each time while others try to lock it; every caller gets its turns."""
    num_turns, deadline = 25, time.monotonic() + 120
    inside, too_many = [], []

    def command():
        partial = PartialOutput(home / "a.de")
        turns = 0
        while turns < num_turns and time.monotonic() < deadline:
            try:
                with partial.locked():
                    inside.append(1)
                    partial.prepare({}, "never", "a machine")
                    too_many.extend([len(inside)] if len(inside) > 1 else [])
                    partial.remove()
                    turns += inside.pop()
            except InputError as error:
                if "is in use" not in str(error):
                    raise
        return turns

    with ThreadPoolExecutor(4) as pool:
        commands = [pool.submit(command) for _ in range(4)]
        assert [running.result() for running in commands] == [num_turns] * 4
    assert not too_many
    assert names(home) == ["a.en", "best.pt"]


def test_a_foreign_folder_is_refused_and_stays(home):
    (home / "a.de.partial").mkdir()
    (home / "a.de.partial" / "thesis.tex").write_text("years")
    for resume in ("auto", "never"):
        with pytest.raises(InputError, match=r"a\.de\.partial is in the way.*thesis\.tex"):
            translate(StubTranslator(), resume=resume)
    assert (home / "a.de.partial" / "thesis.tex").read_text() == "years"


class KilledWhileDeleting:
    """Patch Path.unlink so that the process is killed after `num_deleted` files of the partial output."""

    def __init__(self, monkeypatch, num_deleted):
        unlink, self.left = Path.unlink, num_deleted

        def counted(path, missing_ok=False):
            if path.parent.name == "a.de.partial" and path.exists():
                if self.left == 0:
                    raise Killed
                self.left -= 1
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", counted)


@pytest.mark.parametrize("num_deleted", range(7))
@pytest.mark.parametrize("case", ["never", "output replaced", "end"])
def test_killed_while_a_partial_output_is_deleted(home, monkeypatch, num_deleted, case):
    """The manifest was deleted first, and the folder with the remaining chunks was refused as a foreign one."""
    other = StubTranslator(beam_size=3)
    if case == "never":
        with pytest.raises(Killed):
            translate(kill_at(18))
        options = {"resume": "never"}
    else:
        with monkeypatch.context() as patch:
            KilledWhileDeleting(patch, 2)  # the output and some chunks are there
            with pytest.raises(Killed):
                translate(StubTranslator())
        if case == "output replaced":
            (home / "a.de").write_text("of another command\n")
        other, options = StubTranslator(), {}
    with monkeypatch.context() as patch:
        KilledWhileDeleting(patch, num_deleted)
        with contextlib.suppress(Killed):
            translate(other, **options)
    with contextlib.suppress(InputError):  # the chunks may be those of the old settings
        translate(other)
    translate(other, **options)
    assert (home / "a.de").read_text() == expected()
    assert names(home) == ["a.de", "a.en", "best.pt"]


def test_chunks_without_a_manifest_are_deleted_by_resume_never(home):
    (home / "a.de.partial").mkdir()
    (home / "a.de.partial" / "chunk-000000").touch()
    with pytest.raises(InputError, match=r"holds 1 chunk and no manifest\.json.*resume=never"):
        translate(StubTranslator())
    assert names(home / "a.de.partial") == ["chunk-000000"]
    translate(StubTranslator(), resume="never")
    assert (home / "a.de").read_text() == expected()


def test_a_foreign_file_in_a_partial_output_stays(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    for name in ("notes.txt", "chunk-of-mine"):
        (home / "a.de.partial" / name).write_text("years")
    translate(StubTranslator(beam_size=3), resume="never")
    assert (home / "a.de").read_text() == expected()
    assert names(home / "a.de.partial") == ["chunk-of-mine", "notes.txt"]


def test_until_the_first_chunk_is_finished_settings_may_change(home):
    """After a kill in the first chunk, another beam size was refused because of 0 finished chunks."""
    with pytest.raises(Killed):
        translate(kill_at(10))
    for chunk in (home / "a.de.partial").glob("chunk-*"):
        chunk.unlink()
    with pytest.raises(Killed):
        translate(StubTranslator(beam_size=3, before=kill_at(6).before))
    with pytest.raises(InputError, match=r"decoding\.beam_size: 3 → 5"):  # the settings of the newer command count
        translate(StubTranslator())


def test_other_settings_for_a_finished_file_of_several_are_refused(home):
    (home / "b.en").write_bytes((home / "a.en").read_bytes())
    jobs = [Job("a.en", "a.de"), Job("b.en", "b.de")]
    with pytest.raises(InputError):
        translate(StubTranslator(), *jobs, Job("missing.en", "c.de"))
    with pytest.raises(
        InputError, match=r"marks a\.de as complete, made with other settings or input:\n  decoding\.beam_size"
    ):
        translate(StubTranslator(beam_size=3), *jobs)


def test_a_damaged_manifest_is_named(home):
    with pytest.raises(Killed):
        translate(kill_at(10))
    (home / "a.de.partial" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged: give resume=never"):
        translate(StubTranslator())
    translate(StubTranslator(), resume="never")
    assert (home / "a.de").read_text() == expected()


def test_resuming_on_another_processor_warns(home, monkeypatch, caplog):
    with pytest.raises(Killed):
        translate(kill_at(10))
    monkeypatch.setattr(module, "device_name", lambda device: "Abacus 9")
    translate(StubTranslator())
    assert (home / "a.de").read_text() == expected()
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][:1]
    assert "is resumed on Abacus 9: scores may differ in their last digits" in warning


def test_a_deleted_checkpoint_is_named(home):
    (home / "best.pt").unlink()
    with pytest.raises(InputError, match=r"^checkpoint best\.pt cannot be read \(No such file or directory\)$"):
        translate(StubTranslator())
    assert names(home) == ["a.en"]
