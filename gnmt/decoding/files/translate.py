"""Translating files of any size, window by window: in constant memory, stopped and continued, by one process or many.

A window is `translator.window_lines` lines, and its translation is a function of these lines, their place and the
settings alone. So the windows of a file can be translated by any process at any time; put together in order they are
what one uninterrupted process writes, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from gnmt.data.lines import read_lines
from gnmt.decoding.files.formats import Origin, OutputFormat, short_digests
from gnmt.decoding.files.jobs import Job
from gnmt.decoding.files.part import PartFolder
from gnmt.decoding.files.progress import Progress
from gnmt.decoding.files.resumable import MadeFrom, translate_resumable
from gnmt.decoding.files.streams import is_terminal, opened_for_writing, stream_lines
from gnmt.decoding.files.windows import WindowTranslator, cut_windows, stamp_texts
from gnmt.decoding.translator import Translator
from gnmt.distributed import Ranks
from gnmt.types import InputError


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
    with ranks.together(), ExitStack() as locks:
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
        if ranks.is_first:
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
        progress.summarise(job.output, num_unfinished)
