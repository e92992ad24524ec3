"""Options of a translator: n-best lists, samples, prefixes, chunks, suppressed ids, copied words."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from stub_models import CopyModel, HistoryModel

import gnmt.decoding.translator as translator_module
from gnmt.batch import EOS_ID, UNK_ID
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translator import Translator
from gnmt.device import choose_precision
from gnmt.errors import InputError
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

TEXT = "the small dog sees a red house and then it runs to the old man who reads in the garden today"
WORDS = TEXT.split()
LINES = [" ".join(WORDS[start : start + 6]) + "." for start in range(len(WORDS) - 5)]
FP32 = choose_precision("fp32", torch.device("cpu"))
OPTIONS = SearchOptions(beam_size=4)


def tokenizers_with(byte_fallback: bool) -> Tokenizers:
    size = 330 if byte_fallback else 60
    return train_tokenizers(LINES, LINES, TokenizerOptions(vocab_size=size, byte_fallback=byte_fallback))


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return tokenizers_with(byte_fallback=True)


@pytest.fixture(scope="module")
def without_bytes() -> Tokenizers:
    """Return tokenizers for which unseen characters are unknown."""
    return tokenizers_with(byte_fallback=False)


@pytest.fixture(autouse=True)
def without_inference_copy(monkeypatch):
    """Search the tests' models themselves: they are no Seq2Seq that could be copied."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())


@pytest.fixture
def model(tokenizers):
    return CopyModel(tokenizers.source.vocabulary_size)


@pytest.fixture
def random_model(tokenizers):
    """Return a random model, each of whose tokens depends on the whole source and on all tokens so far."""
    return HistoryModel.random(1, tokenizers.target.vocabulary_size)


# N-best, samples, prefixes


def test_the_n_best_list_is_sorted_and_starts_with_the_translation(model, tokenizers):
    [best] = Translator(model, tokenizers, OPTIONS, FP32).translate(["the dog."], attention=True, n_best=3)
    [alone] = Translator(model, tokenizers, OPTIONS, FP32).translate(["the dog."])
    assert best.tokens == alone.tokens
    assert alone.alternatives == ()
    assert len(best.alternatives) == 2
    ranked = [best, *best.alternatives]
    assert len({one.tokens for one in ranked}) == 3
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    for one in ranked:
        assert one.attention_TS.shape == (len(one.tokens), len(one.source_tokens))
        assert one.log_prob < one.score < 0


def test_the_n_best_of_a_cut_line_join_those_of_its_segments(model, tokenizers):
    sentence = "the small dog sees a red house."
    size = len(tokenizers.source.encode(sentence)) + 1
    translator = Translator(model, tokenizers, OPTIONS, FP32, max_source_tokens=size)
    one, two = translator.translate([sentence, f"{sentence} {sentence}"], n_best=2)
    assert two.alternatives[0].tokens == one.alternatives[0].tokens * 2
    assert two.alternatives[0].log_prob == pytest.approx(2 * one.alternatives[0].log_prob, abs=1e-5)
    assert two.source_tokens == one.source_tokens * 2


def test_the_cost_of_the_stopping_rule_is_reported(random_model, tokenizers):
    options = SearchOptions(beam_size=2, stop="exhausted", max_length_factor=0.0, max_length_offset=20, min_length=2)
    [one] = Translator(random_model, tokenizers, options, FP32).translate(["the dog."])
    assert one.steps == 20
    assert one.steps_after_best == 20 - len(one.tokens)


SAMPLING = {"sampling": True, "max_length_factor": 0.0, "max_length_offset": 8}


def test_samples_depend_on_the_line_number_and_not_on_batches_or_chunks(random_model, tokenizers):
    """Equal lines draw different samples; a file in several calls draws the samples of one call."""
    translator = Translator(random_model, tokenizers, OPTIONS, FP32)
    lines = ["the dog.", "", "the dog.", "a red house.", "the dog."]
    whole = translator.translate(lines, **SAMPLING)
    assert len({whole[row].tokens for row in (0, 2, 4)}) == 3
    first, rest = translator.translate(lines[:2], **SAMPLING), translator.translate(lines[2:], first_line=3, **SAMPLING)
    assert [one.tokens for one in (*first, *rest)] == [one.tokens for one in whole]
    translator.batch_size = 1
    assert [one.tokens for one in translator.translate(lines, **SAMPLING)] == [one.tokens for one in whole]
    assert translator.translate(lines, seed=2, **SAMPLING)[0].tokens != whole[0].tokens


