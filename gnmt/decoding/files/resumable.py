"""Translating a file so that any end of the process loses no more than a window."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from signal import SIGTERM
from types import FrameType
from typing import Any, NoReturn

import torch

from gnmt.decoding.files.formats import sha256_of_checkpoints
from gnmt.decoding.files.jobs import Job
from gnmt.decoding.files.part import PartFolder
from gnmt.decoding.files.progress import Progress
from gnmt.decoding.files.windows import (
    TextStamp,
    Window,
    WindowTranslator,
    cut_windows,
    read_unchanged,
    stamp_texts,
)
from gnmt.distributed import Ranks
from gnmt.early_interrupt import EXIT_CODES
from gnmt.runtime import device_name
from gnmt.types import InputError, Interrupted, counted

log = logging.getLogger(__name__)


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
    if ranks.is_first:
        settings = settings_of(work, job, made_from)
        with disk_errors_explained(job, part):
            locks.enter_context(part.locked())
            part.begin(settings, resume, made_on=device_name(work.translator.precision.device))
        found = sorted(part.windows())
    # One list for all: who looked later would count what others have done meanwhile twice.
    done = set(json.loads(ranks.wait_for_first(json.dumps(found))))
    manifest = part.manifest()
    if manifest.finished is not None:
        if ranks.is_first:
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
    if num_done and ranks.is_first:
        log.info("%s: %d of %d lines are done, going on from %s", job.output, num_done, num_lines, part.folder)
    added_by_all = ranks.counter()
    with closing(Progress(num_lines, num_done, shown=ranks.is_first)) as progress:

        def translate(window: Window, sha256: str) -> None:
            ranks.check()
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
        if not ranks.is_first:
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
        progress.summarise(job.output, num_unfinished)


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
        "window_lines": work.size,
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
        with sigterm_interrupts() if ranks.world_size == 1 else nullcontext():
            yield
    except BaseException as error:
        if ranks.world_size == 1 and not part.windows():
            part.remove()
        if isinstance(error, Interrupted):
            raise Interrupted(f"{error}{kept(part)}", error.exit_code) from None
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted{kept(part)}") from None
        raise


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside it SIGTERM, which schedulers send, raises Interrupted, unless the program has a handler of its own."""
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(SIGTERM) is signal.SIG_DFL
    if not is_ours:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted("SIGTERM: stopped", EXIT_CODES[SIGTERM])

    signal.signal(SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(SIGTERM, signal.SIG_DFL)


def kept(part: PartFolder) -> str:
    """What the folder holds and how it is used, as the end of a message; nothing where nothing is done."""
    num_windows = len(part.windows())
    windows = counted(num_windows, "window")
    return f"; {part.folder} keeps {windows}, from where the same command goes on" if num_windows else ""
