"""Preprocessed data on disk: memory-mapped token ids, and the folder that holds them."""

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


@dataclass(frozen=True)
class CorpusSpan:
    """One corpus among those that lie in a store one after another.

    num_pairs: how many it has. weight: what share of the training pairs comes from it, relative to the others' weights.
    """

    num_pairs: int
    weight: float


SIDES = ("source", "target")
_BLOCK_IDS = 1 << 20  # ids that are looked at together
_META = "store.json"


class EncodedSide(NamedTuple):
    """One side of some pairs: all sentences' pieces in a row, all their UTF-8 bytes in a row, and their lengths."""

    ids: NDArray[np.integer[Any]]
    lengths: NDArray[np.int64]
    text: NDArray[np.uint8]
    text_lengths: NDArray[np.int64]


def encoded_side(ids: Sequence[list[int]], text: Sequence[str]) -> EncodedSide:
    """Pieces without BOS and EOS, and the text they came from, as arrays."""
    assert len(ids) == len(text)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    encoded = [line.encode("utf-8") for line in text]
    return EncodedSide(
        np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())),
        lengths,
        np.frombuffer(b"".join(encoded), np.uint8),
        np.fromiter(map(len, encoded), np.int64, len(encoded)),
    )


class _Output:
    """An open file of one array, that hashes what goes through it."""

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
        return {"dtype": self.dtype.str, "count": self.count, "sha256": self._hash.hexdigest()}