def test_the_segments_of_a_cut_line_draw_different_samples(random_model, tokenizers):
    sentence = "the small dog sees a red house."
    size = len(tokenizers.source.encode(sentence)) + 1
    translator = Translator(random_model, tokenizers, OPTIONS, FP32, max_source_tokens=size)
    [cut] = translator.translate([f"{sentence} {sentence}"], **SAMPLING)
    [alone] = translator.translate([sentence], **SAMPLING)
    assert cut.tokens[: len(alone.tokens)] == alone.tokens
    assert cut.tokens[len(alone.tokens) :] != alone.tokens


def test_a_line_with_more_tokens_than_learned_positions_is_cut(tokenizers):
    """A line of ordinary length once ended the translation of the whole file."""
    sentence = "the small dog sees a red house."
    size = len(tokenizers.source.encode(sentence)) + 1
    vocabulary_sizes = (tokenizers.source.vocabulary_size, tokenizers.target.vocabulary_size)
    encoder = TransformerEncoder(8, 1, 2, 16, learned_positions=size)
    model = Seq2Seq(encoder, TransformerDecoder(8, 8, 1, 2, 16), *vocabulary_sizes, embedding_size=8).eval()
    translator = Translator(model, tokenizers, OPTIONS, FP32)
    assert translator.max_source_tokens == size
    one, two = translator.translate([sentence, f"{sentence} {sentence}"])
    assert two.source_tokens == one.source_tokens * 2
    assert Translator(model, tokenizers, OPTIONS, FP32, max_source_tokens=size - 1).max_source_tokens == size - 1


def test_prefixes_begin_the_translations_of_their_lines(model, tokenizers, random_model):
    lines, prefixes = ["the dog.", "a red house.", "", "it runs."], ["the old", "", "the", "a"]
    for one in (model, random_model):
        translated = Translator(one, tokenizers, OPTIONS, FP32).translate(lines, prefixes=prefixes)
        assert translated[0].text.startswith("the old")
        assert list(translated[3].tokens[:1]) == tokenizers.target.encode("a")[:1]
        assert translated[2].text == ""
    plain = Translator(random_model, tokenizers, OPTIONS, FP32).translate(lines)
    assert translated[1].tokens == plain[1].tokens


def test_white_space_around_a_prefix_is_ignored(model, tokenizers):
    """The target keeps white space, so a space at the end would be a subword that hardly any text has there."""
    translator = Translator(model, tokenizers, OPTIONS, FP32)
    [bare], [spaced] = (translator.translate(["the dog."], prefixes=[prefix]) for prefix in ("the old", " the old "))
    assert spaced == bare


def test_only_the_first_segment_of_a_cut_line_has_the_prefix(model, tokenizers):
    sentence = "the small dog sees a red house."
    size = len(tokenizers.source.encode(sentence)) + 1
    translator = Translator(model, tokenizers, OPTIONS, FP32, max_source_tokens=size)
    [one] = translator.translate([f"{sentence} {sentence}"], prefixes=["today"])
    assert one.text.startswith("today")
    assert one.text.count("today") == 1


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("as_stream", [False, True])
def test_prefixes_must_be_as_many_as_lines(model, tokenizers, number, as_stream):
    prefixes = ["the"] * number
    with pytest.raises(InputError, match=r"prefixes.*one prefix for each line"):
        Translator(model, tokenizers, OPTIONS, FP32).translate(
            ["the dog."] * 2, prefixes=iter(prefixes) if as_stream else prefixes
        )


def test_a_chunk_is_a_function_of_its_lines_and_their_numbers(random_model, tokenizers, monkeypatch):
    """translate.py resumes at any chunk: chunk by chunk, results must equal those of one stream, bit by bit."""
    monkeypatch.setattr(translator_module, "CHUNK_BATCHES", 2)
    monkeypatch.setattr(translator_module, "SMALLEST_CHUNK", 1)
    translator = Translator(random_model, tokenizers, SearchOptions(beam_size=2), FP32, batch_size=3)
    assert translator.chunk_lines == 6
    lines = list(itertools.islice(itertools.cycle(LINES), 17))
    streamed = list(translator.stream(lines))
    by_chunk = [
        one
        for start in range(0, len(lines), 6)
        for one in translator.translate(lines[start : start + 6], first_line=start + 1)
    ]
    assert by_chunk == streamed


def test_small_batches_do_not_make_small_chunks(random_model, tokenizers):
    """Two million lines with batch_size=1 once made 62,500 files."""
    assert Translator(random_model, tokenizers, OPTIONS, FP32, batch_size=1).chunk_lines == 256
    assert Translator(random_model, tokenizers, OPTIONS, FP32, batch_size=32).chunk_lines == 1024


def test_the_first_line_counts_in_warnings(model, tokenizers, caplog):
    translator = Translator(model, tokenizers, OPTIONS, FP32, max_source_tokens=20)
    with caplog.at_level(logging.WARNING):
        translator.translate(["the dog.", "the dog sees. " * 20], first_line=100)
    assert "line 101 has" in caplog.text


# Ids that are never produced


