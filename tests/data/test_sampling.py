"""data.max_pairs takes a random sample of the training pairs, the same one for every purpose and on every machine."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnmt.data import preprocess as preprocess_module
from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import DemoCorpus, FilesCorpus, Mixture, WeightedText
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import preprocess, preprocessed_folder
from gnmt.data.sampling import sample
from gnmt.data.store import PreprocessedData
from gnmt.data.tokenizer import TokenizerOptions
from gnmt.errors import InputError

MakeCorpus = Callable[..., FilesCorpus]
Pairs = Callable[..., list[tuple[str, str]]]


def indices(num_pairs: int, size: int) -> list[int]:
    return np.flatnonzero(sample([num_pairs], size)[0]).tolist()


def text_of(preprocessed: PreprocessedData) -> list[tuple[str, str]]:
    store = preprocessed.store
    return [(store.source_text(pair), store.target_text(pair)) for pair in range(len(store))]


def contents(preprocessed: PreprocessedData) -> dict[str, bytes]:
    folder = preprocessed.folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_a_sample_is_the_same_on_every_machine() -> None:
    assert indices(20, 5) == [2, 9, 16, 18, 19]


@pytest.mark.parametrize("size", [1, 100, 9_000, 99_999, 100_000])
def test_a_sample_has_its_size_and_is_spread_over_the_corpus(size: int) -> None:
    """Corpora are often sorted by domain, so that the first N pairs are no fair sample."""
    found = indices(100_000, size)
    assert len(set(found)) == len(found) == size
    expected, deviation = size / 10, np.sqrt(size * 0.1 * 0.9 * (1 - size / 100_000))
    for tenth in range(10):
        number = sum(tenth * 10_000 <= index < (tenth + 1) * 10_000 for index in found)
        assert abs(number - expected) <= 4 * deviation


def test_a_larger_sample_contains_every_smaller_one() -> None:
    """So the points of a learning curve differ by added pairs alone."""
    samples = [set(indices(1000, size)) for size in (1, 10, 300, 301, 999)]
    for smaller, larger in pairwise(samples):
        assert smaller < larger


def test_a_sample_of_several_texts_is_one_of_all_their_pairs() -> None:
    parts = sample([30, 50, 20], 40)
    assert [len(part) for part in parts] == [30, 50, 20]
    assert np.flatnonzero(np.concatenate(parts)).tolist() == indices(100, 40)


def test_a_sampled_corpus_equals_a_corpus_of_the_sampled_pairs(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, tmp_path: Path
) -> None:
    """Text, ids and subwords: the tokenizers are learned from the sample, not from the whole."""
    pairs = toy_pairs(900)
    sampled = preprocess(replace(make_corpus(pairs), max_pairs=300), options)
    kept = [pairs[index] for index in indices(900, 300)]
    assert text_of(sampled) == kept
    assert sampled.manifest["settings"]["data"]["max_pairs"] == 300
    whole = preprocess(replace(make_corpus(kept), preprocessed=str(tmp_path / "whole")), options)
    assert whole.fingerprint == sampled.fingerprint
    few_lines = replace(options, sample_lines=200)
    again = preprocess(replace(make_corpus(pairs), max_pairs=300), few_lines, overwrite=True)
    small = preprocess(replace(make_corpus(kept), preprocessed=str(tmp_path / "small")), few_lines)
    assert again.tokenizers.digest == small.tokenizers.digest != sampled.tokenizers.digest


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "tsv", "jsonl"])
def test_files_of_every_format_are_sampled(
    ending: str, make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, tmp_path: Path
) -> None:
    corpus, pairs = make_corpus(), toy_pairs(300)
    if ending in ("tsv", "jsonl"):
        record: Callable[..., str] = (
            "\t".join
            if ending == "tsv"
            else lambda pair: json.dumps(dict(zip(("source", "target"), pair, strict=True)))
        )
        (tmp_path / f"t.{ending}").write_text("".join(record(pair) + "\n" for pair in pairs), encoding="utf-8")
        train = ParallelFiles(pairs=str(tmp_path / f"t.{ending}"))
    else:
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending]
        for side in (0, 1):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (tmp_path / f"t.{side}.{ending}").write_bytes(compress(text.encode()))
        train = ParallelFiles(str(tmp_path / f"t.0.{ending}"), str(tmp_path / f"t.1.{ending}"))
    preprocessed = preprocess(replace(corpus, train=train, max_pairs=250), options)
    assert text_of(preprocessed) == [pairs[index] for index in indices(300, 250)]


def test_the_demo_corpus_is_sampled(tmp_path: Path) -> None:
    corpus = DemoCorpus(num_train=400, num_dev=5, num_test=5, max_pairs=300, preprocessed=str(tmp_path / "demo"))
    pairs = list(corpus.training_text().iterate())
    assert text_of(preprocess(corpus, TokenizerOptions(vocab_size=400))) == [pairs[i] for i in indices(400, 300)]


def test_cleaning_follows_and_reports_the_lines_of_the_files(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions
) -> None:
    pairs = toy_pairs(300)
    blank = indices(300, 200)[3]
    outside = next(index for index in range(300) if index not in indices(300, 200))
    pairs[blank], pairs[outside] = ("", "blank"), ("", "blank but not sampled")
    report = preprocess(replace(make_corpus(pairs), max_pairs=200), options).report
    assert (report.num_pairs, report.num_kept, report.dropped["blank"]) == (200, 199, 1)
    assert [example["pair"] for example in report.examples["blank"]] == [blank + 1]


@pytest.mark.slow
def test_the_sample_does_not_depend_on_the_number_of_processes(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = replace(make_corpus(), max_pairs=250)
    one, two = (
        preprocess(replace(corpus, num_workers=number, preprocessed=str(tmp_path / str(number))), options)
        for number in (1, 2)
    )
    assert len(one.store) == 250
    assert contents(one) == contents(two)


def test_an_interrupted_preprocessing_resumes_with_the_same_sample(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = replace(make_corpus(), max_pairs=250)
    expected = contents(preprocess(replace(corpus, preprocessed=str(tmp_path / "whole")), options))
    encode, calls = preprocess_module.encode_shard, []

    def stop_at_third(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(preprocess_module, "encode_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        preprocess(corpus, options)
    assert contents(preprocess(corpus, options)) == expected
    assert len(calls) == 3 + 7 - 2


def test_more_pairs_than_there_are_means_all(
    make_corpus: MakeCorpus, options: TokenizerOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = preprocess(make_corpus(), options)
    for size in (300, 10**18):
        caplog.clear()
        corpus = replace(make_corpus(), max_pairs=size, preprocessed=str(tmp_path / str(size)))
        with caplog.at_level(logging.INFO):
            assert preprocess(corpus, options).fingerprint == every.fingerprint
        assert f"data.max_pairs={size}: there are only 300 training pairs, all are used" in caplog.text


def test_another_number_of_pairs_is_another_folder(make_corpus: MakeCorpus, options: TokenizerOptions) -> None:
    corpus = replace(make_corpus(), max_pairs=250)
    preprocess(corpus, options)
    with pytest.raises(InputError, match=r"data\.max_pairs: 250 → 200"):
        preprocess(replace(corpus, max_pairs=200), options)
    folders = {preprocessed_folder(DemoCorpus(max_pairs=size), options) for size in (None, 1, 2)}
    assert len(folders) == 3


def mixture_of(texts: dict[str, list[tuple[str, str]]], tmp_path: Path, **arguments: Any) -> Mixture:
    files = {}
    for name, pairs in texts.items():
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
        files[name] = ParallelFiles(pairs=str(tmp_path / f"{name}.tsv"))
    dev = files.pop("dev")
    corpora = {name: WeightedText(text, Cleaning(max_length_tokens=200), weight=2.0) for name, text in files.items()}
    return Mixture(
        source_language="a",
        target_language="b",
        corpora=corpora,
        dev=dev,
        preprocessed=str(tmp_path / "preprocessed"),
        **arguments,
    )


def test_a_mixture_is_sampled_as_one_corpus(toy_pairs: Pairs, options: TokenizerOptions, tmp_path: Path) -> None:
    texts = {"large": toy_pairs(600, seed=3), "small": toy_pairs(200, seed=4), "dev": toy_pairs(5, seed=5)}
    preprocessed = preprocess(mixture_of(texts, tmp_path, max_pairs=300), options)
    both = [*texts["large"], *texts["small"]]
    assert text_of(preprocessed) == [both[index] for index in indices(800, 300)]
    spans = preprocessed.corpus_spans
    assert [span.weight for span in spans] == [2.0, 2.0]
    assert [span.num_pairs for span in spans] == [
        sum(index < 600 for index in indices(800, 300)),
        len(preprocessed.store) - spans[0].num_pairs,
    ]
    assert abs(spans[0].num_pairs - 225) < 25


def test_a_text_of_a_mixture_without_a_sampled_pair_is_refused(
    toy_pairs: Pairs, options: TokenizerOptions, tmp_path: Path
) -> None:
    texts = {"large": toy_pairs(580, seed=3), "small": toy_pairs(1, seed=4), "dev": toy_pairs(5, seed=5)}
    assert 580 not in indices(581, 300)
    message = r"data\.corpora\.small: none of its 1 pair is in the sample of data\.max_pairs=300 from all 581: raise"
    with pytest.raises(InputError, match=message):
        preprocess(mixture_of(texts, tmp_path, max_pairs=300), options)
