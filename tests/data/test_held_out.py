"""Dev and test sentences that also stand in the training text are counted, reported, and kept."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gnmt.data import preprocess as preprocess_module
from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import FilesCorpus
from gnmt.data.held_out import HeldOutSentences, Overlap, overlap_of
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import preprocess
from gnmt.data.store import PreprocessedData, read_preprocessed
from gnmt.data.tokenizer import TokenizerOptions

MakeCorpus = Callable[..., FilesCorpus]
Pairs = Callable[..., list[tuple[str, str]]]
ROOT = Path(__file__).parents[2]
TOO_LONG = (" ".join(["mountains"] * 60), "Berge")


@pytest.fixture
def train(toy_pairs: Pairs) -> list[tuple[str, str]]:
    return [*toy_pairs(300), TOO_LONG, ("", "blank")]


@pytest.fixture
def corpus(make_corpus: MakeCorpus, train: list[tuple[str, str]], toy_pairs: Pairs, tmp_path: Path) -> FilesCorpus:
    """A corpus with three known sources in dev, two of them with their target, and one known source in a test set."""
    new = [(f"{source} anew", target) for source, target in toy_pairs(9, seed=8)]
    texts = {
        "dev": [
            *new,
            train[7],
            (train[250][0], "another"),
            train[7],
            TOO_LONG,
            ("", "blank"),
            (f" {train[8][0]}", "x"),
        ],
        "news": [*new, (train[41][0], train[42][1])],
        "new": new,
    }
    for name, pairs in texts.items():
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
    files = {name: ParallelFiles(pairs=str(tmp_path / f"{name}.tsv")) for name in texts}
    return replace(make_corpus(train, Cleaning(max_length_tokens=100)), dev=files.pop("dev"), test=files)


def counts(preprocessed: PreprocessedData) -> dict[str, tuple[int, int, int]]:
    overlaps = preprocessed.report.overlaps
    return {name: (overlap.num_lines, overlap.num_sources, overlap.num_pairs) for name, overlap in overlaps.items()}


def test_known_sentences_are_counted_shown_and_kept(
    corpus: FilesCorpus,
    train: list[tuple[str, str]],
    options: TokenizerOptions,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores were high, and nothing said that the model had seen the test set."""
    preprocessed = preprocess(corpus, options)
    assert counts(preprocessed) == {"dev": (15, 3, 2), "test.news": (10, 1, 0), "test.new": (9, 0, 0)}
    assert preprocessed.report.overlaps["dev"].examples == [
        {"line": 10, "source": train[7][0]},
        {"line": 11, "source": train[250][0]},
        {"line": 12, "source": train[7][0]},
    ]
    assert len(preprocessed.store) == 300
    assert len(preprocessed.dev) == 15
    text = (preprocessed.folder / "cleaning_report.txt").read_text(encoding="utf-8")
    assert "\ndev: 3 of 15 sources also in the training text, 2 with their target\n  line 10: " in text
    assert "\ntest.new: 0 of 9 sources also in the training text" in text
    saved = json.loads((preprocessed.folder / "cleaning_report.json").read_text(encoding="utf-8"))
    assert saved["overlaps"]["test.news"]["num_sources"] == 1
    assert counts(read_preprocessed(preprocessed.folder)) == counts(preprocessed)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(
        "data.dev: 3 of 15 sources also in the training text, 2 with their target; "
        "data.test.news: 1 of 10 sources also in the training text, 0 with their target; scores on "
    )
    assert "data.test.new:" not in warning
    assert "\n" not in warning
    caplog.clear()
    preprocess(corpus, options)
    assert warning in caplog.messages, "an old folder is warned about, too"
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    preprocess(corpus, options)
    assert warning not in caplog.messages, "each process of a job repeated it"


def test_pairs_that_are_not_trained_on_do_not_count(
    corpus: FilesCorpus, train: list[tuple[str, str]], options: TokenizerOptions
) -> None:
    options = replace(options, vocab_size=330)
    sampled = preprocess(replace(corpus, max_pairs=40), options)
    used = {sampled.store.source_text(pair) for pair in range(len(sampled.store))}
    expected = sum(source in used for source in (train[7][0], train[250][0], train[7][0]))
    assert expected < 3
    assert sampled.report.overlaps["dev"].num_sources == expected


def test_a_few_known_sentences_are_told_without_a_warning(
    make_corpus: MakeCorpus, toy_pairs: Pairs, options: TokenizerOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """One caption of Multi30k's dev set, of about a thousand, stands in its training text."""
    pairs = toy_pairs(300)
    overlap = overlap_of([pairs[0]], HeldOutSentences({"dev": [pairs[0]]}).find_in(pairs))
    assert overlap == Overlap(1, 1, 1, [{"line": 1, "source": pairs[0][0]}])
    assert replace(overlap, num_lines=999).is_too_large
    assert not replace(overlap, num_lines=1000).is_too_large
    corpus = make_corpus(pairs)
    lines = [pairs[0], *((f"{number}", "x") for number in range(999))]
    for side, path in enumerate((corpus.dev.source, corpus.dev.target)):
        Path(str(path)).write_text("".join(f"{line[side]}\n" for line in lines), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        preprocess(corpus, options)
    [record] = [record for record in caplog.records if "also in the training text" in record.getMessage()]
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_and_interruptions_do_not_change_the_counts(
    num_workers: int, corpus: FilesCorpus, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess_module, "SHARD_PAIRS", 40)
    corpus = replace(corpus, num_workers=num_workers)
    read, calls = preprocess_module._read_shard, []

    def stop_at_third(path: Path) -> Any:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(preprocess_module, "_read_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        preprocess(corpus, options)
    preprocessed = preprocess(corpus, options)
    assert len(calls) == 3 + 8
    assert counts(preprocessed) == {"dev": (15, 3, 2), "test.news": (10, 1, 0), "test.new": (9, 0, 0)}


def test_the_documented_command_removes_the_known_sentences(
    corpus: FilesCorpus, train: list[tuple[str, str]], options: TokenizerOptions, tmp_path: Path
) -> None:
    for name in ("dev", "news"):
        lines = (tmp_path / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        stem = {"news": "test"}.get(name, name)
        (tmp_path / f"{stem}.en").write_text("".join(line.split("\t")[0] + "\n" for line in lines), encoding="utf-8")
    for side, language in enumerate(("en", "de")):
        text = "".join(pair[side] + "\n" for pair in train)
        (tmp_path / f"train.{language}").write_text(text, encoding="utf-8")
    docs = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^paste train\.en .*> train\.tsv$", docs, re.MULTILINE)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    files = ParallelFiles(pairs=str(tmp_path / "train.tsv"))
    assert len(list(files.iterate())) == len(train) - 5  # three known sources, the long one and the blank one
    preprocessed = preprocess(replace(corpus, train=files), options)
    assert counts(preprocessed) == {"dev": (15, 0, 0), "test.news": (10, 0, 0), "test.new": (9, 0, 0)}
