"""Standard streams, pipes and devices: read once, written as it goes, nothing to go on from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gnmt.data.lines import lines_of, read_lines
from gnmt.decoding.files.jobs import STANDARD_STREAM, Job
from gnmt.decoding.files.part import compressed
from gnmt.files import replacing
from gnmt.types import InputError


def is_terminal(source: str) -> bool:
    """Whether somebody types the input and waits for each answer."""
    return source == STANDARD_STREAM and sys.stdin is not None and sys.stdin.isatty()


def stream_lines(source: str) -> Iterator[str]:
    """The lines of a file, or of stdin for "-"; raises InputError where they cannot be read."""
    if source != STANDARD_STREAM:
        return read_lines(source)
    if sys.stdin is None:
        raise InputError("input=- is standard input, which is closed: name a file with input=")
    return lines_of(sys.stdin.buffer, "stdin")


@contextmanager
def opened_for_writing(job: Job) -> Iterator[BinaryIO]:
    """stdout, a pipe or a device as it is; or a file that takes its name when the block ends well."""
    output = job.output
    special = Path(output).exists() and not Path(output).is_file()
    try:
        if output == STANDARD_STREAM:
            with opened_stdout() as file:
                yield file
        elif special:
            with open(output, "wb") as file:
                yield file
        else:
            with replacing(job.output_path) as file, compressed(file, output) as packed:
                yield packed
    except OSError as error:
        rest = "" if special else "; what was there stays"
        raise InputError(f"output={output} cannot be written ({error.strerror}){rest}") from error


@contextmanager
def opened_stdout() -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise InputError("output=- is standard output, which is closed: name a file with output=")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:  # a full disk, or a reader such as `head` that has gone
        # Python flushes once more at its end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"standard output cannot be written ({error.strerror})") from error