def test_unused_ids_are_never_produced(random_model, tokenizers):
    produced = {
        token for one in Translator(random_model, tokenizers, OPTIONS, FP32).translate(LINES) for token in one.tokens
    }
    produced -= {EOS_ID}
    translator = Translator(random_model, tokenizers, OPTIONS, FP32, unused_target_ids=sorted(produced))
    assert not produced & {token for one in translator.translate(LINES) for token in one.tokens}


def test_progress_counts_each_line_once_and_a_line_that_was_cut_by_its_segments(tokenizers):
    model, counts = CopyModel(tokenizers.source.vocabulary_size), []
    translator = Translator(model, tokenizers, OPTIONS, FP32, max_source_tokens=12)
    translator.translate(["the dog sees a red house " * 4, "", "a dog."], progress=counts.append)
    assert sum(counts) == 3
    num_parts = counts.count(1 / 3)
    assert num_parts == 3
    assert counts.count(1) == 2  # the blank line and the short one
    assert len(counts) == 5


# Unknown words


def test_unknown_subwords_become_the_most_attended_source_word(without_bytes):
    model = CopyModel(without_bytes.source.vocabulary_size)
    lines = ["the dog sees «Ωμέγα», and 漢字.", "the Ωμέγα runs. " * 3, "the dog."]
    plain = Translator(model, without_bytes, OPTIONS, FP32, max_source_tokens=24).translate(lines)
    assert UNK_ID in plain[0].tokens
    assert "⁇" in plain[0].text
    translator = Translator(model, without_bytes, OPTIONS, FP32, max_source_tokens=24, replace_unknown="copy")
    copied = translator.translate(lines, n_best=2)
    assert "Ωμέγα" in copied[0].text
    assert "漢字" in copied[0].text
    assert copied[1].text.count("Ωμέγα") == 3
    assert copied[2].text == "the dog."
    assert "⁇" not in "".join(one.text for one in copied)
    assert [one.tokens for one in copied] == [one.tokens for one in plain]
    assert copied[0].attention_TS is None


def test_with_byte_fallback_nothing_is_unknown_and_copying_needs_no_attention(tokenizers, monkeypatch):
    model = HistoryModel.random(1, tokenizers.target.vocabulary_size, attention=False)
    options = SearchOptions(coverage_beta=0.0)
    translator = Translator(model, tokenizers, options, FP32, replace_unknown="copy")
    assert translator.translate(["the dog."]) == Translator(model, tokenizers, options, FP32).translate(["the dog."])


def test_copying_without_attention_is_refused_with_a_reason(without_bytes):
    model = HistoryModel.random(1, without_bytes.target.vocabulary_size, attention=False)
    translator = Translator(model, without_bytes, SearchOptions(coverage_beta=0.0), FP32, replace_unknown="copy")
    with pytest.raises(InputError, match=r"replace_unknown=copy.*no attention.*replace_unknown=none"):
        translator.translate(["the dog."])
    with pytest.raises(InputError, match='replace_unknown: found "drop", allowed is one of none, copy'):
        Translator(model, without_bytes, OPTIONS, FP32, replace_unknown="drop")


# Lines without a possible token


def test_a_line_that_cannot_be_translated_stays_empty_and_is_named(tokenizers, random_model, caplog):
    """One such sentence once ended a file of millions of lines with an error that named no line."""
    random_model.log_probs_RV[:, tokenizers.target.encode("garden")[0]] = -torch.inf
    translator = Translator(random_model, tokenizers, OPTIONS, FP32, max_source_tokens=60)
    lines = [LINES[0], LINES[1], " ".join(LINES[:4]), LINES[2]]
    found = translator.translate(lines, prefixes=["", "garden", "garden", ""], first_line=7, path="a.en")
    for one in found[1:3]:
        assert (one.text, one.tokens, one.finished, one.score, one.alternatives) == ("", (), False, 0.0, ())
    alone = translator.translate([LINES[0]], first_line=7) + translator.translate([LINES[2]], first_line=10)
    assert [found[0].tokens, found[3].tokens] == [one.tokens for one in alone]
    named = [record.getMessage() for record in caplog.records if "has no translation" in record.getMessage()]
    assert [message.split()[0] for message in named] == ["a.en:8", "a.en:9"]
    caplog.clear()
    translator.translate(["the dog."], prefixes=["garden"])
    assert "line 1 has no translation" in caplog.text
    assert translator.score([(LINES[1], found[1])])[0].score == 0.0


def test_diverged_weights_are_an_error_and_not_an_empty_translation(tokenizers, random_model):
    random_model.log_probs_RV[:] = torch.nan
    with pytest.raises(InputError, match=r"not numbers \(NaN\), so its weights diverged"):
        Translator(random_model, tokenizers, OPTIONS, FP32).translate(LINES)
