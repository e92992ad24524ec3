"""Corpora of files, Multi30k and the demo corpus: their text, settings and errors."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from gnmt.data.corpora import (
    MULTI30K_SHA256,
    DemoCorpus,
    FilesCorpus,
    Multi30k,
    Multi30kLanguage,
    bleu_tokenizer,
    language_unlike_13a,
)
from gnmt.data.demo_grammar.corpus import CORPUS_VERSION
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import preprocess
from gnmt.data.tokenizer import TokenizerOptions
from gnmt.errors import InputError

FILES = ParallelFiles("a", "b")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        data = f"{name}\n".encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


@pytest.mark.parametrize(
    ("corpus", "key"),
    [
        ({}, "train"),
        ({}, "dev"),
        ({"train": FILES}, "dev"),
    ],
)
def test_missing_files_are_named_by_their_key(corpus: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"(?m)^data\.{key} names no files: give data\.{key}\.source=FILE"):
        FilesCorpus(**corpus)


def test_a_test_set_without_files_is_left_out() -> None:
    text = ParallelFiles("a.en", "a.de")
    corpus = FilesCorpus(train=text, dev=text, test={"test": ParallelFiles(), "news": text})
    assert corpus.test_texts() == {"news": text}


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b"])
def test_a_name_that_cannot_be_a_folder_is_refused_for_a_test_set(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a test set"):
        FilesCorpus(train=FILES, dev=FILES, test={name: FILES})


def test_multi30k_reads_a_local_folder(tmp_path: Path) -> None:
    fill(tmp_path, "train.en.gz", "train.de", "dev.en", "val.en", "val.de.gz", "dev.de.gz")
    corpus = Multi30k(folder=str(tmp_path))
    assert list(corpus.training_text().iterate()) == [("train.en.gz", "train.de")]
    assert list(corpus.dev_text().iterate()) == [("dev.en", "dev.de.gz")]
    assert corpus.test_texts() == {}
    (tmp_path / "dev.en").unlink()
    (tmp_path / "dev.de.gz").unlink()
    assert list(corpus.dev_text().iterate()) == [("val.en", "val.de.gz")]
    fill(tmp_path, "test_2016_flickr.en", "test_2016_flickr.de.gz", "test_2016_flickr.lc.norm.tok.de")
    test = corpus.test_texts()["test_2016_flickr"]
    assert list(test.iterate()) == [("test_2016_flickr.en", "test_2016_flickr.de.gz")]


def test_multi30k_names_missing_files_and_equal_languages(tmp_path: Path) -> None:
    fill(tmp_path, "train.en")
    with pytest.raises(InputError, match=r"contains none of train\.de, plain or with \.gz, \.bz2, \.xz$"):
        Multi30k(folder=str(tmp_path)).training_text()
    with pytest.raises(InputError, match=r"contains none of dev\.en, val\.en, plain or"):
        Multi30k(folder=str(tmp_path)).dev_text()
    with pytest.raises(InputError, match=r"data\.folder=.*nowhere: no such folder"):
        Multi30k(folder=str(tmp_path / "nowhere")).training_text()
    with pytest.raises(InputError, match="both de"):
        Multi30k(source_language="de")


def test_multi30k_has_a_checksum_for_every_file() -> None:
    splits = ("train", "val", "test_2016_flickr")
    assert set(MULTI30K_SHA256) == {
        f"{split}.{language}.gz" for split in splits for language in get_args(Multi30kLanguage)
    }
    assert len(set(MULTI30K_SHA256.values())) == 12


def test_settings_are_json_and_depend_only_on_the_content() -> None:
    corpus = Multi30k(folder="here")
    assert json.loads(json.dumps(corpus.settings())) == corpus.settings()
    for same in ({"folder": "there"}, {"bleu_tokenize": "char"}, {"name": "x"}, {"preprocessed": "p"}, {"url": "u"}):
        assert replace(corpus, **same).settings() == corpus.settings()
    for other in ({"source_language": "fr"}, {"cleaning": replace(corpus.cleaning, drop_identical=True)}):
        assert replace(corpus, **other).settings() != corpus.settings()
    assert DemoCorpus().settings() != DemoCorpus(seed=2).settings()


def test_demo_corpus_has_disjoint_splits_and_both_directions(tmp_path: Path) -> None:
    corpus = DemoCorpus(num_train=300, num_dev=20, num_test=10, preprocessed=str(tmp_path / "p"))
    train = list(corpus.training_text().iterate())
    dev = list(corpus.dev_text().iterate())
    test = list(corpus.test_texts()["test"].iterate())
    assert (len(train), len(dev), len(test)) == (300, 20, 10)
    assert not {*train} & {*dev, *test}
    backward = replace(corpus, source_language="de", target_language="en")
    assert list(backward.dev_text().iterate()) == [(german, english) for english, german in dev]
    preprocessed = preprocess(corpus, TokenizerOptions(vocab_size=500))
    assert preprocessed.dev == dev
    assert preprocessed.manifest["inputs"]["train"]["grammar_version"] == CORPUS_VERSION
    with pytest.raises(InputError, match=r"data\.seed: 1 → 2"):
        preprocess(replace(corpus, seed=2), TokenizerOptions(vocab_size=500))
    with pytest.raises(InputError, match=r'data\.source_language: "en" → "de"'):
        preprocess(backward, TokenizerOptions(vocab_size=500))


def test_demo_corpus_refuses_other_languages() -> None:
    with pytest.raises(InputError, match="from en to de or from de to en"):
        DemoCorpus(target_language="fr")


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("auto", "de", "13a"),
        ("auto", "target", "13a"),
        ("auto", "zh", "zh"),
        ("auto", "zh-CN", "zh"),
        ("auto", "zho_Hans", "zh"),
        ("auto", "ja", "ja-mecab"),
        ("auto", "jpn_Jpan", "ja-mecab"),
        ("auto", "KO", "ko-mecab"),
        ("char", "zh", "char"),
    ],
)
def test_the_language_code_chooses_the_tokenization_of_bleu(name: str, language: str, expected: str) -> None:
    assert bleu_tokenizer(name, language) == expected


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["一只猫在吃鱼。", "狗跑得很快！"], "zh"),
        (["猫が魚を食べている。", "犬は速い。"], "ja"),
        (["カタカナ"], "ja"),
        (["고양이가 생선을 먹는다."], "ko"),
        (["A cat (猫) eats fish.", "Das Wort für Katze ist 猫."], None),
        (["Кошка ест рыбу."], None),
        (["12 + 3 = 15", "!?"], None),
        ([], None),
    ],
)
def test_dev_references_without_a_code_of_their_language_are_refused(
    references: list[str], expected: str | None, tmp_path: Path
) -> None:
    """With 13a, dev BLEU of Chinese text was 0.00 at every evaluation, so best.pt was that of the first one."""
    assert language_unlike_13a("auto", "target", references) == expected
    assert language_unlike_13a("13a", "target", references) is None
    assert language_unlike_13a("auto", expected or "target", references) is None


def test_references_without_a_language_code_are_refused_before_training_text_is_encoded(tmp_path: Path) -> None:
    for name, text in {"a": "cat\ndog\n", "b": "猫\n狗\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = ParallelFiles(source=str(tmp_path / "a"), target=str(tmp_path / "b"))
    corpus = FilesCorpus(train=files, dev=files, preprocessed=str(tmp_path / "p"))
    options = TokenizerOptions(vocab_size=270)
    message = r"data\.target_language is target, but most letters of the dev references are Han, .*_language=zh"
    with pytest.raises(InputError, match=message):
        preprocess(corpus, options)
    assert not (tmp_path / "p").exists()
    fingerprint = preprocess(replace(corpus, bleu_tokenize="char"), options).fingerprint
    with pytest.raises(InputError, match=message):  # the folder is up to date
        preprocess(corpus, options)
    assert preprocess(replace(corpus, target_language="zh"), options).fingerprint == fingerprint
