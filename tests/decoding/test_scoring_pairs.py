"""Force-decoding scores of given translations: as text and as ids, alone and in batches."""

from __future__ import annotations

import math

import pytest
import torch
from stub_models import FP32, LINES, CopyModel, batch_of, history_translator, line_tokenizers

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return line_tokenizers()


@pytest.fixture
def translator(tokenizers, monkeypatch):
    return history_translator(tokenizers, monkeypatch)


def test_the_score_that_search_reports_is_the_force_decoding_score_of_its_ids(translator):
    """This holds for every hypothesis, including unfinished ones, in any batch."""
    translations = translator.translate(LINES, n_best=3)
    pairs = [
        (line, one.tokens) for line, best in zip(LINES, translations, strict=True) for one in (best, *best.alternatives)
    ]
    reported = [one for best in translations for one in (best, *best.alternatives)]
    assert {one.finished for one in reported} == {True, False}
    for batch_size in (1, 4, 64):
        translator.batch_size = batch_size
        for found, one in zip(translator.score(pairs), reported, strict=True):
            tolerance = 1e-5 * len(one.tokens)
            assert found.tokens == one.tokens
            assert found.log_prob == pytest.approx(one.log_prob, abs=tolerance)
            assert found.score == pytest.approx(one.score, abs=tolerance)
            assert sum(found.token_log_probs) == pytest.approx(found.log_prob, abs=tolerance)


def test_text_is_tokenized_and_ended_with_eos(translator, tokenizers):
    [found] = translator.score([("the dog.", "a house.")])
    assert list(found.tokens) == [*tokenizers.target.encode("a house."), EOS_ID]
    assert len(found.token_log_probs) == len(found.tokens)
    [by_ids] = translator.score([("the dog.", found.tokens)])
    assert by_ids == found


def test_blank_sources_and_targets_have_scores(translator, tokenizers):
    """A blank text is EOS alone on both sides; the empty translation of a blank line scores 0."""
    no_text, no_source, nothing, neither = translator.score([("the dog.", " "), ("", "a house."), ("", ()), ("", "")])
    model = translator.search_model
    memory = model.encode(batch_of([tokenizers.source.encode("the dog.")]))
    log_probs, _, _ = model.step(torch.tensor([[BOS_ID]]), model.start(memory, 1), memory)
    assert no_text.tokens == neither.tokens == (EOS_ID,)
    assert no_text.log_prob == pytest.approx(float(log_probs[0, 0, EOS_ID]))
    assert math.isfinite(no_source.score)
    assert (nothing.log_prob, nothing.score, nothing.tokens) == (0.0, 0.0, ())


def test_a_cut_line_is_scored_segment_by_segment_as_it_was_translated(translator, tokenizers):
    translator = Translator(CopyModel(50), tokenizers, SearchOptions(beam_size=2), FP32, max_source_tokens=20)
    line = " ".join(LINES[:3])
    [translated] = translator.translate([line])
    assert translated.source_tokens.count(EOS_ID) > 1
    [cut_off] = translator.translate([line], max_length_factor=0.5, max_length_offset=0)
    assert not cut_off.finished  # so that no EOS marks the end of its segments
    for one, found in zip((translated, cut_off), translator.score([(line, translated), (line, cut_off)]), strict=True):
        assert found.tokens == one.tokens
        assert found.score == pytest.approx(one.score, abs=1e-5 * len(one.tokens))
        assert found.log_prob == pytest.approx(one.log_prob, abs=1e-5 * len(one.tokens))
    translator.max_source_tokens = 40
    with pytest.raises(
        InputError, match=r"line 9: segment_lengths is .* for \d+ tokens and a source of .* max_source_tokens"
    ):
        translator.score([(line, translated)], line_numbers=[9])


def test_ids_outside_the_vocabulary_are_refused(translator, tokenizers):
    size = tokenizers.target.vocabulary_size
    for wrong in (size, -1):
        with pytest.raises(
            InputError, match=rf"line 1: token {wrong} is not in the target vocabulary, whose ids are 0 to {size - 1}"
        ):
            translator.score([("the dog.", [5, wrong, EOS_ID])])


@pytest.mark.parametrize(
    ("tokens", "segment_lengths", "message"),
    [
        ([5, PAD_ID, EOS_ID], (), rf"a:1: tokens holds {PAD_ID} \(padding\), which no search produces"),
        ([BOS_ID, 5, EOS_ID], (), rf"a:1: tokens holds {BOS_ID} \(beginning of sentence\)"),
        ([5, EOS_ID, 6, EOS_ID], (), rf"a:1: tokens continues after {EOS_ID} \(end of sentence\)"),
        ([5, EOS_ID, EOS_ID], (), f"a:1: tokens continues after {EOS_ID}"),
        ([5, EOS_ID, 6, EOS_ID], (3, 1), f"a:1: tokens continues after {EOS_ID}.*segment_lengths"),
        ([5, EOS_ID, 6, BOS_ID], (2, 2), f"a:1: tokens holds {BOS_ID}"),
    ],
)
def test_ids_that_no_search_produces_are_refused(translator, tokens, segment_lengths, message):
    """They once got a score like any other."""
    line = " ".join(LINES[:2])
    translator.max_source_tokens = len(translator.tokenizers.source.encode(line))  # without EOS: two segments
    translation = Translation("", 0.0, tuple(tokens), segment_lengths=segment_lengths)
    with pytest.raises(InputError, match=message):
        translator.score([(line, translation)], path="a")
    [found] = translator.score([(line, Translation("", 0.0, (5, EOS_ID, 6, EOS_ID), segment_lengths=(2, 2)))])
    assert len(found.tokens) == 4


def test_no_pairs_have_no_scores(translator):
    assert translator.score([]) == []
