"""Input texts, cut into windows: what is translated at once, and what is kept when a command is stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from gnmt.data.lines import read_lines
from gnmt.decoding.files.formats import Origin, OutputFormat
from gnmt.decoding.files.jobs import STANDARD_STREAM, Job
from gnmt.decoding.translator import Translator
from gnmt.types import InputError, counted


@dataclass(frozen=True)
class TextStamp:
    """What a text holds: its number of lines, and the sha256 of them as read, so unpacked and each ended by LF."""

    num_lines: int
    sha256: str


class Window(NamedTuple):
    """Lines that are translated at once. number counts from 0, first_line from 1; prefixes: one for each, or None."""

    number: int
    first_line: int
    lines: list[str]
    prefixes: list[str] | None = None

    def sha256(self) -> str:
        """Of the lines and prefixes, each ended by LF."""
        texts = [*self.lines, *(self.prefixes or ())]
        return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()


class TranslatedWindow(NamedTuple):
    """data: what goes to the output, UTF-8. num_unfinished: translations that the length limit cut off."""

    data: bytes
    num_unfinished: int


@dataclass(frozen=True)
class WindowTranslator:
    """From a window to what is written of it: a pure function of the window and the settings."""

    translator: Translator
    output_format: OutputFormat
    origin: Origin

    @property
    def size(self) -> int:
        """Lines of a window."""
        return self.translator.window_lines

    def translate(self, window: Window, source: str, on_lines: Callable[[int], None]) -> TranslatedWindow:
        """source: what the window is of, for messages. on_lines: told on the way how many lines more are done."""
        translations = self.translator.translate(
            window.lines,
            first_line=window.first_line,
            path=None if source == STANDARD_STREAM else source,
            prefixes=window.prefixes,
            attention=self.output_format.attention,
            progress=on_lines,
        )
        translator = self.translator
        data = self.output_format.write(
            window.first_line, window.lines, translations, translator.tokenizers, translator.options, self.origin
        )
        return TranslatedWindow(data, sum(not translation.finished for translation in translations))


def stamp_texts(job: Job) -> dict[str, TextStamp]:
    """The stamps of a job's "input" and "prefixes", if it has them; InputError where they differ in lines."""
    stamps = {"input": stamp_text(job.source)}
    if job.prefixes is not None:
        stamps["prefixes"] = stamp_text(job.prefixes)
        if stamps["prefixes"].num_lines != stamps["input"].num_lines:
            raise InputError(
                f"{job.source} has {counted(stamps['input'].num_lines, 'line')} and {job.prefixes} has "
                f"{stamps['prefixes'].num_lines}: prefixes= holds one line for each, a blank one for no prefix"
            )
    return stamps


def stamp_text(path: str) -> TextStamp:
    """Reads the whole text once, some 100 MB a second; raises InputError where a line of it is not UTF-8."""
    digest, num_lines = hashlib.sha256(), 0
    for line in read_lines(path):
        digest.update(line.encode())
        digest.update(b"\n")
        num_lines += 1
    return TextStamp(num_lines, digest.hexdigest())


def read_unchanged(path: str, stamp: TextStamp) -> Iterator[str]:
    """The lines of a text; raises InputError at the end where they are not those of the stamp."""
    digest = hashlib.sha256()
    for line in read_lines(path):
        digest.update(line.encode())
        digest.update(b"\n")
        yield line
    if digest.hexdigest() != stamp.sha256:
        raise InputError(f"{path} was changed while it was translated: give the command again, with resume=never")


def cut_windows(lines: Iterable[str], size: int, prefixes: Iterable[str] | None = None) -> Iterator[Window]:
    """Windows of `size` lines, the last one shorter, read no further ahead than that."""
    remaining = iter(lines)
    remaining_prefixes = None if prefixes is None else iter(prefixes)
    number = 0
    while window := list(islice(remaining, size)):
        of_window = None if remaining_prefixes is None else list(islice(remaining_prefixes, len(window)))
        yield Window(number, number * size + 1, window, of_window)
        number += 1
    if remaining_prefixes is not None:
        next(remaining_prefixes, None)  # to their end, where read_unchanged looks at what it has read
