"""Translate files of any size in constant memory, by one process or several, and resume after an interruption.

A file is translated in chunks (`gnmt.decoding.translator.next_chunk`). The translation of a chunk depends only on its
lines, their line numbers (which seed sampling) and the settings, so any process can translate any chunk at any time.
The finished chunks, joined in order, equal the output of one process without interruption, byte for byte.
`PartialOutput` stores them.

Standard streams and pipes cannot be read again after an interruption. They are translated chunk by chunk without a
partial output.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from gnmt.checkpoint.file import sha256_of_checkpoints, short_digests
from gnmt.decoding.alignment import draw_alignment
from gnmt.decoding.translator import Translator, next_chunk
from gnmt.device import device_name
from gnmt.distributed import Ranks
from gnmt.errors import InputError, Interrupted, format_count
from gnmt.fileio import check_output, read_lines, write_atomically
from gnmt.logs import format_duration, progress_bar, show_count
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.jobs import STANDARD_STREAM, Input, Job, open_input, open_output
from gnmt.translation.partial_output import Chunk, PartialOutput, TranslatedChunk

log = logging.getLogger(__name__)

_LOG_SECONDS = 60.0  # between two log lines if no progress bar is drawn


@dataclass(frozen=True)
class MadeFrom:
    """The checkpoints and options that a translator was made from.

    Args:
        checkpoints: Paths of the checkpoint files.
        options: Options that the translator does not hold itself, as plain values.
    """

    checkpoints: Sequence[str | Path]
    options: Mapping[str, Any]


def translate_files(
    translator: Translator,
    jobs: Sequence[Job],
    output_format: OutputFormat,
    *,
    made_from: MadeFrom,
    ranks: Ranks,
    resume: str = "auto",
) -> None:
    """Translate each job's UTF-8 input to its output, with one line (or one entry of the format) for each line.

    An output file appears under its name when it is complete. Until then, finished chunks are kept in
    `<output>.partial`, and after an interruption the same call resumes from there. The partial outputs of all jobs stay
    until the last job is complete, so that finished files are not translated again.

    Args:
        translator: The model and its search.
        jobs: Inputs and outputs.
        output_format: Text, TSV or JSON lines.
        made_from: Checkpoints and options. A partial output made from others is refused.
        ranks: The processes that share the chunks; all make the same call. Only plain files can be shared.
        resume: "never" deletes partial outputs and restarts from scratch.

    Raises:
        InputError: If an input cannot be read, an output cannot be written, or a partial output has other settings.
        KeyboardInterrupt: After Ctrl-C or another signal, with a message that says how to resume.
    """
    output_format.check(translator.options)
    checkpoints = short_digests(made_from.checkpoints) if output_format.kind == "jsonl" else ()
    chunk_translator = ChunkTranslator(translator, output_format, Origin(translator.precision.name, checkpoints))
    partial_outputs = []
    with ranks.failures.propagated(), ExitStack() as locks:
        for job in jobs:
            if job.resumable:
                partial = PartialOutput(job.output)
                partial_outputs.append(partial)
                _translate_resumable(chunk_translator, job, partial, made_from, resume, ranks, locks)
            elif ranks.world_size == 1:
                _translate_stream(chunk_translator, job)
            else:
                raise InputError(
                    f"{ranks.world_size} processes need plain files as input= and output=, "
                    f"found input={job.source} output={job.output}"
                )
        ranks.wait_for_all()  # other ranks may still read the manifests
        if ranks.is_rank_0:
            for partial in partial_outputs:
                partial.remove()


def _translate_resumable(
    chunk_translator: ChunkTranslator,
    job: Job,
    partial: PartialOutput,
    made_from: MadeFrom,
    resume: str,
    ranks: Ranks,
    locks: ExitStack,
) -> None:
    """Translate one file unless its partial output is marked as complete; `locks` keeps the partial output locked."""
    finished: dict[int, int] = {}
    if ranks.is_rank_0:
        settings = output_settings(chunk_translator, job, made_from)
        locks.enter_context(partial.locked())
        partial.prepare(settings, resume, device_name(chunk_translator.translator.precision.device))
        finished = partial.finished_chunks()
    # All ranks take rank 0's chunks: a rank that listed them later would count the new chunks of other ranks twice.
    finished_at_start = dict(json.loads(ranks.wait_for_rank_0(json.dumps(list(finished.items())))))
    manifest = partial.manifest()
    if manifest.finished is not None:
        if ranks.is_rank_0:
            log.info("%s is complete", job.output)
        return
    texts = {side: manifest.settings[side] for side in ("input", "prefixes")}
    fingerprints = {side: TextFingerprint(**text) for side, text in texts.items() if text is not None}
    with _resume_explained(partial, ranks):
        _translate_chunks(chunk_translator, job, partial, fingerprints, finished_at_start, ranks)


def _translate_chunks(
    chunk_translator: ChunkTranslator,
    job: Job,
    partial: PartialOutput,
    fingerprints: Mapping[str, TextFingerprint],
    finished_at_start: Mapping[int, int],
    ranks: Ranks,
) -> None:
    """Translate the chunks of this rank that are not finished; rank 0 then merges all chunks.

    `finished_at_start` holds the number of lines of each finished chunk.
    """
    num_lines, num_done = fingerprints["input"].num_lines, sum(finished_at_start.values())
    chunks = UnchangedChunks(job, fingerprints, chunk_translator.translator)
    if num_done and ranks.is_rank_0:
        log.info("%s: %d of %d lines are done, resuming from %s", job.output, num_done, num_lines, partial.folder)
    new_lines_of_all = ranks.counter()
    with closing(Progress(num_lines, num_done, shown=ranks.is_rank_0)) as progress:
        for chunk in partial.unfinished(chunks, job.source, ranks):
            ranks.failures.check()
            partial.write_chunk(chunk, chunk_translator.translate_chunk(chunk, job.source, progress.advance))
            is_new = chunk.number not in finished_at_start
            progress.reach(num_done + new_lines_of_all(len(chunk.lines) if is_new else 0))
        if ranks.is_rank_0:
            num_unfinished, num_omitted = partial.merge(chunk_translator.output_format.heading)
            progress.reach(num_lines)
            progress.summarize(job.output, num_unfinished, num_omitted)


@contextmanager
def _resume_explained(partial: PartialOutput, ranks: Ranks) -> Iterator[None]:
    """Remove a partial output without chunks after any error; tell how to resume after Ctrl-C and other signals."""
    try:
        yield
    except BaseException as error:
        if ranks.world_size == 1 and not partial.finished_chunks():
            partial.remove()
        if isinstance(error, Interrupted):
            hint = partial.resume_hint()
            raise Interrupted(f"{error}{hint}", error.exit_code, number=error.number) from None
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted{partial.resume_hint()}") from None
        raise


def output_settings(chunk_translator: ChunkTranslator, job: Job, made_from: MadeFrom) -> dict[str, Any]:
    """Return everything that the output depends on, as JSON values.

    The number of processes does not matter. Threads and batch size do: they change the last digits of sums.
    """
    translator, output_format = chunk_translator.translator, chunk_translator.output_format
    fingerprints = fingerprint_texts(job)
    settings = {
        "input": asdict(fingerprints["input"]),
        "prefixes": asdict(fingerprints["prefixes"]) if "prefixes" in fingerprints else None,
        "checkpoints": sha256_of_checkpoints(made_from.checkpoints),
        **made_from.options,
        "decoding": asdict(translator.options),
        "format": output_format.kind,
        "alignments": output_format.alignments,
        "word_attention": output_format.word_attention,
        "precision": translator.precision.name,
        "device": translator.precision.device.type,
        "batch_size": translator.batch_size,
        "max_source_tokens": translator.max_source_tokens,
        "chunk_lines": translator.chunk_lines,
        "chunk_characters": translator.chunk_characters,
        "num_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("gnmt", "torch")},
    }
    as_json: dict[str, Any] = json.loads(json.dumps(settings))
    return as_json


# Streams


def _translate_stream(chunk_translator: ChunkTranslator, job: Job) -> None:
    """Write each chunk as soon as it is translated; in a pipe, a chunk ends where no more input is waiting."""
    # A pipe can be read only once, so its lines cannot be counted first.
    total = fingerprint_texts(job)["input"].num_lines if Path(job.source).is_file() else None
    prefixes = None if job.prefixes is None else read_lines(job.prefixes)
    num_unfinished = num_omitted = 0
    with closing(Progress(total, num_done=0, shown=not job.interactive)) as progress:
        with open_input(job.source) as source, open_output(job.output) as out:
            out.write(chunk_translator.output_format.heading)
            for chunk in split_into_chunks(source, chunk_translator.translator, prefixes):
                translated = chunk_translator.translate_chunk(chunk, job.source, progress.advance)
                out.write(translated.data)
                out.flush()
                num_unfinished += translated.num_unfinished
                num_omitted += translated.num_omitted
                progress.reach(chunk.first_line - 1 + len(chunk.lines))
        progress.summarize(job.output, num_unfinished, num_omitted)


# Figures of attention


def check_alignment_files(jobs: Sequence[Job], num_alignments: int) -> None:
    """Raise InputError if `draw_alignments` could not read an input again or write a figure."""
    for job in jobs if num_alignments else ():
        if not job.resumable:
            raise InputError(
                f"num_alignments={num_alignments} reads the input again and writes figures beside the output, so both "
                f"must be plain files, found input={job.source} output={job.output}"
            )
        check_output("num_alignments", alignment_file(job, num_alignments))  # the longest of the names


def draw_alignments(translator: Translator, jobs: Sequence[Job], num_alignments: int) -> None:
    """Draw the attention of the first lines of each job, in files beside its output; see `alignment_file`.

    The lines are translated again, because the finished output holds no attention. Blank lines, and lines that are
    translated in segments, get no figure.
    """
    if num_alignments == 0:
        return
    from gnmt.reporting.figures import image_bytes  # here, because matplotlib takes long to import

    for job in jobs:
        lines = list(islice(read_lines(job.source), num_alignments))
        prefixes = None if job.prefixes is None else list(islice(read_lines(job.prefixes), num_alignments))
        translations = translator.translate(lines, path=job.source, prefixes=prefixes, attention=True)
        for number, translation in enumerate(translations, start=1):
            figure = draw_alignment(translator.tokenizers, translation)
            if figure is not None:
                path = alignment_file(job, number)
                write_atomically(path, image_bytes(figure, path.name))


def alignment_file(job: Job, number: int) -> Path:
    """Return the path of the figure of a line of the input, counted from 1."""
    return Path(f"{job.output}.alignment-{number}.png")


# Chunks


@dataclass(frozen=True)
class ChunkTranslator:
    """Translate chunks and format the results; a result depends only on the chunk and the settings."""

    translator: Translator
    output_format: OutputFormat
    origin: Origin

    def translate_chunk(self, chunk: Chunk, source: str, progress: Callable[[float], None]) -> TranslatedChunk:
        """Translate one chunk.

        Args:
            chunk: Lines and prefixes.
            source: Path of the input, for messages.
            progress: See Translator.stream.
        """
        translator = self.translator
        translations = translator.translate(
            chunk.lines,
            first_line=chunk.first_line,
            path=None if source == STANDARD_STREAM else source,
            prefixes=chunk.prefixes,
            attention=self.output_format.attention,
            progress=progress,
        )
        data = self.output_format.encode(
            chunk.first_line, chunk.lines, translations, translator.tokenizers, translator.options, self.origin
        )
        num_unfinished = sum(not translation.finished for translation in translations)
        return TranslatedChunk(data, num_unfinished, self.output_format.num_omitted(translations))


def split_into_chunks(source: Input, translator: Translator, prefixes: Iterable[str] | None = None) -> Iterator[Chunk]:
    """Yield the chunks of an input, of the translator's size; read no line ahead."""
    remaining_prefixes = None if prefixes is None else iter(prefixes)
    number, first_line = 0, 1
    while lines := next_chunk(source.lines, translator.chunk_lines, translator.chunk_characters, source.is_ready):
        chunk_prefixes = None if remaining_prefixes is None else list(islice(remaining_prefixes, len(lines)))
        yield Chunk(number, first_line, lines, chunk_prefixes)
        number, first_line = number + 1, first_line + len(lines)
    if remaining_prefixes is not None:
        next(remaining_prefixes, None)  # reach the end, where `read_unchanged` compares fingerprints


