"""Translating files of any size, window by window: in constant memory, stopped and continued, by one process or many.

A window is `translator.chunk_lines` lines, and its translation is a function of these lines, their place and the
settings alone. So the windows of a file can be translated by any process at any time; put together in order they are
what one uninterrupted process writes, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from gnmt.decoding.translator import Translator
from gnmt.device import device_name
from gnmt.distributed import Ranks
from gnmt.errors import InputError, Interrupted, counted
from gnmt.fileio import lines_of, missing_file, read_lines, replacing
from gnmt.logs import format_duration, progress_bar
from gnmt.signals import interrupt_on_sigterm
from gnmt.translation.formats import Origin, OutputFormat, sha256_of_checkpoints, short_digests
from gnmt.translation.partial_output import PartFolder, compressed

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


log = logging.getLogger(__name__)

_LOG_SECONDS = 60.0


class Progress:
    """Counts the lines of one input.

    total: lines in all, None where that cannot be known. done: lines that an earlier command did. shown: False leaves
    bar and log lines out.
    """

    def __init__(self, total: int | None, done: int, shown: bool) -> None:
        self._total = total
        self._at_start = self._done = done
        self._started = self._logged = time.monotonic()
        self._shown = shown
        self._bar = progress_bar(description="translating", unit="line", total=total, initial=done, shown=shown)

    def reach(self, done: int) -> None:
        """`done` lines are done in all."""
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.info("%s", self.line())

    def advance(self, num_lines: int) -> None:
        self.reach(self._done + num_lines)

    def line(self) -> str:
        """Where it stands, how fast it goes and when it will end."""
        rate = self._rate()
        if self._total is None or rate == 0:
            return f"{counted(self._done, 'line', comma=True)} translated, {rate:.1f} lines/s"
        left = format_duration((self._total - self._done) / rate)
        return f"{self._done:,} of {self._total:,} lines translated, {rate:.1f} lines/s, {left} left"

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def summarize(self, output: str, num_unfinished: int) -> None:
        """One line of what was done, and a warning where translations were cut off."""
        if not self._shown:
            return
        earlier = f", after {self._at_start:,} that were done" if self._at_start else ""
        num_lines = self._done - self._at_start
        log.info(
            "%s: %s in %.1f s, %.1f lines per second%s",
            *(output, counted(num_lines, "line", comma=True), self._seconds(), self._rate(), earlier),
        )
        if num_unfinished:
            log.warning("%d of %d translations were cut off by the length limit", num_unfinished, self._done)

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)

    def _rate(self) -> float:
        return (self._done - self._at_start) / self._seconds()


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
        return self.translator.chunk_lines

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


@dataclass(frozen=True)
class MadeFrom:
    """What a translator was made of: checkpoint files, and options that it does not say itself, as plain values."""

    checkpoints: Sequence[str | Path]
    options: Mapping[str, Any]


def translate_resumable(
    work: WindowTranslator,
    job: Job,
    part: PartFolder,
    made_from: MadeFrom,
    resume: str,
    ranks: Ranks,
    locks: ExitStack,
) -> None:
    """Translates this process's share of what is not done; the first process then puts all windows together.

    locks: holds the part until the caller is through with all jobs.
    """
    found: list[int] = []
    if ranks.is_rank_0:
        settings = settings_of(work, job, made_from)
        with disk_errors_explained(job, part):
            locks.enter_context(part.locked())
            part.begin(settings, resume, made_on=device_name(work.translator.precision.device))
        found = sorted(part.windows())
    # One list for all: who looked later would count what others have done meanwhile twice.
    done = set(json.loads(ranks.wait_for_rank_0(json.dumps(found))))
    manifest = part.manifest()
    if manifest.finished is not None:
        if ranks.is_rank_0:
            log.info("%s is complete", job.output)
        return
    texts = {side: manifest.settings[side] for side in ("input", "prefixes")}
    stamps = {side: TextStamp(**stamp) for side, stamp in texts.items() if stamp is not None}
    with stops_explained(part, ranks):
        translate_share(work, job, part, stamps, done, ranks)


def translate_share(
    work: WindowTranslator,
    job: Job,
    part: PartFolder,
    stamps: Mapping[str, TextStamp],
    done: Collection[int],
    ranks: Ranks,
) -> None:
    """Windows go round among the ranks by number, those that are done left out.

    The text is stamped before it is read, and may be another one by then. So each window says of which lines it is,
    and counts only where the text that was read to its end, and is the stamped one, has these lines there.
    """
    num_lines = stamps["input"].num_lines
    num_done = lines_in(done, work.size, num_lines)
    if num_done and ranks.is_rank_0:
        log.info("%s: %d of %d lines are done, going on from %s", job.output, num_done, num_lines, part.folder)
    added_by_all = ranks.counter()
    with closing(Progress(num_lines, num_done, shown=ranks.is_rank_0)) as progress:

        def translate(window: Window, sha256: str) -> None:
            ranks.failures.check()
            translated = work.translate(window, job.source, progress.advance)
            with disk_errors_explained(job, part):
                part.keep(window.number, sha256, translated.data, translated.num_unfinished)

        sha256_of_windows, others = [], 0
        for window in windows_of(job, stamps, work.size):
            sha256_of_windows.append(window.sha256())
            if window.number % ranks.world_size != ranks.rank or part.holds(window.number, sha256_of_windows[-1]):
                continue
            others += window.number in done
            if window.number in done and others == 1:
                warn_of_other_lines(window, job, part)
            translate(window, sha256_of_windows[-1])
            progress.reach(num_done + added_by_all(0 if window.number in done else len(window.lines)))
        ranks.wait_for_all()
        if not ranks.is_rank_0:
            return
        # All have read the stamped text by now, but what lies in the folder is the folder's word alone.
        wrong = {n for n, sha256 in enumerate(sha256_of_windows) if not part.holds(n, sha256)}
        for window in windows_of(job, stamps, work.size) if wrong else ():
            if window.number in wrong:
                warn_of_other_lines(window, job, part)
                translate(window, sha256_of_windows[window.number])
        with disk_errors_explained(job, part):
            num_unfinished = part.finish(work.output_format.heading, len(sha256_of_windows))
        progress.reach(num_lines)
        progress.summarize(job.output, num_unfinished)


def windows_of(job: Job, stamps: Mapping[str, TextStamp], size: int) -> Iterator[Window]:
    """The windows of a job's text; InputError at its end where it is not the stamped one."""
    prefixes = None if job.prefixes is None else read_unchanged(job.prefixes, stamps["prefixes"])
    return cut_windows(read_unchanged(job.source, stamps["input"]), size, prefixes)


