"""Inputs and outputs of translate.py and score.py: which files are read and written, and how they are opened.

`plan_jobs` turns the command line into jobs and finds impossible ones before a model is loaded. `open_input` and
`open_output` then open files and standard streams.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from gnmt.data.parallel_text import check_plain_text
from gnmt.errors import InputError
from gnmt.fileio import (
    COMPRESSED_SUFFIXES,
    PipeLines,
    check_files,
    check_output,
    check_output_folder,
    check_rereadable,
    check_stdout,
    discard_stdout,
    is_stream,
    lines_of,
    path_list,
    read_lines,
    replacing,
)
from gnmt.translation.partial_output import PartialOutput, compressed

STANDARD_STREAM = "-"
_STREAM_PATHS = {(STANDARD_STREAM, "input"): "/dev/stdin", (STANDARD_STREAM, "output"): "/dev/stdout"}


@dataclass(frozen=True)
class Job:
    """One input and its output.

    Args:
        source: Path of the input, `-` for standard input.
        output: Path of the output, `-` for standard output.
        prefixes: Path of a file with one target prefix for each line of the input, or None.
    """

    source: str
    output: str
    prefixes: str | None = None

    @property
    def resumable(self) -> bool:
        """True if input and output are plain files: the input can then be read again after an interruption."""
        if STANDARD_STREAM in (self.source, self.output):
            return False
        return Path(self.source).is_file() and not is_stream(self.output)

    @property
    def interactive(self) -> bool:
        """True if the input is typed at a terminal."""
        return self.source == STANDARD_STREAM and sys.stdin is not None and sys.stdin.isatty()


# Planning


def plan_jobs(
    inputs: str | Sequence[str],
    output: str,
    output_folder: str | None = None,
    prefixes: str | None = None,
    checkpoints: Sequence[str] = (),
) -> list[Job]:
    """Return the jobs of one command; raises InputError if a file is missing or may not be written.

    Args:
        inputs: One path or several.
        output: Path of the output of a single input.
        output_folder: Folder for the outputs of several inputs, each under the name of its input; created if missing.
        prefixes: Path of the target prefixes of a single input.
        checkpoints: Paths of files that must not be overwritten.
    """
    sources = path_list(inputs)
    if not sources or "" in sources:
        raise InputError(f"input={inputs} names no file: give a file, several, or - for standard input")
    for key, paths in (("input", sources), ("prefixes", [] if prefixes is None else [prefixes])):
        for path in paths:
            check_plain_text(path, key, "extract the sentences first, for example with `cut -f1` or `jq -r .source`")
    if output_folder is None:
        if len(sources) > 1:
            raise InputError(f"input= names {len(sources)} files: give output_folder=FOLDER for their translations")
        jobs = [Job(sources[0], output, prefixes)]
    else:
        jobs = _jobs_in_folder(output_folder, sources, output, prefixes)
    for job in jobs:
        check_job(job, checkpoints)
    _check_partial_outputs(jobs, checkpoints)
    if output_folder is not None:
        check_output_folder("output_folder", output_folder)
    for job in jobs:
        check_job_output(job.output)
    return jobs


def _jobs_in_folder(folder: str, sources: Sequence[str], output: str, prefixes: str | None) -> list[Job]:
    if output != STANDARD_STREAM:
        raise InputError(f"output={output} and output_folder={folder} exclude each other: give one of them")
    if STANDARD_STREAM in sources:
        raise InputError(f"input=- has no name to be used in output_folder={folder}: give output= instead")
    if prefixes is not None and len(sources) > 1:
        raise InputError(f"prefixes={prefixes} belongs to one input, but input= names {len(sources)} files")
    names = [os.path.basename(os.path.normpath(source)) for source in sources]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise InputError(
            f"input= names two files {duplicate}, whose translations would be the same file in "
            f"output_folder={folder}: translate them by two commands"
        )
    return [Job(source, os.path.join(folder, name), prefixes) for source, name in zip(sources, names, strict=True)]


def check_job(job: Job, checkpoints: Sequence[str] = ()) -> None:
    """Raise InputError if a file to read is missing or is also the output.

    Args:
        job: The job to check.
        checkpoints: Paths of files that are read as well.
    """
    if job.source == STANDARD_STREAM and sys.stdin is None:
        raise InputError("input=- is standard input, which is closed: name a file with input=")
    check_files([path for path in (job.source, job.prefixes) if path not in (None, STANDARD_STREAM)])
    if job.prefixes is not None and (job.source == STANDARD_STREAM or not Path(job.source).is_file()):
        raise InputError(f"prefixes={job.prefixes} needs a plain file as input=, found input={job.source}")
    if job.prefixes is not None:
        check_rereadable(job.prefixes, "prefixes")
    files = [("input", job.source)] if job.prefixes is None else [("input", job.source), ("prefixes", job.prefixes)]
    for key, name in [*files, *(("checkpoint", checkpoint) for checkpoint in checkpoints)]:
        paths = (_STREAM_PATHS.get((job.output, "output"), job.output), _STREAM_PATHS.get((name, key), name))
        if all(map(os.path.isfile, paths)) and os.path.samefile(*paths):
            shown = "standard input" if name == STANDARD_STREAM else name
            raise InputError(f"output={job.output} and {shown} are the same file: write to another file")


def check_job_output(output: str) -> None:
    """Raise InputError if the output of a job cannot be written; see `open_output`."""
    if output == STANDARD_STREAM:
        check_stdout(", or name a file with output=")
    else:
        check_output("output", output)


def _check_partial_outputs(jobs: Sequence[Job], checkpoints: Sequence[str]) -> None:
    """Raise InputError if a file is inside a partial output, which is deleted when its translation is complete."""
    files = [("checkpoint", checkpoint) for checkpoint in checkpoints]
    for job in jobs:
        files += [("input", job.source), ("output", job.output), ("prefixes", job.prefixes or STANDARD_STREAM)]
    output_of = {PartialOutput(job.output).folder: job.output for job in jobs if job.output != STANDARD_STREAM}
    for key, name in files:
        if name == STANDARD_STREAM:
            continue
        path = Path(name).resolve()
        folder = next((folder for folder in (path, *path.parents) if folder in output_of), None)
        if folder is not None:
            raise InputError(
                f"{key}={name} is inside {folder}, which holds the partial output of output={output_of[folder]} until "
                "that is complete: rename one of the two"
            )
        if key == "output" and PartialOutput.is_at(path.parent):
            raise InputError(f"output={name} is inside the partial output of another translation: use another folder")


# Opening


class Input(NamedTuple):
    """The lines of an open input.

    Args:
        lines: The lines without line ends.
        is_ready: Returns whether the next line, or the end, is there at a given time (time.monotonic), and waits for it
            until then. The lines of a file are always there.
    """

    lines: Iterator[str]
    is_ready: Callable[[float], bool] = lambda deadline: True


@contextmanager
def open_input(source: str) -> Iterator[Input]:
    """Open a file, a pipe or standard input for reading lines; raises InputError if it cannot be read."""
    if source == STANDARD_STREAM:
        pipe = PipeLines(cast(BufferedReader, sys.stdin.buffer))
        yield Input(lines_of(pipe, "stdin"), pipe.is_ready)
    elif Path(source).is_file() or source.endswith(COMPRESSED_SUFFIXES):
        yield Input(read_lines(source))
    else:
        check_files([source])
        with open(source, "rb") as file:
            pipe = PipeLines(file)
            yield Input(lines_of(pipe, source), pipe.is_ready)


@contextmanager
def open_output(output: str) -> Iterator[BinaryIO]:
    """Open an output for writing bytes.

    A plain file replaces the existing one when the block succeeds. Standard output and other streams (see `is_stream`)
    are written directly. The bytes are compressed if the name ends in .gz. Raises InputError if they cannot be written.
    """
    try:
        if output == STANDARD_STREAM:
            with _open_stdout() as file:
                yield file
        else:
            with replacing(Path(output)) as file, compressed(file, output) as packed:
                yield packed
    except OSError as error:
        unchanged = "" if is_stream(output) else "; an existing file is unchanged"
        raise InputError(f"output={output} cannot be written ({error.strerror}){unchanged}") from error


@contextmanager
def _open_stdout() -> Iterator[BinaryIO]:
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:  # a full disk, or a reader such as `head` that has ended
        discard_stdout()
        raise InputError(f"standard output cannot be written ({error.strerror})") from error
