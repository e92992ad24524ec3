"""The part of a translation that is done: a folder beside the output that outlives the process.

`<output>.part/` holds `manifest.json`, which says what the translation depends on, and a file for each window that is
done, `window-000000` and so on: a line of JSON, then what goes to the output. A window's file appears whole or not at
all, and windows depend on nothing but the manifest's settings: what lies there is right, whichever process wrote it.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gnmt.config.runs import flatten
from gnmt.config.values import shown
from gnmt.files import replacing, write_atomically
from gnmt.types import InputError

_MANIFEST, _LOCK, _MERGED, _WINDOW = "manifest.json", "lock", "merged", "window-"
# zlib's usual compromise; Python's own default, 9, takes twice the time for a hundredth of the size.
_COMPRESSION_LEVEL = 6


@dataclass(frozen=True)
class Manifest:
    """settings: nested values that the output depends on. finished: size and time of the output, once it is written."""

    settings: Mapping[str, Any]
    finished: list[int] | None


class PartFolder:
    """The part of one output, at `<output>.part`; see the module. Errors of the disk come as OSError."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.part")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder; inside, no other command may write to it. Raises InputError where one does already."""
        is_new = not self.folder.exists()
        self.folder.mkdir(exist_ok=True)
        try:
            with (self.folder / _LOCK).open("wb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(f"{self.folder} is in use: another process translates to {self.output}") from None
                except OSError:
                    pass  # a file system without locks: two commands at once would do the same work twice, no harm
                yield
        finally:
            if is_new and not (self.folder / _MANIFEST).exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, settings: Mapping[str, Any], resume: str) -> None:
        """Makes the folder ready for these settings, keeping what was done with the same ones.

        Raises InputError where other settings made it, or where it is no folder of ours; with resume="never" what was
        done is dropped instead.
        """
        if not (self.folder / _MANIFEST).exists():
            ours = (_LOCK, f".{_MANIFEST}.")
            foreign = [path.name for path in self.folder.iterdir() if not path.name.startswith(ours)]
            if foreign:
                raise InputError(
                    f"{self.folder} is in the way, and is no part of a translation: it holds {foreign[0]}, but no "
                    f"{_MANIFEST}; move it, or write to another output"
                )
        elif resume == "never":
            self.clear()
        else:
            manifest = self.manifest()
            self._refuse_other(manifest.settings, settings)
            if manifest.finished == self._stamp_output():
                return
            if manifest.finished is not None:  # its windows are gone, and its output is another one now
                self.clear()
        for path in self.folder.glob(".*.tmp"):  # of processes that were killed
            path.unlink()
        if not (self.folder / _MANIFEST).exists():
            self._write_manifest(Manifest(settings, None))

    def manifest(self) -> Manifest:
        """What was written by `begin` or `finish`; raises InputError where it is damaged."""
        path = self.folder / _MANIFEST
        try:
            values = json.loads(path.read_bytes())
            return Manifest(dict(values["settings"]), values["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged: give resume=never to begin this translation anew") from None

    def windows(self) -> set[int]:
        """The numbers of the windows that are done."""
        return {int(path.name.removeprefix(_WINDOW)) for path in self.folder.glob(f"{_WINDOW}*")}

    def keep(self, number: int, data: bytes, num_unfinished: int) -> None:
        """Keeps a window: its output, and how many of its translations the length limit cut off."""
        head = json.dumps({"unfinished": num_unfinished}).encode()
        write_atomically(self._window(number), head + b"\n" + data)

    def finish(self, heading: bytes, num_windows: int) -> int:
        """Writes the output of all windows in order, drops them, and returns how many translations were cut off."""
        num_unfinished = 0
        with (
            replacing(self.output, temporary=self.folder / _MERGED) as file,
            compressed(file, self.output.name) as merged,
        ):
            merged.write(heading)
            for number in range(num_windows):
                head, _, data = self._window(number).read_bytes().partition(b"\n")
                num_unfinished += json.loads(head)["unfinished"]
                merged.write(data)
        self._write_manifest(Manifest(self.manifest().settings, self._stamp_output()))
        for number in range(num_windows):
            self._window(number).unlink()
        return num_unfinished

    def clear(self) -> None:
        """Drops all that was done; the lock stays."""
        (self.folder / _MANIFEST).unlink()
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, after = flatten(old), flatten(new)
        changed = [
            f"{key}: {shown(before.get(key))} → {shown(after.get(key))}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.folder} holds {len(self.windows())} windows of a translation that was begun otherwise:\n  "
                + "\n  ".join(changed)
                + "\n"
                "Give the same again to continue it, or resume=never to drop it and begin anew"
            )

    def _window(self, number: int) -> Path:
        return self.folder / f"{_WINDOW}{number:06d}"

    def _stamp_output(self) -> list[int] | None:
        """Size and time of the output as it is now; None without one."""
        if not self.output.exists():
            return None
        status = self.output.stat()
        return [status.st_size, status.st_mtime_ns]

    def _write_manifest(self, manifest: Manifest) -> None:
        values = {"settings": manifest.settings, "finished": manifest.finished}
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / _MANIFEST, text.encode())


@contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """What is written goes to the file, through gzip where the name ends in .gz; without a time, so always the same."""
    if not name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION_LEVEL, fileobj=file, mtime=0) as packed:
        yield cast(BinaryIO, packed)
