"""Cleaning and encoding the training pairs, in shards and by several processes, into a store.

One process reads the text, in order, and asks what can be asked of text alone (blank, identical, repeated pairs).
Shards of what is left are encoded by the others, each into a file that is whole or absent. The same process puts the
shards together in their order. So memory is a few shards, the result does not depend on the number of processes, and an
interrupted preparation goes on with the shards that it finds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gnmt.data.cleaning import Cleaner, CleaningReport, NumberedPair
from gnmt.data.corpus import Cleaning, ParallelText
from gnmt.data.store import EncodedSide, StoreWriter, encoded_side
from gnmt.data.tokenizer import Tokenizers
from gnmt.files import replacing
from gnmt.types import InputError

SHARD_PAIRS = 1 << 15  # pairs that are read, encoded and written together

Wait = Callable[[], None]
Submit = Callable[[list[NumberedPair], Cleaning, Path], Wait]


class TrainingPart(NamedTuple):
    """One corpus to train on. weight: what share of the training pairs comes from it, relative to the others'."""

    text: ParallelText
    cleaning: Cleaning
    weight: float


class _Waiting(NamedTuple):
    """A shard that was handed out: what its text said, and how to wait for its file."""

    part: int
    report: CleaningReport
    wait: Wait
    path: Path


def encode_training_text(
    folder: Path, shards: Path, parts: Mapping[str, TrainingPart], tokenizers: Tokenizers, num_workers: int
) -> tuple[CleaningReport, list[int]]:
    """Makes the store in `folder`, and files in `shards`, where those of an earlier attempt are used as they are.

    Returns what was left out and why, pairs numbered within their part, and how many pairs of each part were kept.
    Raises InputError where a part has none and for text that cannot be read, ChildProcessError for a killed worker.
    """
    folder.mkdir()
    shards.mkdir(parents=True, exist_ok=True)
    reports = [CleaningReport() for _ in parts]
    waiting: deque[_Waiting] = deque()
    sizes = (tokenizers.source.vocabulary_size, tokenizers.target.vocabulary_size)
    with StoreWriter(folder, *sizes) as writer, _encoders(tokenizers, num_workers) as submit:

        def append_first() -> None:
            part, text_report, wait, path = waiting.popleft()
            wait()
            source, target, ids_report = _read_shard(path)
            writer.append(source, target)
            reports[part].add(text_report)
            reports[part].add(ids_report)

        for number, part in enumerate(parts.values()):
            cleaner = Cleaner(part.cleaning)
            pairs = (NumberedPair(place, *pair) for place, pair in enumerate(with_progress(part.text, "encoding"), 1))
            for shard, block in enumerate(iter(lambda pairs=pairs: list(islice(pairs, SHARD_PAIRS)), [])):  # type: ignore[misc]
                path = shards / f"{number:02d}-{shard:06d}.npz"
                text_report, chosen = cleaner.by_text(block)
                wait = _done if _is_whole(path) else submit(chosen, part.cleaning, path)
                waiting.append(_Waiting(number, text_report, wait, path))
                if len(waiting) > num_workers + 1:
                    append_first()
        while waiting:
            append_first()
    report = CleaningReport()
    for (name, part), own in zip(parts.items(), reports, strict=True):
        if own.num_kept == 0:
            text, key = ("data.train", "data") if len(parts) == 1 else (f"data.corpora.{name}",) * 2
            rules = own.rules(part.cleaning, f"{key}.cleaning")
            raise InputError(f"{text}: no pair is left after cleaning: {own.counts()}\n{rules}")
        report.add(own)
    return report, [own.num_kept for own in reports]


def with_progress(text: ParallelText, what: str) -> Iterator[tuple[str, str]]:
    """The pairs, with a bar on a terminal."""
    yield from tqdm(text.iterate(), desc=what, unit=" pairs", unit_scale=True, disable=None, leave=False)


def encode_shard(
    pairs: Sequence[NumberedPair], tokenizers: Tokenizers, cleaning: Cleaning, path: Path, num_threads: int = -1
) -> None:
    """Encodes the pairs, leaves out what its ids speak against, and writes the rest with a report.

    num_threads: that encode, -1 for one each core.
    """
    cleaner = Cleaner(cleaning)
    sides = [
        tokenizers.source.encode_all([pair.source for pair in pairs], num_threads),
        tokenizers.target.encode_all([pair.target for pair in pairs], num_threads),
    ]
    report = CleaningReport()
    keep = [
        cleaner.keeps(pair, len(source), len(target), report)
        for pair, source, target in zip(pairs, *sides, strict=True)
    ]
    arrays: dict[str, NDArray[Any]] = {}
    for side, ids in zip(("source", "target"), sides, strict=True):
        kept_ids = [row for row, kept in zip(ids, keep, strict=True) if kept]
        texts = [getattr(pair, side) for pair, kept in zip(pairs, keep, strict=True) if kept]
        arrays |= {f"{side}.{name}": array for name, array in encoded_side(kept_ids, texts)._asdict().items()}
    report_bytes = np.frombuffer(json.dumps(report.to_json()).encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, report=report_bytes, **arrays)  # type: ignore[arg-type]


def _read_shard(path: Path) -> tuple[EncodedSide, EncodedSide, CleaningReport]:
    with np.load(path) as arrays:
        source, target = (
            EncodedSide(*(arrays[f"{side}.{name}"] for name in EncodedSide._fields)) for side in ("source", "target")
        )
        return source, target, CleaningReport(**json.loads(arrays["report"].tobytes()))


def _is_whole(path: Path) -> bool:
    """Whether an earlier attempt left this shard, undamaged."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _done() -> None:
    """Nothing to wait for."""


@contextmanager
def _encoders(tokenizers: Tokenizers, num_workers: int) -> Iterator[Submit]:
    """Hands shards to processes, or encodes them at once where there is to be no other process."""
    if num_workers == 1:

        def encode_now(pairs: list[NumberedPair], cleaning: Cleaning, path: Path) -> Wait:
            encode_shard(pairs, tokenizers, cleaning, path)
            return _done

        yield encode_now
        return
    # Not forked: this process has threads, and a forked child may inherit a lock that nobody will open.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (tokenizers,))

    def encode_elsewhere(pairs: list[NumberedPair], cleaning: Cleaning, path: Path) -> Wait:
        with _signals_held_back():
            return _waiting_for(executor.submit(_encode_in_worker, pairs, cleaning, path))

    try:
        yield encode_elsewhere
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that encodes the text was killed, perhaps for want of memory; the same command goes on with the "
            f"shards that are done, and fewer processes need less: data.num_workers={num_workers - 1}"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that are started inside it never hear of Ctrl-C, nor of a scheduler's warning to all of a job.

    Both reach the parent, which ends its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waiting_for(future: Future[None]) -> Wait:
    return future.result


_tokenizers: Tokenizers  # of a worker process


def _start_worker(tokenizers: Tokenizers) -> None:
    global _tokenizers
    _tokenizers = tokenizers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent.join()
    os._exit(1)


def _encode_in_worker(pairs: list[NumberedPair], cleaning: Cleaning, path: Path) -> None:
    encode_shard(pairs, _tokenizers, cleaning, path, num_threads=1)  # the cores are for the other workers
