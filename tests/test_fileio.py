"""Locks, folders that appear complete or not at all, file fingerprints, and strict reading of lines."""

from __future__ import annotations

import bz2
import errno
import fcntl
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gnmt.errors import InputError
from gnmt.fileio import (
    building_lock,
    built_folder,
    check_new_output,
    check_output,
    check_output_folder,
    file_lock,
    fingerprint_file,
    folder_lock,
    is_stream,
    json_bytes,
    read_lines,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Files


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    """A private file became readable by everyone, and a link became a file."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("link", "dangling"):
        write_atomically(tmp_path / name, b"text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert {name: os.readlink(tmp_path / name) for name in ("link", "dangling")} == {"link": "file", "dangling": "new"}
    assert [(tmp_path / name).read_bytes() for name in ("file", "new")] == [b"text", b"text"]
    assert len(names(tmp_path)) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 1, 2)
    write_atomically(tmp_path / "file", b"text")
    assert ((tmp_path / "file").stat().st_uid, (tmp_path / "file").stat().st_gid) == (1, 2)


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd", "links"])
def test_a_path_that_names_an_open_descriptor_is_written_to(tmp_path: Path, folder: str, flags: int) -> None:
    """`output=/dev/stdout >> all.de` replaced all.de, and the lines before were lost."""
    (tmp_path / "all.de").write_text("before\n")
    descriptor = os.open(tmp_path / "all.de", os.O_RDWR | flags)
    os.lseek(descriptor, 0, os.SEEK_END)
    if folder == "links":
        folder = str(tmp_path / "links")
        Path(folder).mkdir()
        (tmp_path / "links" / str(descriptor)).symlink_to("further")
        (tmp_path / "links" / "further").symlink_to(f"/dev/fd/{descriptor}")
    path = Path(folder) / str(descriptor)
    if not path.exists():
        pytest.skip(f"no {folder}")
    assert is_stream(path)
    check_output("output", path)
    write_atomically(path, b"between\n")
    os.write(descriptor, b"after\n")
    os.close(descriptor)
    assert (tmp_path / "all.de").read_text() == "before\nbetween\nafter\n"


def test_the_descriptor_of_another_process_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before\n")
    with (tmp_path / "file").open("ab") as file:
        child = subprocess.Popen(["sleep", "60"], stdout=file)
    try:
        path = Path(f"/proc/{child.pid}/fd/1")
        if not path.exists():
            pytest.skip("no /proc")
        check_output("output", path)
        write_atomically(path, b"after\n")
    finally:
        child.kill()
        child.wait()
    assert (tmp_path / "file").read_text() == "before\nafter\n"


def test_pipes_and_devices_are_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        check_output("output", tmp_path / name)
        write_atomically(tmp_path / name, b"text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert is_stream(tmp_path / "pipe")
    assert is_stream("/dev/null")


def test_json_may_hold_a_path_that_is_not_utf8() -> None:
    """Preprocessing a corpus in a folder of Latin-1 ended with a traceback."""
    value = {"path": os.fsdecode(b"/caf\xe9"), "name": "é"}
    assert json_bytes(value) == '{\n  "path": "/caf\\udce9",\n  "name": "é"\n}\n'.encode()
    assert json.loads(json_bytes(value)) == value


def test_outputs_that_cannot_be_written_are_found_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were found after hours of translation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("none/file")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    for path, reason in {
        "": "output= names no file",
        "new/": "output=new/ ends in /",
        "folder": "it is a folder",
        "none/new": "its folder none does not exist",
        "file/new": "its folder file does not exist",
        "dangling": "No such file or directory",
        "x" * 300: r"output=x{70,77}\.\.\. cannot be written \(File name too long\): choose another path",
        f"/dev/fd/{descriptor}": "it is not open for writing",
        "/dev/fd/987654": "it is not open for writing",
    }.items():
        with pytest.raises(InputError, match=reason):
            check_output("output", path)
    with pytest.raises(InputError, match="output=file exists already"):
        check_new_output("output", "file")
    for folder, reason in {
        "": "plots= names no folder",
        "file": "it is a file",
        "file/new": "Not a directory",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(InputError, match=reason):
            check_output_folder("plots", folder)
    os.close(descriptor)
    assert names(tmp_path) == ["dangling", "file", "folder"]
    check_output("output", "new")
    check_output("output", "file")
    check_output_folder("plots", "a/b")
    assert names(tmp_path) == ["a", "dangling", "file", "folder"]
    assert names(tmp_path / "a" / "b") == []


# Locks and folders


def test_a_folder_appears_complete_and_is_replaced_at_once(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
            (temporary / "file").write_text(content)
            assert not (tmp_path / "x").exists() or (tmp_path / "x" / "file").read_text() == "first"
        assert (tmp_path / "x" / "file").read_text() == content
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_folder_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(content: str) -> None:
        with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
            (temporary / "file").write_text(content)
            raise error

    with pytest.raises(error):
        fail("never")
    assert names(tmp_path) == []
    with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
        (temporary / "file").write_text("kept")
    with pytest.raises(error):
        fail("never")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "file").read_text() == "kept"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from gnmt.fileio import *\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with building_lock(folder), built_folder(folder) as temporary:\n"
        "    (temporary / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False).returncode == -9
    assert names(tmp_path) == [".x.lock", ".x.new"]
    with building_lock(tmp_path / "x"):
        assert names(tmp_path) == [".x.lock"]
    assert names(tmp_path) == []


def test_the_old_folder_is_restored_after_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    (tmp_path / ".x.old").mkdir()
    (tmp_path / ".x.old" / "file").touch()
    (tmp_path / ".x.new").mkdir()
    with building_lock(tmp_path / "x"):
        assert names(tmp_path) == [".x.lock", "x"]
        assert names(tmp_path / "x") == ["file"]


def test_only_one_thread_builds_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0
    rounds: list[int] = []

    def work(worker: int) -> None:
        nonlocal inside, most
        for _ in range(5):
            with building_lock(tmp_path / "x"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1
                rounds.append(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(rounds)) == (1, 20)
    assert names(tmp_path) == []


def test_a_file_system_without_locks_grants_every_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training worked there, and preprocessing failed."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
        (temporary / "file").touch()
    assert names(tmp_path) == ["x"]


def test_a_lock_file_that_its_holder_has_removed_guards_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        path.unlink()
        with file_lock(path), pytest.raises(BlockingIOError), file_lock(path):
            pass


def test_a_folder_in_use_is_refused_with_a_message(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder, ".lock", "in use"):
        with pytest.raises(InputError, match=r"^in use$"), folder_lock(folder, ".lock", "in use"):
            pass
        assert names(folder) == [".lock"]
    with folder_lock(folder, ".lock", "in use"):
        pass
    assert names(folder) == []


def test_an_error_inside_a_folder_lock_is_not_taken_for_a_lock_that_is_held(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), folder_lock(tmp_path / "run", ".lock", "in use"):
        raise BlockingIOError


# Lines


def lines_of(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return list(read_lines(str(path)))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    # str.splitlines and the readers of codecs split at all of these, so line N of one side would face another line.
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\x00k"
    assert lines_of(tmp_path / "a", f"{text}\nnext\n".encode()) == [text, "next"]


def test_one_carriage_return_is_removed_with_its_line_feed(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"one\r\ntwo\r\r\n\r\nthree\r") == ["one", "two\r", "", "three\r"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", []), (b"\n", [""]), (b"a", ["a"]), (b"a\n", ["a"]), (b"a\n\n", ["a", ""]), (b" a \n", [" a "])],
)
def test_the_last_line_needs_no_line_feed(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert lines_of(tmp_path / "a", data) == expected


def test_a_byte_order_mark_is_removed_at_the_start_only(tmp_path: Path) -> None:
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
def test_files_that_are_not_utf8_are_named_by_kind(tmp_path: Path, data: bytes, message: str) -> None:
    """All were called Latin-1, and `iconv -f latin1` accepts them silently and writes other text."""
    with pytest.raises(InputError, match=message):
        lines_of(tmp_path / "a", data)


@pytest.mark.parametrize("name", ["a.en", "a.en.gz"])
def test_an_error_of_encoding_names_file_and_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b"fine\nalso fine\ncaf\xe9 au lait\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    lines = read_lines(str(path))
    assert [next(lines), next(lines)] == ["fine", "also fine"]
    with pytest.raises(InputError, match=rf"{name}:3: not UTF-8: byte 0xe9 at byte 4 of the line"):
        next(lines)


COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_is_read_by_the_end_of_its_name(tmp_path: Path, suffix: str) -> None:
    data = COMPRESSORS[suffix](b"one\ntwo\n")
    assert lines_of(tmp_path / f"a.en{suffix}", data) == ["one", "two"]
    with pytest.raises(InputError, match=rf"a\.en: not UTF-8, but .* file: give it a name that ends in \{suffix}"):
        lines_of(tmp_path / "a.en", data)


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for data in (COMPRESSORS[suffix](b"line\n" * 10000)[:-20], b"plain text under a wrong name\n"):
        with pytest.raises(InputError, match=rf"a\{suffix}: not a complete \{suffix} file"):
            lines_of(path, data)


@pytest.mark.parametrize("data", [b"One.\rTwo.\rThree.\r", b"One.\rTwo.\r\rThree."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_whose_lines_end_in_cr_alone_is_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    """All of it was one line, and its translation lacked all sentences but the first."""
    with pytest.raises(InputError, match=r"a.*: its 3 lines end in CR alone, .* convert it with `tr '\\r' '\\n'`"):
        lines_of(tmp_path / f"a{suffix}", gzip.compress(data) if suffix else data)


def test_a_cr_inside_a_line_or_at_the_end_of_the_only_one_is_text(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"One.\rTwo.\rThree.\n") == ["One.\rTwo.\rThree."]
    assert lines_of(tmp_path / "a", b"One.\r") == ["One.\r"]


def test_a_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.en").touch()
    with pytest.raises(InputError, match=r"trian\.en: no such file; did you mean .*train\.en\?"):
        list(read_lines(str(tmp_path / "trian.en")))
    (tmp_path / "odd.en").touch()
    for name in ("no.en", "dev.en", "trian.de.gz"):  # similar to the others in their ending only
        with pytest.raises(InputError, match=r"no such file$"):
            list(read_lines(str(tmp_path / name)))
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist"):
        list(read_lines(str(tmp_path / "nowhere" / "train.en")))
    with pytest.raises(InputError, match="is a folder, expected a text file"):
        list(read_lines(str(tmp_path)))


def test_fingerprints_hash_changed_files_only(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    fingerprint = fingerprint_file(str(path), {})
    assert fingerprint.size == 3
    known = {str(path): fingerprint.__class__(fingerprint.path, fingerprint.size, fingerprint.mtime_ns, "remembered")}
    assert fingerprint_file(str(path), known).sha256 == "remembered"
    path.write_text("three")
    assert fingerprint_file(str(path), known).sha256 not in ("remembered", fingerprint.sha256)
    with pytest.raises(InputError, match="no such file"):
        fingerprint_file(str(tmp_path / "b"), known)
