"""Preprocessing: raw text to a folder of token ids, in shards, by several processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.data.cleaning import Cleaner, CleaningReport, NumberedPair
from gnmt.data.corpora import Corpus
from gnmt.data.parallel_text import Cleaning, ParallelText, TrainingPart, naming_columns
from gnmt.data.store import (
    FORMAT,
    EncodedSide,
    PreprocessedData,
    Store,
    StoreWriter,
    WrittenPairs,
    encoded_side,
    manifest_changes,
    read_manifest,
    read_preprocessed,
    read_tokenizers,
    texts_of,
    write_manifest,
    write_pairs,
    write_report,
    write_tokenizers,
)
from gnmt.data.tokenizer import TokenizerFiles, TokenizerOptions, Tokenizers, TokenizerSource, train_tokenizers
from gnmt.errors import InputError, counted
from gnmt.fileio import (
    FileStamp,
    UnreadableFileError,
    building_lock,
    built_folder,
    replacing,
    work_folder,
    write_atomically,
)
from gnmt.logs import progress_bar
from gnmt.signals import block_signals_in_children

SHARD_PAIRS = 1 << 15  # pairs that are read, encoded and written together

Wait = Callable[[], None]
Submit = Callable[[list[NumberedPair], Cleaning, Path], Wait]


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
    yield from progress_bar(text.iterate(), description=what, unit=" pairs", unit_scale=True, leave=False)


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
        with block_signals_in_children():
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


def _waiting_for(future: Future[None]) -> Wait:
    return future.result


_worker_tokenizers: Tokenizers  # of a worker process


def _start_worker(tokenizers: Tokenizers) -> None:
    global _worker_tokenizers
    _worker_tokenizers = tokenizers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent.join()
    os._exit(1)


def _encode_in_worker(pairs: list[NumberedPair], cleaning: Cleaning, path: Path) -> None:
    encode_shard(pairs, _worker_tokenizers, cleaning, path, num_threads=1)  # the cores are for the other workers


log = logging.getLogger(__name__)


def preprocess(corpus: Corpus, options: TokenizerSource, *, overwrite: bool = False) -> PreprocessedData:
    """The corpus' preprocessed folder, made if it is not there yet.

    Done before with the same inputs and settings, it is only opened. With other inputs or settings InputError
    lists every change, or with overwrite the folder is replaced. Interrupted or failing, it leaves the folder as
    it was, and the next call goes on with the shards that are done; of several processes one builds, the others wait.
    """
    folder = preprocessed_folder(corpus, options)
    wanted = {
        "format": FORMAT,
        "settings": {"data": corpus.settings(), "tokenizer": options.settings()},
        "inputs": _inputs(corpus, _known_stamps(read_manifest(folder))),
    }
    if _up_to_date(folder, wanted, overwrite):
        log.info("%s is up to date", folder)
        return _weighed(read_preprocessed(folder), corpus)
    try:
        with building_lock(folder):
            # Asked again: another process may have made it while we waited.
            if not _up_to_date(folder, wanted, overwrite):
                log.info("preparing %s", folder)
                _prepare(folder, corpus, options, wanted)
    except OSError as error:
        raise InputError(f"{folder}: cannot be preprocessed: {error.strerror or error}") from error
    preprocessed = _weighed(read_preprocessed(folder), corpus)
    log.info("%s: %s", folder, preprocessed.report.counts())
    return preprocessed


def _weighed(preprocessed: PreprocessedData, corpus: Corpus) -> PreprocessedData:
    weights = [part.weight for part in corpus.training_parts().values()]
    pairs = zip(preprocessed.corpus_spans, weights, strict=True)
    return replace(preprocessed, corpus_spans=[replace(span, weight=weight) for span, weight in pairs])


def _prepare(folder: Path, corpus: Corpus, options: TokenizerSource, wanted: dict[str, Any]) -> None:
    work = work_folder(folder)
    _resume_work(work, wanted)
    try:
        with built_folder(folder) as temporary:
            _build(temporary, work, corpus, options, wanted)
    except (KeyboardInterrupt, OSError, UnreadableFileError) as error:
        if not isinstance(error, KeyboardInterrupt) and not _holds_work(work):
            shutil.rmtree(work)
            raise
        log.info("stopped; what is done lies in %s, and the same command goes on with it", work)
        raise
    except InputError:
        shutil.rmtree(work)  # what was refused will be changed, and then nothing of this fits
        raise
    shutil.rmtree(work)


def _resume_work(work: Path, wanted: Mapping[str, Any]) -> None:
    """Makes the folder of what is done, or keeps it where it was done for the same inputs and settings."""
    description = work / "wanted.json"
    new = {**wanted, "versions": _versions(), "shard_pairs": SHARD_PAIRS}
    if description.is_file():
        old = json.loads(description.read_text(encoding="utf-8"))
        kept = {key: (old.get(key), new[key]) for key in ("versions", "shard_pairs")}
        if all(before == after for before, after in kept.values()) and not manifest_changes(old, new):
            log.info("going on with what lies in %s", work)
            return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        write_atomically(description, json.dumps(new).encode())
    except OSError:
        shutil.rmtree(work)
        raise


def _holds_work(work: Path) -> bool:
    """Whether anything is done that another attempt can use: tokenizers, or a shard."""
    return (work / "learned").is_dir() or any((work / "shards").glob("*.npz"))


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("gnmt", "sentencepiece", "numpy")}


def _up_to_date(folder: Path, wanted: Mapping[str, Any], overwrite: bool) -> bool:
    old = read_manifest(folder)
    if old is None:
        return False
    changes = manifest_changes(old, wanted)
    if not changes:
        return not overwrite or _opens(folder)  # overwrite mends a damaged folder too
    listed = f"{folder} was preprocessed from other inputs or settings:\n" + "\n".join(f"  {line}" for line in changes)
    if not overwrite:
        raise InputError(
            f"{listed}\nReplace it by scripts/prepare.py with the same settings and overwrite=true, "
            "or keep both with another data.preprocessed=FOLDER"
        )
    log.info("%s", listed)
    return False


def preprocessed_folder(corpus: Corpus, options: TokenizerSource) -> Path:
    """data.preprocessed, or preprocessed/<name>-<digest of everything that the config says of the text>."""
    if corpus.preprocessed is not None:
        return Path(corpus.preprocessed)
    said = {"data": corpus.settings(), "files": corpus.location(), "tokenizer": options.settings()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", corpus.name).lstrip(".-") or "corpus"
    return Path("preprocessed") / f"{name}-{digest[:8]}"


def _opens(folder: Path) -> bool:
    try:
        read_preprocessed(folder)
    except InputError:
        return False
    return True


def _inputs(corpus: Corpus, known: Mapping[str, FileStamp]) -> dict[str, Any]:
    problems: list[str] = []

    def fingerprint(text: ParallelText) -> dict[str, Any]:
        try:
            return text.fingerprint(known)
        except UnreadableFileError as error:  # all that are missing are named at once
            problems.extend(error.problems)
            return {}

    tests = {name: fingerprint(text) for name, text in corpus.test_texts().items()}
    dev, train = fingerprint(corpus.dev_text()), fingerprint(corpus.training_text())  # the long one last
    if problems:
        raise UnreadableFileError(*problems)
    return {"train": train, "dev": dev, "test": tests}


def _known_stamps(manifest: Mapping[str, Any] | None) -> dict[str, FileStamp]:
    if manifest is None or manifest["format"] != FORMAT:
        return {}
    files = [file for text in texts_of(manifest["inputs"]).values() for file in text.get("files", [])]
    return {file["path"]: FileStamp(file["path"], file["size"], file["mtime_ns"], file["sha256"]) for file in files}


def _build(folder: Path, work: Path, corpus: Corpus, options: TokenizerSource, wanted: dict[str, Any]) -> None:
    # Dev and test first: they are short, and an error in them shows before the long work.
    inputs = wanted["inputs"]
    dev = _write_text(folder / "dev", corpus.dev_text(), "data.dev", inputs["dev"])
    counts = {"dev": dev.num_pairs}
    for name, text in corpus.test_texts().items():
        written = _write_text(folder / "test" / name, text, f"data.test.{name}", inputs["test"][name])
        counts[f"test.{name}"] = written.num_pairs

    with naming_columns("data.train"):
        tokenizers = _tokenizers(work / "learned", corpus.training_text(), options, inputs["train"])
        write_tokenizers(folder, tokenizers)
        report, corpus_spans = encode_training_text(
            folder / "train", work / "shards", corpus.training_parts(), tokenizers, corpus.num_workers
        )
    write_report(folder, report)
    counts["train"] = report.num_kept
    store = Store.open(folder / "train")
    counts["train_source_tokens"] = int(store.source_lengths.sum(dtype="int64"))
    counts["train_target_tokens"] = int(store.target_lengths.sum(dtype="int64"))
    fingerprint = hashlib.sha256(f"{store.digest} {dev.digest} {tokenizers.digest}".encode()).hexdigest()
    unused = store.unused_target_ids(tokenizers.target.vocabulary_size)
    found = {"counts": counts, "versions": _versions(), "fingerprint": fingerprint, "unused_target_ids": unused}
    write_manifest(folder, {**wanted, **found, "pairs_per_corpus": corpus_spans})


def _write_text(folder: Path, text: ParallelText, key: str, fingerprint: Mapping[str, Any]) -> WrittenPairs:
    with naming_columns(key):
        written = write_pairs(folder, text.iterate())
    if written.num_with_text == 0:  # nothing could be measured on it
        raise _without_text(key, written.num_pairs, fingerprint)
    return written


def _without_text(key: str, num_pairs: int, fingerprint: Mapping[str, Any]) -> InputError:
    files = ", ".join(file["path"] for file in fingerprint.get("files", []))
    return InputError(
        f"{key} holds no sentence pair with text on both sides ({counted(num_pairs, 'pair')} read)"
        + (f": {files}" if files else "")
    )


def _tokenizers(
    folder: Path, text: ParallelText, options: TokenizerSource, fingerprint: Mapping[str, Any]
) -> Tokenizers:
    """Those that lie in the folder from an earlier attempt, or new ones, which are put there."""
    if not folder.is_dir():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_tokenizers(new, _make_tokenizers(text, options, fingerprint))
        new.rename(folder)
    return read_tokenizers(folder)


def _make_tokenizers(text: ParallelText, options: TokenizerSource, fingerprint: Mapping[str, Any]) -> Tokenizers:
    if isinstance(options, TokenizerFiles):
        return options.read()
    assert isinstance(options, TokenizerOptions)
    source, target = _sample(text, options.sample_lines, options.seed)
    if not source:
        raise _without_text("data.train", _num_pairs(text), fingerprint)
    log.info("learning a vocabulary of %d pieces from %s", options.vocab_size, counted(len(source), "pair"))
    return train_tokenizers(source, target, options)


def _sample(text: ParallelText, size: int, seed: int) -> tuple[list[str], list[str]]:
    """At most `size` pairs without blank sides, each as likely as any other, in corpus order.

    One pass and memory for the sample only: Vitter's algorithm R (1985).
    """
    rng = random.Random(seed)
    sample: list[NumberedPair] = []
    count = 0
    for number, (source, target) in enumerate(with_progress(text, "reading"), start=1):
        if not (source.strip() and target.strip()):
            continue
        count += 1
        place = len(sample) if count <= size else rng.randrange(count)
        if place < size:
            sample[place : place + 1] = [NumberedPair(number, source, target)]
    sample.sort(key=lambda pair: pair.number)
    return [pair.source for pair in sample], [pair.target for pair in sample]


def _num_pairs(text: ParallelText) -> int:
    return sum(1 for _ in text.iterate())
