"""Force-decoding scores of given translations: as text and as ids, alone and in batches."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from stub_models import CopyModel, HistoryModel, batch_of

import gnmt.decoding.translator as translator_module
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SCORING_OPTIONS, SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.device import choose_precision
from gnmt.errors import InputError
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.score_files import Scorable, score_files

LINES = [
    "the dog sees a house.",
    "a red house.",
    "it runs to the old man and then it reads.",
    "today.",
    "the man runs.",
]
FP32 = choose_precision("fp32", torch.device("cpu"))
OPTIONS = SearchOptions(beam_size=3, max_length_factor=0.0, max_length_offset=5)


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return train_tokenizers(LINES, LINES, TokenizerOptions(vocab_size=50, byte_fallback=False))


@pytest.fixture
def translator(tokenizers, monkeypatch):
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())
    model = HistoryModel.random(2, tokenizers.target.vocabulary_size)
    model.log_probs_RV[:, EOS_ID] += 1.0  # so that some finish before the limit
    model.log_probs_RV = model.log_probs_RV.log_softmax(1)
    return Translator(model, tokenizers, OPTIONS, FP32)


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


# Files


ORIGIN = Origin("fp32", ("5a5a", "1b1b"))


def scored(translator, path, given=(), checkpoints=()):
    """Return the scores of a file of translations, by line and rank."""
    output = path.with_name("scores.jsonl")
    score_files(translator, Scorable(translations=str(path)), str(output), "jsonl", given, checkpoints)
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [record["score"] for record in records]


def test_a_file_of_translations_is_scored_with_the_penalties_it_names(translator, tokenizers, tmp_path):
    """Scores of a search with other penalties than the recorded ones once differed from those of score.py, silently.

    Here the lines of two searches stand in one file, with one that names no penalties between them.
    """
    lines, reported = [], []
    for penalties in ({"length_penalty_alpha": 0.2, "coverage_beta": 0.3}, {}, {"length_penalty_constant": 9.0}):
        options = replace(OPTIONS, n_best=2, **penalties)
        translations = translator.translate(LINES[:2], n_best=2, **penalties)
        reported.append([one.score for best in translations for one in (best, *best.alternatives)])
        text = OutputFormat("jsonl").encode(1, LINES[:2], translations, tokenizers, options, ORIGIN).decode()
        for line in text.splitlines():
            record = json.loads(line)
            if not penalties:
                del record["scoring"]
            lines.append(json.dumps(record) + "\n")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    first, second, third = reported
    assert scored(translator, path) == pytest.approx([*first, *second, *third], abs=1e-4)
    plain = scored(translator, path, given=SCORING_OPTIONS)
    assert plain[len(first) : -len(third)] == pytest.approx(second, abs=1e-4)
    assert plain[: len(first)] != pytest.approx(first, abs=1e-2)
    half = scored(translator, path, given=["coverage_beta"])[: len(first)]
    assert half != pytest.approx(plain[: len(first)], abs=1e-2)
    assert half != pytest.approx(first, abs=1e-2)


@pytest.mark.parametrize(
    ("made_with", "warning"),
    [
        ({"precision": "fp32", "checkpoints": ["5a5a", "1b1b"]}, None),
        ({"precision": "fp32", "checkpoints": ["1b1b", "5a5a"]}, None),
        (
            {"precision": "int8", "checkpoints": ["5a5a", "1b1b"]},
            'a.jsonl:2: precision is "int8" there and "fp32" here: ',
        ),
        ({"precision": "fp32", "checkpoints": ["5a5a"]}, 'checkpoints is ["5a5a"] there and ["1b1b", "5a5a"] here: '),
        (
            {"precision": ["fp32"], "checkpoints": 5},
            'precision is ["fp32"] there and "fp32" here; checkpoints is 5 there',
        ),
        ({}, "a.jsonl:2: the line does not record its precision; the line does not record its checkpoints: scores may"),
    ],
)
def test_scores_of_another_precision_or_other_models_are_a_warning(translator, tmp_path, caplog, made_with, warning):
    """Scores once differed from those that search had reported, without a reason. One warning names it."""
    path = tmp_path / "a.jsonl"
    own = {"precision": "fp32", "checkpoints": ["5a5a", "1b1b"]}
    entries = [
        {"source": "a house.", **made, "translations": [{"tokens": [5, 3]}, {"tokens": [6, 3]}]}
        for made in (own, made_with, made_with, {"precision": "bf16"} if warning else own)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    assert len(scored(translator, path, checkpoints=("5a5a", "1b1b"))) == 8
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warning is not None)
    assert (warning or "") in "".join(warnings)


def test_scores_of_text_have_no_origin_to_differ(translator, tmp_path, caplog):
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("a house.\n")
    scorable = Scorable(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    score_files(translator, scorable, str(tmp_path / "scores.tsv"), "tsv", checkpoints=("5a5a",))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("translation", "message"),
    [
        ({"tokens": [99999, 3]}, r"a\.jsonl:2: token 99999 is not in the target vocabulary"),
        ({"tokens": [5, 3, 6]}, r"a\.jsonl:2: tokens continues after 3"),
        (
            {"tokens": [5, 6, 3], "segment_lengths": [1, 2]},
            r"a\.jsonl:2: segment_lengths is 1, 2 for 3 tokens and a source of 1 segment",
        ),
    ],
)
def test_tokens_that_cannot_be_scored_are_named_with_their_file(translator, tmp_path, translation, message):
    """The message once said `line 2` without the file."""
    path = tmp_path / "a.jsonl"
    entries = [{"source": "a house.", "translations": [one]} for one in ({"tokens": [5, 3]}, translation)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        scored(translator, path)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        (5, r"a\.jsonl:1: scoring is 5; it holds numbers for length_penalty_alpha"),
        ({"beam_size": 5}, r'a\.jsonl:1: scoring is \{"beam_size": 5\}; it holds numbers for'),
        ({"coverage_beta": "much"}, r'a\.jsonl:1: scoring is wrong: decoding\.coverage_beta: found "much"'),
    ],
)
def test_malformed_penalties_are_refused(translator, tmp_path, scoring, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"source": "a house.", "scoring": scoring, "translations": [{"tokens": [5, 3]}]}))
    with pytest.raises(InputError, match=message):
        scored(translator, path)
    assert not (tmp_path / "scores.jsonl").exists()