@dataclass(frozen=True)
class UnchangedChunks:
    """The chunks of a job. Each iteration reads the text again and raises InputError at the end if it has changed."""

    job: Job
    fingerprints: Mapping[str, TextFingerprint]
    translator: Translator

    def __iter__(self) -> Iterator[Chunk]:
        job, fingerprints = self.job, self.fingerprints
        prefixes = None if job.prefixes is None else read_unchanged(job.prefixes, fingerprints["prefixes"])
        source = Input(read_unchanged(job.source, fingerprints["input"]))
        return split_into_chunks(source, self.translator, prefixes)


# Fingerprints


@dataclass(frozen=True)
class TextFingerprint:
    """The number of lines of a text and the sha256 of its lines, decompressed and each ended by LF."""

    num_lines: int
    sha256: str


def fingerprint_texts(job: Job) -> dict[str, TextFingerprint]:
    """Return the fingerprints of "input" and, if given, "prefixes"; raises InputError if their numbers of lines differ.

    This reads the texts once, about 100 MB per second.
    """
    fingerprints = {"input": _fingerprint(job.source)}
    if job.prefixes is not None:
        fingerprints["prefixes"] = _fingerprint(job.prefixes)
        if fingerprints["prefixes"].num_lines != fingerprints["input"].num_lines:
            raise InputError(
                f"{job.source} has {format_count(fingerprints['input'].num_lines, 'line')} and {job.prefixes} has "
                f"{fingerprints['prefixes'].num_lines}: prefixes= holds one line for each line of input=, a blank one "
                "for no prefix"
            )
    return fingerprints


