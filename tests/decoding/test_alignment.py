"""Attention between subwords is summed to alignments of words."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from stub_models import CopyModel

import gnmt.decoding.translator as translator_module
from gnmt.batch import EOS_ID
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.alignment import (
    draw_alignment,
    pharaoh,
    word_alignment,
    word_attention,
    words_of_source,
    words_of_target,
)
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.device import choose_precision
from gnmt.errors import InputError

LINES = ["the small dog sees a red house.", "and then it runs to the old man who reads in the garden today."]
FP32 = choose_precision("fp32", torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return train_tokenizers(LINES, LINES, TokenizerOptions(vocab_size=345, byte_fallback=True))


@pytest.fixture
def copy(tokenizers, monkeypatch):
    """Return copy(line): the translation that repeats the line, each subword attending to itself."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())
    translator = Translator(
        CopyModel(tokenizers.source.vocabulary_size), tokenizers, SearchOptions(), FP32, max_source_tokens=60
    )
    return lambda line: translator.translate([line], attention=True)[0]


@pytest.mark.parametrize(
    "line",
    [
        "the small dog sees a red house.",
        "  the\u00a0dog \u2028 sees\ta   house ",  # every white space, several together
        "dog",
        "the « Ωμέγα » in 漢字 , today",  # bytes, a word each
        "½ of the… house",  # normalized into more characters than it was
        "the \u200b dog\u200bsees",  # and into fewer
    ],
)
def test_a_copy_aligns_each_word_with_itself(copy, tokenizers, line):
    """Indices count the words of the line as given, and of the translation's text."""
    translation = copy(line)
    source_words, target_words = line.split(), translation.text.split()
    pairs = word_alignment(tokenizers, line, translation)
    assert [target for _, target in pairs] == list(range(len(target_words)))
    for source, target in pairs:
        assert target_words[target][0] in (*source_words[source], "1", ".")
    assert word_attention(tokenizers, line, translation).shape == (len(target_words), len(source_words))


def test_words_of_the_source_by_hand(tokenizers):
    line = " the\u3000Ωs  dog."
    ids = tokenizers.source.encode(line)
    words = words_of_source(tokenizers.source, line, [*ids, EOS_ID])
    assert words.texts == ["the", "Ωs", "dog."]
    assert words.of_token[-1] is None
    assert sorted(set(words.of_token[:-1])) == [0, 1, 2]
    assert words.of_token[:-1] == sorted(words.of_token[:-1])


def translated(tokenizers, source, target, attention):
    source_tokens = (*tokenizers.source.encode(source), EOS_ID)
    tokens = (*tokenizers.target.encode(target), EOS_ID)
    attention_TS = torch.tensor(attention)
    assert attention_TS.shape == (len(tokens), len(source_tokens))
    return Translation(target, -1.0, tokens, (attention_TS,), source_tokens=source_tokens)


def test_sums_over_subwords_eos_and_ties_by_hand(tokenizers):
    """The source has words of 3 and 1 subwords, and EOS. The larger sum wins, the first of equal ones, never EOS."""
    source, target = "Ω dog", "the dog"
    subwords = tokenizers.source.subwords(tokenizers.source.encode(source))
    assert subwords == ["▁", "<0xCE>", "<0xA9>", "▁dog"]
    assert len(tokenizers.target.encode(target)) == 2
    one = translated(
        tokenizers, source, target, [[0.1, 0.1, 0.2, 0.3, 0.3], [0.1, 0.1, 0.05, 0.25, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0]]
    )
    torch.testing.assert_close(word_attention(tokenizers, source, one), torch.tensor([[0.4, 0.3], [0.25, 0.25]]))
    assert word_alignment(tokenizers, source, one) == [(0, 0), (0, 1)]
    nowhere = translated(tokenizers, source, target, [[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.2] * 5])
    assert word_alignment(tokenizers, source, nowhere) == [(1, 1)]


