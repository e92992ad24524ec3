"""Preprocessed data on disk: the folder, its manifest, and the memory-mapped training pairs.

A preprocessed folder contains:

    manifest.json                        format, settings, inputs, counts and fingerprint (see `read_manifest`)
    tokenizer/{source,target}.model      the SentencePiece models, or {source,target}.word_character.json
    train/                               the training pairs as a `Store`
    dev/, test/<name>/                   source.txt and target.txt, raw text
    cleaning_report.{json,txt}           the number of training pairs that cleaning dropped, and of the lines of dev and
                                         test sets that are among the kept ones, with examples

The first half of the module reads and writes such a folder. The second half is the store of the training pairs:
`StoreWriter` writes it, and `Store` maps it into memory.

Every file has a checksum, which finds bytes that changed on the disk. The small files are verified when the folder is
opened, the arrays of the store in blocks when they are first read. The checksum is CRC-32: it finds every changed byte
(and all but one in four billion other changes of a block), and it is several times faster than a cryptographic hash,
which only protection against deliberate changes would need.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.data.changed_lines import ChangedLines
from gnmt.data.cleaning import CleaningReport
from gnmt.data.corpora import Direction
from gnmt.data.tokenizer import SUFFIX_OF_KIND, TokenizerEntry, Tokenizers
from gnmt.errors import InputError, describe_changes
from gnmt.fileio import LINE_BREAKS, json_bytes, replacing

FORMAT = 5
"""The version of the format; raise it when the layout or the meaning of a file changes."""

Pairs = Sequence[int] | NDArray[np.int64]
"""Indices of pairs in a store."""

SIDES = ("source", "target")
_MANIFEST = "manifest.json"
_REQUIRED_KEYS = {"format", "settings", "inputs"}  # of a manifest of any format
_REPORT = "cleaning_report"
_TRAIN, _STORE_META = "train", "store.json"
_STORE_META_PATH = f"{_TRAIN}/{_STORE_META}"
_CHECKED_BYTES = 1 << 17  # bytes of a block with a checksum: what Linux reads ahead when it maps a file
_REMEDY = "preprocess again with scripts/prepare.py and overwrite=true"
_REBUILD = (
    "rebuild this folder alone with scripts/prepare.py, the same settings of data and tokenizer, and overwrite=true; "
    "it will have the same contents, so runs that were trained on it can resume"
)


# The preprocessed folder


class DamagedDataError(InputError):
    """Files of a preprocessed folder are missing or changed since they were written; `problems` has a message each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems) + ("\n" if len(problems) > 1 else "; ") + _REBUILD)


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
        report: The number of training pairs that cleaning dropped, and of dev and test lines among the kept ones.
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

    @property
    def directions(self) -> list[Direction]:
        """The directions of the dev pairs, in their order; empty if there is only one direction."""
        return [Direction(**direction) for direction in self.manifest.get("directions", ())]

    @property
    def changed_lines(self) -> dict[str, ChangedLines]:
        """Lines that a tokenizer changes, of train.source, train.target, dev.target and test.<name>.target."""
        return {text: ChangedLines(**lines) for text, lines in self.manifest["changed_lines"].items()}


def read_preprocessed(folder: Path | str) -> PreprocessedData:
    """Open a preprocessed folder and verify its small files.

    Raises InputError if the folder is missing or of another format, and DamagedDataError if a file is damaged.
    """
    folder = Path(folder)
    manifest = _read_current_manifest(folder)
    if problems := _damaged_small_files(folder, manifest):
        raise DamagedDataError(*problems.values())
    tokenizers = read_tokenizers(folder)
    dev = read_pairs(folder / "dev")
    tests = {name: read_pairs(folder / "test" / name) for name in manifest["inputs"]["test"]}
    report = CleaningReport.from_json(json.loads((folder / f"{_REPORT}.json").read_text(encoding="utf-8")))
    store = Store(folder / _TRAIN)
    corpus_spans = [CorpusSpan(number, float(number)) for number in manifest["pairs_per_corpus"]]
    return PreprocessedData(folder, store, tokenizers, dev, tests, manifest, report, corpus_spans)


def verify_preprocessed(folder: Path) -> tuple[int, int]:
    """Verify every byte of a preprocessed folder, and return the number of its files and their size in bytes.

    Raises InputError if the folder is missing or of another format, and DamagedDataError with all damaged files.
    """
    manifest = _read_current_manifest(folder)
    problems = _damaged_small_files(folder, manifest)
    names = [_MANIFEST, *manifest["checksums"]]
    if _STORE_META_PATH not in problems:
        for name, description in _read_store_meta(folder / _TRAIN)["arrays"].items():
            names.append(f"{_TRAIN}/{name}")
            try:
                _Array(folder / names[-1], description).verify_all()
            except DamagedDataError as error:
                problems[names[-1]] = error.problems[0]
    if problems:
        raise DamagedDataError(*problems.values())
    return len(names), sum((folder / name).stat().st_size for name in names)


