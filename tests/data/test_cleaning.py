"""Cleaning: dropped pairs, their reasons, and the report."""

from __future__ import annotations

import json
import random

import numpy as np

from gnmt.data.cleaning import Cleaner, Cleaning, CleaningReport, DuplicateFilter, NumberedPair

NOTHING = Cleaning(None, None, drop_duplicates=False, drop_identical=False, drop_blank=False)
PAIRS = [("a", "x"), ("", "x"), ("same", " same "), ("a", "x"), ("  \u3000", ""), ("a", "y"), ("a", "x")]


def numbered(pairs: list[tuple[str, str]]) -> list[NumberedPair]:
    return [NumberedPair(number, *pair) for number, pair in enumerate(pairs, start=1)]


def test_every_rule_can_be_switched_off() -> None:
    cleaner = Cleaner(NOTHING)
    pairs = numbered(PAIRS)
    report, kept = cleaner.by_text(pairs)
    assert kept == pairs
    assert cleaner.keeps(pairs[1], 0, 1000, report)
    assert sum(report.dropped.values()) == 0


def test_blank_identical_and_duplicate_pairs_are_dropped() -> None:
    cleaner = Cleaner(Cleaning(None, None, drop_duplicates=True, drop_identical=True, drop_blank=True))
    report, kept = cleaner.by_text(numbered(PAIRS))
    assert [pair.number for pair in kept] == [1, 6]
    assert report.dropped == {"blank": 2, "identical": 1, "duplicate": 2, "too_long": 0, "length_ratio": 0}
    assert [example["pair"] for example in report.examples["duplicate"]] == [4, 7]


def test_rules_of_length_include_eos() -> None:
    cleaner = Cleaner(Cleaning(max_length_tokens=10, max_length_ratio=3.0))
    pair, report = NumberedPair(1, "source", "target"), CleaningReport()
    assert cleaner.keeps(pair, 9, 9, report)
    assert not cleaner.keeps(pair, 10, 9, report)
    assert not cleaner.keeps(pair, 9, 10, report)
    assert cleaner.keeps(pair, 8, 2, report)  # 9 tokens to 3
    assert not cleaner.keeps(pair, 9, 2, report)
    assert not cleaner.keeps(pair, 1, 0, report)  # no subword is left after normalization
    for invisible in ("\u200b", "\ufeff \u200d", "\x07"):
        _, kept = cleaner.by_text([NumberedPair(1, "a", invisible), NumberedPair(2, "a", f"{invisible}b")])
        assert [pair.number for pair in kept] == [2]
    assert report.dropped | {"identical": 0} == report.dropped
    assert [report.dropped[reason] for reason in ("blank", "too_long", "length_ratio")] == [1, 2, 1]
    assert report.num_kept == 2


def test_report_has_three_examples_and_survives_json() -> None:
    cleaner = Cleaner(Cleaning())
    report, _ = cleaner.by_text(numbered([("", "long " * 200)] * 5))
    assert report.dropped["blank"] == 5
    assert [example["pair"] for example in report.examples["blank"]] == [1, 2, 3]
    assert len(report.examples["blank"][0]["target"]) == 301
    assert CleaningReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.text().startswith("5 pairs read, 0 kept, dropped: blank 5\n")
    assert report.text().count("blank: pair") == 3


def test_duplicate_filter_equals_a_set_over_many_blocks() -> None:
    rng = random.Random(0)
    pairs = [(str(rng.randrange(60)), str(rng.randrange(60))) for _ in range(5000)]
    seen: set[tuple[str, str]] = set()
    duplicates = DuplicateFilter()
    start = 0
    while start < len(pairs):
        block = pairs[start : start + rng.randrange(1, 200)]
        start += len(block)
        expected = []
        for pair in block:
            expected.append(pair not in seen)
            seen.add(pair)
        assert duplicates.first_seen(block).tolist() == expected
    assert sum(run.nbytes for run in duplicates._runs) == 8 * len(seen)
    assert duplicates.first_seen([]).shape == (0,)


def test_duplicate_filter_distinguishes_the_sides() -> None:
    duplicates = DuplicateFilter()
    pairs = [("ab", "c"), ("a", "bc"), ("", "abc"), ("c", "ab"), ("1:a", "b"), ("", "1:ab")]
    assert duplicates.first_seen(pairs).all()
    assert not duplicates.first_seen(pairs).any()


def test_duplicate_filter_keeps_few_runs() -> None:
    duplicates = DuplicateFilter()
    for block in range(200):
        duplicates.first_seen([(str(block), str(row)) for row in range(10)])
    assert len(duplicates._runs) <= np.log2(2000) + 1
