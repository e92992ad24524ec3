"""Subword regularization: SentencePiece's segmentation without randomness, and the right probabilities with it."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.batch import UNK_ID
from gnmt.data import subword_regularization
from gnmt.data.sentencepiece_model import BYTE, UNKNOWN, UNUSED, Piece, PieceTable, fields_of
from gnmt.data.tokenizer import Tokenizer, TokenizerOptions, train_tokenizer
from gnmt.errors import InputError

Pairs = Callable[..., list[tuple[str, str]]]

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "identity": {},
    "no bytes": {"byte_fallback": False, "vocab_size": 66},
    "symbols": {"user_symbols": ["<2de>", "<2", "s,b", "ü"]},
}
HOSTILE = (
    *("", " ", "▁", "▁▁a▁", "  two  spaces ", "\u2028", "\u200b", "a\x00b", "\ufeffa", "😀👩‍👩‍👧", "漢字 かな漢"),
    *("x" * 3000, "ß" * 50 + " house", "</s> <pad> <s>", "<2de>s,b <2<2de", "a\ud800b", "ﬁ\u3000ｘ\u00ad", "e\u0301 é"),
    "the small green house sees eleven mountains under the bridge",
)
TEXT = st.lists(st.one_of(st.sampled_from(["the", "house", " ", "ü", "<2de>", "s,b", "漢"]), st.text(max_size=6))).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizers(toy_pairs: Pairs) -> dict[tuple[str, str], Tokenizer]:
    lines = [side for pair in toy_pairs(300) for side in pair]
    return {
        (kind, name): train_tokenizer(
            lines,
            TokenizerOptions(**{"kind": kind, "vocab_size": 320, **further}),  # type: ignore[arg-type]
            "identity" if name == "identity" else "nmt_nfkc",
        )
        for kind in ("bpe", "unigram")
        for name, further in SETTINGS.items()
    }


def check_bpe(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode_sampled(text, 0.0, 7) == tokenizer.encode(text)


@pytest.mark.parametrize("name", SETTINGS)
def test_bpe_without_skips_equals_sentencepiece(tokenizers: Any, name: str, toy_pairs: Pairs) -> None:
    for text in (*HOSTILE, *(side for pair in toy_pairs(100, seed=1) for side in pair)):
        check_bpe(tokenizers["bpe", name], text)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(text=TEXT, name=st.sampled_from(list(SETTINGS)))
def test_bpe_without_skips_equals_sentencepiece_for_any_text(tokenizers: Any, text: str, name: str) -> None:
    check_bpe(tokenizers["bpe", name], text)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    text=st.one_of(TEXT, st.sampled_from(HOSTILE)),
    kind=st.sampled_from(["bpe", "unigram"]),
    name=st.sampled_from(list(SETTINGS)),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_segmentation_decodes_to_the_same_text(
    tokenizers: Any, text: str, kind: str, name: str, alpha: float, seed: int
) -> None:
    tokenizer = tokenizers[kind, name]
    ids = tokenizer.encode_sampled(text, alpha, seed)
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(text))
    # Symbols, and bytes or UNK for characters without a subword, are the same in every segmentation.
    table = PieceTable.read(tokenizer.to_bytes())
    fixed = [id for id, piece in enumerate(table.pieces) if piece.type in (UNKNOWN, BYTE)]
    fixed += [tokenizer.subwords(range(tokenizer.vocabulary_size)).index("<2de>")] if name == "symbols" else []
    assert [id for id in ids if id in fixed] == [id for id in tokenizer.encode(text) if id in fixed]


def test_every_process_samples_the_same_segmentations(tokenizers: Any, tmp_path: Path) -> None:
    """SentencePiece 0.2.3 samples differently in each process, whatever its seed, so resumed runs once differed."""
    code = (
        "import sys; from gnmt.data.tokenizer import Tokenizer\n"
        "for path, alpha in zip(sys.argv[2::2], sys.argv[3::2]):\n"
        "    tokenizer = Tokenizer(open(path, 'rb').read())\n"
        "    print([tokenizer.encode_sampled(sys.argv[1], float(alpha), seed) for seed in range(30)])"
    )
    command, expected = [sys.executable, "-c", code, HOSTILE[-1]], ""
    for kind, alpha in (("bpe", 0.3), ("unigram", 0.1)):
        tokenizer = tokenizers[kind, "plain"]
        (tmp_path / kind).write_bytes(tokenizer.to_bytes())
        command += [str(tmp_path / kind), str(alpha)]
        segmentations = [tokenizer.encode_sampled(HOSTILE[-1], alpha, seed) for seed in range(30)]
        assert len({tuple(segmentation) for segmentation in segmentations}) > 15
        expected += f"{segmentations}\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == expected


@pytest.mark.parametrize(
    ("kind", "seed", "expected"),
    [("bpe", 3, "▁t h e ▁ gre en ▁ h ou se"), ("unigram", 5, "▁t he ▁ green ▁h ou se")],
)
def test_sampled_segmentations_equal_recorded_ones(kind: str, seed: int, expected: str) -> None:
    """A run that is resumed with another version of gnmt must get the same segmentations."""
    vocabulary = ["▁t", "he", "▁the", "en", "gr", "gre", "▁g", "green", "▁green", "ou", "se", "▁h", "▁hou", "▁house"]
    characters = sorted(set("▁thegreenhouse"))
    scored = [Piece(text, -float(rank) / 2) for rank, text in enumerate(vocabulary + characters)]
    assert _sampled_subwords(Tokenizer(_model(kind, scored)), "the green house", 0.2, seed) == expected


def _sampled_subwords(tokenizer: Tokenizer, text: str, alpha: float, seed: int) -> str:
    return " ".join(tokenizer.subwords(tokenizer.encode_sampled(text, alpha, seed)))


@pytest.mark.parametrize("word", ["mountains", "Brücke", "antwortet"])
def test_merges_are_skipped_with_the_given_probability(tokenizers: Any, word: str) -> None:
    tokenizer, probability = tokenizers["bpe", "plain"], 0.3
    table = PieceTable.read(tokenizer.to_bytes())
    rank = {text: -table.pieces[id].score for text, id in table.mergeable.items()}
    expected = bpe_dropout_oracle(tuple(f"▁{word}"), rank, probability)
    compare(tokenizer, word, probability, expected)


def bpe_dropout_oracle(
    subwords: tuple[str, ...], rank: dict[str, float], probability: float
) -> Counter[tuple[str, ...]]:
    """Return the probability of each segmentation, by following both outcomes of every merge."""
    found: Counter[tuple[str, ...]] = Counter()

    def follow(subwords: tuple[str, ...], skipped: frozenset[tuple[int, int]], chance: float) -> None:
        begins = [sum(map(len, subwords[:index])) for index in range(len(subwords))]
        merges = []
        for index, (left, right) in enumerate(pairwise(subwords)):
            span = (begins[index], begins[index] + len(left + right))
            if left + right in rank and span not in skipped:
                merges.append((rank[left + right], index, span))
        if not merges:
            found[subwords] += chance  # type: ignore[assignment]
            return
        _, index, span = min(merges)
        follow(subwords, skipped | {span}, chance * probability)
        merged = (*subwords[:index], subwords[index] + subwords[index + 1], *subwords[index + 2 :])
        follow(merged, skipped, chance * (1 - probability))

    follow(subwords, frozenset(), 1.0)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_unigram_segmentations_have_the_right_probability(tokenizers: Any, alpha: float) -> None:
    tokenizer, word = tokenizers["unigram", "plain"], "bridge"
    table = PieceTable.read(tokenizer.to_bytes())

    def segmentations(text: str) -> Iterator[tuple[tuple[str, ...], float]]:
        if not text:
            yield (), 0.0
        for end in range(1, len(text) + 1):
            if text[:end] in table.mergeable:
                score = table.pieces[table.mergeable[text[:end]]].score
                yield from (((text[:end], *rest), score + others) for rest, others in segmentations(text[end:]))

    weights = Counter({subwords: math.exp(alpha * score) for subwords, score in segmentations(f"▁{word}")})
    compare(
        tokenizer, word, alpha, Counter({subwords: weight / weights.total() for subwords, weight in weights.items()})
    )  # type: ignore[misc]


def compare(tokenizer: Tokenizer, word: str, alpha: float, expected: Counter[tuple[str, ...]]) -> None:
    """Check the total variation distance, which is about sqrt(outcomes / (2 pi draws)) for equal distributions."""
    draws = 4000
    found = Counter(tuple(tokenizer.subwords(tokenizer.encode_sampled(word, alpha, seed))) for seed in range(draws))
    assert found.keys() <= expected.keys()
    assert sum(expected.values()) == pytest.approx(1)
    difference = sum(abs(found[subwords] / draws - chance) for subwords, chance in expected.items()) / 2
    assert difference < 1.5 * math.sqrt(len(expected) / (2 * math.pi * draws))
    assert difference < 0.1


def test_the_cache_does_not_change_segmentations(tokenizers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text, alphas = HOSTILE[-1], {"bpe": 0.3, "unigram": 0.1}
    expected = {
        kind: [tokenizers[kind, "plain"].encode_sampled(text, alphas[kind], seed) for seed in range(40)]
        for kind in alphas
    }
    monkeypatch.setattr(subword_regularization, "_MAX_CACHED", 8)
    for kind, alpha in alphas.items():
        fresh = Tokenizer(tokenizers[kind, "plain"].to_bytes())
        segmentations = [fresh.encode_sampled(text, alpha, seed) for seed in range(39, -1, -1)]
        assert segmentations[::-1] == expected[kind]


def test_the_cache_is_bounded(tokenizers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subword_regularization, "_MAX_CACHED", 80)
    bpe = subword_regularization.subword_sampler(tokenizers["bpe", "plain"].to_bytes(), 0.5)
    unigram = subword_regularization.subword_sampler(tokenizers["unigram", "plain"].to_bytes(), 0.5)
    assert isinstance(bpe, subword_regularization.BPEDropout)
    assert isinstance(unigram, subword_regularization.UnigramSampling)
    sizes = []
    for seed in range(120):
        for sampler in (bpe, unigram):
            sampler.encode(f"house{seed} {'x' * 50}", seed)
        sizes.append((len(bpe._unskipped), len(unigram._lattices)))
    assert 0 < max(size for size, _ in sizes) <= 81
    assert 0 < max(size for _, size in sizes) <= 11
    assert not any("xx" in word for word in (*bpe._unskipped, *unigram._lattices))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_vocabulary_of_a_model_file_is_read(tokenizers: Any, kind: str) -> None:
    tokenizer = tokenizers[kind, "symbols"]
    table, processor = PieceTable.read(tokenizer.to_bytes()), tokenizer._processor
    assert table.kind == kind
    assert [piece.text for piece in table.pieces] == tokenizer.subwords(range(tokenizer.vocabulary_size))
    assert [piece.score for piece in table.pieces] == [processor.get_score(id) for id in range(len(table.pieces))]
    assert [piece.type == BYTE for piece in table.pieces] == [processor.is_byte(id) for id in range(len(table.pieces))]
    assert table.ids(UNKNOWN) == {"<unk>": UNK_ID}


def _model(kind: str, pieces: list[Piece]) -> bytes:
    """Return a model file with gnmt's special ids before these pieces, and without bytes."""
    special = [Piece("<pad>", 0.0, 3), Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
    # Its trainer_spec: model_type, and unk_id, bos_id, eos_id and pad_id, numbers 40 to 43.
    numbers = {3: {"unigram": 1, "bpe": 2, "char": 4}[kind], 40: 1, 41: 2, 42: 3, 43: 0}
    trainer = b"".join(_key(number, 0) + bytes([value]) for number, value in numbers.items())
    return b"".join(_message(1, _piece(piece)) for piece in (*special, *pieces)) + _message(2, trainer)


def _piece(piece: Piece) -> bytes:
    return _message(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + b"\x18" + bytes([piece.type])


def _message(number: int, content: bytes) -> bytes:
    size = len(content)
    return _key(number, 2) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


def _key(number: int, wire_type: int) -> bytes:
    key = number << 3 | wire_type
    return bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])


