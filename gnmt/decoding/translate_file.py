"""Files in, files out: one line of output for each line of input, in order."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from gnmt.data.lines import lines_of, missing_file, read_lines
from gnmt.decoding.translator import Translator
from gnmt.types import InputError, Translation

log = logging.getLogger(__name__)

STANDARD_STREAM = "-"


def translate_file(translator: Translator, source: str, output: str) -> int:
    """Translates a UTF-8 file, or stdin for "-", to a file, or stdout for "-"; returns the number of lines.

    A file appears under its name only when it is complete. At a terminal each line is answered at once.
    Raises InputError for input that cannot be read and output that cannot be written.
    """
    check_places(source, output)
    if source == STANDARD_STREAM and sys.stdin is None:
        raise InputError("input=- is standard input, which is closed: name a file with input=")
    interactive = source == STANDARD_STREAM and sys.stdin.isatty()
    count = unfinished = 0
    translations: Iterator[Translation]
    with opened_for_writing(output) as out:
        if interactive:
            translations = (translator.translate([line])[0] for line in lines_of(sys.stdin.buffer, "stdin"))
        else:
            lines = lines_of(sys.stdin.buffer, "stdin") if source == STANDARD_STREAM else read_lines(source)
            translations = translator.stream(lines, progress=True, total=count_lines(source))
        for translation in translations:
            out.write(translation.text + "\n")
            if interactive or count == 0:
                out.flush()
            count += 1
            unfinished += not translation.finished
    if unfinished:
        log.warning("%d of %d translations were cut off by the length limit", unfinished, count)
    return count


def check_places(source: str, output: str) -> None:
    """Finds what cannot work before the model is asked for anything."""
    if source != STANDARD_STREAM and not Path(source).exists():
        raise missing_file(source)
    if output == STANDARD_STREAM:
        return
    place = Path(output)
    if place.is_dir():
        raise InputError(f"output={output} is a folder: give the name of a file")
    if not place.parent.is_dir():
        raise InputError(f"output={output}: its folder {place.parent} does not exist: make it, or write elsewhere")
    if place.exists() and source != STANDARD_STREAM and place.samefile(source):
        raise InputError(f"output={output} is the input itself: write to another file")


def count_lines(source: str) -> int | None:
    """How many lines a plain file has, for the progress bar; None for a pipe, which can be read only once, and .gz."""
    if not Path(source).is_file() or source.endswith(".gz"):
        return None
    return sum(1 for _ in read_lines(source))


@contextmanager
def opened_for_writing(output: str) -> Iterator[TextIO]:
    """stdout, or a file that takes its name when the block ends well; otherwise what was there stays."""
    if output == STANDARD_STREAM:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        try:
            yield sys.stdout
            sys.stdout.flush()
        except OSError as error:  # a full disk, or a reader such as `head` that has gone
            # Python flushes once more at its end, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise InputError(f"standard output cannot be written ({error.strerror})") from error
        return
    if Path(output).exists() and not Path(output).is_file():
        with opened_special(output) as file:
            yield file
        return
    path = Path(output).resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror}); what was there stays") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_special(output: str) -> Iterator[TextIO]:
    """A pipe or a device, which takes lines as they come and must stay what it is."""
    try:
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            yield file
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror})") from error
