"""Preprocessing: turn raw text into a preprocessed folder of token ids, in shards, with several processes.

`preprocess` opens the folder of a corpus if it was made from the same inputs and settings. Otherwise it builds the
folder:

1. Dev and test text are copied. The training text is sampled if the corpus says so. The tokenizers are learned from it,
   or from a sample of it if it is large, or exist already.
2. `encode_training_text` reads the training text in shards of `SHARD_PAIRS` pairs. The main process cleans each shard
   by its text, worker processes encode it and clean it by its ids, and the main process appends it to the store.
3. The folder, which has a temporary name until then, is renamed when it is complete.

A work folder beside the result keeps the tokenizers and the finished shards, so that the same command resumes after an
interruption.
"""

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, compress, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gnmt.data.changed_lines import ChangedLines, changed_lines
from gnmt.data.cleaning import Cleaner, Cleaning, CleaningReport, NumberedPair
from gnmt.data.corpora import Corpus, DirectedText, WeightedText
from gnmt.data.held_out import FoundSentences, HeldOutSentences, overlap_of
from gnmt.data.parallel_text import ParallelText, naming_columns
from gnmt.data.sampling import SampledText, sample
from gnmt.data.store import (
    FORMAT,
    SIDES,
    DamagedDataError,
    EncodedSide,
    PreprocessedData,
    Store,
    StoreWriter,
    WrittenPairs,
    check_format,
    encoded_side,
    manifest_changes,
    read_manifest,
    read_pairs,
    read_preprocessed,
    read_tokenizers,
    texts_of,
    verify_preprocessed,
    write_manifest,
    write_pairs,
    write_report,
    write_tokenizers,
)
from gnmt.data.tokenizer import (
    CheckpointTokenizers,
    ExistingTokenizers,
    TokenizerOptions,
    Tokenizers,
    TokenizerSource,
    train_tokenizers,
)
from gnmt.errors import InputError, format_count
from gnmt.fileio import (
    FileFingerprint,
    UnreadableFileError,
    building_lock,
    built_folder,
    replacing,
    short_hash,
    work_folder,
    write_atomically,
)
from gnmt.logs import own_rank, progress_bar, wait_for
from gnmt.signals import block_signals_in_children

log = logging.getLogger(__name__)

SHARD_PAIRS = 1 << 15
"""Number of pairs that are read, encoded and written together."""

_TOKENIZERS, _SHARDS, _RECIPE = "tokenizers", "shards", "recipe.json"  # in the work folder

T = TypeVar("T")


# The preprocessed folder of a corpus


def preprocess(corpus: Corpus, options: TokenizerSource, *, overwrite: bool = False) -> PreprocessedData:
    """Open the preprocessed folder of a corpus, and build it first unless inputs and settings are unchanged.

    If several processes call this at once, one builds the folder and the others wait. An interruption or an error
    leaves the folder unchanged. Unless the input was wrong, the next call resumes with the finished shards.

    Args:
        corpus: The texts, and the path of the folder.
        options: Settings to learn the tokenizers, or where existing ones are.
        overwrite: Whether to replace a folder that was made from other inputs or settings, or that is damaged.

    Raises:
        InputError: Text cannot be read, or cleaning drops all of it; the language of the dev references is not that of
            the corpus, see `Corpus.check_references`; the folder was made from other inputs or settings,
            which the message lists, or cannot be written; a worker was killed.
    """
    folder = preprocessed_folder(corpus, options)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if read_manifest(folder) is None and not os.access(existing, os.W_OK):  # found before the inputs are read
        raise InputError(f"{folder}: cannot be preprocessed: {existing} is not writable; see data.preprocessed=")
    recipe = {
        "format": FORMAT,
        "settings": {"data": corpus.settings(), "tokenizer": _tokenizer_settings(folder, options)},
        "inputs": _fingerprint_inputs(corpus, _known_fingerprints(read_manifest(folder))),
    }
    if _is_up_to_date(folder, recipe, overwrite):
        preprocessed = _with_weights(read_preprocessed(folder), corpus)
        log.info("%s is up to date", folder)
        corpus.check_references(target for _, target in preprocessed.dev)
        _report(preprocessed)
        return preprocessed
    try:
        with building_lock(folder):
            # Check again: another process may have built the folder while this one waited for the lock.
            if not _is_up_to_date(folder, recipe, overwrite):
                log.info("preprocessing into %s", folder)
                _build(folder, corpus, options, recipe)
    except OSError as error:
        raise InputError(f"{folder}: cannot be preprocessed: {error.strerror or error}") from error
    preprocessed = _with_weights(read_preprocessed(folder), corpus)
    log.info("%s: %s", folder, preprocessed.report.counts())
    _report(preprocessed)
    return preprocessed