def _fingerprint(path: str) -> TextFingerprint:
    digest, num_lines = hashlib.sha256(), 0
    for line in read_lines(path):
        digest.update(f"{line}\n".encode())
        num_lines += 1
    return TextFingerprint(num_lines, digest.hexdigest())


def read_unchanged(path: str, fingerprint: TextFingerprint) -> Iterator[str]:
    """Yield the lines of a text; raise InputError at its end if they do not have the fingerprint."""
    digest = hashlib.sha256()
    for line in read_lines(path):
        digest.update(f"{line}\n".encode())
        yield line
    if digest.hexdigest() != fingerprint.sha256:
        raise InputError(f"{path} was changed while it was translated: give the command again, with resume=never")


# Progress


class Progress:
    """Count the finished lines of one input, and report them by a progress bar or, without a terminal, by log lines.

    Args:
        total: Number of lines, None if unknown.
        num_done: Number of lines that an earlier command has finished.
        shown: False reports nothing.
    """

    def __init__(self, total: int | None, num_done: int, shown: bool) -> None:
        self._total = total
        self._at_start = num_done
        self._num_done: float = num_done
        self._started = self._logged = time.monotonic()
        self._shown = shown
        self._bar = progress_bar(description="translating", unit="line", total=total, initial=num_done, shown=shown)

    def reach(self, num_done: float) -> None:
        """Set the number of finished lines."""
        self._num_done = num_done
        show_count(self._bar, num_done)
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.info("%s", self._line())

    def advance(self, num_lines: float) -> None:
        """Add to the number of finished lines; a part of a line is a fraction."""
        self.reach(self._num_done + num_lines)

    def summarize(self, output: str, num_unfinished: int, num_omitted: int = 0) -> None:
        """Log the number of lines and the speed, and warn of translations that are cut off or left out."""
        if not self._shown:
            return
        earlier = f", after {self._at_start:,} that were done" if self._at_start else ""
        num_done = round(self._num_done)
        num_lines = format_count(num_done - self._at_start, "line", comma=True)
        seconds = self._seconds()
        rate = _format_rate(self._rate())
        log.info("%s: %s in %.1f s, %s lines per second%s", output, num_lines, seconds, rate, earlier)
        if num_unfinished:
            log.warning("%d of %d translations were cut off by the length limit", num_unfinished, num_done)
        if num_omitted:
            log.warning(
                "format=pairs left out %s that are empty or cut off",
                format_count(num_omitted, "translation", comma=True),
            )

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def _line(self) -> str:
        rate = self._rate()
        num_done = f"{round(self._num_done, 1):,}".removesuffix(".0")
        if self._total is None or rate == 0:
            return f"{num_done} line{'' if num_done == '1' else 's'} translated, {_format_rate(rate)} lines/s"
        left = format_duration((self._total - self._num_done) / rate)
        return f"{num_done} of {self._total:,} lines translated, {_format_rate(rate)} lines/s, {left} left"

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)

    def _rate(self) -> float:
        return (self._num_done - self._at_start) / self._seconds()


def _format_rate(rate: float) -> str:
    """Return lines per second as text; two digits for the few of very long lines."""
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
