"""Jobs: several inputs, compressed files, prefixes, and paths that are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.errors import InputError
from gnmt.translation.jobs import Job, plan_jobs
from gnmt.translation.partial_output import PartialOutput

# Several inputs, compression


def test_finished_files_are_not_translated_again(home):
    (home / "b.en").write_text("line 1\nline 2\n")
    jobs = plan_jobs(["b.en", "a.en"], "-", "out")
    with pytest.raises(Killed):
        translate(kill_at(10), *jobs)
    assert (home / "out" / "b.en").read_text() == expected(2)
    again = StubTranslator()
    translate(again, *jobs)
    assert again.calls == [(9, 4), (13, 4), (17, 2)]
    assert (home / "out" / "a.en").read_text() == expected()
    assert names(home / "out") == ["a.en", "b.en"]
    translate(again, *jobs)
    assert len(again.calls) == 3 + 6


def test_a_finished_file_that_was_changed_since_is_translated_again(home):
    (home / "b.en").write_text("line 1\nline 2\n")
    jobs = plan_jobs(["b.en", "a.en"], "-", "out")
    with pytest.raises(Killed):
        translate(kill_at(10), *jobs)
    (home / "out" / "b.en").write_text("cut short")
    translate(StubTranslator(), *jobs)
    assert (home / "out" / "b.en").read_text() == expected(2)


@pytest.mark.parametrize(
    ("suffix", "decompress"), [(".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)]
)
def test_compressed_output_is_reproducible(home, suffix, decompress):
    outputs = []
    for name in (f"a.de{suffix}", f"b.de{suffix}"):
        translate(StubTranslator(), Job("a.en", name))
        outputs.append((home / name).read_bytes())
    assert decompress(outputs[0]).decode() == expected()
    assert outputs[0] == outputs[1]


def test_gzip_output_holds_no_time_and_no_name(home):
    translate(StubTranslator(), Job("a.en", "a.de.gz"))
    outputs = [(home / "a.de.gz").read_bytes()]
    assert outputs[0][4:8] == bytes(4)  # the time of RFC 1952
    assert not outputs[0][3] & 8  # no name either


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a.en", "b.en"], "-", None), "give output_folder=FOLDER"),
        ((["a.en", "b.en"], "a.de", "out"), "exclude each other"),
        ((["a.en", "-"], "-", "out"), "input=- has no name"),
        ((["a.en", "sub/a.en"], "-", "out"), "two files a.en"),
        ((["a.en", "b.en"], "-", "out", "a.en"), "belongs to one input"),
        (("a.eng", "a.de", None), "did you mean a.en"),
        (("b.tsv", "a.de"), r"input=b\.tsv is a file of TSV, but input takes one sentence per line: extract the sent"),
        ((["a.en", "b.jsonl.gz"], "-", "out"), r"input=b\.jsonl\.gz is a file of JSONL, but input takes one sentence"),
        (("a.en", "a.de", None, "b.tsv"), r"prefixes=b\.tsv is a file of TSV"),
        (("a.en", "sub", None), r"output=sub cannot be written \(it is a folder\)"),
        (("a.en", "new/", None), "output=new/ ends in / as a folder does: give the path of a file"),
        (("a.en", "", None), "output= names no file"),
        (("", "a.de", None), "input= names no file"),
        (([], "a.de", None), r"input=\[\] names no file"),
        (("a.en", "no/a.de", None), r"output=no/a\.de cannot be written \(its folder no does not exist\): choose"),
        (("a.en", "a.en", None), "output=a.en and a.en are the same file: write to another"),
        (("a.en", "-", "."), "output=./a.en and a.en are the same file"),
        (("a.en", "b.en", None, "b.en"), "output=b.en and b.en are the same file"),
        (("a.en", "a.de", None, "c.en"), "c.en: no such file"),
        (("-", "a.de", None, "b.en"), "prefixes=b.en needs a plain file as input="),
        (("a.en", "-", "a.en/out"), r"output_folder=a\.en/out cannot be written \(Not a directory\)"),
    ],
)
def test_impossible_paths_are_refused(home, arguments, message):
    (home / "sub").mkdir()
    for name in ("b.en", "sub/a.en"):
        (home / name).write_text("a line\n")
    with pytest.raises(InputError, match=message):
        plan_jobs(*arguments)
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("a.en", "best.pt", None, None, ["b.pt", "best.pt"]),
            "output=best.pt and best.pt are the same file",
        ),
        (("a.en", "link.pt", None, None, ["best.pt"]), "output=link.pt and best.pt are the same file"),
        (
            (["a.en", "a.en.partial"], "-", "out"),
            r"output=out/a\.en\.partial is inside .*which holds the partial output of output=out/a\.en",
        ),
        ((["a.en.partial", "a.en"], "-", "out"), r"output=out/a\.en\.partial is inside .*rename one of the two"),
        (
            ("b.de.partial/chunk-000000", "b.de", None),
            r"input=b\.de\.partial/chunk-000000 is inside .*of output=b\.de",
        ),
        (("a.en", "b.de", None, "b.de.partial/chunk-000000"), r"prefixes=b\.de\.partial/chunk-000000 is inside"),
        (
            ("a.en", "b.de", None, None, ["b.de.partial/chunk-000000"]),
            r"checkpoint=b\.de\.partial/chunk-000000 is inside",
        ),
        (
            ("a.en", "b.de.partial/manifest.json", None),
            r"output=b\.de\.partial/manifest\.json is inside the partial output of an",
        ),
    ],
)
def test_an_output_that_would_destroy_another_file_is_refused(home, arguments, message):
    """The checkpoint was overwritten with its translation, and a partial output removed the output at its path."""
    (home / "link.pt").symlink_to("best.pt")
    (home / "a.en.partial").write_text("a line\n")
    (home / "b.de.partial").mkdir()
    for name in ("manifest.json", "chunk-000000"):
        (home / "b.de.partial" / name).write_text("{}\n")
    with pytest.raises(InputError, match=message):
        plan_jobs(*arguments)
    assert (home / "best.pt").read_bytes() == b"weights"
    assert not (home / "out").exists()


def test_a_folder_whose_name_ends_in_partial_may_hold_outputs(home):
    (home / "first.partial").mkdir()
    [job] = plan_jobs("a.en", "first.partial/a.de", None, None, ["best.pt"])
    translate(StubTranslator(), job)
    assert names(home / "first.partial") == ["a.de"]


def test_a_translation_is_appended_to_an_open_descriptor(home):
    """`output=/dev/stdout >> all.de` destroyed all.de."""
    (home / "all.de").write_text("before\n")
    with (home / "all.de").open("ab") as file:
        [job] = plan_jobs("a.en", f"/dev/fd/{file.fileno()}")
        translate(StubTranslator(), job)
    assert (home / "all.de").read_text() == "before\n" + expected()
    assert names(home) == ["a.en", "all.de", "best.pt"]


def test_an_output_on_the_input_that_the_shell_opened_is_refused(home):
    """`input=a.en output=/dev/stdout >> a.en` would read what it writes, without end."""
    with (home / "a.en").open("ab") as file, pytest.raises(InputError, match="are the same file"):
        plan_jobs("a.en", f"/dev/fd/{file.fileno()}")


def test_the_partial_output_of_a_private_file_is_private(home):
    (home / "a.de").write_text("secret\n")
    (home / "a.de").chmod(0o600)
    modes = []

    def look(line: int) -> None:
        modes.append((home / "a.de.partial").stat().st_mode & 0o777)

    translate(StubTranslator(before=look))
    assert set(modes) == {0o700}
    assert (home / "a.de").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("stream", "source", "output", "message"),
    [
        ("stdout", "a.en", "-", "standard output, which is closed: redirect it to a file, or name a file with output="),
        ("stdin", "-", "a.de", "input=- is standard input, which is closed: name a file with input="),
    ],
)
def test_a_closed_stream_that_is_needed_is_refused(home, monkeypatch, stream, source, output, message):
    monkeypatch.setattr(f"sys.{stream}", None)
    with pytest.raises(InputError, match=message):
        plan_jobs(source, output)


# Prefixes


def test_each_line_is_translated_with_its_prefix(home):
    (home / "p.de").write_text("".join(f"p{n} \n" if n % 2 else "\n" for n in range(1, NUM_LINES + 1)))
    job = Job("a.en", "a.de", "p.de")
    with pytest.raises(Killed):
        translate(kill_at(10), job)
    translate(StubTranslator(), job)
    lines = (home / "a.de").read_text().splitlines()
    assert lines[:2] == ["p1 1:1 enil", "2:2 enil"]
    assert lines[-2:] == ["p17 17:71 enil", "18:81 enil"]


@pytest.mark.parametrize("output", ["a.de", "-"])
def test_unequal_prefixes_give_both_counts(home, output):
    (home / "p.de").write_text("p\n")
    with pytest.raises(InputError, match=r"a\.en has 18 lines and p\.de has 1: prefixes="):
        translate(StubTranslator(), Job("a.en", output, "p.de"))


def test_other_prefixes_are_refused_on_resume(home):
    (home / "p.de").write_text("p\n" * NUM_LINES)
    with pytest.raises(Killed):
        translate(kill_at(10), Job("a.en", "a.de", "p.de"))
    with pytest.raises(InputError, match=r"\n  prefixes: \{\"num_lines\": 18, .* → null\n"):
        translate(StubTranslator())


def test_prefixes_that_change_while_they_are_translated_are_refused(home, monkeypatch):
    (home / "p.de").write_text("p\n" * NUM_LINES)
    read = PartialOutput.manifest

    def change(self):
        (home / "p.de").write_text("q\n" * NUM_LINES)
        return read(self)

    monkeypatch.setattr(PartialOutput, "manifest", change)
    with pytest.raises(InputError, match=r"p\.de was changed while it was"):
        translate(StubTranslator(), Job("a.en", "a.de", "p.de"))
    assert not (home / "a.de").exists()


def test_prefixes_from_a_pipe_are_refused(home):
    """They were counted first, and then no prefix was left: 0 prefixes for 10 lines."""
    os.mkfifo(home / "prefixes")
    with pytest.raises(InputError, match=r"prefixes=prefixes is no plain file, .* several times"):
        plan_jobs("a.en", "a.de", prefixes="prefixes")