def _report(preprocessed: PreprocessedData) -> None:
    """Log what the user should know about the text. Only rank 0 does: all ranks read the same text."""
    if own_rank() == 0:
        _report_changed_lines(preprocessed)
        _report_overlaps(preprocessed)


def _report_changed_lines(preprocessed: PreprocessedData) -> None:
    """Log the lines that the tokenizers change, as a warning if a text has many."""
    for text, changed in preprocessed.changed_lines.items():
        side = text.rpartition(".")[2]
        if changed.num_changed:
            level = logging.WARNING if changed.is_too_many(side) else logging.INFO
            log.log(level, "%s", changed.describe(f"data.{text}", side))


def _report_overlaps(preprocessed: PreprocessedData) -> None:
    """Log the dev and test lines that stand in the training text, as a warning if a set has many."""
    overlaps = {f"data.{name}": overlap for name, overlap in preprocessed.report.overlaps.items()}
    known = [overlap.counts(name) for name, overlap in overlaps.items() if overlap.num_sources]
    if known:
        is_warning = any(overlap.is_too_large for overlap in overlaps.values())
        log.log(
            logging.WARNING if is_warning else logging.INFO,
            "%s; scores on these lines say little about new text: remove the pairs from the training files with the "
            "command in docs/own-data.md, or choose other dev and test sets; nothing was removed",
            "; ".join(known),
        )


def _tokenizer_settings(folder: Path, options: TokenizerSource) -> dict[str, Any]:
    """Return the settings of the tokenizers; if the folder holds those of the checkpoint, the ones it has recorded.

    So a run that starts from the weights of another one can use the same preprocessed data.
    """
    manifest = read_manifest(folder)
    if isinstance(options, CheckpointTokenizers) and manifest is not None and manifest["format"] == FORMAT:
        with suppress(OSError, InputError):  # a damaged folder is reported when it is opened
            if CheckpointTokenizers(read_tokenizers(folder)).settings() == options.settings():
                recorded: dict[str, Any] = manifest["settings"]["tokenizer"]
                return recorded
    return options.settings()


def preprocessed_folder(corpus: Corpus, options: TokenizerSource) -> Path:
    """Return data.preprocessed, or by default preprocessed/<name>-<hash of the settings and of the text's paths>."""
    if corpus.preprocessed is not None:
        return Path(corpus.preprocessed)
    settings = {"data": corpus.settings(), "files": corpus.named_files(), "tokenizer": options.settings()}
    name = re.sub(r"[^A-Za-z0-9._-]", "-", corpus.name).lstrip(".-") or "corpus"
    return Path("preprocessed") / f"{name}-{short_hash(json.dumps(settings, sort_keys=True))}"


def _with_weights(preprocessed: PreprocessedData, corpus: Corpus) -> PreprocessedData:
    """Return the data with the weights of the corpus's config, which the folder does not record."""
    weights = corpus.weights([span.num_pairs for span in preprocessed.corpus_spans])
    spans = [replace(span, weight=weight) for span, weight in zip(preprocessed.corpus_spans, weights, strict=True)]
    return replace(preprocessed, corpus_spans=spans)


