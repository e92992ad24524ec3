"""Parallel text from two files, TSV and JSONL."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from gnmt.data.corpora import JoinedText
from gnmt.data.parallel_text import ParallelFiles, naming_columns
from gnmt.errors import InputError


def write(path: Path, data: str) -> str:
    raw = data.encode("utf-8")
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(raw))
    return str(path)


def test_two_files_are_read_line_by_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", "\ufeffone\u2028still one\r\n\ntwo\n")
    target = write(tmp_path / "a.de.gz", "eins\n\nzwei\n")
    assert list(ParallelFiles(source, target).iterate()) == [("one\u2028still one", "eins"), ("", ""), ("two", "zwei")]


def test_several_files_are_read_one_after_another(tmp_path: Path) -> None:
    sources = [write(tmp_path / "a.en", "1\n2\n"), write(tmp_path / "b.en", "3\n")]
    targets = [write(tmp_path / "a.de", "x\ny\n"), write(tmp_path / "b.de", "z\n")]
    text = ParallelFiles(sources, targets)
    assert list(text.iterate()) == list(text.iterate()) == [("1", "x"), ("2", "y"), ("3", "z")]
    # Both sides have three lines in all, but the files of each pair differ.
    with pytest.raises(InputError, match=r"a\.en has 2 lines and .*b\.de has 1"):
        list(ParallelFiles(sources, targets[::-1]).iterate())


@pytest.mark.parametrize(("num_source", "num_target"), [(3, 10), (10, 3), (0, 1)])
def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path: Path, num_source: int, num_target: int) -> None:
    files = ParallelFiles(write(tmp_path / "a", "s\n" * num_source), write(tmp_path / "b", "t\n" * num_target))
    pairs = files.iterate()
    assert [next(pairs) for _ in range(min(num_source, num_target))] == [("s", "t")] * min(num_source, num_target)
    with pytest.raises(InputError, match=rf"a has {num_source} lines and .*b has {num_target}:"):
        next(pairs)


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz", ".tsv.bz2", ".tsv.xz"])
def test_tsv_has_source_and_target_in_its_first_columns(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", "one\teins\r\ntwo\tzwei\tCC-BY\n\t\n")
    assert list(ParallelFiles(pairs=path).iterate()) == [("one", "eins"), ("two", "zwei"), ("", "")]


def test_a_tsv_line_without_tab_is_refused_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "one\teins\ntwo zwei\n")
    with pytest.raises(InputError, match=r"a\.tsv:2: no tab"):
        list(ParallelFiles(pairs=path).iterate())
    path = write(tmp_path / "b.tsv", "one\teins\n\n")
    with pytest.raises(InputError, match=r"b\.tsv:2: a blank line, where source, tab, target is needed; remove it"):
        list(ParallelFiles(pairs=path).iterate())


def test_jsonl_is_read_by_the_given_columns(tmp_path: Path) -> None:
    records = [{"en": "two\nlines", "de": "zwei"}, {"de": "\u2028", "en": "😀", "id": 3}]
    path = write(tmp_path / "a.jsonl.gz", "".join(json.dumps(record) + "\n" for record in records))
    assert list(ParallelFiles(pairs=path, columns=["en", "de"]).iterate()) == [("two lines", "zwei"), ("😀", "\u2028")]


def test_a_column_may_be_a_key_inside_of_another(tmp_path: Path) -> None:
    """This is the form of many public corpora; preprocessing it needed a script of one's own."""
    records = [{"translation": {"en": "one", "de": "eins"}}, {"translation.en": "two", "translation": {"de": "zwei"}}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    columns = ["translation.en", "translation.de"]
    assert list(ParallelFiles(pairs=path, columns=columns).iterate()) == [("one", "eins"), ("two", "zwei")]
    with pytest.raises(
        InputError,
        match=r"a\.jsonl:1: no key 'translation\.fr'; the keys are 'translation\.en', 'translation\.de'",
    ):
        list(ParallelFiles(pairs=path, columns=["translation.en", "translation.fr"]).iterate())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("{x", "not a JSON object: Expecting property name enclosed in double quotes, at character 2$"),
        ("", "a blank line, where a JSON object is needed; remove it"),
        (" \t", "a blank line, where a JSON object is needed; remove it"),
        ("[1]", "not a JSON object but list"),
        (
            '{"source": "a", "tgt": "b"}',
            "no key 'target'; the keys are 'source', 'tgt'; set columns to the keys of source and target$",
        ),
        ('{"source": "a", "target": 3}', "the value of 'target' must be a string, found int"),
        ('{"source": "a", "target": "\\ud800"}', "half a surrogate pair"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_a_malformed_jsonl_line_is_refused_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"source": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl:2: .*" + message):
        list(ParallelFiles(pairs=path).iterate())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_byte_order_mark_is_refused(tmp_path: Path, encoding: str) -> None:
    """NUL is valid UTF-8, so such files were once accepted and trained on."""
    (tmp_path / "a").write_bytes("The dog sleeps.\nThe cat sleeps.\n".encode(encoding))
    target = write(tmp_path / "b", "Der Hund schläft.\nDie Katze schläft.\n\n")
    with pytest.raises(InputError, match=rf"a: not UTF-8 text: .* are NUL; .*`iconv -f {encoding[:6]}{encoding[7:]} "):
        list(ParallelFiles(str(tmp_path / "a"), target).iterate())
    source = write(tmp_path / "c", "A NUL\0 in a line is text.\n" * 3)
    assert len(list(ParallelFiles(source, target).iterate())) == 3


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^source names 1 file \(a\.en\) and target names none: give one target file for each source file",
    ):
        ParallelFiles(source="a.en")
    with pytest.raises(InputError, match="not both"):
        ParallelFiles("a.en", "a.de", "a.tsv")
    with pytest.raises(InputError, match=r"\.tsv.*found a\.txt"):
        ParallelFiles(pairs="a.txt")
    for name in ("a.tsv", "a.jsonl.xz"):
        with pytest.raises(
            InputError, match=rf"target={name} is a file of .* one sentence per line: give it as pairs="
        ):
            ParallelFiles(source="a.en", target=name)
    with pytest.raises(InputError, match="two different keys"):
        ParallelFiles(pairs="a.jsonl", columns=["en", "en"])
    assert not ParallelFiles().given
    assert ParallelFiles(pairs="a.tsv").given


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    there = write(tmp_path / "there", "one\n")
    text = ParallelFiles([there, str(tmp_path / "a")], [str(tmp_path / "b"), str(tmp_path)])
    for read in (lambda: list(text.iterate()), lambda: text.fingerprint({})):
        with pytest.raises(
            InputError, match=r"(?s)^3 files cannot be read:\n  .*a: no such.*b: no such.*is a folder"
        ) as error:
            read()
        assert len(str(error.value).splitlines()) == 4


def test_a_missing_column_is_reported_with_the_full_config_key(tmp_path: Path) -> None:
    text = ParallelFiles(pairs=write(tmp_path / "a.jsonl", '{"en": "a", "target": "b"}\n'))
    with (
        pytest.raises(InputError, match=r"'target'; set data\.dev\.columns to the keys of source and target"),
        naming_columns("data.dev"),
    ):
        list(text.iterate())
    mixture = JoinedText({"web": text})
    with (
        pytest.raises(InputError, match=r"; set data\.corpora\.web\.text\.columns to the keys"),
        naming_columns("data.train"),
    ):
        list(mixture.iterate())


def test_fingerprint_depends_on_content_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, '{"a": "x", "b": "y", "c": "z"}\n')

    def fingerprint(columns: list[str]) -> object:
        return ParallelFiles(pairs=str(path), columns=columns).fingerprint({})

    before = fingerprint(["a", "b"])
    assert fingerprint(["a", "b"]) == before
    assert fingerprint(["a", "c"]) != before
    write(path, '{"a": "x", "b": "y", "c": "w"}\n')
    assert fingerprint(["a", "b"]) != before
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize(
    ("heading", "warned"),
    [
        ("source\ttarget", True),
        ("en\tde-DE", True),
        ("Source\tTarget\tid", True),
        ("no\tNein.", False),
        ("Hello!\tHallo!", False),
    ],
)
def test_a_heading_and_further_columns_of_a_tsv_are_told_once(tmp_path, caplog, heading, warned):
    """The model was trained on the heading without a word."""
    caplog.set_level("INFO")
    path = tmp_path / "a.tsv"
    path.write_text(f"{heading}\na house\tein Haus\n", encoding="utf-8")
    text = ParallelFiles(pairs=str(path))
    for _ in range(2):
        assert len(list(text.iterate())) == 2
    messages = [record.getMessage() for record in caplog.records]
    source, target, *others = heading.split("\t")
    expected = [f"{path}:1: {source!r} and {target!r} look like a heading"] if warned else []
    assert [message.partition(", but")[0] for message in messages if "look like" in message] == expected
    columns = f"{path}:1: 3 columns; source and target are the first two, the others are ignored"
    assert [message for message in messages if "columns;" in message] == ([columns] if others else [])


def test_a_pipe_is_refused_where_the_text_is_read_several_times(tmp_path):
    """Preprocessing from a named pipe waited forever, and from a shell's <(command) read no pair."""
    os.mkfifo(tmp_path / "a.en")
    (tmp_path / "a.de").write_text("ein Haus\n", encoding="utf-8")
    text = ParallelFiles(source=str(tmp_path / "a.en"), target=str(tmp_path / "a.de"))
    with pytest.raises(InputError, match=r"a\.en is no plain file, .* several times: write its contents to a file"):
        text.fingerprint({})