def _read_current_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of the current format; raise InputError if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no preprocessed text: preprocess it with scripts/prepare.py")
    check_format(folder, manifest)
    return manifest


def _damaged_small_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return a message for each small file whose contents differ from the manifest's checksum, by its name there."""
    problems = {}
    for name, checksum in manifest["checksums"].items():
        try:
            found = zlib.crc32((folder / name).read_bytes())
        except OSError as error:
            problems[name] = f"{folder / name}: cannot be read: {error.strerror}"
            continue
        if found != checksum:
            problems[name] = f"{folder / name}: damaged: its checksum is {found:08x}, {checksum:08x} was written"
    return problems


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a preprocessed folder, or None if the folder does not exist or is empty.

    The manifest of the current format has these keys:

    - format: `FORMAT`.
    - settings: the settings of data and tokenizer on which the result depends.
    - inputs: the fingerprints of the texts of train, dev and each test set.
    - counts, versions: numbers of pairs and tokens, and versions of the packages that were used.
    - fingerprint, unused_target_ids: see `PreprocessedData`.
    - pairs_per_corpus: number of training pairs of each corpus.
    - checksums: CRC-32 of each file by its path in the folder, except of the manifest itself and of the store's arrays,
      whose blocks have theirs in store.json.
    - checksum: CRC-32 of all other keys.
    - changed_lines, directions: see `PreprocessedData`.

    Raises InputError for a folder with other contents, which preprocessing must not touch.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    problem = None
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or not manifest.keys() >= _REQUIRED_KEYS:
            problem = f"lacks the keys {', '.join(sorted(_REQUIRED_KEYS))}"
        elif manifest["format"] == FORMAT and manifest.get("checksum") != _manifest_checksum(manifest):
            problem = "is damaged: its checksum differs"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        problem = "is damaged: it is not JSON"
    if problem is not None:
        advice = "remove it to preprocess again, or " if _looks_preprocessed(folder) else ""
        raise InputError(
            f"{folder}: not a preprocessed folder (its {_MANIFEST} {problem}); {advice}choose another one with "
            "data.preprocessed="
        )
    assert isinstance(manifest, dict)
    return manifest


def _manifest_checksum(manifest: Mapping[str, Any]) -> int:
    """Return the CRC-32 of all keys of a manifest but `checksum`."""
    return zlib.crc32(json.dumps({**manifest, "checksum": None}, sort_keys=True).encode())


