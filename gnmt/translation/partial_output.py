"""The part of a translation that is done: a folder beside the output that outlives the process.

`<output>.part/` holds `manifest.json`, which says what the translation depends on, and a file for each window that is
done, `window-000000` and so on: a line of JSON, which holds the sha256 of the lines that were translated, then what
goes to the output. A window's file appears whole or not at all, and windows depend on nothing but the manifest's
settings and these lines: where both are the asked ones, what lies there is right, whichever process wrote it.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from gnmt.errors import InputError, counted, describe_changes
from gnmt.fileio import folder_lock, replacing, write_atomically

log = logging.getLogger(__name__)

_MANIFEST, _LOCK, _MERGED, _WINDOW = "manifest.json", "lock", "merged", "window-"
# All that a part holds; what is being written has a name of its own until it is whole.
_OURS = re.compile(r"lock|manifest\.json|merged|window-\d{6,}|\.(manifest\.json|window-\d{6,})\.\d+\.tmp")
# zlib's usual compromise; Python's own default, 9, takes twice the time for a hundredth of the size.
_COMPRESSION_LEVEL = 6


@dataclass(frozen=True)
class Manifest:
    """What is known of a part.

    settings: nested values that the output depends on. finished: size and time of the output, once it is written.
    made_on: the name of the processor or GPU that began it.
    """

    settings: Mapping[str, Any]
    finished: list[int] | None
    made_on: str


class PartFolder:
    """The part of one output, at `<output>.part`; see the module. Errors of the disk come as OSError."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.part")

    @staticmethod
    def is_part(folder: Path) -> bool:
        """Whether a folder is the part of some output."""
        return folder.suffix == ".part" and (folder / _MANIFEST).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder; inside, no other command may write to it. Raises InputError where one does already.

        An empty folder is removed at the end. On a file system without locks two commands do the same work twice.
        """
        in_use = f"{self.folder} is in use: another process translates to {self.output}"
        try:
            with folder_lock(self.folder, _LOCK, in_use):
                yield
        finally:
            with suppress(OSError):  # a command that has just made the folder makes it again
                self.folder.rmdir()

    def begin(self, settings: Mapping[str, Any], resume: str, made_on: str) -> None:
        """Makes the folder ready for these settings, keeping what was done with the same ones.

        Raises InputError where other settings made it, or where it is no folder of ours; with resume="never" what was
        done is dropped instead. A part in which nothing is done yet keeps nobody from other settings.
        made_on: the device's name; where another one began, a warning says that last digits may differ.
        """
        self._refuse_foreign()
        if resume == "never" or not self._goes_on(settings):
            self.clear()
            self._write_manifest(Manifest(settings, None, made_on))
        elif (began_on := self.manifest().made_on) != made_on:
            log.warning(
                "%s was begun on %s and goes on on %s: scores may differ in their last digits, and so, seldom, may a "
                "text, from what one of them alone would write",
                *(self.folder, began_on, made_on),
            )
        for path in self.folder.glob(".*.tmp"):  # of processes that were killed
            path.unlink()

    def _goes_on(self, settings: Mapping[str, Any]) -> bool:
        """Whether what is done counts for these settings; InputError where it counts for others."""
        num_windows = len(self.windows())
        windows = counted(num_windows, "window")
        if not (self.folder / _MANIFEST).exists():
            if num_windows:
                raise InputError(
                    f"{self.folder} holds {windows} and no {_MANIFEST} that says what they are of: "
                    "give resume=never to drop them and begin this translation anew"
                )
            return False
        manifest = self.manifest()
        if manifest.finished is not None:
            self._refuse_other(f"says that {self.output.name} is complete, and", manifest.settings, settings)
            return manifest.finished == self._stamp_output()  # else its windows are gone, and so is its output
        if num_windows:
            self._refuse_other(f"holds {windows} of a translation that", manifest.settings, settings)
        return num_windows > 0

    def manifest(self) -> Manifest:
        """What was written by `begin` or `finish`; raises InputError where it is damaged."""
        path = self.folder / _MANIFEST
        try:
            values = json.loads(path.read_bytes())
            return Manifest(dict(values["settings"]), values["finished"], values["made_on"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged: give resume=never to begin this translation anew") from None

    def windows(self) -> set[int]:
        """The numbers of the windows that are done."""
        names = (path.name for path in self.folder.glob(f"{_WINDOW}*"))
        return {int(name.removeprefix(_WINDOW)) for name in names if _OURS.fullmatch(name)}

    def keep(self, number: int, sha256: str, data: bytes, num_unfinished: int) -> None:
        """Keeps a window: what it is of, its output, and how many of its translations the length limit cut off."""
        head = json.dumps({"unfinished": num_unfinished, "sha256": sha256}).encode()
        write_atomically(self._window(number), head + b"\n" + data)

    def holds(self, number: int, sha256: str) -> bool:
        """Whether a window is done and of these lines. One of others, or of which nothing says it, is as good as none.

        So are those that another version kept without saying what they are of.
        """
        try:
            with self._window(number).open("rb") as file:
                head = json.loads(file.readline())
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(head, dict) and head.get("sha256") == sha256

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
        self._write_manifest(replace(self.manifest(), finished=self._stamp_output()))
        for number in range(num_windows):
            self._window(number).unlink()
        return num_unfinished

    def clear(self) -> None:
        """Drops all that was done; the lock stays.

        The windows go first and the manifest last, so that a process which is killed in between leaves a smaller part
        and never windows of which nothing says what they are.
        """
        ours = {path.name: path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)}
        for name in sorted(ours.keys() - {_LOCK, _MANIFEST}):
            ours[name].unlink()
        (self.folder / _MANIFEST).unlink(missing_ok=True)

    def remove(self) -> None:
        """Drops all that is ours, inside `locked`, whose end removes the lock and, where nothing stays, the folder."""
        with suppress(OSError):
            self.clear()

    def _refuse_foreign(self) -> None:
        names = sorted(path.name for path in self.folder.iterdir())
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign and _MANIFEST not in names:
            raise InputError(
                f"{self.folder} is in the way, and is no part of a translation: it holds {foreign[0]}, but no "
                f"{_MANIFEST}; move it, or write to another output"
            )

    def _refuse_other(self, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = describe_changes(old, new)
        if changed:
            raise InputError(
                f"{self.folder} {what} was begun otherwise:\n  " + "\n  ".join(changed) + "\n"
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
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / _MANIFEST, text.encode())


@contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """What is written goes to the file, through gzip where the name ends in .gz; without a time, so always the same."""
    if not name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION_LEVEL, fileobj=file, mtime=0) as packed:
        yield cast(BinaryIO, packed)
