"""Reports to TensorBoard: scalars, texts, figures and hyperparameters, in an event file of the run's folder.

`Reporter` is the interface. A full disk ends its reports with a warning, and never ends the training.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from torch.utils.tensorboard.summary import hparams

from gnmt.errors import flatten
from gnmt.reporting.figures import pixels

log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
"""Events reach the disk at the first event after this time, for readers of a running training."""

_NUMBERS = itertools.count()  # for unique file names


class Reporter:
    """Write events to a folder; call `close` at the end, or use it as a context manager.

    Args:
        folder: Folder of the event file. Both are made at the first report.
        purge_step: The first step to be reported by a resumed run (its checkpoint's step + 1), or None. Readers then
            ignore what the interrupted run had reported from this step on.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None) -> None:
        self._folder = str(folder)
        self._purge_step = purge_step
        self._file: EventFile | None = None
        self._failed = False
        self._facts: dict[str, str] = {}

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Report one point of a curve, such as dev/bleu."""
        self._add(summary.scalar(tag, value), step)  # type: ignore[no-untyped-call]

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Report a text in Markdown; see `translations_table`."""
        self._add(summary.text(tag, markdown), step)  # type: ignore[no-untyped-call]

    def fact(self, tag: str, markdown: str, step: int) -> None:
        """Report a text that rarely changes, such as the config; it is written when it is new or has changed."""
        if self._facts.get(tag) != markdown:
            self._facts[tag] = markdown
            self.text(tag, markdown, step)

    def overlay(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Arrange scalars for the tab CUSTOM SCALARS: for each category, charts with patterns of their curves' tags.

        A pattern is a regular expression for the beginning of a tag, so `train/loss$` leaves out `train/loss_max`.
        """
        charts = {
            category: {chart: ["Multiline", list(tags)] for chart, tags in of_category.items()}
            for category, of_category in layout.items()
        }
        self._add(summary.custom_scalars(charts), None)  # type: ignore[no-untyped-call]

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Report a figure as an image."""
        self._add(summary.image(tag, pixels(figure), dataformats="HWC"), step)  # type: ignore[no-untyped-call]

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Report the settings (nested or flat) and the final metrics; call it once, at the end.

        The settings keep their order. A class is shown under the key of its component, by its name without the module.

        They are written to the same event file. `SummaryWriter.add_hparams` would open a second one: in a sub-run, or
        with run_name="." in the same folder, where readers that follow the newest file miss later events of the first.
        """
        final = {tag: float(value) for tag, value in metrics.items()}
        for event in hparams(_flat(settings), final):  # type: ignore[no-untyped-call]
            self._add(event, None)
        for tag, value in metrics.items():
            self.scalar(tag, value, step)

    def flush(self) -> None:
        """Write all reports to the disk."""
        if self._file is not None:
            self._try(self._file.flush)

    def close(self) -> None:
        """Write all reports to the disk and close the file."""
        if self._file is not None:
            self._try(self._file.close)

    def _add(self, event: Any, step: int | None) -> None:
        """Write an event; the first one opens the file."""
        if self._failed:
            return

        def write() -> None:
            if self._file is None:
                self._file = EventFile(self._folder, self._purge_step)
            self._file.add(event, step)

        self._try(write)

    def _try(self, write: Callable[[], object]) -> None:
        """Call `write`; after an OSError, warn and report nothing more."""
        try:
            write()
        except OSError as error:
            self._failed = True
            if self._file is not None:
                self._file.abandon()
                self._file = None
            log.warning(
                "%s: TensorBoard's events cannot be written (%s): no more curves of this run", self._folder, error
            )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EventFile:
    """A new event file, in a folder that is made if missing; methods raise OSError if the disk is full or not writable.

    Args:
        folder: Folder of the file.
        purge_step: See `Reporter`.
    """

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        suffix = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = open(Path(folder) / f"events.out.tfevents.{suffix}", "wb")  # noqa: SIM115 (`close` closes it)
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
        """Write a summary made by a function of `torch.utils.tensorboard.summary`."""
        self._write(Event(summary=summary, step=step))

    def flush(self) -> None:
        """Write buffered events to the file."""
        self._file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write buffered events and close the file."""
        self._file.close()

    def abandon(self) -> None:
        """Close the file after an error; buffered events may be lost."""
        with suppress(OSError):
            self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()


def translations_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a Markdown table of (source, reference, translation); markup in the texts is escaped."""
    lines = ["| source | reference | translation |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(_escaped(text) for text in row)} |" for row in rows]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Replace ASCII punctuation by HTML entities, and line breaks and other control characters by spaces."""
    return "".join(
        f"&#{ord(letter)};" if letter in "\\`*_{}[]()#+-.!|<>&~$\"'" else letter if letter.isprintable() else " "
        for letter in text
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return the settings with dotted keys; a value of a type that TensorBoard does not accept becomes JSON text.

    `model.encoder._target_: gnmt.model.recurrent.encoder.LSTMEncoder` becomes `model.encoder: LSTMEncoder`.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in flatten(settings).items():
        if key.endswith("._target_"):
            flat[key.removesuffix("._target_")] = str(value).rpartition(".")[2]
        else:
            flat[key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
