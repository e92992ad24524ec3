"""A translator returns one translation for each line, in order, whatever the lines contain."""

from __future__ import annotations

import itertools
import logging
from typing import ClassVar

import pytest
import torch
from stub_models import CopyModel

import gnmt.decoding.translator as translator_module
from gnmt.batch import EOS_ID
from gnmt.checkpoint.load import LoadedModel
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import SHORTEST_SEGMENT, Translation, cut_line, split_sentences
from gnmt.decoding.translator import Translator
from gnmt.device import choose_precision
from gnmt.errors import InputError

TEXT = "the small dog sees a red house and then it runs to the old man who reads in the garden today"
WORDS = TEXT.split()
FP32 = choose_precision("fp32", torch.device("cpu"))
OPTIONS = SearchOptions(beam_size=2)


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    """Return joint tokenizers with byte fallback, which can encode any text."""
    lines = [" ".join(WORDS[start : start + 6]) + "." for start in range(len(WORDS) - 5)]
    options = TokenizerOptions(kind="bpe", vocab_size=330, joint=True, byte_fallback=True)
    return train_tokenizers(lines, lines, options)


@pytest.fixture
def model(tokenizers, monkeypatch):
    """Return a model that is searched itself, not as an inference copy, so that tests can inspect it."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())
    return CopyModel(tokenizers.source.vocabulary_size)


def sentences(count):
    """Return sentences of many lengths, in no order."""
    return [" ".join(itertools.islice(itertools.cycle(WORDS), n, n + 1 + 7 * n % 13)) + "." for n in range(count)]


def test_every_line_gets_its_own_translation_in_order(model, tokenizers):
    lines = sentences(50)
    translations = Translator(model, tokenizers, OPTIONS, FP32, batch_size=8).translate(lines)
    assert [translation.text for translation in translations] == lines
    for line, translation in zip(lines, translations, strict=True):
        assert list(translation.tokens) == [*tokenizers.source.encode(line), EOS_ID]
        assert translation.finished
        assert translation.score < 0
        assert translation.attention_TS is None


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_translations_do_not_depend_on_batch_size_or_order(model, tokenizers, batch_size):
    lines = sentences(33)
    expected = Translator(model, tokenizers, OPTIONS, FP32, batch_size=64).translate(lines)
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=batch_size)
    for found in (translator.translate(lines), translator.translate(lines[::-1])[::-1]):
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_blank_lines_stay_blank_and_are_not_searched(model, tokenizers):
    lines = ["", "the dog.", "   ", "\t\u00a0\u2028\r", "a house.", ""]
    translations = Translator(model, tokenizers, OPTIONS, FP32).translate(lines)
    assert [translation.text for translation in translations] == ["", "the dog.", "", "", "a house.", ""]
    assert translations[0] == Translation(text="", score=0.0, tokens=())
    assert sum(rows for rows, _ in model.batch_shapes) == 2


def test_no_lines_give_no_translations(model, tokenizers):
    assert Translator(model, tokenizers, OPTIONS, FP32).translate([]) == []


HOSTILE = [
    "a\0b",
    "a line\u2028separator and a next\u0085line",
    "\ufeffwith a mark",
    "carriage return\r",
    "形 and emoji 👩‍👩‍👧 and ̈ alone",
    "\ud800 a lone surrogate",
    "\u200b",
    "\x07\x1b[31m",
    "x" * 3000,
    "an inner\nline break",
    "ᚠᛇᚻ unseen script",
]


def test_hostile_lines_neither_crash_nor_shift_others(model, tokenizers):
    lines = [text for hostile in HOSTILE for text in (hostile, "the dog.")]
    translations = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4).translate(lines)
    assert len(translations) == len(lines)
    assert [translation.text for translation in translations[1::2]] == ["the dog."] * len(HOSTILE)
    assert not any(set(translation.text) & set("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") for translation in translations)


def test_a_line_break_in_a_translation_becomes_a_space(model, tokenizers):
    """Byte fallback can produce the byte 0x0A, which would make two lines of one translation."""
    line_break = next(i for i in range(tokenizers.target.vocabulary_size) if tokenizers.target.subword(i) == "<0x0A>")
    dog = tokenizers.source.encode("dog")
    translator = Translator(model, tokenizers, OPTIONS, FP32)
    translator.tokenizers = Tokenizers(FixedEncoding([*dog, line_break, *dog]), tokenizers.target)
    [translation] = translator.translate(["anything"])
    assert line_break in translation.tokens
    assert translation.text == "dog  dog"


class FixedEncoding:
    """A source tokenizer that encodes every text to the same ids."""

    control_symbols: ClassVar = {}

    def __init__(self, ids):
        self.ids = ids

    def encode(self, text):
        return self.ids


# Long lines


def test_a_line_of_5000_words_is_translated_completely_in_segments(model, tokenizers, caplog):
    sentence = "the small dog sees a red house and then it runs."
    line = " ".join([sentence] * 455)
    translator = Translator(model, tokenizers, SearchOptions(beam_size=1), FP32, max_source_tokens=80)
    with caplog.at_level(logging.WARNING):
        short, long = translator.translate(["the dog.", line])
    assert short.text == "the dog."
    assert long.text == line
    assert long.finished
    assert max(width for _, width in model.batch_shapes) <= 80
    num_tokens = len(tokenizers.source.encode(line))
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"line 2 has {num_tokens} tokens, more than the 79 that are translated at once")
    assert f"in {list(long.tokens).count(EOS_ID)} segments" in message


def test_segments_of_a_long_line_end_at_sentences_then_words_then_anywhere(model, tokenizers):
    translator = Translator(model, tokenizers, SearchOptions(beam_size=1), FP32, max_source_tokens=30)
    sentence = "the small dog sees a red house. "
    [by_sentence] = translator.translate([sentence * 8])
    ends = [index for index, token in enumerate(by_sentence.tokens) if token == EOS_ID]
    texts = [
        tokenizers.target.decode(by_sentence.tokens[start:end])
        for start, end in itertools.pairwise([0, *(end + 1 for end in ends)])
    ]
    assert texts == [sentence.strip()] * 8, "a model of single sentences leaves out the end of several"
    [by_word] = translator.translate(["house " * 60])
    assert by_word.text == ("house " * 60).strip()
    [anywhere] = translator.translate(["x" * 400])
    assert anywhere.text.replace(" ", "") == "x" * 400


def test_every_sentence_is_a_segment_but_a_short_one_takes_the_next(tokenizers):
    """A demo model translated 98 words of a line of 80 sentences; sentence by sentence it translates 280."""
    decode = tokenizers.source.decode
    long, short = "the small dog sees a red house.", "a."
    assert len(tokenizers.source.encode(short)) < SHORTEST_SEGMENT <= len(tokenizers.source.encode(long))
    line = f"{long} {short} {long} {long}"
    limit = len(tokenizers.source.encode(line))  # without room for EOS
    segments = cut_line(tokenizers, line, limit)
    assert [decode(ids[:-1]) for ids in segments] == [long, f"{short} {long}", long]
    assert cut_line(tokenizers, line, limit + 1) == [tokenizers.framed(tokenizers.source.encode(line))]
    tight = len(tokenizers.source.encode(long)) + 1
    assert all(len(ids) <= tight for ids in cut_line(tokenizers, line, tight))


def test_a_sentence_that_is_too_long_is_cut_into_the_fewest_parts_of_whole_words(tokenizers):
    words = "the small dog sees a red house " * 3
    per_word = [len(tokenizers.source.encode(word)) for word in words.split()]
    limit = 2 * max(per_word)
    segments = cut_line(tokenizers, words, limit + 1)
    assert " ".join(tokenizers.source.decode(ids[:-1]) for ids in segments) == words.strip()
    for one, other in itertools.pairwise(segments):
        first = len(tokenizers.source.encode(tokenizers.source.decode(other[:-1]).split()[0]))
        assert len(one) - 1 + first > limit, "the next word did not fit"


def test_line_numbers_continue_over_chunks(model, tokenizers, caplog, monkeypatch):
    monkeypatch.setattr(translator_module, "CHUNK_BATCHES", 2)
    monkeypatch.setattr(translator_module, "SMALLEST_CHUNK", 1)
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=2, max_source_tokens=20)
    with caplog.at_level(logging.WARNING):
        translator.translate(["the dog.", ""] * 5 + ["the dog sees. " * 20])
    assert "line 11 has" in caplog.text


def test_a_cut_line_joins_scores_tokens_and_attention(model, tokenizers):
    sentence = "the small dog sees a red house."
    options = {"max_source_tokens": len(tokenizers.source.encode(sentence)) + 1}
    translator = Translator(model, tokenizers, OPTIONS, FP32, **options)
    [one] = translator.translate([sentence], attention=True)
    [two] = translator.translate([f"{sentence} {sentence}"], attention=True)
    assert two.text == f"{sentence} {sentence}"
    assert two.tokens == one.tokens * 2
    assert two.score == pytest.approx(2 * one.score, abs=1e-5)
    torch.testing.assert_close(two.attention_TS, torch.block_diag(one.attention_TS, one.attention_TS))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One. Two! Three", ["One.", " Two!", " Three"]),
        ('He said "no." Then 3.14 came.', ['He said "no."', " Then 3.14 came."]),
        ("你好。再见！好", ["你好。", "再见！", "好"]),
        ("none", ["none"]),
    ],
)
def test_sentence_ends(line, expected):
    assert split_sentences(line) == expected


# Batches, modes, options


def test_batches_are_bounded_in_sentences_and_in_padded_tokens(model, tokenizers):
    lines = ["a dog"] * 10 + [" ".join(["house"] * 200)] * 10
    Translator(model, tokenizers, SearchOptions(beam_size=1), FP32, batch_size=4, max_source_tokens=1000).translate(
        lines
    )
    assert sum(rows for rows, _ in model.batch_shapes) == 20
    assert all(rows <= 4 for rows, _ in model.batch_shapes)
    assert all(rows * width <= 400 or rows == 1 for rows, width in model.batch_shapes)


def test_attention_columns_are_the_source_tokens_with_eos(model, tokenizers):
    lines = ["the dog sees a house.", "dog"]
    for line, translation in zip(
        lines, Translator(model, tokenizers, OPTIONS, FP32).translate(lines, attention=True), strict=True
    ):
        size = len(tokenizers.source.encode(line)) + 1
        torch.testing.assert_close(translation.attention_TS, torch.eye(size))


def test_a_stream_reads_and_yields_chunk_by_chunk(model, tokenizers, monkeypatch):
    monkeypatch.setattr(translator_module, "CHUNK_BATCHES", 2)
    monkeypatch.setattr(translator_module, "SMALLEST_CHUNK", 1)
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield "the dog."

    stream = Translator(model, tokenizers, OPTIONS, FP32, batch_size=3).stream(endless())
    assert [translation.text for translation in itertools.islice(stream, 6)] == ["the dog."] * 6
    assert len(read) == 6


@pytest.mark.parametrize("lines", ["the dog.", b"the dog.", None, 5])
def test_what_is_no_list_of_lines_is_refused(model, tokenizers, lines):
    translator = Translator(model, tokenizers, OPTIONS, FP32)
    with pytest.raises(InputError, match=r"lines must be a list of strings, found .*: use translate\(\[line\]\)"):
        translator.translate(lines)
    if lines is not None:
        with pytest.raises(InputError, match=r"prefixes must be a list of strings, found .*: use prefixes=\[prefix\]"):
            translator.translate(["the dog."], prefixes=lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lines": ["the dog.", None]}, "line 2: found None, allowed is a string"),
        ({"lines": [b"the dog."]}, "line 1: found b'the dog.', allowed is a string"),
        ({"lines": ["the dog."], "prefixes": [7]}, "line 1: found 7, allowed is a string"),
        ({"lines": [], "first_line": "1"}, 'first_line: found "1", allowed is a whole number'),
        ({"lines": ["the dog."], "beam_size": "5"}, r'decoding\.beam_size: found "5"'),
    ],
)
def test_arguments_of_other_types_are_refused_by_name(model, tokenizers, arguments, message):
    """They ended in a traceback from inside."""
    with pytest.raises(InputError, match=message):
        Translator(model, tokenizers, OPTIONS, FP32).translate(**arguments)


@pytest.mark.parametrize(
    "pairs", ["ab", 5, ["ab"], [("a",)], [("a", None)], [("a", "b", "c")], [("a", [0.5])], [(None, "b")], [None]]
)
def test_what_is_no_list_of_pairs_is_refused(model, tokenizers, pairs):
    """`score("ab")` scored letters, or ended in a traceback."""
    with pytest.raises(
        InputError, match=r"pairs must be a list of pairs|line 1: found .*, allowed is a pair of a source"
    ):
        Translator(model, tokenizers, OPTIONS, FP32).score(pairs)


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3]])
def test_line_numbers_of_another_length_than_the_pairs_are_refused(model, tokenizers, numbers):
    """The message was that of Python's zip."""
    message = rf"there are 2 pairs, but len\(line_numbers\) is {len(numbers)}: give one number for each pair"
    with pytest.raises(InputError, match=message):
        Translator(model, tokenizers, OPTIONS, FP32).score([("a", "b"), ("c", "d")], line_numbers=numbers)