def test_models_with_spaces_in_subwords_and_unused_subwords_equal_sentencepiece(tokenizers: Any) -> None:
    """Other tools make models with subwords that extend over a space, and with unused ones as steps of merges."""
    usual = PieceTable.read(tokenizers["bpe", "no bytes"].to_bytes())
    used = [piece for piece in usual.pieces[4:] if piece.text not in ("▁gr", "use")]
    over_a_space = [
        Piece("e▁", 1.0),
        Piece("e▁s", 0.5),
        Piece("▁▁", 2.0),
        Piece("▁small▁", 0.0),
        Piece("▁green▁h", 0.0),
    ]
    unused = [Piece("▁house", 1.0, UNUSED), Piece("▁hou", 0.9, UNUSED), Piece("▁h", 0.8), Piece("ou", 0.7)]
    texts = [*HOSTILE, "  house  housese", "▁▁▁", "the small house."]
    for further in (over_a_space, unused, over_a_space + unused):
        names = {piece.text for piece in further}
        model = _model("bpe", [*further, *(piece for piece in used if piece.text not in names)])
        tokenizer = Tokenizer(model)
        for text in texts:
            check_bpe(tokenizer, text)
            ids = tokenizer.encode_sampled(text, 0.4, 3)
            assert "".join(tokenizer.subwords(ids)) == "".join(tokenizer.subwords(tokenizer.encode(text)))
            assert not set(ids) & set(PieceTable.read(model).ids(UNUSED).values())
    assert any(
        len(tokenizer.subword(id)) > 2 and "▁" in tokenizer.subword(id)[1:] for id in tokenizer.encode("the small x")
    )


