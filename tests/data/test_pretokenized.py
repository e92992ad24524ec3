"""Text that is segmented already: subwords are looked up, and joined again."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError

VOCABULARY = ("<pad>", "<unk>", "<s>", "<\\s>", "the", "dog", "bar@@", "ks", None, "two\u2028lines", "@@")
TOKENIZER = PretokenizedTokenizer(VOCABULARY)


def test_subwords_become_ids_and_words():
    ids = TOKENIZER.encode(" the  dog\tbar@@ ks unheard ")
    assert ids == [4, 5, 6, 7, UNK_ID]
    assert TOKENIZER.encode_all(["the", ""]) == [[4], []]
    assert TOKENIZER.decode(ids) == "the dog barks ⁇"
    assert TOKENIZER.subwords(ids) == ["the", "dog", "bar@@", "ks", "<unk>"]
    assert TOKENIZER.vocabulary_size == len(VOCABULARY)


def test_names_of_special_ids_in_text_are_unknown_subwords():
    """Otherwise a line that contains </s> would end there."""
    assert TOKENIZER.encode("<pad> <s> <\\s> <unk>") == [UNK_ID] * 4


def test_decoding_accepts_any_ids():
    assert TOKENIZER.decode([BOS_ID, 6, PAD_ID, 7, 8, 5, EOS_ID, 99, -1]) == "barks dog"
    assert TOKENIZER.decode([9]) == "two lines"
    assert TOKENIZER.decode([6]) == "bar"
    assert TOKENIZER.decode([4, 10, 5]) == "the dog"
    assert TOKENIZER.decode([]) == ""


def test_spans_locate_each_subword():
    text, ids, spans = TOKENIZER.encode_with_spans(" the  bar@@ x")
    assert [text[begin:end] for begin, end in spans] == ["the", "bar@@", "x"]
    assert ids == TOKENIZER.encode(text)
    text, spans = TOKENIZER.decode_with_spans([4, 6, 7, UNK_ID, 8, 5])
    assert [text[begin:end] for begin, end in spans] == ["the", "bar", "ks", "⁇", "", "dog"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["the", "dog", "bar@@", "ks", "x", "\x85", "\x1c", "  "])).map(" ".join))
def test_spans_match_the_ids_for_any_white_space(line):
    text, ids, spans = TOKENIZER.encode_with_spans(line)
    assert len(ids) == len(spans)
    assert [text[begin:end] for begin, end in spans] == line.split()
    joined, spans = TOKENIZER.decode_with_spans(ids)
    assert len(ids) == len(spans)
    assert joined == TOKENIZER.decode(ids)
    assert len(joined.splitlines()) <= 1


def test_special_ids_and_ids_without_subword_are_never_produced():
    assert TOKENIZER.never_produced == (PAD_ID, BOS_ID, 8)


def test_sampling_of_segmentations_is_refused():
    with pytest.raises(InputError, match="subword_regularization must be 0"):
        TOKENIZER.encode_sampled("the dog", 0.1, 1)


@pytest.mark.parametrize(
    ("vocabulary", "separator", "message"),
    [
        (("a", "b"), "@@", "2 subwords, but at least 4 are needed: PAD"),
        ((*VOCABULARY, "dog"), "@@", "'dog' occurs twice, the second time as id 11"),
        ((*VOCABULARY, "\ud800"), "@@", "id 11 contains half a surrogate pair"),
        (VOCABULARY, "", "separator must be a string without white space, found ''"),
        (VOCABULARY, "@ @", "found '@ @'"),
    ],
)
def test_invalid_vocabularies_and_separators_are_refused(vocabulary, separator, message):
    with pytest.raises(InputError, match=message):
        PretokenizedTokenizer(vocabulary, separator)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"3", b'{"subwords": []}', b'{"subwords": {}, "separator": "@@"}'),
        b'{"subwords": [1, 2, 3, 4], "separator": "@@"}',
        json.dumps({"subwords": VOCABULARY, "separator": 3}).encode(),
    ],
)
def test_malformed_files_are_refused(content):
    with pytest.raises(InputError, match="tokenizer: "):
        PretokenizedTokenizer.from_bytes(content)


@pytest.mark.parametrize("source_bos", [True, False])
def test_a_checkpoint_restores_vocabulary_and_framing(source_bos, tmp_path):
    other = PretokenizedTokenizer((*VOCABULARY, "more"), "//")
    for target in (TOKENIZER, other):
        tokenizers = Tokenizers(TOKENIZER, target, source_bos)
        torch.save(tokenizers.to_checkpoint(), tmp_path / "x.pt")
        saved = torch.load(tmp_path / "x.pt", weights_only=True)
        assert saved["source"]["framing"] == {"bos": source_bos, "eos": True}
        read = Tokenizers.from_checkpoint(saved)
        assert read == tokenizers
        assert read.digest == tokenizers.digest
        assert read.joint is (target is TOKENIZER)
    assert Tokenizers(TOKENIZER, other).digest != Tokenizers(TOKENIZER, TOKENIZER).digest


def test_a_target_without_bos_is_refused():
    saved = Tokenizers(TOKENIZER, TOKENIZER).to_checkpoint()
    saved["target"]["framing"] = {"bos": False, "eos": True}
    with pytest.raises(InputError, match=r"tokenizers\.target\.framing must be \{'bos': True, 'eos': True\}, found"):
        Tokenizers.from_checkpoint(saved)