def test_load_refuses_arguments_of_other_types(recorded):
    for argument, value in (("device", 5), ("precision", None), ("batch_size", "8"), ("trusted_packages", "mine")):
        with pytest.raises(InputError, match=f"{argument}: found .*, allowed is "):
            Translator.load("best.pt", **{"device": "cpu", argument: value})
    for checkpoint in (5, None, [None]):
        with pytest.raises(InputError, match=r"checkpoint: found .*, allowed is a path"):
            Translator.load(checkpoint)


def test_search_options_can_be_changed_for_one_call(model, tokenizers):
    translator = Translator(model, tokenizers, SearchOptions(beam_size=1), FP32)
    [cut] = translator.translate(["the small dog sees."], max_length_factor=0.0, max_length_offset=2)
    assert len(cut.tokens) == 2
    assert not cut.finished
    [whole] = translator.translate(["the small dog sees."])
    assert whole.finished
    with pytest.raises(InputError, match=r"decoding\.beam_sise.*beam_size"):
        translator.translate(["the dog."], beam_sise=2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0, allowed is a whole number of at least 1"),
        ({"max_source_tokens": 1}, "max_source_tokens is 1"),
    ],
)
def test_limits_out_of_range_are_refused(model, tokenizers, argument, message):
    with pytest.raises(InputError, match=message):
        Translator(model, tokenizers, OPTIONS, FP32, **argument)


