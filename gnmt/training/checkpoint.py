"""The checkpoints of one run: the newest few whole, the best one for use."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gnmt.checkpoint import read_checkpoint, write_checkpoint
from gnmt.checkpoint_faults import UnreadableCheckpointError
from gnmt.types import InputError

log = logging.getLogger(__name__)

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
        for old in [file for file in self.whole() if _step_of(file) <= step][: -self.keep]:
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

    def whole(self) -> list[Path]:
        """The whole checkpoints, oldest first; files of other names are their owner's."""
        return sorted((file for file in self.folder.glob("step_*.pt") if _NAME.fullmatch(file.name)), key=_step_of)

    def newest(self) -> dict[str, Any] | None:
        """The newest readable state, or None in a new run; a damaged file falls back to the one before.

        Raises InputError where there are files and all are damaged, and for one that only cannot be read now: what was
        trained since the one before it would be done again for nothing.
        """
        paths = self.whole()
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
