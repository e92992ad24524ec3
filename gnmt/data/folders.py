"""Folders that appear whole or not at all, and are built by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnmt.files import exclusive


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the right to build the folder; waits while another process (or thread) holds it.

    What a dead process left half-made beside the folder is cleared away: whoever holds the lock knows
    that nobody is building. The kernel gives the lock back when its holder dies. See `exclusive`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(_beside(folder, "lock"), wait=f"another process is making {folder}; waiting for it"):
        _clear(folder)
        yield


@contextmanager
def built_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `folder` if the block ends without an error.

    To be used under `locked`. After an error the temporary folder is removed and `folder` is as before.
    """
    temporary = _beside(folder, "new")
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(_beside(folder, "old"))
        temporary.rename(folder)
    finally:
        _clear(folder)


def work_folder(folder: Path) -> Path:
    """Where the work of a preparation lies until the folder is whole; what was done survives an interruption."""
    return _beside(folder, "work")


def _clear(folder: Path) -> None:
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # stopped between the two renames of a replacement
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(_beside(folder, "new"), ignore_errors=True)


def _beside(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")
