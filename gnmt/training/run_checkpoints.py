"""Write the checkpoints of a run in the background, keep the newest ones, and find the one to resume from.

`RunCheckpoints` names, writes, finds and deletes the files; `Trainer.run_evaluation` decides when best.pt is written.
`BackgroundWriter` runs one write at a time in a thread, so that training does not wait for the disk; `snapshot` copies
the contents to the CPU first. `gnmt.checkpoint.file` defines the format of a file.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from gnmt.checkpoint.file import UnreadableCheckpointError, read_checkpoint, write_checkpoint
from gnmt.errors import InputError, Interrupted, format_count
from gnmt.logs import ended, wait_for

log = logging.getLogger(__name__)

_FULL_CHECKPOINT = re.compile(r"step_\d{8,}\.pt", re.ASCII)
_THREAD_NAME = "checkpoint writer"


class RunCheckpoints:
    """Write, find and delete the checkpoint files of a run folder.

    checkpoints/step_00001000.pt, ... are full checkpoints, from which training resumes. last.pt is a symbolic link to
    the newest of them. best.pt holds weights only.

    Args:
        run_folder: The run folder; it need not exist yet.
        keep: Number of full checkpoints that `save` keeps, the newest ones.
    """

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.folder = run_folder / "checkpoints"
        self.last = run_folder / "last.pt"
        self.best = run_folder / "best.pt"
        self.keep = keep
        self._has_warned_of_last = False

    def path_of(self, step: int) -> Path:
        """Return the path of the full checkpoint of update `step`."""
        return self.folder / f"step_{step:08d}.pt"

    def full(self) -> list[Path]:
        """Return the full checkpoints, oldest first; files with other names, such as a user's copies, are ignored."""
        return sorted(
            (file for file in self.folder.glob("step_*.pt") if _FULL_CHECKPOINT.fullmatch(file.name)), key=_step_of
        )

    def newest(self, check: Callable[[Mapping[str, Any], str], object] | None = None) -> dict[str, Any] | None:
        """Return the contents of the newest full checkpoint, or None if there is none.

        A damaged file is skipped with a warning, and the previous one is read.

        Args:
            check: Called with the contents of a file and its name for messages. If it raises InputError, the file
                counts as damaged.

        Raises:
            UnreadableCheckpointError: A file cannot be read now but may be intact. Falling back would repeat updates
                without need.
            InputError: All files are damaged.
        """
        paths = self.full()
        failures = []
        for path in reversed(paths):
            try:
                contents = read_checkpoint(path)
                if check is not None:
                    check(contents, f"checkpoint {path}")
                return contents
            except UnreadableCheckpointError as error:
                raise UnreadableCheckpointError(
                    f"{error}; it may be intact, and the run would resume from it: give the same command again when "
                    "the file can be read"
                ) from None
            except InputError as error:
                failures.append(str(error))
                log.warning("%s; falling back to the previous checkpoint", error)
        if failures:
            raise InputError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read; move the folder away to start "
                "from scratch:\n  " + "\n  ".join(failures)
            )
        return None

    def save(self, step: int, contents: dict[str, Any]) -> Path:
        """Write a full checkpoint of update `step`, and delete the oldest ones beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path_of(step)
        write_checkpoint(path, contents)
        # Files of later updates are damaged, or the run would have resumed from them. They do not count for `keep`.
        for old in [file for file in self.full() if _step_of(file) <= step][: -self.keep]:
            old.unlink()
        self._link_last_to(path)
        return path

    def save_best(self, contents: dict[str, Any]) -> None:
        """Write best.pt."""
        write_checkpoint(self.best, contents)

    def check_folder(self) -> None:
        """Raise InputError if the folder of an earlier command cannot be written, before updates that would be lost."""
        if self.folder.exists() and not (self.folder.is_dir() and os.access(self.folder, os.W_OK)):
            raise InputError(f"{self.folder} cannot be written as a folder: move it away, or choose another name=")

    def remove_leftovers(self) -> None:
        """Delete temporary files of a process that was killed while writing; call this under the run folder's lock."""
        for written in (self.folder / "step_*", self.best, self.last.with_suffix("")):
            for path in written.parent.glob(f".{written.name}.*tmp"):
                path.unlink(missing_ok=True)

    def _link_last_to(self, path: Path) -> None:
        """Link last.pt to the path. Resuming does not need the link, so a failure is only logged."""
        temporary = self.last.with_name(f".last.{os.getpid()}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.relative_to(self.last.parent))
            temporary.replace(self.last)
        except OSError as error:
            if not self._has_warned_of_last:
                reason = error.strerror or error
                log.warning("%s cannot be linked to %s (%s); use that file directly", self.last, path, reason)
            self._has_warned_of_last = True


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def choose_checkpoints(checkpoints: Sequence[str], run: str | None, last: int) -> list[Path]:
    """Return the checkpoints that a command names, by their paths or as the newest ones of a run.

    Args:
        checkpoints: Paths; empty if `run` is given.
        run: A run folder, or None.
        last: Number of newest full checkpoints to take from the run folder.

    Raises:
        InputError: Both or neither of `checkpoints` and `run` are given, or the run has fewer checkpoints.
    """
    if bool(checkpoints) == (run is not None):
        found = f"found checkpoints=[{','.join(checkpoints)}] and run={'null' if run is None else run}"
        raise InputError(f"{found}: give one of them, checkpoints=[a.pt,b.pt] or run=FOLDER last=N")
    if run is None:
        return [Path(path) for path in checkpoints]
    if not Path(run).is_dir():
        raise InputError(f"run={run}: there is no such folder; give the folder of a run, such as runs/demo")
    full = RunCheckpoints(Path(run), keep=last).full()
    if len(full) < last:
        raise InputError(
            f"run={run} last={last}: {Path(run) / 'checkpoints'} holds {format_count(len(full), 'checkpoint')}; choose "
            "a smaller number, and in training keep more of them with trainer.keep_checkpoints"
        )
    return full[-last:]


# Write in the background


class BackgroundWriter:
    """Run one write at a time in a thread. The next write, and the end of the `with` block, wait for it.

    `poll` and `wait` handle the outcome in the caller's thread. After a success they call `on_written`. They log an
    OSError, such as a full disk, because the run can continue without one checkpoint. They raise any other error.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._name = ""
        self._remains = ""
        self._on_written: Callable[[], None] = lambda: None

    def start(self, write: Callable[[], object], name: str, on_written: Callable[[], None], *, has_older: bool) -> None:
        """Wait for the current write, then start another one.

        Args:
            write: Called in the thread.
            name: Name of the file for the message about a failure.
            on_written: Called by `poll` or `wait` after a success.
            has_older: Whether an older file of this kind remains after a failure, for the message.
        """
        self.wait()
        self._name, self._on_written, self._error = name, on_written, None
        self._remains = "the previous one stays" if has_older else "there is no previous one"
        # A daemon thread: a process that must exit at once does not wait for the disk.
        self._thread = threading.Thread(target=self._run, args=(write,), name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Handle the outcome of the current write if it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the current write, if there is one, and handle its outcome."""
        if self._thread is None:
            return
        wait_for(ended(self._thread), lambda: f"the disk, to which {self._name} is written")
        self._thread, error = None, self._error
        if error is None:
            self._on_written()
        elif isinstance(error, OSError):
            log.error("%s was not written (%s); %s", self._name, error, self._remains)
        else:
            raise error

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a second signal the run must end at once. After a first one, the trainer has already waited.
        if not isinstance(error, Interrupted):
            self.wait()


def is_writing() -> bool:
    """Return whether a `BackgroundWriter` of this process is writing now."""
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())


def snapshot(contents: Any) -> Any:
    """Copy the tensors in nested values to the CPU, so that they can be written during updates.

    Tensors that share memory (tied weights) share one copy.
    """
    return _copy(contents, {})


def _copy(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, Mapping):
        return {key: _copy(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copy(item, copies) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


# Random state


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's global random generators for a checkpoint."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device.type == "cuda" else [],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned; CUDA states only if the number of CUDA devices is the same."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
