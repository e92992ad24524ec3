"""Preprocessing makes the folder once and completely, and makes it again only after a change."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gnmt.data import preprocess as preprocess_module
from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import FilesCorpus, WeightedText
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import preprocess, preprocessed_folder
from gnmt.data.store import PreprocessedData, StoreWriter, read_preprocessed
from gnmt.data.tokenizer import TokenizerOptions
from gnmt.errors import InputError

MakeCorpus = Callable[..., FilesCorpus]
Pairs = Callable[..., list[tuple[str, str]]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_has_the_ids_and_the_text_of_all_kept_pairs(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions
) -> None:
    train = toy_pairs(300)
    train[5] = ("", "blank")
    preprocessed = preprocess(make_corpus(train), options)
    kept = [pair for pair in train if pair[0]]
    store, tokenizers = preprocessed.store, preprocessed.tokenizers
    assert len(store) == 299
    for index, (source, target) in enumerate(kept):
        assert (store.source_text(index), store.target_text(index)) == (source, target)
        assert store.source_ids([index])[0].tolist() == tokenizers.source.encode(source)
        assert store.target_ids([index])[0].tolist() == tokenizers.target.encode(target)
    assert preprocessed.dev == toy_pairs(7, seed=1)
    assert preprocessed.tests == {}
    assert preprocessed.report.dropped["blank"] == 1
    assert preprocessed.manifest["counts"]["train"] == 299
    assert preprocessed.manifest["counts"]["train_source_tokens"] == store.source_lengths.sum()
    assert "blank: pair 6" in (preprocessed.folder / "cleaning_report.txt").read_text()
    assert os.listdir(preprocessed.folder.parent).count("preprocessed") == 1
    assert not [name for name in os.listdir(preprocessed.folder.parent) if name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_found_before_the_text_is_read(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(toy_pairs(300))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(preprocess_module, "_fingerprint_inputs", lambda *_: pytest.fail("the text was read"))
    with pytest.raises(InputError, match="is not writable; see data"):
        preprocess(corpus, options)


def test_dev_and_test_text_stay_raw(make_corpus: MakeCorpus, tmp_path: Path, options: TokenizerOptions) -> None:
    hostile = [("", ""), ("a\u2028b\x85", "c\r"), ("\x00", " "), ("x" * 9000, "same"), ("x" * 9000, "same")]
    (tmp_path / "h.tsv").write_text("".join(f"{s}\t{t}\r\n" for s, t in hostile), encoding="utf-8", newline="")
    corpus = make_corpus()
    hostile_text = ParallelFiles(pairs=str(tmp_path / "h.tsv"))
    preprocessed = preprocess(replace(corpus, dev=hostile_text, test={"a": hostile_text, "b": corpus.dev}), options)
    assert preprocessed.dev == preprocessed.tests["a"] == hostile
    assert list(preprocessed.tests) == ["a", "b"]
    assert (preprocessed.folder / "test" / "a" / "source.txt").read_bytes().count(b"\n") == 5


def test_lines_that_the_tokenizers_change_are_counted_and_warned_about(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """The default rewrote the target but not the references, and BLEU stayed low without a word."""
    train = [*toy_pairs(300), ("½ of it", "½ davon！"), ("it  is", "es\u2028ist")]
    corpus = make_corpus(train)
    corpus = replace(corpus, test={"t": corpus.train})
    with caplog.at_level(logging.INFO):
        kept = preprocess(corpus, options)
    counts = {text: lines.num_changed for text, lines in kept.changed_lines.items()}
    assert counts == {"train.source": 2, "train.target": 1, "dev.target": 0, "test.t.target": 1}
    assert kept.changed_lines["train.target"].causes["white_space"] == 1
    assert kept.changed_lines["train.source"].examples[0] == {"line": 301, "before": "½ of it", "after": "1⁄2 of it"}
    levels = {record.message.partition(":")[0]: record.levelname for record in caplog.records}
    assert levels["data.train.source"] == "INFO"  # the source is normalized on purpose
    assert levels["data.train.target"] == levels["data.test.t.target"] == "WARNING"
    assert "data.dev.target" not in levels
    caplog.clear()
    preprocess(corpus, options)
    assert "data.train.target: 1 of 302 lines change" in caplog.text, "an old folder is warned about, too"
    normalized = preprocess(corpus, replace(options, target_normalization="nmt_nfkc"), overwrite=True)
    assert normalized.changed_lines["train.target"].num_changed == 2
    assert "tokenizer.target_normalization=identity" in caplog.text
    assert normalized.fingerprint != kept.fingerprint


def test_a_second_call_does_nothing(
    make_corpus: MakeCorpus,
    options: TokenizerOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = preprocess(make_corpus(), options)
    before = contents(first.folder)
    monkeypatch.setattr(preprocess_module, "_fill_folder", None)  # would fail if it were called
    with caplog.at_level(logging.INFO):
        again = preprocess(make_corpus(), options)
        assert preprocess(make_corpus(), options, overwrite=True).fingerprint == first.fingerprint
    assert caplog.text.count("is up to date") == 2
    assert again.fingerprint == first.fingerprint
    assert contents(first.folder) == before


def test_equal_inputs_give_equal_bytes(make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path) -> None:
    corpus = make_corpus()
    first, second = (preprocess(replace(corpus, preprocessed=str(tmp_path / name)), options) for name in "ab")
    assert contents(first.folder) == contents(second.folder)


def test_changed_settings_are_listed(make_corpus: MakeCorpus, options: TokenizerOptions) -> None:
    first = preprocess(make_corpus(), options)
    corpus = make_corpus(cleaning=Cleaning(max_length_tokens=8))
    with pytest.raises(InputError) as caught:
        preprocess(corpus, replace(options, vocab_size=390))
    message = str(caught.value)
    assert "tokenizer.vocab_size: 380 → 390\n" in message
    assert "data.cleaning.max_length_tokens: 256 → 8\n" in message
    assert message.count("→") == 2
    assert "overwrite=true" in message
    assert "data.preprocessed=" in message
    assert read_preprocessed(first.folder).fingerprint == first.fingerprint
    second = preprocess(corpus, replace(options, vocab_size=390), overwrite=True)
    assert second.tokenizers.source.vocabulary_size == 390
    assert second.report.dropped["too_long"] > 0
    assert second.fingerprint != first.fingerprint


def test_changed_inputs_are_listed(make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions) -> None:
    first = preprocess(make_corpus(), options)
    with pytest.raises(InputError, match=r"data\.train\.source: other content: .*train\.0 \(\d+ bytes, sha256 .*→"):
        preprocess(make_corpus(toy_pairs(301)), options)
    with_test = replace(make_corpus(), test={"new": make_corpus().dev})
    with pytest.raises(InputError, match=r"data\.test\.new: not given before"):
        preprocess(with_test, options)
    assert preprocess(with_test, options, overwrite=True).fingerprint == first.fingerprint


def test_touched_and_moved_files_are_no_change(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path
) -> None:
    corpus = make_corpus()
    first = preprocess(corpus, options)
    os.utime(tmp_path / "train.0", (1, 1))
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    moved = ParallelFiles(str(tmp_path / "copy" / "train.0"), str(tmp_path / "copy" / "train.1"))
    assert preprocess(replace(corpus, train=moved), options).fingerprint == first.fingerprint


def test_the_fingerprint_depends_on_the_content_alone(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions
) -> None:
    def fingerprint(**changes: Any) -> str:
        return preprocess(make_corpus(**changes), options, overwrite=True).fingerprint

    first = fingerprint()
    assert fingerprint(cleaning=Cleaning(max_length_tokens=200)) == first  # drops nothing here
    assert fingerprint(cleaning=Cleaning(max_length_tokens=8)) != first
    pairs = toy_pairs(300)
    assert fingerprint(train=[*pairs[1:], pairs[0]]) != first
    assert fingerprint() == first


def test_default_folders_differ_between_settings_and_files() -> None:
    files = ParallelFiles("a", "b")
    corpus = FilesCorpus(name="my/ä corpus", train=files, dev=files)
    folder = preprocessed_folder(corpus, TokenizerOptions())
    assert folder.parent == Path("preprocessed")
    assert folder.name.startswith("my---corpus-")
    assert preprocessed_folder(replace(corpus, name="../../foo"), TokenizerOptions()).name.startswith("foo-")
    others = [
        preprocessed_folder(replace(corpus, train=ParallelFiles("a", "c")), TokenizerOptions()),
        preprocessed_folder(replace(corpus, cleaning=Cleaning(None)), TokenizerOptions()),
        preprocessed_folder(corpus, TokenizerOptions(vocab_size=7000)),
        preprocessed_folder(replace(corpus, preprocessed="elsewhere"), TokenizerOptions()),
    ]
    assert len({folder, *others}) == 5
    assert preprocessed_folder(replace(corpus, bleu_tokenize="char"), TokenizerOptions()) == folder


def test_empty_corpora_and_corpora_without_kept_pairs_are_refused(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"data\.train holds no sentence pair .*\(0 pairs read\)"):
        preprocess(make_corpus([]), options)
    with pytest.raises(InputError, match=r"data\.train holds no sentence pair .*\(2 pairs read\)"):
        preprocess(make_corpus([("a", ""), ("", "b")]), options)
    with pytest.raises(
        InputError, match=r"no pair is left after cleaning: 300 pairs read, 0 kept, dropped: "
    ) as caught:
        preprocess(make_corpus(cleaning=Cleaning(max_length_tokens=1)), options)
    assert "\n  data.cleaning.max_length_tokens=1 dropped 300, such as pair 1: '" in str(caught.value)
    corpus = make_corpus()
    (tmp_path / "dev.0").write_text("")
    (tmp_path / "dev.1").write_text("")
    with pytest.raises(InputError, match=r"data\.dev holds no sentence pair .*\(0 pairs read\): .*dev\.0, .*dev\.1$"):
        preprocess(corpus, options)
    for blank, side in (("\n \n\n", 0), ("\n\n\n", 1)):  # trained on, its loss was NaN
        (tmp_path / f"dev.{side}").write_text(blank)
    with pytest.raises(InputError, match=r"data\.dev holds no sentence pair with text on both sides \(3 pairs read\)"):
        preprocess(corpus, options)
    assert not [name for name in os.listdir(tmp_path) if "preprocessed" in name]


def test_blank_sides_are_kept_with_drop_blank_false(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions
) -> None:
    train = [*toy_pairs(300), ("", "x"), ("y", "")]
    preprocessed = preprocess(make_corpus(train, Cleaning(max_length_ratio=None, drop_blank=False)), options)
    assert len(preprocessed.store) == 302
    assert (preprocessed.store.source_lengths[300], preprocessed.store.target_lengths[301]) == (0, 0)


def test_duplicates_in_different_shards_are_dropped(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 7)
    train = toy_pairs(300)
    unique = list(dict.fromkeys(train))
    preprocessed = preprocess(make_corpus([*train, *train], Cleaning(drop_duplicates=True)), options)
    assert [preprocessed.store.source_text(i) for i in range(len(preprocessed.store))] == [
        source for source, _ in unique
    ]
    assert preprocessed.report.dropped["duplicate"] == 600 - len(unique)


def test_the_sample_is_seeded_bounded_and_uniform(toy_pairs: Pairs) -> None:
    class Text:
        def iterate(self) -> Any:
            return iter([("", "")] + [(f"s{i}", f"t{i}") for i in range(1000)])

    def sample(size: int, seed: int) -> tuple[list[str], list[str]]:
        source, target, num_pairs = preprocess_module._sample_lines({"a": WeightedText(Text())}, size, seed)  # type: ignore[arg-type]
        assert num_pairs == 1001
        return source, target

    source, target = sample(100, 1)
    assert len(source) == len(set(source)) == 100
    assert [text[1:] for text in source] == [text[1:] for text in target]
    assert source == sorted(source, key=lambda text: int(text[1:]))
    assert sample(100, 1) == (source, target)
    assert sample(100, 2)[0] != source
    assert sample(5000, 1)[0] == [f"s{i}" for i in range(1000)]
    # Every line is as likely as any other: 400 samples of 100 lines hold the first hundred 4000 times or so.
    hits = sum(int(text[1:]) < 100 for seed in range(400) for text in sample(100, seed)[0])
    assert 3700 < hits < 4300


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interruption_leaves_the_old_folder(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    first = preprocess(make_corpus(), options)
    before = contents(first.folder)
    changed = make_corpus(toy_pairs(310))

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", fail)
        with pytest.raises((KeyboardInterrupt, InputError)) as caught:
            preprocess(changed, options, overwrite=True)
    assert caught.type is KeyboardInterrupt or "No space left on device" in str(caught.value)
    assert contents(first.folder) == before
    assert [name for name in os.listdir(first.folder.parent) if name.startswith(".")] == [".preprocessed.work"]
    assert len(preprocess(changed, options, overwrite=True).store) == 310
    assert not [name for name in os.listdir(first.folder.parent) if name.startswith(".")]


def test_concurrent_calls_build_once(
    make_corpus: MakeCorpus, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus()
    builds = []
    build = preprocess_module._fill_folder

    def counted(*arguments: Any) -> None:
        builds.append(1)
        build(*arguments)

    monkeypatch.setattr(preprocess_module, "_fill_folder", counted)
    found: list[PreprocessedData] = []
    threads = [threading.Thread(target=lambda: found.append(preprocess(corpus, options))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert [len(preprocessed.store) for preprocessed in found] == [300] * 4


def test_overwrite_repairs_a_damaged_folder(make_corpus: MakeCorpus, options: TokenizerOptions) -> None:
    corpus = make_corpus()
    folder = preprocess(corpus, options).folder
    for name in ("train/source.ids", "tokenizer/source.model", "dev/source.txt", "cleaning_report.json"):
        (folder / name).unlink()
        with pytest.raises(InputError, match="overwrite=true"):
            preprocess(corpus, options)
        assert len(preprocess(corpus, options, overwrite=True).store) == 300


def test_folders_with_other_contents_are_never_changed(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path
) -> None:
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a preprocessed folder"):
        preprocess(make_corpus(), options, overwrite=True)
    (tmp_path / "preprocessed" / "manifest.json").write_text('{"format": "pdf"}')
    with pytest.raises(InputError, match="not a preprocessed folder") as caught:
        preprocess(make_corpus(), options, overwrite=True)
    assert "remove" not in str(caught.value)  # it was advised, to the owner of the thesis
    assert (tmp_path / "preprocessed" / "thesis.txt").read_text() == "years of work"


def test_a_message_advises_to_remove_a_damaged_preprocessed_folder(
    make_corpus: MakeCorpus, options: TokenizerOptions
) -> None:
    (preprocess(make_corpus(), options).folder / "manifest.json").write_text("{")
    with pytest.raises(
        InputError,
        match=r"not a preprocessed folder .*; remove it to preprocess again, or choose another",
    ):
        preprocess(make_corpus(), options)


@pytest.mark.parametrize("failing", ["write_atomically", "write_pairs"])
def test_a_full_disk_leaves_no_empty_work_folder(
    make_corpus: MakeCorpus, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preprocess_module, failing, fail)
    with pytest.raises(InputError, match="cannot be preprocessed: No space left on device"):
        preprocess(make_corpus(), options)
    assert not [name for name in os.listdir(tmp_path) if "preprocessed" in name]  # an empty .preprocessed.work was left


def test_a_folder_of_another_format_is_refused(make_corpus: MakeCorpus, options: TokenizerOptions) -> None:
    folder = preprocess(make_corpus(), options).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(InputError, match="preprocessed in format 0"):
        read_preprocessed(folder)
    with pytest.raises(InputError, match=r"preprocessed in format 0, this version reads format 5; .*overwrite=true"):
        preprocess(make_corpus(), options)
    assert preprocess(make_corpus(), options, overwrite=True).manifest["format"] == 5


def test_a_complete_folder_is_opened_without_a_lock(
    make_corpus: MakeCorpus, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(make_corpus(), options)
    monkeypatch.setattr(preprocess_module, "building_lock", None)  # would fail if it were called
    assert len(preprocess(make_corpus(), options).store) == 300


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no preprocessed text.*prepare\.py"):
        read_preprocessed(tmp_path / "nothing")
