"""Preprocessed data on disk: the folder, its manifest, and the memory-mapped training pairs.

A preprocessed folder contains:

    manifest.json                        format, settings, inputs, counts and fingerprint (see `read_manifest`)
    tokenizer/{source,target}.model      the SentencePiece models
    train/                               the training pairs as a `Store`
    dev/, test/<name>/                   source.txt and target.txt, raw text
    cleaning_report.{json,txt}           the number of training pairs that cleaning dropped, with examples

The first half of the module reads and writes such a folder. The second half is the store of the training pairs:
`StoreWriter` writes it, and `Store` maps it into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.data.cleaning import CleaningReport
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError, describe_changes

FORMAT = 2
"""The version of the format; raise it when the layout or the meaning of a file changes."""

SIDES = ("source", "target")
_MANIFEST = "manifest.json"
_REQUIRED_KEYS = {"format", "settings", "inputs"}  # of a manifest of any format
_REPORT = "cleaning_report"
_STORE_META = "store.json"
_BLOCK_IDS = 1 << 20  # ids that `Store.unused_target_ids` reads at once
_REMEDY = "preprocess again with scripts/prepare.py and overwrite=true"


# The preprocessed folder


@dataclass(frozen=True)
class CorpusSpan:
    """One of the corpora in a store, which holds them one after another.

    Args:
        num_pairs: Number of pairs of the corpus.
        weight: Share of the corpus in the training pairs, relative to the weights of the other corpora.
    """

    num_pairs: int
    weight: float


@dataclass(frozen=True)
class PreprocessedData:
    """An opened preprocessed folder.

    Args:
        folder: The folder.
        store: The training pairs.
        tokenizers: The tokenizers of both sides.
        dev: Dev pairs as raw text, without cleaning.
        tests: Pairs of each test set by its name, also raw text.
        manifest: See `read_manifest`.
        report: The number of training pairs that cleaning dropped, with examples.
        corpus_spans: The corpora of the store with their weights. `read_preprocessed` sets each weight to the number
            of pairs; `preprocess` takes the weights from the config.
    """

    folder: Path
    store: Store
    tokenizers: Tokenizers
    dev: list[tuple[str, str]]
    tests: dict[str, list[tuple[str, str]]]
    manifest: dict[str, Any]
    report: CleaningReport
    corpus_spans: list[CorpusSpan]

    @property
    def fingerprint(self) -> str:
        """Hash of training text and ids, dev text and tokenizers. A run resumes only on data with an equal hash."""
        return str(self.manifest["fingerprint"])

    @property
    def unused_target_ids(self) -> list[int]:
        """Target ids that no training target contains, without special ids."""
        return list(self.manifest["unused_target_ids"])


def read_preprocessed(folder: Path | str) -> PreprocessedData:
    """Open a preprocessed folder. Raises InputError if it is missing, damaged or of another format."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no preprocessed text: preprocess it with scripts/prepare.py")
    check_format(folder, manifest)
    try:
        tokenizers = read_tokenizers(folder)
        dev = read_pairs(folder / "dev")
        tests = {name: read_pairs(folder / "test" / name) for name in manifest["inputs"]["test"]}
        report = CleaningReport(**json.loads((folder / f"{_REPORT}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: damaged: {error}; {_REMEDY}") from error
    store = Store(folder / "train")
    corpus_spans = [CorpusSpan(number, float(number)) for number in manifest["pairs_per_corpus"]]
    return PreprocessedData(folder, store, tokenizers, dev, tests, manifest, report, corpus_spans)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a preprocessed folder, or None if the folder does not exist or is empty.

    The manifest of the current format has these keys:

    - format: `FORMAT`.
    - settings: the settings of data and tokenizer on which the result depends.
    - inputs: the fingerprints of the texts of train, dev and each test set.
    - counts, versions: numbers of pairs and tokens, and versions of the packages that were used.
    - fingerprint, unused_target_ids: see `PreprocessedData`.
    - pairs_per_corpus: number of training pairs of each corpus.

    Raises InputError for a folder with other contents, which preprocessing must not touch.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not manifest.keys() >= _REQUIRED_KEYS:
            raise ValueError(f"it lacks the keys {', '.join(sorted(_REQUIRED_KEYS))}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: not a preprocessed folder (its {_MANIFEST} cannot be read: {error}); "
            + ("remove it, or " if _looks_preprocessed(folder) else "")
            + "choose another one with data.preprocessed="
        ) from error
    return manifest


def check_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise InputError for a folder of another format than FORMAT."""
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: preprocessed in format {manifest['format']}, this version reads format {FORMAT}; {_REMEDY}"
        )


def _looks_preprocessed(folder: Path) -> bool:
    """Return whether the folder has the files of a preprocessed folder, so that a message may advise to remove it."""
    names = (_MANIFEST, f"{_REPORT}.json", "tokenizer/source.model", "train", "dev/source.txt")
    return all((folder / name).exists() for name in names)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest; see `read_manifest` for its keys."""
    _write_json(folder / _MANIFEST, manifest)


def manifest_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting or input that differs; a moved file with equal content does not differ."""
    changes = describe_changes(old["settings"], new["settings"])
    old_texts, new_texts = texts_of(old["inputs"]), texts_of(new["inputs"])
    for name in [*old_texts, *(name for name in new_texts if name not in old_texts)]:
        if name not in old_texts:
            changes.append(f"data.{name}: not given before")
        elif name not in new_texts:
            changes.append(f"data.{name}: not given any more")
        else:
            before, after = dict(old_texts[name]), dict(new_texts[name])
            changes += _file_changes(f"data.{name}", before.pop("files", []), after.pop("files", []))
            changes += describe_changes({f"data.{name}": before}, {f"data.{name}": after})
    return changes


def _file_changes(key: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """Return a line for each file of a text that differs, or one line if the files have other roles."""
    if [file["role"] for file in old] != [file["role"] for file in new]:
        old_names, new_names = (", ".join(file["path"] for file in files) for files in (old, new))
        return [f"{key}: {old_names} → {new_names}"]
    return [
        f"{key}.{after['role']}: other content: {before['path']} ({before['size']} bytes, sha256 "
        f"{before['sha256'][:8]}) → {after['path']} ({after['size']} bytes, sha256 {after['sha256'][:8]})"
        for before, after in zip(old, new, strict=True)
        if (before["sha256"], before["columns"]) != (after["sha256"], after["columns"])
    ]


def texts_of(inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a manifest's inputs by config key without `data.`: train, dev, and test.<name> for each test set."""
    tests = {f"test.{name}": text for name, text in inputs["test"].items()}
    return {"train": inputs["train"], "dev": inputs["dev"], **tests}


def write_report(folder: Path, report: CleaningReport) -> None:
    """Write the cleaning report as JSON and as text."""
    _write_json(folder / f"{_REPORT}.json", report.to_json())
    (folder / f"{_REPORT}.txt").write_text(report.text(), encoding="utf-8", newline="\n")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_tokenizers(folder: Path, tokenizers: Tokenizers) -> None:
    """Write the models of the tokenizers into the new folder `folder`/tokenizer."""
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "source.model").write_bytes(tokenizers.source.to_bytes())
    (folder / "tokenizer" / "target.model").write_bytes(tokenizers.target.to_bytes())


def read_tokenizers(folder: Path) -> Tokenizers:
    """Read the tokenizers that `write_tokenizers` wrote."""
    source, target = ((folder / "tokenizer" / f"{side}.model").read_bytes() for side in SIDES)
    return Tokenizers.from_models(source, target)


class WrittenPairs(NamedTuple):
    """Counts and hash of pairs that `write_pairs` wrote.

    Args:
        num_pairs: Number of pairs.
        num_with_text: Number of pairs with text on both sides.
        digest: Hash (sha256) of all text.
    """

    num_pairs: int
    num_with_text: int
    digest: str


def write_pairs(folder: Path, pairs: Iterable[tuple[str, str]]) -> WrittenPairs:
    """Write raw pairs as source.txt and target.txt into a new folder."""
    folder.mkdir(parents=True)
    num_pairs, num_with_text, digest = 0, 0, hashlib.sha256()
    with (folder / "source.txt").open("wb") as source_file, (folder / "target.txt").open("wb") as target_file:
        for source, target in pairs:
            source_line, target_line = source.encode("utf-8") + b"\n", target.encode("utf-8") + b"\n"
            source_file.write(source_line)
            target_file.write(target_line)
            digest.update(source_line + target_line)
            num_pairs += 1
            num_with_text += bool(source.strip() and target.strip())
    return WrittenPairs(num_pairs, num_with_text, digest.hexdigest())


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    """Read the pairs that `write_pairs` wrote."""
    # `read_lines` would remove a CR at the end of a line and a byte order mark, which belong to the text here.
    source, target = ((folder / f"{side}.txt").read_bytes().decode("utf-8").split("\n")[:-1] for side in SIDES)
    return list(zip(source, target, strict=True))


# The store of training pairs


class Store:
    """Training pairs in memory-mapped files. It is pickled as its folder, so that processes map the same files.

    Raises:
        InputError: The folder has no store, or its files have other sizes than recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / _STORE_META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: the store of training pairs cannot be read: {error}; {_REMEDY}") from error
        self._num_pairs = int(meta["num_pairs"])
        self.digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        arrays = {name: _map(folder / name, array["dtype"], array["count"]) for name, array in meta["arrays"].items()}
        self._ids = {side: arrays[f"{side}.ids"] for side in SIDES}
        self._offsets = {side: arrays[f"{side}.offsets"] for side in SIDES}
        self._text = {side: arrays[f"{side}.text"] for side in SIDES}
        self._text_offsets = {side: arrays[f"{side}.text_offsets"] for side in SIDES}
        self.source_lengths: NDArray[np.int32] = arrays["source.lengths"]
        """Subwords of each source, without EOS."""
        self.target_lengths: NDArray[np.int32] = arrays["target.lengths"]
        """Subwords of each target, without BOS and EOS."""

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return self._num_pairs

    def source_ids(self, pair: int) -> NDArray[np.integer[Any]]:
        """Return the ids of a source, without BOS and EOS: a read-only view of the file."""
        return self._ids_of("source", pair)

    def target_ids(self, pair: int) -> NDArray[np.integer[Any]]:
        """Return the ids of a target, without BOS and EOS: a read-only view of the file."""
        return self._ids_of("target", pair)

    def source_text(self, pair: int) -> str:
        """Return the text of a source."""
        return self._text_of("source", pair)

    def target_text(self, pair: int) -> str:
        """Return the text of a target."""
        return self._text_of("target", pair)

    def unused_target_ids(self, vocabulary_size: int) -> list[int]:
        """Return the ids that no target contains, without special ids. All targets are read."""
        used_V = np.zeros(vocabulary_size, dtype=bool)
        used_V[[PAD_ID, UNK_ID, BOS_ID, EOS_ID]] = True
        ids = self._ids["target"]
        for start in range(0, len(ids), _BLOCK_IDS):
            used_V[ids[start : start + _BLOCK_IDS]] = True
        return [int(id) for id in np.flatnonzero(~used_V)]

    def _ids_of(self, side: str, pair: int) -> NDArray[np.integer[Any]]:
        offsets = self._offsets[side]
        return self._ids[side][offsets[pair] : offsets[pair + 1]]

    def _text_of(self, side: str, pair: int) -> str:
        offsets = self._text_offsets[side]
        return self._text[side][offsets[pair] : offsets[pair + 1]].tobytes().decode("utf-8")


def _map(path: Path, dtype: str, count: int) -> NDArray[Any]:
    """Map a file of `count` values into memory, read-only; raise InputError if it is missing or has another size."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: missing from the preprocessed folder; {_REMEDY}") from error
    expected = count * np.dtype(dtype).itemsize
    if size != expected:
        raise InputError(f"{path}: damaged: it has {size} bytes, {expected} were written; {_REMEDY}")
    if count == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    # A plain array over the map: slicing an np.memmap itself is several times slower.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


