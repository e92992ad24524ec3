"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gnmt.fileio import building_lock, built_folder


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
            (temporary / "file").write_text(content)
            assert not (tmp_path / "x").exists() or (tmp_path / "x" / "file").read_text() == "first"
        assert (tmp_path / "x" / "file").read_text() == content
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
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


def test_remains_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
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


def test_stopped_between_the_renames_of_a_replacement(tmp_path: Path) -> None:
    (tmp_path / ".x.old").mkdir()
    (tmp_path / ".x.old" / "file").touch()
    (tmp_path / ".x.new").mkdir()
    with building_lock(tmp_path / "x"):
        assert names(tmp_path) == [".x.lock", "x"]
        assert names(tmp_path / "x") == ["file"]


def test_one_builds_at_a_time(tmp_path: Path) -> None:
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


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training passed there, and the preparation of its data failed."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with building_lock(tmp_path / "x"), built_folder(tmp_path / "x") as temporary:
        (temporary / "file").touch()
    assert names(tmp_path) == ["x"]
