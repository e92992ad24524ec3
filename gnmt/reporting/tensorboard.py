"""What a run tells TensorBoard: scalars, texts, figures and hyperparameters, all in the run's own folder."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from torch.utils.tensorboard.summary import hparams

from gnmt.reporting.figures import pixels

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


log = logging.getLogger(__name__)


class Reporter:
    """Writes events into a folder; `close` it, or use it as a context manager.

    folder: made if missing, with an event file, when something is reported. purge_step: None, or for a run that goes on
    from a checkpoint the first step that will be reported anew (the checkpoint's step + 1): readers then forget what an
    interrupted run had reported beyond it.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None) -> None:
        self._folder = str(folder)
        self._purge_step = purge_step
        self._file: EventFile | None = None
        self._failed = False

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve, such as dev/bleu."""
        self._add(summary.scalar(tag, value), step)  # type: ignore[no-untyped-call]

    def text(self, tag: str, markdown: str, step: int) -> None:
        """TensorBoard shows it as Markdown; see `translations_table`."""
        self._add(summary.text(tag, markdown), step)  # type: ignore[no-untyped-call]

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """A figure from gnmt.reporting.figures as an image."""
        self._add(summary.image(tag, pixels(figure), dataformats="HWC"), step)  # type: ignore[no-untyped-call]

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """The settings (nested or flat) and what came of them; call it once, at the end.

        They go into this very event file. `SummaryWriter.add_hparams` opens a second one, in a sub-run of its own,
        or with run_name="." in the same folder, where readers that follow the newest file miss what comes after.
        """
        final = {tag: float(value) for tag, value in metrics.items()}
        for part in hparams(_flat(settings), final):  # type: ignore[no-untyped-call]
            self._add(part, None)
        for tag, value in metrics.items():
            self.scalar(tag, value, step)

    def flush(self) -> None:
        """What was reported is on the disk after this."""
        if self._file is not None:
            self._try(self._file.flush)

    def close(self) -> None:
        if self._file is not None:
            self._try(self._file.close)

    def _add(self, event: Any, step: int | None) -> None:
        """Opens the event file at the first report."""
        if self._failed:
            return

        def write() -> None:
            if self._file is None:
                self._file = EventFile(self._folder, self._purge_step)
            self._file.add(event, step)

        self._try(write)

    def _try(self, write: Callable[[], object]) -> None:
        """A full disk costs the curves, not what reports them."""
        try:
            write()
        except OSError as error:
            self._failed = True
            if self._file is not None:
                self._file.abandon()
                self._file = None
            log.warning(
                "%s: TensorBoard's events cannot be written (%s): nothing more is reported", self._folder, error
            )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def translations_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A Markdown table of (source, reference, translation); nothing in the texts acts as markup."""
    lines = ["| source | reference | translation |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(_escaped(text) for text in row)} |" for row in rows]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Every ASCII mark as an HTML entity and every line break or other control letter as a space."""
    return "".join(
        f"&#{ord(letter)};" if letter in "\\`*_{}[]()#+-.!|<>&~$\"'" else letter if letter.isprintable() else " "
        for letter in text
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Dotted keys and the plain values that TensorBoard takes; all else as JSON text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