def warn_of_other_lines(window: Window, job: Job, part: PartFolder) -> None:
    log.warning(
        "what %s keeps of %s from line %d on was made of other lines than there are now, or does not say of which: it "
        "is translated anew, and so is whatever else there is like it",
        *(part.folder, job.source, window.first_line),
    )


def settings_of(work: WindowTranslator, job: Job, made_from: MadeFrom) -> dict[str, Any]:
    """All that the output depends on, as JSON has it; how many processes share the work is no part of that.

    The number of threads and the size of batches are: they change the last digits of sums.
    """
    translator, stamps = work.translator, stamp_texts(job)
    settings = {
        "input": asdict(stamps["input"]),
        "prefixes": asdict(stamps["prefixes"]) if "prefixes" in stamps else None,
        "checkpoints": sha256_of_checkpoints(made_from.checkpoints),
        **made_from.options,
        "decoding": asdict(translator.options),
        "format": work.output_format.kind,
        "alignments": work.output_format.alignments,
        "word_attention": work.output_format.word_attention,
        "precision": translator.precision.name,
        "device": translator.precision.device.type,
        "batch_size": translator.batch_size,
        "max_source_tokens": translator.max_source_tokens,
        "chunk_lines": work.size,
        "num_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("gnmt", "torch")},
    }
    as_json: dict[str, Any] = json.loads(json.dumps(settings))
    return as_json


def lines_in(windows: Collection[int], size: int, num_lines: int) -> int:
    """How many lines these windows hold; only the last one of the text may be short."""
    last = (num_lines - 1) // size
    missing = (last + 1) * size - num_lines if last in windows else 0
    return len(windows) * size - missing