class EncodedSide(NamedTuple):
    """One side of some pairs as arrays.

    Args:
        ids: Ids of all sentences, concatenated.
        lengths: Number of ids of each sentence.
        text: UTF-8 bytes of all sentences, concatenated.
        text_lengths: Number of bytes of each sentence.
    """

    ids: NDArray[np.integer[Any]]
    lengths: NDArray[np.int64]
    text: NDArray[np.uint8]
    text_lengths: NDArray[np.int64]


def encoded_side(ids: Sequence[list[int]], text: Sequence[str]) -> EncodedSide:
    """Return ids (without BOS and EOS) and text of some sentences as arrays."""
    assert len(ids) == len(text)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    encoded = [line.encode("utf-8") for line in text]
    return EncodedSide(
        np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())),
        lengths,
        np.frombuffer(b"".join(encoded), np.uint8),
        np.fromiter(map(len, encoded), np.int64, len(encoded)),
    )


class StoreWriter:
    """Write a store into an existing folder, some pairs at a time.

    Use it as a context manager. A store is complete when it has store.json, which is written if the block succeeds.
    """

    def __init__(self, folder: Path, source_vocabulary_size: int, target_vocabulary_size: int) -> None:
        self._folder = folder
        self._num_pairs = 0
        self._stack = ExitStack()
        self._files: dict[str, _ArrayFile] = {}
        for side, size in zip(SIDES, (source_vocabulary_size, target_vocabulary_size), strict=True):
            ids_dtype = "u2" if size <= 1 << 16 else "u4"
            dtypes = {"ids": ids_dtype, "lengths": "i4", "offsets": "i8", "text": "u1", "text_offsets": "i8"}
            for name, dtype in dtypes.items():
                self._files[f"{side}.{name}"] = _ArrayFile(folder / f"{side}.{name}", dtype, self._stack)
            self._files[f"{side}.offsets"].write([0])
            self._files[f"{side}.text_offsets"].write([0])

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            arrays = {name: file.describe() for name, file in self._files.items()}
            meta = {"num_pairs": self._num_pairs, "arrays": arrays}
            (self._folder / _STORE_META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def append(self, source: EncodedSide, target: EncodedSide) -> None:
        """Append pairs, given as their source side and their target side."""
        assert len(source.lengths) == len(target.lengths)
        for side, encoded in zip(SIDES, (source, target), strict=True):
            ids, text = self._files[f"{side}.ids"], self._files[f"{side}.text"]
            self._files[f"{side}.offsets"].write(ids.count + np.cumsum(encoded.lengths))
            self._files[f"{side}.text_offsets"].write(text.count + np.cumsum(encoded.text_lengths))
            ids.write(encoded.ids)
            self._files[f"{side}.lengths"].write(encoded.lengths)
            text.write(encoded.text)
        self._num_pairs += len(source.lengths)


class _ArrayFile:
    """Write one array to a file and hash its data."""

    def __init__(self, path: Path, dtype: str, stack: ExitStack) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.count = 0
        self._file = stack.enter_context(path.open("wb"))
        self._hash = hashlib.sha256()

    def write(self, values: Any) -> None:
        data = np.ascontiguousarray(values, dtype=self.dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.count += len(data) // self.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        """Return dtype, number of values and sha256, as store.json records them."""
        return {"dtype": self.dtype.str, "count": self.count, "sha256": self._hash.hexdigest()}
