"""The mixed word and character model: any text round-trips, and any ids have a text."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.data.changed_lines import changed_lines
from gnmt.data.corpora import FilesCorpus
from gnmt.data.preprocess import preprocess
from gnmt.data.tokenizer import (
    CheckpointTokenizers,
    Tokenizer,
    TokenizerFiles,
    TokenizerOptions,
    Tokenizers,
    train_tokenizer,
    train_tokenizers,
)
from gnmt.data.word_character import Vocabulary, WordCharacterTokenizer, learn_vocabulary
from gnmt.decoding.alignment import copy_unknown_words, words_of_source
from gnmt.decoding.segments import cut_line
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS

CHARACTERS = tuple("Mikadogtetr,.()-<")
WORDS = (" the", " dog", ",", ".", " (", "-", "dog")
SYMBOLS = ("<2de>",)
VOCABULARY = Vocabulary(tuple(dict.fromkeys(CHARACTERS)), WORDS, SYMBOLS)
TOKENIZER = WordCharacterTokenizer(VOCABULARY)
WITHOUT_BYTES = WordCharacterTokenizer(replace(VOCABULARY, byte_fallback=False))

# Text of known and unknown words, symbols, white space of all kinds, combining marks, line breaks and other characters.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "the", "dog", "Miki", ",", ".", "(", ")", "-", "<2de>", "<2", "▁", "<B>", "\u0301"]
        ),
        st.sampled_from(["Ω", "猫", "😀", "\t", "\u00a0", "\u3000", "\u2028", "\n", "\x00", "\ufffd", "१"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
).map("".join)
IDS = st.lists(st.integers(-2, TOKENIZER.vocabulary_size + 2), max_size=30)


def names(text: str, tokenizer: WordCharacterTokenizer = TOKENIZER) -> list[str]:
    return tokenizer.subwords(tokenizer.encode(text))


def test_rare_words_are_spelled_as_in_the_paper() -> None:
    assert names("Miki") == ["<B>M", "<M>i", "<M>k", "<E>i"]
    assert names("the dog, Miki.") == ["▁the", "▁dog", ",", "<B>M", "<M>i", "<M>k", "<E>i", "."]


def test_words_without_a_space_before_them_are_other_words() -> None:
    assert names("dog-dog (Mi") == ["▁dog", "-", "dog", "▁(", "<M>M", "<E>i"]


def test_unknown_characters_become_bytes_within_their_word() -> None:
    assert names("aΩ Ωa Ω") == [
        "<B>a",
        "<0xCE>",
        "<0xA9>",
        "<B>",
        "<0xCE>",
        "<0xA9>",
        "<E>a",
        "<B>",
        "<0xCE>",
        "<0xA9>",
    ]


def test_further_spaces_are_kept() -> None:
    assert names(" the  dog ") == ["<B>", "▁the", "<B>", "▁dog", "<B>"]
    assert TOKENIZER.encode("") == []
    assert [TOKENIZER.decode(TOKENIZER.encode(" " * number)) for number in range(4)] == ["", " ", "  ", "   "]


def test_symbols_are_whole_wherever_they_occur() -> None:
    assert names("<2de> dog<2de>a") == ["▁<2de>", "▁dog", "<2de>", "<E>a"]


@settings(derandomize=True, max_examples=500, deadline=None)
@given(TEXTS)
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(ids)
    assert TOKENIZER.decode(ids) == text.translate(LINE_BREAKS)
    assert TOKENIZER.encode_all([text, text]) == [ids, ids]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(TEXTS, st.floats(0, 1), st.integers(0, 1000))
def test_any_sampled_spelling_round_trips(text: str, alpha: float, seed: int) -> None:
    ids = TOKENIZER.encode_sampled(text, alpha, seed)
    assert TOKENIZER.decode(ids) == text.translate(LINE_BREAKS)
    assert ids == pickle.loads(pickle.dumps(TOKENIZER)).encode_sampled(text, alpha, seed)


def plainly_decoded(ids: list[int]) -> str:
    """Add up the texts of the ids, read from their names."""
    content = b""
    for id in ids:
        if id in (PAD_ID, BOS_ID, EOS_ID) or not 0 <= id < TOKENIZER.vocabulary_size:
            continue
        name = TOKENIZER.subword(id)
        if id == UNK_ID:
            content += " ⁇".encode()
        elif 4 <= id < 260:
            content += bytes([int(name[3:5], 16)])
        elif id < TOKENIZER.vocabulary_size - len(WORDS) - 2 * len(SYMBOLS):
            content += (" " * (name[1] == "B") + name[3:]).encode()
        else:
            content += name.replace("▁", " ").encode()
    text = content.decode("utf-8", "replace")
    return text[1:] if text.startswith(" ") else text


@settings(derandomize=True, max_examples=500, deadline=None)
@given(IDS)
def test_any_ids_have_a_text_on_one_line(ids: list[int]) -> None:
    text = TOKENIZER.decode(ids)
    assert text == plainly_decoded(ids).translate(LINE_BREAKS)
    assert len(text.splitlines()) <= 1
    assert TOKENIZER.decode_all([ids]) == [text]
    joined, spans = TOKENIZER.decode_with_spans(ids)
    assert joined == text
    assert len(spans) == len(ids)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)
    assert spans == sorted(spans)


def test_malformed_spellings_are_joined_as_they_are() -> None:
    id_of = {TOKENIZER.subword(id): id for id in range(TOKENIZER.vocabulary_size)}
    for produced, text in [
        (["<M>i", "<M>k"], "ik"),  # no beginning
        (["▁the", "<B>M", "<M>i", "▁dog"], "the Mi dog"),  # no end
        (["<B>M", "<E>i", "<M>k", "<E>i"], "Miki"),  # an end too early
        (["<B>M", "<B>M", "<B>"], "M M "),
        (["▁the", "<E>i"], "thei"),
        (["<0xCE>", "▁dog"], "\ufffd dog"),
    ]:
        assert TOKENIZER.decode([id_of[name] for name in produced]) == text


@settings(derandomize=True, max_examples=300, deadline=None)
@given(TEXTS)
def test_spans_locate_each_id_in_the_text(text: str) -> None:
    for tokenizer in (TOKENIZER, WITHOUT_BYTES):
        read, ids, spans = tokenizer.encode_with_spans(text)
        assert (read, ids) == (text, tokenizer.encode(text))
        assert len(spans) == len(ids)
        covered = [text[begin:end] for begin, end in spans]
        assert "".join(covered) == text.replace(" ", "")


def test_spans_locate_words_of_the_original_of_a_normalized_text() -> None:
    tokenizer = WordCharacterTokenizer(VOCABULARY, "nmt_nfkc")
    text, ids, spans = tokenizer.encode_with_spans("  the  ½ ﬁdog")
    assert tokenizer.decode(ids) == "the 1⁄2 fidog"
    assert text[slice(*spans[0])] == "the"
    assert {text[begin:end] for begin, end in spans[1:]} - {""} <= {"½", "ﬁ", "d", "o", "g"}
    assert words_of_source(tokenizer, text, [*ids, EOS_ID]).texts == ["the", "½", "ﬁdog"]


def test_without_bytes_a_word_with_an_unknown_character_is_unknown() -> None:
    assert WITHOUT_BYTES.encode("the Ωa")[1:] == [UNK_ID]
    assert WITHOUT_BYTES.decode(WITHOUT_BYTES.encode("the Ωa, dog")) == "the ⁇, dog"
    assert WITHOUT_BYTES.never_produced == (PAD_ID, BOS_ID)
    assert TOKENIZER.never_produced == (PAD_ID, UNK_ID, BOS_ID)
    assert changed_lines(WITHOUT_BYTES, ["the Ωa"]).causes["unknown"] == 1


def test_unknown_words_are_copied_from_the_source() -> None:
    ids = WITHOUT_BYTES.encode("the Ωa, dog")
    source = words_of_source(WITHOUT_BYTES, "Der Ωa!", [*WITHOUT_BYTES.encode("Der Ωa!"), EOS_ID])
    attention_TS = torch.zeros(len(ids), len(source.of_token))
    attention_TS[:, source.of_token.index(1)] = 1
    assert copy_unknown_words(WITHOUT_BYTES, ids, attention_TS, source) == "the Ωa, dog"


def test_half_surrogates_become_replacement_characters() -> None:
    assert TOKENIZER.encode("the \ud800 dog") == TOKENIZER.encode("the \ufffd dog")
    assert TOKENIZER.encode("\ud83d\ude00") == TOKENIZER.encode("😀")


def test_sampling_spells_words_but_no_symbols() -> None:
    spelled = TOKENIZER.subwords(TOKENIZER.encode_sampled("<2de> dog,", 1.0, 0))
    assert spelled == ["▁<2de>", "<B>d", "<M>o", "<E>g", "<E>,"]
    assert TOKENIZER.encode_sampled("<2de> the dog", 0.0, 0) == TOKENIZER.encode("<2de> the dog")
    counts = [len(TOKENIZER.encode_sampled("dog dog", 0.5, seed)) for seed in range(50)]
    assert set(counts) == {2, 4, 6}


def test_long_lines_are_cut_between_words() -> None:
    tokenizers = Tokenizers(TOKENIZER, TOKENIZER)
    segments = cut_line(tokenizers, "the dog Miki, " * 6 + "tiger" * 5, 12)
    assert all(len(segment) <= 12 for segment in segments)
    texts = [TOKENIZER.decode(segment) for segment in segments]
    assert " ".join(texts).replace(" ", "") == ("thedogMiki," * 6 + "tiger" * 5)


# Learning


LINES = ["the dog eats", "the cat, the dog", "Miki eats  the cat"]


def test_the_most_frequent_words_have_ids() -> None:
    size = 4 + 256 + 1 + 3 * len(set("".join(LINES)) - {" "}) + 4
    vocabulary = learn_vocabulary(LINES, size)
    assert vocabulary.words == (" the", " cat", " dog", " eats")  # equal counts in the order of code points
    assert WordCharacterTokenizer(vocabulary).vocabulary_size == size
    assert learn_vocabulary(LINES, size - 4).words == ()
    assert learn_vocabulary(LINES, size + 2).words[4:] == (" Miki", ",")


def test_impossible_sizes_are_refused_with_the_possible_ones() -> None:
    fixed = 4 + 256 + 1 + 3 * 13
    with pytest.raises(
        InputError, match=rf"vocab_size=10 is too small for the text: the smallest possible is {fixed} "
    ):
        learn_vocabulary(LINES, 10)
    with pytest.raises(InputError, match=rf"=999 is too large for the text: the largest possible is {fixed + 6}, with"):
        learn_vocabulary(LINES, 999)
    with pytest.raises(InputError, match="no text to learn from"):
        learn_vocabulary(["", "  "], 300)


def test_rare_characters_can_be_left_out() -> None:
    lines = ["a" * 99 + "z"] * 2
    assert learn_vocabulary(lines, 264, character_coverage=0.99).characters == ("a",)
    assert learn_vocabulary(lines, 267, character_coverage=1.0).characters == ("a", "z")


def make_options(**changes: Any) -> TokenizerOptions:
    return TokenizerOptions(**{"kind": "word_character", "vocab_size": 302, **changes})


def test_a_joint_vocabulary_has_a_normalization_for_each_side() -> None:
    tokenizers = train_tokenizers(LINES, LINES, make_options())
    assert tokenizers.joint
    assert tokenizers.source.decode(tokenizers.source.encode("½")) == "1⁄2"
    assert tokenizers.target.decode(tokenizers.target.encode("½")) == "½"
    assert tokenizers.source.digest != tokenizers.target.digest
    same = train_tokenizers(LINES, LINES, make_options(source_normalization="identity"))
    assert same.source is same.target
    separate = train_tokenizers(LINES, [*LINES, "b"], make_options(joint=False, vocab_size=304))
    assert not separate.joint


def test_a_checkpoint_restores_the_tokenizers(tmp_path: Path) -> None:
    tokenizers = train_tokenizers(LINES, LINES, make_options(user_symbols=["<x>"], vocab_size=304))
    torch.save(tokenizers.to_checkpoint(), tmp_path / "x.pt")
    read = Tokenizers.from_checkpoint(torch.load(tmp_path / "x.pt", weights_only=True))
    assert read.digest == tokenizers.digest
    assert read.joint
    assert read.source.encode("the <x> Miki ½") == tokenizers.source.encode("the <x> Miki ½")


def test_existing_files_are_recognized(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(LINES, make_options(), "identity")
    (tmp_path / "a.json").write_bytes(tokenizer.to_bytes())
    read = TokenizerFiles(str(tmp_path / "a.json"), str(tmp_path / "a.json")).read()
    assert isinstance(read.source, WordCharacterTokenizer)
    assert read.source is read.target
    assert read.source.digest == tokenizer.digest
    assert not isinstance(read.source, Tokenizer)


def test_preprocessing_learns_stores_and_reads_them(
    make_corpus: Callable[..., FilesCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = make_options(vocab_size=380)
    corpus = make_corpus()
    preprocessed = preprocess(corpus, chosen)
    tokenizer = preprocess(corpus, chosen).tokenizers.target
    assert isinstance(tokenizer, WordCharacterTokenizer)
    assert tokenizer.vocabulary_size == 380
    store = preprocessed.store
    assert [tokenizer.decode(store.target_ids([pair])[0]) for pair in (0, 7)] == [
        store.target_text(0),
        store.target_text(7),
    ]
    assert tokenizer.subwords(preprocessed.unused_target_ids[-1:])  # such as characters that no word begins with
    again = preprocess(replace(corpus, preprocessed=None), CheckpointTokenizers(preprocessed.tokenizers))
    assert again.tokenizers.digest == preprocessed.tokenizers.digest


SAVED = json.loads(TOKENIZER.to_bytes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": [" the", " the"]}, "' the' occurs twice"),
        ({"words": ["a b"]}, "no space but at its beginning, found 'a b'"),
        ({"words": [" "]}, "must have characters"),
        ({"words": ["\ud800"]}, "half a surrogate pair"),
        ({"words": " the"}, "must be lists of strings"),
        ({"characters": ["ab"]}, "single characters without the space, found 'ab'"),
        ({"characters": [" "]}, "single characters without the space"),
        ({"characters": [1]}, "must be lists of strings"),
        ({"symbols": ["x", "x"]}, "' x' occurs twice"),
        ({"byte_fallback": 1}, "byte_fallback must be true or false, found 1"),
        ({"normalization": "nfd"}, "found 'nfd'"),
        ({"normalization": []}, r"found \[\]"),
    ],
)
def test_malformed_files_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WordCharacterTokenizer.from_bytes(json.dumps({**SAVED, **changes}).encode())
    assert WordCharacterTokenizer.from_bytes(json.dumps(SAVED).encode()).digest == TOKENIZER.digest


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"3", b"{}", b'{"words": []}'])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="not a vocabulary of words and characters"):
        WordCharacterTokenizer.from_bytes(content)