@contextmanager
def disk_errors_explained(job: Job, part: PartFolder) -> Iterator[None]:
    """Around what writes: a full disk is an InputError that says what there is."""
    try:
        yield
    except OSError as error:
        stays = "; what was there stays" if job.output_path.exists() else ""
        raise InputError(f"output={job.output} cannot be written ({error.strerror}){stays}{kept(part)}") from error


@contextmanager
def stops_explained(part: PartFolder, ranks: Ranks) -> Iterator[None]:
    """Whatever ends the translation leaves a part only where something is done; Ctrl-C and SIGTERM say where.

    Of several processes torchrun is the one that is asked to stop, and says so.
    """
    try:
        with interrupt_on_sigterm() if ranks.world_size == 1 else nullcontext():
            yield
    except BaseException as error:
        if ranks.world_size == 1 and not part.windows():
            part.remove()
        if isinstance(error, Interrupted):
            raise Interrupted(f"{error}{kept(part)}", error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted{kept(part)}") from None
        raise


def kept(part: PartFolder) -> str:
    """What the folder holds and how it is used, as the end of a message; nothing where nothing is done."""
    num_windows = len(part.windows())
    windows = counted(num_windows, "window")
    return f"; {part.folder} keeps {windows}, from where the same command goes on" if num_windows else ""


def translate_files(
    translator: Translator,
    jobs: Sequence[Job],
    output_format: OutputFormat,
    *,
    made_from: MadeFrom,
    resume: str = "auto",
    ranks: Ranks | None = None,
) -> None:
    """Translates each job's UTF-8 input to its output, one line, or in other formats one entry, for each line.

    A plain file appears under its name when it is complete. Until then what is done lies in `<output>.part`, and the
    same call continues it after any end of the process; resume="never" drops that and begins anew. With another
    translator (made_from), other options or another text there is nothing to continue. The parts of several jobs stay
    until all are complete, so that finished ones are not done again. ranks: the processes that share the windows; all
    make the same call. Streams (stdin, stdout, pipes) are translated by one process, window by window, or at a terminal
    line by line.

    Raises InputError for input that cannot be read, output that cannot be written, and a part that was begun otherwise;
    KeyboardInterrupt with a message of where to go on.
    """
    ranks = ranks or Ranks()
    output_format.check(translator.options)
    checkpoints = short_digests(made_from.checkpoints) if output_format.kind == "jsonl" else ()
    work = WindowTranslator(translator, output_format, Origin(translator.precision.name, checkpoints))
    parts = []
    with ranks.failures.propagated(), ExitStack() as locks:
        for job in jobs:
            if job.resumable:
                parts.append(PartFolder(job.output_path))
                translate_resumable(work, job, parts[-1], made_from, resume, ranks, locks)
            elif ranks.world_size == 1:
                translate_stream(work, job)
            else:
                raise InputError(
                    f"{ranks.world_size} processes need plain files as input= and output=, "
                    f"found input={job.source} output={job.output}"
                )
        ranks.wait_for_all()  # until nobody looks into the parts any more
        if ranks.is_rank_0:
            for part in parts:
                part.remove()


def translate_stream(work: WindowTranslator, job: Job) -> None:
    """Writes each window when it is done; at a terminal a window is one line."""
    interactive = is_terminal(job.source)
    is_file = Path(job.source).is_file()  # else it can be read only once
    total = stamp_texts(job)["input"].num_lines if is_file else None
    prefixes = None if job.prefixes is None else read_lines(job.prefixes)
    windows = cut_windows(stream_lines(job.source), 1 if interactive else work.size, prefixes)
    num_unfinished = 0
    with closing(Progress(total, done=0, shown=not interactive)) as progress:
        with opened_for_writing(job) as out:
            out.write(work.output_format.heading)
            for window in windows:
                done = work.translate(window, job.source, progress.advance)
                out.write(done.data)
                out.flush()
                num_unfinished += done.num_unfinished
                progress.reach(window.first_line - 1 + len(window.lines))
        progress.summarize(job.output, num_unfinished)
