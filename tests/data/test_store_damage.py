"""Bytes of a preprocessed folder that changed on the disk are found, wherever they are."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gnmt.data.store as store_module
from gnmt.data.batching import BatchStream, Prefetcher
from gnmt.data.corpora import FilesCorpus
from gnmt.data.preprocess import preprocess
from gnmt.data.store import DamagedDataError, Store, StoreWriter, encoded_side, read_preprocessed, verify_preprocessed
from gnmt.data.tokenizer import TokenizerOptions
from gnmt.errors import InputError

MakeCorpus = Callable[..., FilesCorpus]


def flip(path: Path, index: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def use_everything(folder: Path) -> None:
    """Open a folder, and read its ids and its text as training does."""
    preprocessed = read_preprocessed(folder)
    options = {"batch_tokens": 500, "seed": 1, "tokenizers": preprocessed.tokenizers}
    for alpha in (0.0, 0.1):
        stream = BatchStream(preprocessed.store, subword_regularization=alpha, **options)  # type: ignore[arg-type]
        while stream.epochs < 1:
            next(stream)


def test_a_flipped_bit_in_any_file_is_named(
    make_corpus: MakeCorpus, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ran on garbage with exit code 0, and a test set whose every line was replaced was scored."""
    monkeypatch.setattr(store_module, "_CHECKED_BYTES", 1 << 10)
    corpus = make_corpus()
    corpus.test["test"] = corpus.dev
    folder = preprocess(corpus, options).folder
    use_everything(folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 20
    assert verify_preprocessed(folder) == (20, sum((folder / name).stat().st_size for name in names))
    for name in names:
        size = (folder / name).stat().st_size
        for index in (0, size // 3, size - 1):
            flip(folder / name, index)
            for read in (use_everything, verify_preprocessed):
                with pytest.raises(InputError) as caught:
                    read(folder)
                message = str(caught.value)
                assert name in message
                assert "damaged" in message or "lacks the keys" in message
                if name != "manifest.json":
                    assert caught.type is DamagedDataError
                    assert message.startswith(f"{folder / name}: damaged: ")
                    assert "rebuild this folder alone with scripts/prepare.py" in message
                for internal in ("zip()", "argument", "char ", "Errno", "codec", "index"):
                    assert internal not in message.replace(str(folder), "")
            flip(folder / name, index)
    use_everything(folder)


def test_all_damaged_files_are_listed_by_a_complete_check(make_corpus: MakeCorpus, options: TokenizerOptions) -> None:
    folder = preprocess(make_corpus(), options).folder
    flip(folder / "dev" / "target.txt", 3)
    flip(folder / "train" / "source.text", 3)
    (folder / "train" / "target.ids").unlink()
    with pytest.raises(DamagedDataError) as caught:
        verify_preprocessed(folder)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0].removeprefix(f"{folder}/") for line in lines[:3]] == [
        "dev/target.txt",
        "train/source.text",
        "train/target.ids",
    ]
    assert "overwrite=true" in lines[3]


def test_overwrite_rebuilds_a_damaged_folder_with_the_same_contents(
    make_corpus: MakeCorpus, options: TokenizerOptions
) -> None:
    corpus = make_corpus()
    folder = preprocess(corpus, options).folder
    shutil.copytree(folder, folder.with_name("copy"))
    flip(folder / "train" / "target.text", 50)  # read_preprocessed alone does not find it
    preprocess(corpus, options, overwrite=True)
    for path in folder.rglob("*.*"):
        copy = folder.with_name("copy") / path.relative_to(folder)
        assert path.is_dir() or path.read_bytes() == copy.read_bytes()


def test_a_damaged_folder_is_not_called_up_to_date(
    make_corpus: MakeCorpus, options: TokenizerOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """The message about the damage followed one that said that all was well."""
    corpus = make_corpus()
    folder = preprocess(corpus, options).folder
    flip(folder / "dev" / "target.txt", 3)
    with caplog.at_level(logging.INFO), pytest.raises(DamagedDataError):
        preprocess(corpus, options)
    assert "up to date" not in caplog.text


def store_of(folder: Path, num_pairs: int = 200) -> Path:
    folder.mkdir()
    with StoreWriter(folder, 300, 300) as writer:
        for pair in range(num_pairs):
            ids, text = [pair % 250 + 4] * (pair % 9), f"line {pair} "
            writer.append(encoded_side([ids], [text]), encoded_side([ids[::2]], [text * 3]))
    return folder


def test_a_block_is_verified_when_it_is_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_CHECKED_BYTES", 64)
    folder = store_of(tmp_path / "store")
    flip(folder / "source.ids", 64 * 5)
    store, damaged_pair = Store(folder), 43  # its ids are values 165 to 171, in the block of values 160 to 191
    assert len(store.source_ids(range(40))) == 40
    with pytest.raises(DamagedDataError, match=r"source\.ids: damaged: the checksum of bytes 320 to 383 is "):
        store.source_ids([0, damaged_pair, 199])
    in_other_process = pickle.loads(pickle.dumps(store))
    with pytest.raises(DamagedDataError, match=r"source\.ids"):
        in_other_process.source_ids([damaged_pair])


def test_an_error_in_the_prefetching_thread_is_raised(tmp_path: Path) -> None:
    folder = store_of(tmp_path / "store")
    flip(folder / "target.ids", 100)
    prefetcher = Prefetcher(BatchStream(Store(folder), batch_tokens=200, seed=1), num_batches=2, pin=False)
    with pytest.raises(DamagedDataError, match=r"target\.ids"):
        next(prefetcher)
    prefetcher.close()


@pytest.mark.parametrize("block_bytes", [8, 24, 64, 1 << 20])
def test_rows_of_any_length_are_read_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Rows that span several blocks, empty rows, and rows at both ends of the file."""
    monkeypatch.setattr(store_module, "_CHECKED_BYTES", block_bytes)
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 300, length).tolist() for length in (0, 1, 90, 0, 4, 3, 40, 2, 0)]
    (tmp_path / "store").mkdir()
    with StoreWriter(tmp_path / "store", 300, 300) as writer:
        for part in (rows[:2], rows[2:7], rows[7:]):
            side = encoded_side(part, ["é" * len(row) for row in part])
            writer.append(side, side)
    for pairs in ([0], [8], [8, 2, 0], [1, 6], list(range(9))):
        store = Store(tmp_path / "store")
        for _ in range(2):
            assert [ids.tolist() for ids in store.source_ids(pairs)] == [rows[pair] for pair in pairs]
            assert [store.target_text(pair) for pair in pairs] == ["é" * len(rows[pair]) for pair in pairs]
    assert store._ids["source"]._num_unverified == 0
