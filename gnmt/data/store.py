"""Encoded sentence pairs on disk, memory-mapped: a corpus of any size opens at once and costs no memory.

A store is a folder. For each side: `<side>.ids` (uint16 or uint32 by vocabulary size), `<side>.lengths`
(int32, pieces of each sentence), `<side>.offsets` (int64, where each begins, and the end), `<side>.text`
(UTF-8), `<side>.text_offsets` (int64). Little-endian, and `store.json` tells counts, types and hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.types import BOS_ID, EOS_ID, PAD_ID, UNK_ID, InputError

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
            raise InputError(f"{folder}: no readable store of prepared text: {error}") from error
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
        raise InputError(f"{path}: missing from the prepared folder; prepare again with overwrite=true") from error
    if size != count * np.dtype(dtype).itemsize:
        raise InputError(
            f"{path}: damaged: {size} bytes where {count * np.dtype(dtype).itemsize} were written; "
            "prepare again with overwrite=true"
        )
    if count == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    # A plain array over the map: slices of np.memmap itself are several times slower to make.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
