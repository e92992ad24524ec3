"""Strict reading: what ends a line, what is not UTF-8, what is missing."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gnmt.errors import InputError
from gnmt.fileio import read_lines, stamp_file


def lines_of(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return list(read_lines(str(path)))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    # str.splitlines and codecs readers split at all of these, and so shift line N against line N.
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\x00k"
    assert lines_of(tmp_path / "a", f"{text}\nnext\n".encode()) == [text, "next"]


def test_one_carriage_return_goes_with_its_line_feed(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"one\r\ntwo\r\r\n\r\nthree\r") == ["one", "two\r", "", "three\r"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", []), (b"\n", [""]), (b"a", ["a"]), (b"a\n", ["a"]), (b"a\n\n", ["a", ""]), (b" a \n", [" a "])],
)
def test_ends_of_files(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert lines_of(tmp_path / "a", data) == expected


def test_byte_order_mark_goes_at_the_start_only(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", "\ufeffa\n\ufeffb\n".encode()) == ["a", "\ufeffb"]


@pytest.mark.parametrize(("data", "lines"), [(b"", []), (b"\n", [""]), (b"\r\n", [""]), (b" ", [" "])])
def test_a_byte_order_mark_alone_is_no_line(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    assert lines_of(tmp_path / "a", data) == lines_of(tmp_path / "b", b"\xef\xbb\xbf" + data) == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Größe\n".encode("utf-16"), r"a: not UTF-8, but UTF-16 text: convert it with `iconv -f utf-16 -t utf-8`"),
        (b"\xfe\xff" + "Größe\n".encode("utf-16-be"), r"a: not UTF-8, but UTF-16 text: convert it"),
        ("Größe\n".encode("utf-32"), r"a: not UTF-8, but UTF-32 text: convert it with `iconv -f utf-32"),
        (gzip.compress(b"text\n", mtime=0), r"a: not UTF-8, but a gzip file: give it a name that ends in \.gz"),
        (b"Gr\xf6\xdfe\n", r"a:1: not UTF-8: byte 0xf6 at byte 3 .* Latin-1"),
    ],
    ids=["UTF-16", "UTF-16-BE", "UTF-32", "gzip", "Latin-1"],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, data: bytes, message: str) -> None:
    """All were said to be Latin-1, from which `iconv` makes other text without a word."""
    with pytest.raises(InputError, match=message):
        lines_of(tmp_path / "a", data)


@pytest.mark.parametrize("name", ["a.en", "a.en.gz"])
def test_bad_utf8_names_file_and_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b"fine\nalso fine\ncaf\xe9 au lait\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    lines = read_lines(str(path))
    assert [next(lines), next(lines)] == ["fine", "also fine"]
    with pytest.raises(InputError, match=rf"{name}:3: not UTF-8: byte 0xe9 at byte 4 of the line"):
        next(lines)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"line\n" * 10000)[:-20])
    with pytest.raises(InputError, match=r"a\.gz: not a complete gzip file"):
        list(read_lines(str(path)))
    path.write_bytes(b"plain text under a wrong name\n")
    with pytest.raises(InputError, match=r"a\.gz: not a complete gzip file"):
        list(read_lines(str(path)))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.en").touch()
    with pytest.raises(InputError, match=r"trian\.en: no such file; did you mean .*train\.en\?"):
        list(read_lines(str(tmp_path / "trian.en")))
    (tmp_path / "odd.en").touch()
    for name in ("no.en", "dev.en", "trian.de.gz"):  # what they share with others is their ending
        with pytest.raises(InputError, match=r"no such file$"):
            list(read_lines(str(tmp_path / name)))
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist"):
        list(read_lines(str(tmp_path / "nowhere" / "train.en")))
    with pytest.raises(InputError, match="is a folder, expected a text file"):
        list(read_lines(str(tmp_path)))


def test_stamp_hashes_only_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    stamp = stamp_file(str(path), {})
    assert stamp.size == 3
    known = {str(path): stamp.__class__(stamp.path, stamp.size, stamp.mtime_ns, "remembered")}
    assert stamp_file(str(path), known).sha256 == "remembered"
    path.write_text("three")
    assert stamp_file(str(path), known).sha256 not in ("remembered", stamp.sha256)
    with pytest.raises(InputError, match="no such file"):
        stamp_file(str(tmp_path / "b"), known)