def test_unused_subwords_of_a_unigram_model_are_never_sampled() -> None:
    pieces = [Piece("▁", -1.0), Piece("▁ab", -0.1, UNUSED), Piece("a", -2.0), Piece("b", -2.0), Piece("ab", -1.5)]
    tokenizer = Tokenizer(_model("unigram", pieces))
    assert {_sampled_subwords(tokenizer, "ab", 0.5, seed) for seed in range(50)} == {"▁ ab", "▁ a b"}


def test_a_model_of_another_kind_is_refused() -> None:
    tokenizer = Tokenizer(_model("char", [Piece("▁", 0.0), Piece("a", -1.0)]))
    with pytest.raises(
        InputError, match=r"kind bpe or unigram, and this one is of kind char.*subword_regularization=0"
    ):
        tokenizer.encode_sampled("a", 0.1, 0)


def test_protobuf_fields_of_every_wire_type_are_read() -> None:
    message = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1a\x02hi" + b"\x25" + bytes(4)
    assert list(fields_of(message)) == [(1, 150), (2, bytes(8)), (3, b"hi"), (4, bytes(4))]


def test_sampling_does_not_depend_on_sentencepieces_generator(tokenizers: Any) -> None:
    """That generator is shared by the whole process."""
    seeded = sentencepiece.SentencePieceProcessor(model_proto=tokenizers["bpe", "plain"].to_bytes())
    segmentation = tokenizers["bpe", "plain"].encode_sampled(HOSTILE[-1], 0.5, 1)
    seeded.encode(HOSTILE[-1], enable_sampling=True, alpha=0.5, nbest_size=-1)
    assert tokenizers["bpe", "plain"].encode_sampled(HOSTILE[-1], 0.5, 1) == segmentation