def check_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise InputError for a folder of another format than FORMAT."""
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: preprocessed in format {manifest['format']}, this version reads format {FORMAT}; {_REMEDY}"
        )


def _looks_preprocessed(folder: Path) -> bool:
    """Return whether the folder has the files of a preprocessed folder, so that a message may advise to remove it."""
    names = (_MANIFEST, f"{_REPORT}.json", "tokenizer", "train", "dev/source.txt")
    return all((folder / name).exists() for name in names)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the checksums of the folder's other files; see `read_manifest` for its keys."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    arrays = {f"{_TRAIN}/{name}" for name in _read_store_meta(folder / _TRAIN)["arrays"]}
    checksums = {name: zlib.crc32((folder / name).read_bytes()) for name in names if name not in arrays}
    complete = {**manifest, "checksums": checksums}
    _write_json(folder / _MANIFEST, {**complete, "checksum": _manifest_checksum(complete)})


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
    path.write_bytes(json_bytes(value))


def write_tokenizers(folder: Path, tokenizers: Tokenizers) -> None:
    """Write the files of the tokenizers into the new folder `folder`/tokenizer."""
    (folder / "tokenizer").mkdir()
    for side, tokenizer in zip(SIDES, tokenizers[:2], strict=True):
        path = folder / "tokenizer" / f"{side}{SUFFIX_OF_KIND[tokenizer.kind]}"
        path.write_bytes(tokenizer.to_bytes())


def read_tokenizers(folder: Path) -> Tokenizers:
    """Read the tokenizers that `write_tokenizers` wrote."""
    return Tokenizers.from_entries(*(_read_tokenizer(folder / "tokenizer", side) for side in SIDES))


def _read_tokenizer(folder: Path, side: str) -> TokenizerEntry:
    """Read the tokenizer of a side, whose kind its file name tells."""
    kinds = [kind for kind, suffix in SUFFIX_OF_KIND.items() if (folder / f"{side}{suffix}").is_file()]
    kind = kinds[0] if kinds else "sentencepiece"
    return TokenizerEntry(kind, (folder / f"{side}{SUFFIX_OF_KIND[kind]}").read_bytes(), bos=side == "target")


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


def write_text(data: PreprocessedData, folder: Path, source_language: str, target_language: str) -> list[Path]:
    """Write the training pairs, dev and test sets as text files with one sentence per line, and return their paths.

    The names are those of the texts with the languages as endings, such as train.en and train.de. Other characters that
    end a line somewhere, such as U+2028, become spaces.

    Args:
        data: The preprocessed data.
        folder: A folder that exists.
        source_language: Ending of the source files.
        target_language: Ending of the target files; if it is the same, the endings are `source` and `target`.
    """
    endings = (source_language, target_language) if source_language != target_language else SIDES
    pairs_of_store = ((data.store.source_text(pair), data.store.target_text(pair)) for pair in range(len(data.store)))
    texts: dict[str, Iterable[tuple[str, str]]] = {"train": pairs_of_store, "dev": data.dev, **data.tests}
    paths = []
    for name, pairs in texts.items():
        sides = [folder / f"{name}.{ending}" for ending in endings]
        with replacing(sides[0]) as source_file, replacing(sides[1]) as target_file:
            for source, target in pairs:
                source_file.write(f"{source.translate(LINE_BREAKS)}\n".encode())
                target_file.write(f"{target.translate(LINE_BREAKS)}\n".encode())
        paths += sides
    return paths


# The store of training pairs


class Store:
    """Training pairs in memory-mapped files. It is pickled as its folder, so that processes map the same files.

    Each process verifies each block of a file when it first reads from it. Verifying all pairs of a batch together
    takes a few operations of NumPy, and nothing once every block of a file was read.

    Raises:
        DamagedDataError: The folder has no store, its files have other sizes than recorded, or, when they are read,
            other contents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = _read_store_meta(folder)
        self._num_pairs = int(meta["num_pairs"])
        arrays = {name: _Array(folder / name, description) for name, description in meta["arrays"].items()}
        self.digest = _digest(meta)
        self._ids = {side: arrays[f"{side}.ids"] for side in SIDES}
        self._offsets = {side: arrays[f"{side}.offsets"] for side in SIDES}
        self._text = {side: arrays[f"{side}.text"] for side in SIDES}
        self._text_offsets = {side: arrays[f"{side}.text_offsets"] for side in SIDES}
        self._lengths = {side: arrays[f"{side}.lengths"] for side in SIDES}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return self._num_pairs

    @cached_property
    def source_lengths(self) -> NDArray[np.int32]:
        """Subwords of each source, without EOS."""
        return self._lengths["source"].verify_all()

    @cached_property
    def target_lengths(self) -> NDArray[np.int32]:
        """Subwords of each target, without BOS and EOS."""
        return self._lengths["target"].verify_all()

    def source_ids(self, pairs: Pairs) -> list[NDArray[np.integer[Any]]]:
        """Return the ids of some sources, without BOS and EOS: a read-only view of the file for each."""
        return self._ids_of("source", np.asarray(pairs))

    def target_ids(self, pairs: Pairs) -> list[NDArray[np.integer[Any]]]:
        """Return the ids of some targets, without BOS and EOS: a read-only view of the file for each."""
        return self._ids_of("target", np.asarray(pairs))

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
        for ids in self._ids["target"].blocks():
            used_V[ids] = True
        return [int(id) for id in np.flatnonzero(~used_V)]

    def _ids_of(self, side: str, pairs_N: NDArray[np.int64]) -> list[NDArray[np.integer[Any]]]:
        offsets, ids = self._offsets[side], self._ids[side]
        offsets.verify(pairs_N, pairs_N + 2)
        begins_N, ends_N = offsets.values[pairs_N], offsets.values[pairs_N + 1]
        ids.verify(begins_N, ends_N)
        return [ids.values[begin:end] for begin, end in zip(begins_N.tolist(), ends_N.tolist(), strict=True)]

    def _text_of(self, side: str, pair: int) -> str:
        begin, end = self._text_offsets[side].read(pair, pair + 2).tolist()
        return self._text[side].read(begin, end).tobytes().decode("utf-8")


