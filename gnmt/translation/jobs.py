"""Inputs and outputs of translate.py and score.py: which files are read and written, and how they are opened.

`plan_jobs` turns the command line into jobs and finds impossible ones before a model is loaded. `input_lines` and
`open_output` then open files and standard streams.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gnmt.errors import InputError
from gnmt.fileio import lines_of, missing_file, path_list, read_lines, replacing
from gnmt.translation.partial_output import PartialOutput, compressed

STANDARD_STREAM = "-"


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
        output = Path(self.output)
        return Path(self.source).is_file() and (output.is_file() or not output.exists())

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
    if output_folder is None:
        if len(sources) > 1:
            raise InputError(f"input= names {len(sources)} files: give output_folder=FOLDER for their translations")
        jobs = [Job(sources[0], output, prefixes)]
    else:
        jobs = _jobs_in_folder(output_folder, sources, output, prefixes)
    for job in jobs:
        check_job(job, checkpoints, output_folder is not None)
    _check_partial_outputs(jobs, checkpoints)
    if output_folder is not None:
        try:
            Path(output_folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"output_folder={output_folder} cannot be created ({error.strerror}): choose another folder"
            ) from error
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


def check_job(job: Job, checkpoints: Sequence[str] = (), creates_folder: bool = False) -> None:
    """Raise InputError if a file to read is missing, or if the output is a folder or a file that is read.

    Args:
        job: The job to check.
        checkpoints: Paths of files that are read as well.
        creates_folder: The output's folder may be missing; it is created later.
    """
    if job.source != STANDARD_STREAM and not Path(job.source).exists():
        raise missing_file(job.source)
    if job.prefixes is not None:
        if not Path(job.prefixes).exists():
            raise missing_file(job.prefixes)
        if job.source == STANDARD_STREAM or not Path(job.source).is_file():
            raise InputError(f"prefixes={job.prefixes} needs a plain file as input=, found input={job.source}")
    if job.output == STANDARD_STREAM:
        return
    output = Path(job.output)
    if not job.output:
        raise InputError("output= names no file: give a file, or - for standard output")
    if job.output.endswith(os.sep):
        raise InputError(f"output={job.output} ends in {os.sep} as a folder does: give a file, or output_folder=")
    if output.is_dir():
        raise InputError(f"output={job.output} is a folder: give the name of a file")
    if not output.parent.is_dir() and not creates_folder:
        raise InputError(
            f"output={job.output}: its folder {output.parent} does not exist: create it, or choose another"
        )
    files = [("input", job.source), ("file of prefixes", job.prefixes or STANDARD_STREAM)]
    for kind, name in [*files, *(("checkpoint", checkpoint) for checkpoint in checkpoints)]:
        if name != STANDARD_STREAM and output.exists() and Path(name).exists() and output.samefile(name):
            raise InputError(f"output={job.output} is the {kind} itself: write to another file")


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


def input_lines(source: str) -> Iterator[str]:
    """Yield the lines of a file or of standard input; raises InputError if they cannot be read."""
    if source != STANDARD_STREAM:
        return read_lines(source)
    if sys.stdin is None:
        raise InputError("input=- is standard input, which is closed: name a file with input=")
    return lines_of(sys.stdin.buffer, "stdin")


@contextmanager
def open_output(output: str) -> Iterator[BinaryIO]:
    """Open an output for writing bytes.

    A plain file replaces the existing one when the block succeeds, and is compressed if its name ends in .gz. Standard
    output, a pipe or a device is written directly. Raises InputError if it cannot be written.
    """
    is_special = Path(output).exists() and not Path(output).is_file()
    try:
        if output == STANDARD_STREAM:
            with _open_stdout() as file:
                yield file
        elif is_special:
            with open(output, "wb") as file:
                yield file
        else:
            with replacing(Path(output).resolve()) as file, compressed(file, output) as packed:
                yield packed
    except OSError as error:
        unchanged = "" if is_special else "; an existing file is unchanged"
        raise InputError(f"output={output} cannot be written ({error.strerror}){unchanged}") from error


@contextmanager
def _open_stdout() -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise InputError("output=- is standard output, which is closed: name a file with output=")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:  # a full disk, or a reader such as `head` that has ended
        # Python flushes stdout once more when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"standard output cannot be written ({error.strerror})") from error
