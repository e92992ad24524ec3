"""The memory-mapped store returns what was written, and refuses damaged files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from gnmt.data.store import Store, StoreWriter, encoded_side
from gnmt.errors import InputError

SOURCE = [[4, 5, 6], [], [7], [65_535]]
TARGET = [[10], [70_000, 11], [], [12, 13]]
SOURCE_TEXT = ["a b", "", "\u2028\x00\r", "漢字😀"]
TARGET_TEXT = ["x", "y\tz", " ", "ß"]


def write(folder: Path, block: int = 4) -> Path:
    folder.mkdir()
    with StoreWriter(folder, source_vocabulary_size=1 << 16, target_vocabulary_size=100_000) as writer:
        for start in range(0, 4, block):
            part = slice(start, start + block)
            writer.append(encoded_side(SOURCE[part], SOURCE_TEXT[part]), encoded_side(TARGET[part], TARGET_TEXT[part]))
    return folder


@pytest.mark.parametrize("block", [1, 3, 4])
def test_reading_returns_what_was_written(tmp_path: Path, block: int) -> None:
    store = Store(write(tmp_path / "store", block))
    assert len(store) == 4
    for pair in range(4):
        assert store.source_ids([pair])[0].tolist() == SOURCE[pair]
        assert store.target_ids([pair])[0].tolist() == TARGET[pair]
        assert store.source_text(pair) == SOURCE_TEXT[pair]
        assert store.target_text(pair) == TARGET_TEXT[pair]
    assert (store.source_ids([0])[0].dtype, store.target_ids([0])[0].dtype) == (np.uint16, np.uint32)
    assert store.source_lengths.tolist() == [3, 0, 1, 1]
    assert store.target_lengths.tolist() == [1, 2, 0, 2]
    assert store.target_lengths.dtype == np.int32


def test_the_digest_depends_on_the_content_and_not_on_blocks(tmp_path: Path) -> None:
    digests = {Store(write(tmp_path / str(block), block)).digest for block in (1, 4)}
    assert len(digests) == 1
    (tmp_path / "other").mkdir()
    with StoreWriter(tmp_path / "other", 1 << 16, 100_000) as writer:
        writer.append(encoded_side(SOURCE, [*SOURCE_TEXT[:3], "漢字😁"]), encoded_side(TARGET, TARGET_TEXT))
    assert Store(tmp_path / "other").digest not in digests


def test_empty_pairs_are_stored(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, 300, 300) as writer:
        writer.append(encoded_side([[], []], ["", ""]), encoded_side([[], []], ["", ""]))
    store = Store(tmp_path)
    assert [store.source_ids([1])[0].tolist(), store.target_text(1)] == [[], ""]


def test_ids_are_read_only(tmp_path: Path) -> None:
    ids = Store(write(tmp_path / "store")).source_ids([0])[0]
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_a_store_pickles_as_its_folder(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "store"))
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data).target_ids([1])[0].tolist() == TARGET[1]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "store")
    (folder / "target.ids").write_bytes((folder / "target.ids").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"target\.ids: damaged: it has 19 bytes, 20 were written"):
        Store(folder)
    (folder / "target.ids").unlink()
    with pytest.raises(InputError, match=r"target\.ids: cannot be read: No such file"):
        Store(folder)
    with pytest.raises(InputError, match=r"store\.json: cannot be read"):
        Store(tmp_path)


def test_an_error_while_writing_leaves_no_store(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with StoreWriter(tmp_path, 300, 300) as writer:
            writer.append(encoded_side(SOURCE[:1], SOURCE_TEXT[:1]), encoded_side(TARGET[:1], TARGET_TEXT[:1]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    with pytest.raises(InputError, match=r"store\.json: cannot be read"):
        Store(tmp_path)
