"""The Korean-English corpus, on small files, and the tokenization of Hangul."""

from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from gnmt.data.corpora import KoreanEnglish
from gnmt.data.preprocess import preprocess
from gnmt.data.tokenizer import TokenizerOptions, train_tokenizer
from gnmt.errors import InputError

KOREAN = [f"{subject} {place} {verb}." for subject in ("고양이가", "개가", "새가") for place in ("집에서", "길에서")
          for verb in ("잔다", "먹는다", "운다")]  # fmt: skip
ENGLISH = [f"the {subject} {verb} {place}." for subject in ("cat", "dog", "bird") for place in ("at home", "outside")
           for verb in ("sleeps", "eats", "cries")]  # fmt: skip
SUBWORDS = TokenizerOptions(vocab_size=305)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "dev", "test_pydocs"):
        for language, lines in (("ko", KOREAN), ("en", ENGLISH)):
            text = "".join(f"{line}\n" for line in lines)
            (tmp_path / f"{split}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_the_corpus_is_read_in_both_directions(folder: Path, tmp_path: Path) -> None:
    forward = KoreanEnglish(folder=str(folder), preprocessed=str(tmp_path / "forward"))
    backward = KoreanEnglish(
        folder=str(folder), preprocessed=str(tmp_path / "back"), source_language="en", target_language="ko"
    )
    assert (forward.bleu_tokenizer, backward.bleu_tokenizer) == ("13a", "ko-mecab")
    pairs = list(zip(KOREAN, ENGLISH, strict=True))
    for text in (forward.training_text(), forward.dev_text(), forward.test_texts()["test_pydocs"]):
        assert list(text.iterate()) == pairs
    assert list(backward.training_text().iterate()) == [(english, korean) for korean, english in pairs]
    assert preprocess(forward, SUBWORDS).dev == pairs
    assert preprocess(backward, SUBWORDS).dev[0] == (ENGLISH[0], KOREAN[0])
    assert forward.settings() != backward.settings()


def test_the_test_set_may_be_absent_and_files_may_be_uncompressed(folder: Path) -> None:
    for language in ("ko", "en"):
        (folder / f"test_pydocs.{language}.gz").unlink()
        (folder / f"dev.{language}.gz").unlink()
        (folder / f"dev.{language}").write_text("plain\n", encoding="utf-8")
    corpus = KoreanEnglish(folder=str(folder))
    assert corpus.test_texts() == {}
    assert list(corpus.dev_text().iterate()) == [("plain", "plain")]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"folder": None}, r"data\.folder is not given: this corpus cannot be downloaded; .* with data\.folder=FOLDER"),
        ({"source_language": "en"}, r"both en: .*data\.source_language=en data\.target_language=ko"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KoreanEnglish(**{"folder": "somewhere", **keywords})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains none of train\.ko, plain or"):
        KoreanEnglish(folder=str(tmp_path)).training_text()
    with pytest.raises(InputError, match=r"data\.folder=.*nowhere: no such folder$"):
        KoreanEnglish(folder=str(tmp_path / "nowhere")).dev_text()


def test_decomposed_hangul_has_the_ids_of_composed_hangul() -> None:
    tokenizer = train_tokenizer(KOREAN, SUBWORDS)
    for line in KOREAN:
        decomposed = unicodedata.normalize("NFD", line)
        assert decomposed != line
        assert tokenizer.encode(decomposed) == tokenizer.encode(line)
        assert tokenizer.decode(tokenizer.encode(decomposed)) == line


def test_without_normalization_decomposed_hangul_is_kept() -> None:
    tokenizer = train_tokenizer(KOREAN, SUBWORDS, "identity")
    decomposed = unicodedata.normalize("NFD", KOREAN[0])
    assert tokenizer.encode(decomposed) != tokenizer.encode(KOREAN[0])
    assert tokenizer.decode(tokenizer.encode(decomposed)) == decomposed


def test_spans_of_decomposed_hangul_cover_the_original_text() -> None:
    """Word alignments refer to the line as given, in which a decomposed syllable has up to three characters."""
    tokenizer = train_tokenizer(KOREAN, SUBWORDS)
    decomposed = unicodedata.normalize("NFD", KOREAN[0])
    text, _, spans = tokenizer.encode_with_spans(decomposed)
    assert text == decomposed
    assert spans[0][0] == 0
    assert spans[-1][1] == len(decomposed)


def test_rare_syllables_are_encoded_as_bytes_and_decoded() -> None:
    tokenizer = train_tokenizer(KOREAN, SUBWORDS)
    assert tokenizer.decode(tokenizer.encode("뷁 힣")) == "뷁 힣"
    assert "<0xED>" in tokenizer.subwords(tokenizer.encode("힣"))


def test_single_letters_of_hangul_change_under_nfkc() -> None:
    """Unicode's NFKC maps the letters of ㅋㅋ to others (U+314B to U+110F), as SentencePiece's nmt_nfkc does."""
    tokenizer = train_tokenizer(KOREAN, SUBWORDS)
    assert tokenizer.decode(tokenizer.encode("\u314b\u314b")) == "\u110f\u110f"
