"""A TensorBoard event file, written by the thread that reports.

torch's `SummaryWriter` gives its events to a thread of TensorBoard's. On a full disk that thread prints a traceback,
and who reports hears of it late, or waits for ever at the end. Here the error comes to the one who writes.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

FLUSH_SECONDS = 30.0
"""What was reported is on the disk, for who watches, at the first event after so long."""
_NUMBERS = itertools.count()


class EventFile:
    """Makes the folder and a new file in it; every method raises OSError where the disk is full or not writable.

    purge_step: None, or the first step that will be reported anew; see `gnmt.reporting.tensorboard.Reporter`.
    """

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        place = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = open(Path(folder) / f"events.out.tfevents.{place}", "wb")  # noqa: SIM115 (`close` closes it)
        self._records: Any = RecordWriter(self._file)
        self._flushed_at = 0.0
        try:
            self._write(Event(file_version="brain.Event:2"))
            if purge_step is not None:
                self._write(Event(step=purge_step, file_version="brain.Event:2"))
                self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        except OSError:
            self.abandon()
            raise

    def add(self, summary: Any, step: int | None = None) -> None:
        """Writes what one of `torch.utils.tensorboard.summary`'s functions made, as of that step."""
        self._write(Event(summary=summary, step=step))

    def flush(self) -> None:
        self._file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        """Closes the file after an error; what was not written yet is lost."""
        with suppress(OSError):
            self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()
