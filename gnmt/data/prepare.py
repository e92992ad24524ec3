"""Raw text to a prepared folder: tokenizer, cleaned and encoded training pairs, raw dev and test text."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnmt.data import encoding
from gnmt.data.changes import describe_changes, texts_of
from gnmt.data.cleaning import NumberedPair
from gnmt.data.corpus import ParallelText, naming_columns
from gnmt.data.encoding import encode_training_text, with_progress
from gnmt.data.folders import built_folder, locked, work_folder
from gnmt.data.lines import FileStamp, UnreadableFileError
from gnmt.data.prepared import (
    FORMAT,
    Prepared,
    WrittenPairs,
    read_manifest,
    read_prepared,
    read_tokenizers,
    write_manifest,
    write_pairs,
    write_report,
    write_tokenizers,
)
from gnmt.data.sources import Corpus
from gnmt.data.store import Store
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, TokenizerSource, train_tokenizers
from gnmt.data.tokenizer_files import TokenizerFiles
from gnmt.files import write_atomically
from gnmt.types import InputError, counted

log = logging.getLogger(__name__)


def prepare(corpus: Corpus, options: TokenizerSource, *, overwrite: bool = False) -> Prepared:
    """The corpus' prepared folder, made if it is not there yet.

    Done before with the same inputs and settings, it is only opened. With other inputs or settings InputError
    lists every change, or with overwrite the folder is replaced. Interrupted or failing, it leaves the folder as
    it was, and the next call goes on with the shards that are done; of several processes one builds, the others wait.
    """
    folder = prepared_folder(corpus, options)
    wanted = {
        "format": FORMAT,
        "settings": {"data": corpus.settings(), "tokenizer": options.settings()},
        "inputs": _inputs(corpus, _known_stamps(read_manifest(folder))),
    }
    if _up_to_date(folder, wanted, overwrite):
        log.info("%s is up to date", folder)
        return _weighed(read_prepared(folder), corpus)
    try:
        with locked(folder):
            # Asked again: another process may have made it while we waited.
            if not _up_to_date(folder, wanted, overwrite):
                log.info("preparing %s", folder)
                _prepare(folder, corpus, options, wanted)
    except OSError as error:
        raise InputError(f"{folder}: cannot be prepared: {error.strerror or error}") from error
    prepared = _weighed(read_prepared(folder), corpus)
    log.info("%s: %s", folder, prepared.report.counts())
    return prepared


def _weighed(prepared: Prepared, corpus: Corpus) -> Prepared:
    weights = [part.weight for part in corpus.training_parts().values()]
    pairs = zip(prepared.segments, weights, strict=True)
    return replace(prepared, segments=[replace(segment, weight=weight) for segment, weight in pairs])


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
    new = {**wanted, "versions": _versions(), "shard_pairs": encoding.SHARD_PAIRS}
    if description.is_file():
        old = json.loads(description.read_text(encoding="utf-8"))
        kept = {key: (old.get(key), new[key]) for key in ("versions", "shard_pairs")}
        if all(before == after for before, after in kept.values()) and not describe_changes(old, new):
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
    return (work / "learnt").is_dir() or any((work / "shards").glob("*.npz"))


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("gnmt", "sentencepiece", "numpy")}


def _up_to_date(folder: Path, wanted: Mapping[str, Any], overwrite: bool) -> bool:
    old = read_manifest(folder)
    if old is None:
        return False
    changes = describe_changes(old, wanted)
    if not changes:
        return not overwrite or _opens(folder)  # overwrite mends a damaged folder too
    listed = f"{folder} was prepared from other inputs or settings:\n" + "\n".join(f"  {line}" for line in changes)
    if not overwrite:
        raise InputError(
            f"{listed}\nReplace it by scripts/prepare.py with the same settings and overwrite=true, "
            "or keep both with another data.prepared=FOLDER"
        )
    log.info("%s", listed)
    return False


def prepared_folder(corpus: Corpus, options: TokenizerSource) -> Path:
    """data.prepared, or prepared/<name>-<digest of everything that the config says of the text>."""
    if corpus.prepared is not None:
        return Path(corpus.prepared)
    said = {"data": corpus.settings(), "files": corpus.location(), "tokenizer": options.settings()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]", "-", corpus.name).lstrip(".-") or "corpus"
    return Path("prepared") / f"{name}-{digest[:8]}"


def _opens(folder: Path) -> bool:
    try:
        read_prepared(folder)
    except InputError:
        return False
    return True


def _inputs(corpus: Corpus, known: Mapping[str, FileStamp]) -> dict[str, Any]:
    problems: list[str] = []

    def identity(text: ParallelText) -> dict[str, Any]:
        try:
            return text.identity(known)
        except UnreadableFileError as error:  # all that are missing are named at once
            problems.extend(error.problems)
            return {}

    tests = {name: identity(text) for name, text in corpus.test_texts().items()}
    dev, train = identity(corpus.dev_text()), identity(corpus.training_text())  # the long one last
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
        tokenizers = _tokenizers(work / "learnt", corpus.training_text(), options, inputs["train"])
        write_tokenizers(folder, tokenizers)
        report, segments = encode_training_text(
            folder / "train", work / "shards", corpus.training_parts(), tokenizers, corpus.num_workers
        )
    write_report(folder, report)
    counts["train"] = report.num_kept
    store = Store.open(folder / "train")
    counts["train_source_tokens"] = int(store.source_lengths.sum(dtype="int64"))
    counts["train_target_tokens"] = int(store.target_lengths.sum(dtype="int64"))
    identity = hashlib.sha256(f"{store.digest} {dev.digest} {tokenizers.digest}".encode()).hexdigest()
    unused = store.unused_target_ids(tokenizers.target.vocabulary_size)
    found = {"counts": counts, "versions": _versions(), "identity": identity, "unused_target_ids": unused}
    write_manifest(folder, {**wanted, **found, "segments": segments})


def _write_text(folder: Path, text: ParallelText, key: str, identity: Mapping[str, Any]) -> WrittenPairs:
    with naming_columns(key):
        written = write_pairs(folder, text.iterate())
    if written.num_with_text == 0:  # nothing could be measured on it
        raise _without_text(key, written.num_pairs, identity)
    return written


def _without_text(key: str, num_pairs: int, identity: Mapping[str, Any]) -> InputError:
    files = ", ".join(file["path"] for file in identity.get("files", []))
    return InputError(
        f"{key} holds no sentence pair with text on both sides ({counted(num_pairs, 'pair')} read)"
        + (f": {files}" if files else "")
    )


def _tokenizers(folder: Path, text: ParallelText, options: TokenizerSource, identity: Mapping[str, Any]) -> Tokenizers:
    """Those that lie in the folder from an earlier attempt, or new ones, which are put there."""
    if not folder.is_dir():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        write_tokenizers(new, _make_tokenizers(text, options, identity))
        new.rename(folder)
    return read_tokenizers(folder)


def _make_tokenizers(text: ParallelText, options: TokenizerSource, identity: Mapping[str, Any]) -> Tokenizers:
    if isinstance(options, TokenizerFiles):
        return options.read()
    assert isinstance(options, TokenizerOptions)
    source, target = _sample(text, options.sample_lines, options.seed)
    if not source:
        raise _without_text("data.train", _num_pairs(text), identity)
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