class _Array:
    """An array in a memory-mapped file, in blocks that are verified when they are first read.

    Args:
        path: The file.
        description: dtype, number of values and checksums, as `_ArrayFile.describe` returns them.

    Raises:
        DamagedDataError: The file is missing or has another size than recorded.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self._path = path
        self.values = _map(path, description["dtype"], description["count"])
        """All values. Before some are used, they must be verified."""
        self._block_values = _CHECKED_BYTES // self.values.itemsize
        self._checksums = _unpack_checksums(description["crc32"])
        # One more than there are blocks: the empty range at the end of the file begins there.
        self._verified = np.zeros(len(self._checksums) + 1, dtype=np.bool_)
        self._verified[-1] = True
        self._num_unverified = len(self._checksums)

    def verify(self, begins_N: NDArray[np.int64], ends_N: NDArray[np.int64]) -> None:
        """Verify the blocks with the values from each begin to each end."""
        if not self._num_unverified:
            return
        first_N = begins_N // self._block_values
        last_N = np.maximum(begins_N, ends_N - 1) // self._block_values
        known_N = self._verified[first_N] & self._verified[last_N] & (last_N - first_N <= 1)
        for row in np.flatnonzero(~known_N):
            self.read(int(begins_N[row]), int(ends_N[row]))

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Return the values from `begin` to `end`, verified."""
        if self._num_unverified:
            for block in range(begin // self._block_values, -(-end // self._block_values)):
                if not self._verified[block]:
                    self._verify_block(block)
        return self.values[begin:end]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all values block by block, verified."""
        for begin in range(0, len(self.values), self._block_values):
            yield self.read(begin, min(begin + self._block_values, len(self.values)))

    def verify_all(self) -> NDArray[Any]:
        """Return all values, verified."""
        return self.read(0, len(self.values))

    def _verify_block(self, block: int) -> None:
        begin = block * self._block_values
        found = zlib.crc32(self.values[begin : begin + self._block_values].data)
        if found != self._checksums[block]:
            first_byte = block * _CHECKED_BYTES
            size = min(_CHECKED_BYTES, self.values.nbytes - first_byte)
            raise DamagedDataError(
                f"{self._path}: damaged: the checksum of bytes {first_byte} to {first_byte + size - 1} is {found:08x}, "
                f"{self._checksums[block]:08x} was written"
            )
        self._verified[block] = True
        self._num_unverified -= 1


def _read_store_meta(folder: Path) -> dict[str, Any]:
    """Return the contents of store.json: the number of pairs, and the description of each array."""
    path = folder / _STORE_META
    try:
        meta: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedDataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedDataError(f"{path}: damaged: it is not JSON") from error
    return meta


def _digest(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all values of a store and their types."""
    hashed = {name: {key: array[key] for key in ("dtype", "count", "sha256")} for name, array in meta["arrays"].items()}
    return hashlib.sha256(json.dumps({**meta, "arrays": hashed}, sort_keys=True).encode()).hexdigest()


def _map(path: Path, dtype: str, count: int) -> NDArray[Any]:
    """Map a file of `count` values into memory, read-only."""
    expected = count * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size == expected == 0:
            return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
        if size == expected:
            # A plain array over the map: slicing an np.memmap itself is several times slower.
            return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
    except OSError as error:
        raise DamagedDataError(f"{path}: cannot be read: {error.strerror}") from error
    raise DamagedDataError(f"{path}: damaged: it has {size} bytes, {expected} were written")


def _unpack_checksums(text: str) -> NDArray[np.uint32]:
    """Return the numbers that `_pack_checksums` packed."""
    return np.frombuffer(bytes.fromhex(text), ">u4")


def _pack_checksums(checksums: Sequence[int]) -> str:
    """Return the checksums in hexadecimal digits, eight for each: a large store has a hundred thousand."""
    return np.array(checksums, ">u4").tobytes().hex()


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
        self._num_bytes = 0
        self._checksums: list[int] = []  # of each block; the last one may be incomplete

    def write(self, values: Any) -> None:
        data = memoryview(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self._file.write(data)
        self._hash.update(data)
        self.count += len(data) // self.dtype.itemsize
        while data:
            filled = self._num_bytes % _CHECKED_BYTES
            if filled == 0:
                self._checksums.append(0)
            part, data = data[: _CHECKED_BYTES - filled], data[_CHECKED_BYTES - filled :]
            self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            self._num_bytes += len(part)

    def describe(self) -> dict[str, Any]:
        """Return dtype, number of values, sha256, and the CRC-32 of each block, as store.json records them."""
        checksums = _pack_checksums(self._checksums)
        return {"dtype": self.dtype.str, "count": self.count, "sha256": self._hash.hexdigest(), "crc32": checksums}