def test_a_target_word_has_the_mean_over_its_subwords(tokenizers):
    source, target = "the dog", "Ω"
    one = translated(tokenizers, source, target, [[0.8, 0.2, 0.0], [0.0, 0.6, 0.4], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(word_attention(tokenizers, source, one), torch.tensor([[0.3, 0.5]]))
    assert word_alignment(tokenizers, source, one) == [(1, 0)]


def test_words_of_a_cut_line_keep_their_indices(copy, tokenizers):
    line = " ".join(LINES * 3)
    translation = copy(line)
    assert translation.source_tokens.count(EOS_ID) > 1
    assert word_alignment(tokenizers, line, translation) == [(word, word) for word in range(len(line.split()))]
    assert draw_alignment(tokenizers, translation) is None


def in_segments(tokenizers, line, row_counts, column_counts, seed=1):
    """Return a translation that repeats the line, with random attention in segments of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    source_tokens, tokens = (tuple(side.encode(line)) for side in (tokenizers.source, tokenizers.target))
    attentions = [torch.rand(*shape, generator=generator) for shape in zip(row_counts, column_counts, strict=True)]
    assert (sum(row_counts), sum(column_counts)) == (len(tokens), len(source_tokens))
    return Translation(line, -1.0, tokens, tuple(attentions), source_tokens=source_tokens)


@pytest.mark.parametrize("seed", range(10))
def test_segments_give_the_alignment_of_the_matrix_of_the_whole_line(tokenizers, seed):
    """Segments may end anywhere, within words too."""
    line = " ".join(LINES)
    length = len(tokenizers.source.encode(line))
    cuts = [sorted(torch.randperm(length - 1, generator=torch.Generator().manual_seed(side * 100 + seed))[:3] + 1)
            for side in (0, 1)]  # fmt: skip
    counts = [[int(end - begin) for begin, end in pairwise([0, *positions, length])] for positions in cuts]
    translation = in_segments(tokenizers, line, *counts, seed=seed)
    words = words_of_target(tokenizers.target, translation.tokens)
    one_hot_TW = torch.stack([torch.tensor([word == of for of in range(len(words.texts))]) for word in words.of_token])
    of_word_TW = one_hot_TW.float()
    expected_WW = (of_word_TW / of_word_TW.sum(0)).T @ translation.attention_TS @ of_word_TW  # both sides are one text
    torch.testing.assert_close(word_attention(tokenizers, line, translation), expected_WW)
    pairs = word_alignment(tokenizers, line, translation)
    assert [target for _, target in sorted(pairs, key=lambda pair: pair[1])] == list(range(len(words.texts)))
    cut_words = {words.of_token[position] for positions in cuts for position in positions}
    for source, target in pairs:
        if not {source, target, int(expected_WW[target].argmax())} & cut_words:
            assert source == expected_WW[target].argmax()


def test_a_long_line_in_segments_never_has_a_matrix_of_all_its_words(tokenizers, monkeypatch):
    """A line of 48,000 tokens needed 9 GB, which ended a job, and each attempt to resume it, in a traceback."""
    line = " ".join(["the small dog sees a red house"] * 4_000)
    length = len(tokenizers.source.encode(line))
    counts = [50] * (length // 50) + [length % 50] * (length % 50 > 0)
    translation = in_segments(tokenizers, line, counts, counts)
    assert length > 25_000
    largest = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape: largest.append(shape) or zeros(*shape))
    monkeypatch.setattr(torch, "block_diag", None)
    assert len(word_alignment(tokenizers, line, translation)) == 28_000
    assert max(max(shape) for shape in largest) <= 50


@pytest.mark.parametrize("line", ["", " \t ", "\u200b"])
def test_blank_lines_align_nothing(copy, tokenizers, line):
    assert word_alignment(tokenizers, line, copy(line)) == []


def test_a_translation_without_attention_is_refused(tokenizers):
    one = Translation("the dog", -1.0, (*tokenizers.target.encode("the dog"), EOS_ID), source_tokens=(5, EOS_ID))
    with pytest.raises(InputError, match="attention=True"):
        word_alignment(tokenizers, "the dog", one)
    assert draw_alignment(tokenizers, one) is None


def test_pharaoh_format():
    assert pharaoh([(0, 0), (2, 1), (1, 2)]) == "0-0 2-1 1-2"
    assert pharaoh([]) == ""