class StoreWriter:
    """Writes a store into a folder that exists, a block of pairs at a time; `store.json` comes last.

    Use as a context manager; the store is complete only if the block ended without an error.
    """

    def __init__(self, folder: Path, source_vocabulary_size: int, target_vocabulary_size: int) -> None:
        self._folder = folder
        self._num_pairs = 0
        self._stack = ExitStack()
        self._files: dict[str, _Output] = {}
        for side, size in zip(SIDES, (source_vocabulary_size, target_vocabulary_size), strict=True):
            kinds = {"ids": "u2" if size <= 1 << 16 else "u4", "lengths": "i4", "offsets": "i8"}
            for name, dtype in (kinds | {"text": "u1", "text_offsets": "i8"}).items():
                self._files[f"{side}.{name}"] = _Output(folder / f"{side}.{name}", dtype, self._stack)
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
            (self._folder / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def add(
        self,
        source_ids: Sequence[list[int]],
        target_ids: Sequence[list[int]],
        source_text: Sequence[str],
        target_text: Sequence[str],
    ) -> None:
        """Appends pairs: pieces without BOS and EOS, and the text they came from."""
        self.append(encoded_side(source_ids, source_text), encoded_side(target_ids, target_text))

    def append(self, source: EncodedSide, target: EncodedSide) -> None:
        """Appends pairs whose sides are arrays already."""
        assert len(source.lengths) == len(target.lengths)
        for side, encoded in zip(SIDES, (source, target), strict=True):
            files = {
                name: self._files[f"{side}.{name}"] for name in ("ids", "lengths", "offsets", "text", "text_offsets")
            }
            files["offsets"].write(files["ids"].count + np.cumsum(encoded.lengths))
            files["text_offsets"].write(files["text"].count + np.cumsum(encoded.text_lengths))
            files["ids"].write(encoded.ids)
            files["lengths"].write(encoded.lengths)
            files["text"].write(encoded.text)
        self._num_pairs += len(source.lengths)


class Store:
    """A store opened for reading. Pickles as its folder, so that workers map the same files."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder holds no store, or one whose files are not of the recorded sizes."""
        self.folder = folder
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: no readable store of preprocessed text: {error}") from error
        self._num_pairs = int(meta["num_pairs"])
        self.digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        arrays = {name: _map(folder / name, array["dtype"], array["count"]) for name, array in meta["arrays"].items()}
        self._ids = {side: arrays[f"{side}.ids"] for side in SIDES}
        self._offsets = {side: arrays[f"{side}.offsets"] for side in SIDES}
        self._text = {side: arrays[f"{side}.text"] for side in SIDES}
        self._text_offsets = {side: arrays[f"{side}.text_offsets"] for side in SIDES}
        self.source_lengths: NDArray[np.int32] = arrays["source.lengths"]
        self.target_lengths: NDArray[np.int32] = arrays["target.lengths"]

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        return cls(Path(folder))

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return self._num_pairs

    def source_ids(self, pair: int) -> NDArray[np.integer[Any]]:
        """Pieces of the source, without BOS and EOS: a read-only view of the file."""
        return self._slice("source", pair)

    def target_ids(self, pair: int) -> NDArray[np.integer[Any]]:
        """Pieces of the target, without BOS and EOS: a read-only view of the file."""
        return self._slice("target", pair)

    def source_text(self, pair: int) -> str:
        return self._line("source", pair)

    def target_text(self, pair: int) -> str:
        return self._line("target", pair)

    def unused_target_ids(self, vocabulary_size: int) -> list[int]:
        """The ids below that size, special ones left out, that no target holds; reads all of the targets."""
        used_V = np.zeros(vocabulary_size, dtype=bool)
        used_V[[PAD_ID, UNK_ID, BOS_ID, EOS_ID]] = True
        ids = self._ids["target"]
        for start in range(0, len(ids), _BLOCK_IDS):
            used_V[ids[start : start + _BLOCK_IDS]] = True
        return [int(id) for id in np.flatnonzero(~used_V)]

    def _slice(self, side: str, pair: int) -> NDArray[np.integer[Any]]:
        offsets = self._offsets[side]
        return self._ids[side][offsets[pair] : offsets[pair + 1]]

    def _line(self, side: str, pair: int) -> str:
        offsets = self._text_offsets[side]
        return self._text[side][offsets[pair] : offsets[pair + 1]].tobytes().decode("utf-8")


def _map(path: Path, dtype: str, count: int) -> NDArray[Any]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: missing from the preprocessed folder; prepare again with overwrite=true") from error
    if size != count * np.dtype(dtype).itemsize:
        raise InputError(
            f"{path}: damaged: {size} bytes where {count * np.dtype(dtype).itemsize} were written; "
            "prepare again with overwrite=true"
        )
    if count == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    # A plain array over the map: slices of np.memmap itself are several times slower to make.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


def manifest_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting or input that differs between two manifests. Moved files of equal content do not."""
    if old["format"] != new["format"]:
        return [f"format: {old['format']} → {new['format']}"]
    changes = describe_changes(old["settings"], new["settings"])
    old_texts, new_texts = texts_of(old["inputs"]), texts_of(new["inputs"])
    for name in [*old_texts, *(name for name in new_texts if name not in old_texts)]:
        if name not in old_texts or name not in new_texts:
            changes.append(f"data.{name}: " + ("not given before" if name in new_texts else "not given any more"))
            continue
        changes += _file_changes(f"data.{name}", old_texts[name].get("files", []), new_texts[name].get("files", []))
        before, after = ({k: v for k, v in texts[name].items() if k != "files"} for texts in (old_texts, new_texts))
        changes += describe_changes({f"data.{name}": before}, {f"data.{name}": after})
    return changes


def _file_changes(key: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if [file["role"] for file in old] != [file["role"] for file in new]:
        names = (", ".join(file["path"] for file in files) for files in (old, new))
        return [f"{key}: " + " → ".join(names)]
    return [
        f"{key}.{after['role']}: other content: {before['path']} ({before['size']} bytes, sha256 "
        f"{before['sha256'][:8]}) → {after['path']} ({after['size']} bytes, sha256 {after['sha256'][:8]})"
        for before, after in zip(old, new, strict=True)
        if (before["sha256"], before["columns"]) != (after["sha256"], after["columns"])
    ]


def texts_of(inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest says of the texts, by their keys without `data.`."""
    tests = {f"test.{name}": text for name, text in inputs["test"].items()}
    return {"train": inputs["train"], "dev": inputs["dev"], **tests}


# Rises when the layout or the meaning of a file changes.
FORMAT = 2
_MANIFEST = "manifest.json"
_IN_EVERY_MANIFEST = {"format", "settings", "inputs"}


@dataclass(frozen=True)
class PreprocessedData:
    """An opened preprocessed folder.

    dev, tests: pairs of raw text, untouched by cleaning. fingerprint: digest of training text, ids, dev text and
    tokenizers; a run may only be resumed on data of the same fingerprint. corpus_spans: the corpora that the store holds one
    after another, each with its weight, or, where the folder was opened without the corpus, all pairs alike.
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
        return str(self.manifest["fingerprint"])

    @property
    def unused_target_ids(self) -> list[int]:
        """Ids that no training target holds."""
        return list(self.manifest["unused_target_ids"])


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None where the folder does not exist or is empty.

    Raises InputError for a folder that holds other things, which are then never touched.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not manifest.keys() >= _IN_EVERY_MANIFEST:
            raise ValueError("it is not one of a preparation")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: not a preprocessed folder (its {_MANIFEST} cannot be read: {error}); "
            + ("remove it, or " if _looks_preprocessed(folder) else "")
            + "choose another one with data.preprocessed="
        ) from error
    return manifest


def _looks_preprocessed(folder: Path) -> bool:
    """Whether a folder with a damaged manifest is ours all the same; what is not must not be advised to be removed."""
    parts = (_MANIFEST, "cleaning_report.json", "tokenizer/source.model", "train", "dev/source.txt")
    return all((folder / part).exists() for part in parts)


def read_preprocessed(folder: Path | str) -> PreprocessedData:
    """Opens a preprocessed folder. Raises InputError where it is missing, damaged or of another format."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no preprocessed text there; make it with scripts/prepare.py")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: preprocessed in format {manifest['format']}, and this version reads {FORMAT}; "
            "prepare again by scripts/prepare.py with overwrite=true"
        )
    try:
        tokenizers = read_tokenizers(folder)
        dev = read_pairs(folder / "dev")
        tests = {name: read_pairs(folder / "test" / name) for name in manifest["inputs"]["test"]}
        report = json.loads((folder / "cleaning_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: damaged: {error}; prepare again by scripts/prepare.py with overwrite=true"
        ) from error
    store = Store.open(folder / "train")
    corpus_spans = [CorpusSpan(number, float(number)) for number in manifest["pairs_per_corpus"]]
    return PreprocessedData(folder, store, tokenizers, dev, tests, manifest, CleaningReport(**report), corpus_spans)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    _write_json(folder / _MANIFEST, manifest)


def write_report(folder: Path, report: CleaningReport) -> None:
    _write_json(folder / "cleaning_report.json", report.to_json())
    (folder / "cleaning_report.txt").write_text(report.text(), encoding="utf-8", newline="\n")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_tokenizers(folder: Path, tokenizers: Tokenizers) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "source.model").write_bytes(tokenizers.source.to_bytes())
    (folder / "tokenizer" / "target.model").write_bytes(tokenizers.target.to_bytes())


def read_tokenizers(folder: Path) -> Tokenizers:
    source, target = ((folder / "tokenizer" / f"{side}.model").read_bytes() for side in ("source", "target"))
    return Tokenizers.from_models(source, target)


class WrittenPairs(NamedTuple):
    """num_with_text: those that have text on both sides. digest: of the text of all."""

    num_pairs: int
    num_with_text: int
    digest: str


def write_pairs(folder: Path, pairs: Iterable[tuple[str, str]]) -> WrittenPairs:
    """Writes source.txt and target.txt."""
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
    # Not by `read_lines`: these lines are ours, and a CR or BOM that was left in the text stays there.
    source, target = (
        (folder / f"{side}.txt").read_bytes().decode("utf-8").split("\n")[:-1] for side in ("source", "target")
    )
    return list(zip(source, target, strict=True))