@pytest.fixture
def recorded(model, tokenizers, monkeypatch):
    """Stub the loading of a checkpoint and return its recorded search options, which tests may change."""
    config = {"decoding": {"_target_": "gnmt.decoding.options.SearchOptions", "beam_size": 3, "coverage_beta": 0.3}}
    loaded = LoadedModel(model, tokenizers, config, {"unused_target_ids": []}, torch.device("cpu"))
    monkeypatch.setattr(translator_module, "load_members", lambda paths, device, trusted: (loaded,))
    return config["decoding"]


def test_load_takes_the_recorded_search_and_what_replaces_it(recorded):
    translator = Translator.load("best.pt", device="cpu", precision="fp32", coverage_beta=0.0)
    assert translator.options == SearchOptions(beam_size=3, coverage_beta=0.0)
    assert translator.precision.name == "fp32"
    assert [translation.text for translation in translator.translate(["the dog."])] == ["the dog."]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"beam_sice": 4}, r"decoding\.beam_sice.*beam_size"),
        ({"beam_size": 0}, r"decoding\.beam_size"),
        ({"beam_size": "many"}, r"decoding\.beam_size.*many"),
    ],
)
def test_load_refuses_wrong_search_options(recorded, overrides, message):
    with pytest.raises(InputError, match=message):
        Translator.load("best.pt", device="cpu", precision="fp32", **overrides)


def test_load_refuses_a_recorded_search_that_is_other_code(recorded):
    recorded["_target_"] = "os.system"
    with pytest.raises(InputError, match=r"decoding\._target_: found os\.system"):
        Translator.load("best.pt", device="cpu", precision="fp32")
