"""Whether the end of a run lies on the disk."""

from __future__ import annotations

from gnmt.training.trainer import Trainer
from gnmt.types import InputError


def refuse_lost_end(trainer: Trainer) -> None:
    """Raises InputError where the last update, or the best.pt that it earned, could not be written: says what exists.

    Why each write failed, the log has said. To be asked in the process that writes, when all writes have ended.
    """
    progress, checkpoints = trainer.progress, trainer.checkpoints
    lost = [
        name
        for name, is_lost in (
            (f"the checkpoint of update {progress.step}", trainer.last_saved_step != progress.step),
            (f"best.pt of update {progress.step}", progress.end_is_due()),
        )
        if is_lost
    ]
    if not lost:
        return
    newest, best = trainer.last_saved_step, progress.best_step if progress.best else None
    folder = checkpoints.folder.parent
    if not newest and best is None:
        raise InputError(
            f"{folder}: no checkpoint could be written, so nothing of this training is kept (see above): make room on "
            "the disk, and the same command begins again"
        )
    there = [
        f"best.pt is of update {best}" if best is not None else "there is no best.pt of this run",
        f"the newest checkpoint is of update {newest}" if newest else "there is no checkpoint to go on from",
    ]
    raise InputError(
        f"{folder}: {' and '.join(lost)} could not be written (see above); {', and '.join(there)}: make room on the "
        f"disk, and the same command {'goes on from there' if newest else 'begins again'}"
    )