def _is_up_to_date(folder: Path, recipe: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether the folder was made from this recipe; raise InputError if it was not and must be kept."""
    old = read_manifest(folder)
    if old is None:
        return False
    if old["format"] != FORMAT and overwrite:
        return False
    check_format(folder, old)
    changes = manifest_changes(old, recipe)
    if not changes:
        return not overwrite or _is_intact_folder(folder)  # overwrite=true repairs a damaged folder
    listed = f"{folder} was preprocessed from other inputs or settings:\n" + "\n".join(f"  {line}" for line in changes)
    if not overwrite:
        raise InputError(
            f"{listed}\nReplace it with scripts/prepare.py, the same settings and overwrite=true, or keep both with "
            "another data.preprocessed=FOLDER"
        )
    log.info("%s", listed)
    return False


def _is_intact_folder(folder: Path) -> bool:
    """Return whether all files of the folder are intact."""
    try:
        verify_preprocessed(folder)
    except DamagedDataError as error:
        log.info("%s", error)
        return False
    return True


def _fingerprint_inputs(corpus: Corpus, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
    """Return the fingerprints of all texts, or raise one UnreadableFileError for all unreadable files."""
    problems: list[str] = []

    def fingerprint(text: ParallelText) -> dict[str, Any]:
        try:
            return text.fingerprint(known)
        except UnreadableFileError as error:
            problems.extend(error.problems)
            return {}

    tests = {name: fingerprint(text) for name, text in corpus.test_texts().items()}
    dev, train = fingerprint(corpus.dev_text()), fingerprint(corpus.training_text())
    if problems:
        raise UnreadableFileError(*problems)
    return {"train": train, "dev": dev, "test": tests}


def _known_fingerprints(manifest: Mapping[str, Any] | None) -> dict[str, FileFingerprint]:
    """Return the fingerprints of files in a manifest by path, so that unchanged files are not hashed again."""
    if manifest is None or manifest["format"] != FORMAT:
        return {}
    files = [file for text in texts_of(manifest["inputs"]).values() for file in text.get("files", [])]
    return {
        file["path"]: FileFingerprint(file["path"], file["size"], file["mtime_ns"], file["sha256"]) for file in files
    }


# Building the folder


def _build(folder: Path, corpus: Corpus, options: TokenizerSource, recipe: dict[str, Any]) -> None:
    """Build the folder. After an interruption the work folder remains if the next call can resume from it."""
    work = work_folder(folder)
    _open_work_folder(work, recipe)
    try:
        with built_folder(folder) as temporary:
            _fill_folder(temporary, work, corpus, options, recipe)
    except (KeyboardInterrupt, OSError, UnreadableFileError) as error:
        has_results = (work / _TOKENIZERS).is_dir() or any((work / _SHARDS).glob("*.npz"))
        if isinstance(error, KeyboardInterrupt) or has_results:
            log.info("preprocessing stopped; the same command resumes from %s", work)
        else:
            shutil.rmtree(work)
        raise
    except InputError:
        shutil.rmtree(work)  # the input must change, and then the results no longer fit
        raise
    shutil.rmtree(work)


def _open_work_folder(work: Path, recipe: Mapping[str, Any]) -> None:
    """Make an empty work folder, or keep an existing one that was made from the same recipe."""
    new = {**recipe, "versions": _versions(), "shard_pairs": SHARD_PAIRS}
    if (work / _RECIPE).is_file():
        old = json.loads((work / _RECIPE).read_text(encoding="utf-8"))
        same_program = all(old.get(key) == new[key] for key in ("versions", "shard_pairs"))
        if same_program and not manifest_changes(old, new):
            log.info("resuming preprocessing from %s", work)
            return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        write_atomically(work / _RECIPE, json.dumps(new).encode())
    except OSError:
        shutil.rmtree(work)
        raise


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("gnmt", "sentencepiece", "numpy")}


def _fill_folder(folder: Path, work: Path, corpus: Corpus, options: TokenizerSource, recipe: dict[str, Any]) -> None:
    """Write all files of the preprocessed folder, and the manifest last."""
    # Dev and test text come first: they are short, so their errors appear before the long work.
    inputs = recipe["inputs"]
    dev = _write_raw_text(folder / "dev", corpus.dev_text(), "data.dev", inputs["dev"])
    with naming_columns("data.dev"):
        corpus.check_references(target for _, target in corpus.dev_text().iterate())
    counts = {"dev": dev.num_pairs}
    for name, text in corpus.test_texts().items():
        written = _write_raw_text(folder / "test" / name, text, f"data.test.{name}", inputs["test"][name])
        counts[f"test.{name}"] = written.num_pairs

    held_out = {name: read_pairs(folder / name.replace(".", "/", 1)) for name in counts}
    with naming_columns("data.train"):
        texts = _sampled_texts(corpus)
        tokenizers = _tokenizers(work / _TOKENIZERS, texts, options, corpus.target_languages, inputs["train"])
        write_tokenizers(folder, tokenizers)
        encoded = encode_training_text(
            folder / "train", work / _SHARDS, texts, tokenizers, HeldOutSentences(held_out), corpus.num_workers
        )
    overlaps = {name: overlap_of(lines, encoded.found) for name, lines in held_out.items()}
    write_report(folder, replace(encoded.report, overlaps=overlaps))
    store = Store(folder / "train")
    counts["train"] = encoded.report.num_kept
    counts["train_source_tokens"] = int(store.source_lengths.sum(dtype="int64"))
    counts["train_target_tokens"] = int(store.target_lengths.sum(dtype="int64"))
    changed = {f"train.{side}": lines for side, lines in encoded.changed_lines.items()}
    for name, lines in held_out.items():
        changed[f"{name}.target"] = changed_lines(tokenizers.target, [target for _, target in lines])
    fingerprint = hashlib.sha256(f"{store.digest} {dev.digest} {tokenizers.digest}".encode()).hexdigest()
    results = {
        "counts": counts,
        "versions": _versions(),
        "fingerprint": fingerprint,
        "unused_target_ids": store.unused_target_ids(tokenizers.target.vocabulary_size),
        "pairs_per_corpus": encoded.pairs_per_corpus,
        "changed_lines": {text: lines.to_json() for text, lines in changed.items()},
        "directions": [asdict(direction) for direction in corpus.directions()],
    }
    write_manifest(folder, {**recipe, **results})


def _write_raw_text(folder: Path, text: ParallelText, key: str, fingerprint: Mapping[str, Any]) -> WrittenPairs:
    """Write a dev or test text; raise InputError if no pair has text on both sides."""
    with naming_columns(key):
        written = write_pairs(folder, text.iterate())
    if written.num_with_text == 0:  # neither loss nor BLEU could be measured on it
        raise _empty_text_error(key, written.num_pairs, fingerprint)
    return written


def _empty_text_error(key: str, num_pairs: int, fingerprint: Mapping[str, Any]) -> InputError:
    files = ", ".join(file["path"] for file in fingerprint.get("files", []))
    return InputError(
        f"{key} holds no sentence pair with text on both sides ({format_count(num_pairs, 'pair')} read)"
        + (f": {files}" if files else "")
    )


# The sample of the training text


def _sampled_texts(corpus: Corpus) -> dict[str, WeightedText]:
    """Return the training texts of a corpus, reduced to a sample of `max_pairs` pairs.

    All pairs are read once to count them. Raises InputError if a text of a mixture has no pair in the sample.
    """
    texts, size = corpus.training_texts(), corpus.max_pairs
    if size is None:
        return texts
    num_pairs = [sum(1 for _ in _iterate_with_bar(text.text, "counting")) for text in texts.values()]
    if size >= sum(num_pairs):
        log.info(
            "data.max_pairs=%d: there are only %s, all are used", size, format_count(sum(num_pairs), "training pair")
        )
        return texts
    log.info("data.max_pairs=%d: a random sample of the %d training pairs is used", size, sum(num_pairs))
    sampled = {}
    for (name, text), is_sampled_N in zip(texts.items(), sample(num_pairs, size), strict=True):
        if not is_sampled_N.any():
            raise InputError(
                f"data.corpora.{name}: none of its {format_count(len(is_sampled_N), 'pair')} is in the sample of "
                f"data.max_pairs={size} from all {sum(num_pairs)}: raise data.max_pairs, or leave out this text"
            )
        sampled[name] = replace(text, text=SampledText(text.text, is_sampled_N))
    return sampled


# Tokenizers


def _tokenizers(
    folder: Path,
    texts: Mapping[str, WeightedText],
    options: TokenizerSource,
    languages: Sequence[str],
    fingerprint: Mapping[str, Any],
) -> Tokenizers:
    """Return the tokenizers in `folder`, and make them first unless an earlier attempt has."""
    if not folder.is_dir():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_tokenizers(new, _make_tokenizers(texts, options, languages, fingerprint))
        new.rename(folder)
    return read_tokenizers(folder)


def _make_tokenizers(
    texts: Mapping[str, WeightedText],
    options: TokenizerSource,
    languages: Sequence[str],
    fingerprint: Mapping[str, Any],
) -> Tokenizers:
    """Return existing tokenizers, or learn them from a sample of the texts, with a tag for each of the languages."""
    if isinstance(options, ExistingTokenizers):
        tokenizers = options.read()
        check_tags(tokenizers, languages)
        return tokenizers
    assert isinstance(options, TokenizerOptions)
    source, target, num_pairs = _sample_lines(texts, options.sample_lines, options.seed)
    if not source:
        raise _empty_text_error("data.train", num_pairs, fingerprint)
    log.info("learning a vocabulary of %d subwords from %s", options.vocab_size, format_count(len(source), "pair"))
    return train_tokenizers(source, target, options, languages)


def check_tags(tokenizers: Tokenizers, languages: Sequence[str]) -> None:
    """Raise InputError if existing tokenizers lack the tag of a language, or have tags that the data does not use."""
    tags = tokenizers.tags
    if missing := [language for language in languages if language not in tags]:
        found = f"only tags for {', '.join(sorted(tags))}" if tags else "no tags of target languages"
        raise InputError(
            f"the existing tokenizers have {found}, and the data translates into {missing[0]} too: a tag cannot be "
            "added to them; use only languages with a tag, or learn new tokenizers"
        )
    if tags and not languages:
        raise InputError(
            f"the existing tokenizers have tags of target languages ({', '.join(sorted(tags))}), which a multilingual "
            "model needs before every source: use data=multilingual, perhaps with a single corpus"
        )


def _sample_lines(texts: Mapping[str, WeightedText], size: int, seed: int) -> tuple[list[str], list[str], int]:
    """Draw at most `size` pairs without blank sides, all with equal probability.

    The texts are read once, and only the sample is held in memory: algorithm R of Vitter (1985).

    Returns:
        The lines of each side in the order of the texts, and the number of all pairs, with the blank ones.
    """
    rng = random.Random(seed)
    sampled: list[NumberedPair] = []
    number = count = 0
    pairs = chain.from_iterable(_iterate_with_bar(text.text, "reading") for text in texts.values())
    for number, (source, target) in enumerate(pairs, start=1):
        if not (source.strip() and target.strip()):
            continue
        count += 1
        index = len(sampled) if count <= size else rng.randrange(count)
        if index < size:
            sampled[index : index + 1] = [NumberedPair(number, source, target)]
    sampled.sort(key=lambda pair: pair.number)
    return [pair.source for pair in sampled], [pair.target for pair in sampled], number


def _iterate_with_bar(text: ParallelText, description: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a text and draw a progress bar."""
    yield from progress_bar(text.iterate(), description=description, unit=" pairs", unit_scale=True, leave=False)


# Encoding the training text


SubmitShard = Callable[[list[NumberedPair], Cleaning, str | None, Path], "Future[None]"]


class _Shard(NamedTuple):
    """A submitted shard.

    Args:
        corpus_index: Index of the shard's corpus.
        text_report: Pairs that cleaning dropped by their text.
        encoded: A future that is done when the file at `path` is written.
        path: File of the encoded shard.
    """

    corpus_index: int
    text_report: CleaningReport
    encoded: Future[None]
    path: Path


class EncodedText(NamedTuple):
    """Facts about the training text that was written into a store.

    Args:
        report: The cleaning report, with pairs numbered within their corpus.
        pairs_per_corpus: Number of kept pairs of each corpus.
        changed_lines: By side, the kept lines that its tokenizer changes.
        found: The sentences of dev and test sets that are among the kept pairs.
    """

    report: CleaningReport
    pairs_per_corpus: list[int]
    changed_lines: dict[str, ChangedLines]
    found: FoundSentences


def encode_training_text(
    folder: Path,
    shard_folder: Path,
    corpora: Mapping[str, WeightedText],
    tokenizers: Tokenizers,
    held_out: HeldOutSentences,
    num_workers: int,
) -> EncodedText:
    """Clean and encode the training text into a store.

    Args:
        folder: Folder of the store, which must not exist.
        shard_folder: Folder of the encoded shards; intact files of an earlier attempt are used again.
        corpora: The corpora by name.
        tokenizers: The tokenizers of both sides.
        held_out: Sentences of dev and test sets to search for.
        num_workers: Number of processes that encode; 1 encodes in this process.

    Raises:
        InputError: Cleaning drops all pairs of a corpus, or text cannot be read.
        ChildProcessError: A worker was killed.
    """
    folder.mkdir()
    shard_folder.mkdir(parents=True, exist_ok=True)
    reports = [CleaningReport() for _ in corpora]
    changed, found = {side: ChangedLines() for side in SIDES}, FoundSentences()
    sizes = (tokenizers.source.vocabulary_size, tokenizers.target.vocabulary_size)
    with StoreWriter(folder, *sizes) as writer, _shard_encoder(tokenizers, held_out, num_workers) as submit:
        for shard in _submit_shards(list(corpora.values()), shard_folder, submit, max_pending=num_workers + 1):
            wait_for(partial(_is_done, shard.encoded), lambda: "the processes that encode the training text")
            shard.encoded.result()
            encoded = _read_shard(shard.path)
            writer.append(encoded.source, encoded.target)
            reports[shard.corpus_index].add(shard.text_report)
            reports[shard.corpus_index].add(encoded.report)
            for side in SIDES:
                changed[side].add(encoded.changed_lines[side])
            found.add(encoded.found)
    total = CleaningReport()
    for (name, corpus), report in zip(corpora.items(), reports, strict=True):
        if report.num_kept == 0:
            is_mixture = len(corpora) > 1
            text_key = f"data.corpora.{name}" if is_mixture else "data.train"
            cleaning_key = f"data.corpora.{name}.cleaning" if is_mixture else "data.cleaning"
            rules = report.rules(corpus.cleaning, cleaning_key)
            raise InputError(f"{text_key}: no pair is left after cleaning: {report.counts()}\n{rules}")
        total.add(report)
    return EncodedText(total, [report.num_kept for report in reports], changed, found)


def _submit_shards(
    corpora: Sequence[WeightedText], shard_folder: Path, submit: SubmitShard, max_pending: int
) -> Iterator[_Shard]:
    """Submit all shards and yield them in order; at most `max_pending` shards are submitted ahead."""
    pending: deque[_Shard] = deque()
    for corpus_index, corpus in enumerate(corpora):
        cleaner = Cleaner(corpus.cleaning)
        numbers = corpus.text.numbers() if isinstance(corpus.text, SampledText) else count(1)
        text = zip(_iterate_with_bar(corpus.text, "encoding"), numbers, strict=False)
        pairs = (NumberedPair(number, source, target) for (source, target), number in text)
        for shard_index, shard_pairs in enumerate(batched(pairs, SHARD_PAIRS)):
            path = shard_folder / f"{corpus_index:02d}-{shard_index:06d}.npz"
            text_report, kept_pairs = cleaner.by_text(shard_pairs)
            language = corpus.target_language if isinstance(corpus, DirectedText) else None
            encoded = _finished() if _is_intact(path) else submit(kept_pairs, corpus.cleaning, language, path)
            pending.append(_Shard(corpus_index, text_report, encoded, path))
            if len(pending) > max_pending:
                yield pending.popleft()
    yield from pending


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split the items into lists of `size`, the last one shorter (itertools.batched of Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _is_done(future: Future[None], seconds: float) -> bool:
    """Wait for at most this time until a future is done, and return whether it is."""
    return bool(wait([future], seconds).done)


def _finished() -> Future[None]:
    """Return a future that is done."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _is_intact(path: Path) -> bool:
    """Return whether an earlier attempt wrote this shard completely."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def encode_shard(
    pairs: Sequence[NumberedPair],
    tokenizers: Tokenizers,
    held_out: HeldOutSentences,
    cleaning: Cleaning,
    language: str | None,
    path: Path,
    num_threads: int = -1,
) -> None:
    """Encode pairs, clean them by their ids, and write the kept pairs with reports to `path`.

    Args:
        pairs: The pairs.
        tokenizers: The tokenizers of both sides.
        held_out: Sentences of dev and test sets to search for among the kept pairs.
        cleaning: The rules.
        language: The language that the tag before each source names; None for no tag.
        path: The file.
        num_threads: Number of threads that encode; -1 for one per core.
    """
    cleaner, prefix = Cleaner(cleaning), tokenizers.into(language).source_prefix
    sides = [
        tokenizers.source.encode_all([pair.source for pair in pairs], num_threads),
        tokenizers.target.encode_all([pair.target for pair in pairs], num_threads),
    ]
    report = CleaningReport()
    keep = [
        cleaner.keeps(pair, len(prefix) + len(source), len(target), report)
        for pair, source, target in zip(pairs, *sides, strict=True)
    ]
    arrays: dict[str, NDArray[Any]] = {}
    kept_pairs = list(compress(pairs, keep))
    numbers = [pair.number for pair in kept_pairs]
    found = held_out.find_in((pair.source, pair.target) for pair in kept_pairs)
    reports: dict[str, Any] = {"cleaning": report.to_json(), "found": found.to_json()}
    for side, tokenizer, ids in zip(SIDES, tokenizers[:2], sides, strict=True):
        kept_ids = list(compress(ids, keep))
        texts = [getattr(pair, side) for pair in kept_pairs]
        stored_ids = [prefix + of_text for of_text in kept_ids] if side == "source" and prefix else kept_ids
        arrays |= {f"{side}.{name}": array for name, array in encoded_side(stored_ids, texts)._asdict().items()}
        reports[side] = changed_lines(tokenizer, texts, kept_ids, numbers, num_threads).to_json()
    report_bytes = np.frombuffer(json.dumps(reports).encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, reports=report_bytes, **arrays)  # type: ignore[arg-type]


class _EncodedShard(NamedTuple):
    """The contents of a file that `encode_shard` wrote; see EncodedText for the last three."""

    source: EncodedSide
    target: EncodedSide
    report: CleaningReport
    changed_lines: dict[str, ChangedLines]
    found: FoundSentences


def _read_shard(path: Path) -> _EncodedShard:
    """Read the file that `encode_shard` wrote."""
    with np.load(path) as arrays:
        source, target = (EncodedSide(*(arrays[f"{side}.{name}"] for name in EncodedSide._fields)) for side in SIDES)
        reports = json.loads(arrays["reports"].tobytes())
    changed = {side: ChangedLines(**reports[side]) for side in SIDES}
    report, found = CleaningReport.from_json(reports["cleaning"]), FoundSentences.from_json(reports["found"])
    return _EncodedShard(source, target, report, changed, found)


# Worker processes


@contextmanager
def _shard_encoder(tokenizers: Tokenizers, held_out: HeldOutSentences, num_workers: int) -> Iterator[SubmitShard]:
    """Yield a function that submits `encode_shard` to worker processes; with num_workers=1 it encodes at once."""
    if num_workers == 1:

        def encode_now(pairs: list[NumberedPair], cleaning: Cleaning, language: str | None, path: Path) -> Future[None]:
            encode_shard(pairs, tokenizers, held_out, cleaning, language, path)
            return _finished()

        yield encode_now
        return
    # Spawned, not forked: this process has threads, and a forked child may inherit a lock that is never released.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (tokenizers, held_out))

    def submit(pairs: list[NumberedPair], cleaning: Cleaning, language: str | None, path: Path) -> Future[None]:
        with block_signals_in_children():  # submitting may start a worker
            return executor.submit(_encode_in_worker, pairs, cleaning, language, path)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that encodes the text was killed, probably because memory ran out; the same command resumes "
            f"with the finished shards; fewer processes need less memory: data.num_workers={num_workers - 1}"
        ) from error
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.kill()  # otherwise `shutdown` would wait for them, even if they hang
        raise
    finally:
        executor.shutdown(cancel_futures=True)


_worker_arguments: tuple[Tokenizers, HeldOutSentences]  # set in each worker process


def _start_worker(tokenizers: Tokenizers, held_out: HeldOutSentences) -> None:
    """Keep the arguments that are the same for all shards of this worker, and let the worker exit with its parent."""
    global _worker_arguments
    _worker_arguments = (tokenizers, held_out)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Exit when the parent exits. A worker whose parent was killed would otherwise wait forever."""
    parent.join()
    os._exit(1)


def _encode_in_worker(pairs: list[NumberedPair], cleaning: Cleaning, language: str | None, path: Path) -> None:
    # One thread, because workers run in parallel.
    encode_shard(pairs, *_worker_arguments, cleaning, language, path, num_threads=1)
