"""One set of weights out of several checkpoints of a training, or of trainings from the same start."""

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
from gnmt.errors import InputError, Interrupted, counted

log = logging.getLogger(__name__)

_THREAD_NAME = "checkpoint writer"


def snapshot(contents: Any) -> Any:
    """The same nested values with tensors copied to the CPU, so that updates may go on while they are written.

    Tensors that are the same memory (tied weights) stay one.
    """
    return _copied(contents, {})


def _copied(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, Mapping):
        return {key: _copied(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item, copies) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def is_writing() -> bool:
    """Whether any `BackgroundWriter` of this process has a write under way."""
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())


class BackgroundWriter:
    """One write at a time in a thread; the next one, and the end of the block, wait for it.

    What became of a write is said in the thread of the caller, by `poll` or `wait`: where it went well on_written is
    called; an OSError, such as a full disk, is logged, and costs a save and not the run; any other error is raised.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._what = ""
        self._remains = ""
        self._on_written: Callable[[], None] = lambda: None

    def start(self, write: Callable[[], object], what: str, on_written: Callable[[], None], *, has_older: bool) -> None:
        """Waits for the write before, then starts this one.

        what: its name, for the message of a failure. has_older: whether an older one of its kind stays after a failure.
        """
        self.wait()
        self._what, self._on_written, self._error = what, on_written, None
        self._remains = "the one before stays" if has_older else "there is none from before"
        # A daemon: where the process is told to end at once, nobody waits for the disk.
        self._thread = threading.Thread(target=self._run, args=(write,), name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Says what became of the write, if it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits for the write, if there is one, and says what became of it."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error = None, self._error
        if error is None:
            self._on_written()
        elif isinstance(error, OSError):
            log.error("%s was not written (%s); %s", self._what, error, self._remains)
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
        # A second signal wants the end now; after a first one all was waited for before.
        if not isinstance(error, Interrupted):
            self.wait()


_NAME = re.compile(r"step_\d{8,}\.pt", re.ASCII)


class RunCheckpoints:
    """runs/<name>/checkpoints/step_00001000.pt … whole, `last.pt` naming the newest, `best.pt` weights only.

    keep: how many of the whole ones stay.
    """

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.folder = run_folder / "checkpoints"
        self.last = run_folder / "last.pt"
        self.best = run_folder / "best.pt"
        self.keep = keep
        self._told_of_last = False

    def save(self, step: int, contents: dict[str, Any]) -> Path:
        """Writes the whole state at that step and drops the oldest files beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path_of(step)
        write_checkpoint(path, contents)
        # A newer file is a damaged one that the run went back from: it must not push the sound ones out.
        for old in [file for file in self.full() if _step_of(file) <= step][: -self.keep]:
            old.unlink()
        self._point_last_to(path)
        return path

    def path_of(self, step: int) -> Path:
        """Where the whole state at that step lies."""
        return self.folder / f"step_{step:08d}.pt"

    def save_best(self, contents: dict[str, Any]) -> None:
        """Writes what evaluation and translation need."""
        write_checkpoint(self.best, contents)

    def remove_leftovers(self) -> None:
        """Files that a process which was killed had half written; a run has one writer, so they are nobody's now."""
        for written in (self.folder / "step_*", self.best, self.last.with_suffix("")):
            for path in written.parent.glob(f".{written.name}.*tmp"):
                path.unlink(missing_ok=True)

    def full(self) -> list[Path]:
        """The whole checkpoints, oldest first; files of other names are their owner's."""
        return sorted((file for file in self.folder.glob("step_*.pt") if _NAME.fullmatch(file.name)), key=_step_of)

    def newest(self) -> dict[str, Any] | None:
        """The newest readable state, or None in a new run; a damaged file falls back to the one before.

        Raises InputError where there are files and all are damaged, and for one that only cannot be read now: what was
        trained since the one before it would be done again for nothing.
        """
        paths = self.full()
        failures = []
        for path in reversed(paths):
            try:
                return read_checkpoint(path)
            except UnreadableCheckpointError as error:
                raise UnreadableCheckpointError(
                    f"{error}; it is the newest of this run and may be sound: when it can be read, the same command "
                    "goes on from it"
                ) from None
            except InputError as error:
                failures.append(str(error))
                log.warning("%s; going back to the checkpoint before it", error)
        if failures:
            raise InputError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read; move the folder away to train "
                "from the start:\n  " + "\n  ".join(failures)
            )
        return None

    def _point_last_to(self, path: Path) -> None:
        """A convenience, which going on does not need: where links are not allowed, that costs no checkpoint."""
        temporary = self.last.with_name(f".last.{os.getpid()}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.relative_to(self.last.parent))
            temporary.replace(self.last)
        except OSError as error:
            if not self._told_of_last:
                reason = error.strerror or error
                log.warning("%s cannot be made a link to %s (%s); use that file itself", self.last, path, reason)
            self._told_of_last = True


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's global generators, as a checkpoint holds it."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device.type == "cuda" else [],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Takes up what `random_state` gave; that of CUDA where there are as many devices as then."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def choose_checkpoints(checkpoints: Sequence[str], run: str | None, last: int) -> list[Path]:
    """The files that `checkpoints`, or else `run` and `last`, name. Raises InputError where it is both or neither."""
    if bool(checkpoints) == (run is not None):
        found = f"found checkpoints=[{','.join(checkpoints)}] and run={'null' if run is None else run}"
        raise InputError(f"{found}: give one of them, checkpoints=[a.pt,b.pt] or run=FOLDER last=N")
    if run is None:
        return [Path(path) for path in checkpoints]
    if not Path(run).is_dir():
        raise InputError(f"run={run}: there is no such folder; give the folder of a run, such as runs/demo")
    whole = RunCheckpoints(Path(run), keep=last).full()
    if len(whole) < last:
        raise InputError(
            f"run={run} last={last}: {Path(run) / 'checkpoints'} holds {counted(len(whole), 'checkpoint')}; choose "
            "another number, and in training keep more of them with trainer.keep_checkpoints"
        )
    return whole[-last:]
