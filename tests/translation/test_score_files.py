"""Files of translations are scored with the options that their lines record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from stub_models import LINES, OPTIONS, history_translator, line_tokenizers

from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SCORING_OPTIONS
from gnmt.errors import InputError
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.score_files import Scorable, score_files


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return line_tokenizers()


@pytest.fixture
def translator(tokenizers, monkeypatch):
    return history_translator(tokenizers, monkeypatch)


ORIGIN = Origin("fp32", ("5a5a", "1b1b"))


def scored(translator, path, given=(), checkpoints=()):
    """Return the scores of a file of translations, by line and rank."""
    output = path.with_name("scores.jsonl")
    score_files(translator, Scorable(translations=str(path)), str(output), OutputFormat("jsonl"), given, checkpoints)
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


def test_a_file_of_pairs_has_the_scores_of_two_text_files(translator, tmp_path):
    (tmp_path / "a.en").write_text("a house.\nthe dog.\n")
    (tmp_path / "a.tsv").write_text("a house.\ta house.\nthe dog.\tthe dog.\n")
    text = str(tmp_path / "a.en")
    outputs = []
    for scorable in (Scorable(text, text), Scorable(pairs=str(tmp_path / "a.tsv"))):
        outputs.append(tmp_path / f"{len(outputs)}.jsonl")
        score_files(translator, scorable, str(outputs[-1]), OutputFormat("jsonl"))
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with pytest.raises(InputError, match=r"target=.*a\.tsv is a file of TSV, .*: give it as pairs="):
        Scorable(text, str(tmp_path / "a.tsv"))
    with pytest.raises(InputError, match="give either source= and target="):
        Scorable(text, text, pairs=str(tmp_path / "a.tsv"))


def test_scores_of_text_have_no_origin_to_differ(translator, tmp_path, caplog):
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("a house.\n")
    scorable = Scorable(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    score_files(translator, scorable, str(tmp_path / "scores.tsv"), OutputFormat("tsv"), checkpoints=("5a5a",))
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
    """The message once held `line 2` without the file."""
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
