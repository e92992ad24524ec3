"""Which files are translated to which, and what cannot work, found before the model is asked for anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gnmt.data.lines import missing_file
from gnmt.decoding.files.part import PartFolder
from gnmt.types import InputError

STANDARD_STREAM = "-"


@dataclass(frozen=True)
class Job:
    """One input and its output, `-` for the standard streams; prefixes: a file of target prefixes, or None."""

    source: str
    output: str
    prefixes: str | None = None

    @property
    def resumable(self) -> bool:
        """Whether it can go on after an interruption: from a plain file, which can be read again, to a plain file."""
        if STANDARD_STREAM in (self.source, self.output):
            return False
        output = Path(self.output)
        return Path(self.source).is_file() and (output.is_file() or not output.exists())

    @property
    def output_path(self) -> Path:
        """Where the output is written: a link is followed and stays a link."""
        return Path(self.output).resolve()


def plan_jobs(
    inputs: str | Sequence[str],
    output: str,
    output_folder: str | None = None,
    prefixes: str | None = None,
    checkpoints: Sequence[str] = (),
) -> list[Job]:
    """The jobs of `input=`, `output=`, `output_folder=` and `prefixes=`, or InputError for what cannot work.

    inputs: a name or several. With output_folder, which is made, each output has the name of its input there.
    checkpoints: files that are read as well, so none may be written.
    """
    sources = [inputs] if isinstance(inputs, str) else inputs
    if not sources or "" in sources:
        raise InputError(f"input={inputs} names no file: give a file, several, or - for standard input")
    if output_folder is None:
        if len(sources) > 1:
            raise InputError(f"input= names {len(sources)} files: say with output_folder=FOLDER where theirs go")
        jobs = [Job(sources[0], output, prefixes)]
    else:
        jobs = jobs_into(output_folder, sources, output, prefixes)
    for job in jobs:
        check_places(job, output_folder, checkpoints)
        check_prefixes(job)
    check_parts(jobs, checkpoints)
    if output_folder is not None:
        make_folder(output_folder)
    return jobs


def jobs_into(folder: str, sources: Sequence[str], output: str, prefixes: str | None) -> list[Job]:
    """A job for each source, its output in that folder under the source's name."""
    if output != STANDARD_STREAM:
        raise InputError(f"output={output} and output_folder={folder} exclude each other: give one of them")
    if STANDARD_STREAM in sources:
        raise InputError(f"input=- has no name to be used in output_folder={folder}: give output= instead")
    if prefixes is not None and len(sources) > 1:
        raise InputError(f"prefixes={prefixes} belongs to one input, but input= names {len(sources)} files")
    names = [os.path.basename(os.path.normpath(source)) for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"input= names two files {twice}, which would have the same place in output_folder={folder}")
    return [Job(source, os.path.join(folder, name), prefixes) for source, name in zip(sources, names, strict=True)]


def check_places(job: Job, output_folder: str | None, checkpoints: Sequence[str] = ()) -> None:
    """The input must be there, and the output possible and another file; output_folder: made later, if not None."""
    if job.source != STANDARD_STREAM and not Path(job.source).exists():
        raise missing_file(job.source)
    if job.output == STANDARD_STREAM:
        return
    place = Path(job.output)
    if not job.output:
        raise InputError("output= names no file: give a file, or - for standard output")
    if job.output.endswith(os.sep):
        raise InputError(f"output={job.output} is a folder by its last letter: give a file, or output_folder=")
    if place.is_dir():
        raise InputError(f"output={job.output} is a folder: give the name of a file")
    if not place.parent.is_dir() and output_folder is None:
        raise InputError(f"output={job.output}: its folder {place.parent} does not exist: make it, or write elsewhere")
    if is_same_file(place, job.source):
        raise InputError(f"output={job.output} is the input itself: write to another file")
    if job.prefixes is not None and is_same_file(place, job.prefixes):
        raise InputError(f"output={job.output} is the file of prefixes itself: write to another file")
    if any(is_same_file(place, checkpoint) for checkpoint in checkpoints):
        raise InputError(f"output={job.output} is the checkpoint itself: write to another file")


def check_parts(jobs: Sequence[Job], checkpoints: Sequence[str]) -> None:
    """What is read or written must not lie where what is done of an output is kept, and dropped at the end."""
    files = [("checkpoint", checkpoint) for checkpoint in checkpoints]
    for job in jobs:
        files += [("input", job.source), ("output", job.output), ("prefixes", job.prefixes or STANDARD_STREAM)]
    part_of = {PartFolder(job.output_path).folder: job.output for job in jobs if job.output != STANDARD_STREAM}
    for key, name in files:
        place = Path(name).resolve()
        within = next((folder for folder in (place, *place.parents) if folder in part_of), None)
        if name != STANDARD_STREAM and within is not None:
            raise InputError(
                f"{key}={name} lies in {within}, where what is done of output={part_of[within]} is kept until it is "
                "complete: rename one of the two"
            )
        if key == "output" and name != STANDARD_STREAM and PartFolder.is_part(place.parent):
            raise InputError(f"output={name} lies in the part of another translation: write to another folder")


def is_same_file(place: Path, name: str) -> bool:
    return name != STANDARD_STREAM and place.exists() and Path(name).exists() and place.samefile(name)


def check_prefixes(job: Job) -> None:
    """Prefixes are counted against the input before translating, so both must be files."""
    if job.prefixes is None:
        return
    if not Path(job.prefixes).exists():
        raise missing_file(job.prefixes)
    if job.source == STANDARD_STREAM or not Path(job.source).is_file():
        raise InputError(f"prefixes={job.prefixes} needs a plain file as input=, found input={job.source}")


def make_folder(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_folder={folder} cannot be made ({error.strerror}): choose another one") from error
