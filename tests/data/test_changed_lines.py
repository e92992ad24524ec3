"""Lines that a tokenizer changes are counted by cause, with examples."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from gnmt.data.changed_lines import ChangedLines, changed_lines
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import train_tokenizer

LINES = ["the green house", "½ of it！", "  two spaces", "a\u2028b ▁", "the red house"]


def test_normalized_lines_are_counted(tokenizer):
    found = changed_lines(tokenizer, LINES)
    assert (found.num_lines, found.num_changed) == (5, 3)
    assert found.causes == {"normalization": 3, "unknown": 0, "white_space": 0}
    assert [example["line"] for example in found.examples] == [2, 3, 4]
    assert found.examples[0] == {"line": 2, "before": "½ of it！", "after": "1⁄2 of it!"}
    message = found.describe("data.train.target", "target")
    assert message.startswith("data.train.target: 3 of 5 lines change")
    assert "3 are normalized, which tokenizer.target_normalization=identity avoids" in message
    assert "\n  line 2: '½ of it！' → '1⁄2 of it!'" in message


def test_kept_lines_are_not_counted(toy_pairs, options):
    lines = [side for pair in toy_pairs(300) for side in pair]
    kept = train_tokenizer(lines, options, "identity")
    found = changed_lines(kept, LINES)
    assert found.causes == {"normalization": 0, "unknown": 0, "white_space": 1}
    assert changed_lines(kept, []).num_lines == 0


def test_unknown_characters_are_told_apart(toy_pairs, options):
    lines = [side for pair in toy_pairs(300) for side in pair]
    tokenizer = train_tokenizer(lines, replace(options, vocab_size=100, byte_fallback=False), "identity")
    found = changed_lines(tokenizer, ["the 漢 house", "the house"])
    assert found.causes == {"normalization": 0, "unknown": 1, "white_space": 0}
    assert "tokenizer.byte_fallback=true" in found.describe("x", "source")
    assert found.is_too_many("source")
    assert found.is_too_many("target")


def test_words_of_pretokenized_text_are_unknown():
    tokenizer = PretokenizedTokenizer(("<pad>", "<unk>", "<s>", "</s>", "a", "dog"))
    assert changed_lines(tokenizer, ["a dog", "a cat"]).causes["unknown"] == 1


@pytest.mark.parametrize(("num_changed", "too_many"), [(1, False), (2, True)])
def test_more_than_one_target_in_a_thousand_is_too_many(num_changed, too_many):
    causes = {"normalization": num_changed, "unknown": 0, "white_space": 0}
    found = ChangedLines(num_lines=1000, num_changed=num_changed, causes=causes)
    assert found.is_too_many("target") is too_many
    assert not found.is_too_many("source")  # it is normalized on purpose


def test_added_counts_keep_the_first_three_examples(tokenizer):
    total = ChangedLines()
    for numbers in ([1, 2], [11, 12], [21, 22]):
        total.add(changed_lines(tokenizer, ["½", "¼"], numbers=numbers))
    assert (total.num_lines, total.num_changed, total.causes["normalization"]) == (6, 6, 6)
    assert [example["line"] for example in total.examples] == [1, 2, 11]


def test_texts_that_look_equal_are_shown_with_escapes(tokenizer):
    line = "x" * 100 + unicodedata.normalize("NFD", " Käse")
    message = changed_lines(tokenizer, [line]).describe("x", "target")
    assert r"Ka\u0308se' → " in message
    assert r"K\xe4se'" in message
    assert "x" * 50 not in message
