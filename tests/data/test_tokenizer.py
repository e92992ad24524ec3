"""SentencePiece tokenizers: reproducible vocabularies, any text, one line out; tokenizers from files."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceNormalizer, SentencePieceTrainer

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.data.corpora import DemoCorpus
from gnmt.data.preprocess import preprocess, preprocessed_folder
from gnmt.data.sentencepiece_model import PieceTable
from gnmt.data.tokenizer import (
    MAX_TRAINING_LINE_BYTES,
    Tokenizer,
    TokenizerFiles,
    TokenizerOptions,
    Tokenizers,
    train_tokenizer,
    train_tokenizers,
)
from gnmt.errors import InputError

Pairs = Callable[..., list[tuple[str, str]]]
HOSTILE = [
    "",
    " ",
    "\u2028",
    "\u200b",
    "a\x00b",
    "\ufeffa",
    "😀👩‍👩‍👧",
    "漢字 かな",
    "x" * 20_000,
    "</s> <pad> <s>",
    "a\ud800b",
]


@pytest.fixture(scope="module")
def lines(toy_pairs: Pairs) -> list[str]:
    return [side for pair in toy_pairs(300) for side in pair]


def test_every_process_learns_the_same_subwords(lines: list[str], tmp_path: Path) -> None:
    # SentencePiece's own sampling differs between processes, and unigram scores differ with the number of threads.
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    code = (
        "import sys; from gnmt.data.tokenizer import *\n"
        "lines = open(sys.argv[1], encoding='utf-8').read().split('\\n')\n"
        "for kind in sys.argv[2:]: print(train_tokenizer(lines, TokenizerOptions(kind=kind, vocab_size=320)).digest)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lines"), "bpe", "unigram"]
    digests = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    tokenizers = [
        train_tokenizer(lines, TokenizerOptions(kind="bpe", vocab_size=320)),
        train_tokenizer(lines, TokenizerOptions(kind="unigram", vocab_size=320)),
    ]
    assert [tokenizer.digest for tokenizer in tokenizers] == digests
    assert [tokenizer.vocabulary_size for tokenizer in tokenizers] == [320, 320]


def test_digest_depends_on_subwords_and_normalization(lines: list[str], tokenizer: Tokenizer) -> None:
    tokenizers = [tokenizer]
    for other in ({}, {"kind": "unigram"}, {"byte_fallback": False}, {"user_symbols": ["<x>"]}):
        tokenizers.append(train_tokenizer(lines, TokenizerOptions(**{"vocab_size": 320} | other)))  # type: ignore[arg-type]
    assert len({one.digest for one in tokenizers}) == len({one.subwords_digest for one in tokenizers}) == 5
    kept = train_tokenizer(lines, TokenizerOptions(vocab_size=320), "identity")
    assert kept.subwords_digest == tokenizers[1].subwords_digest
    assert kept.digest != tokenizers[1].digest
    assert Tokenizer(tokenizer.to_bytes()).digest == tokenizer.digest


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_gives_ids_without_special_ones(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(ids)
    assert tokenizer.encode_all([text, "house"])[0] == ids
    assert "\n" not in tokenizer.decode(ids)
    if text.isascii():
        assert tokenizer.decode(ids).strip() == text.strip()


def test_half_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    # SentencePiece raises an error for them.
    assert tokenizer.encode("house \ud800 bird") == tokenizer.encode("house \ufffd bird")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_identity_normalization_keeps_the_text(lines: list[str], options: TokenizerOptions) -> None:
    tokenizer = train_tokenizer(lines, options, "identity")
    for text in ("  two  spaces ", "ﬁ\u3000ｘ\u00ad", "tab\tNUL\x00", "e\u0301 é", "", "   "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


# What nmt_nfkc makes another text of: full-width marks, compatibility characters, decomposed letters, zero-width
# characters, control characters, and white space.
KEPT_TARGETS = [
    "好的！（今天）",
    "½ m² … ™ ﬁn",
    unicodedata.normalize("NFD", "một cái nhà ở đây"),
    "می\u200cشود",
    "ça va\u202f? «\u00a0oui\u00a0»",
    "a\u200b\u00ad\u200db\x07\tc",
    "  two  spaces ",
]


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_by_default_the_source_is_normalized_and_the_target_is_kept(joint: bool, kind: Any, toy_pairs: Pairs) -> None:
    source, target = ([pair[side] for pair in toy_pairs(300)] for side in (0, 1))
    source, target = [*source, *KEPT_TARGETS * 4], [*target, *KEPT_TARGETS * 4]
    options = TokenizerOptions(kind=kind, vocab_size=345 if joint else 335, joint=joint)
    tokenizers = train_tokenizers(source, target, options)
    for text in KEPT_TARGETS:
        assert tokenizers.target.decode(tokenizers.target.encode(text)) == text
        assert tokenizers.target.decode(tokenizers.target.encode_sampled(text, 0.3, 7)) == text
        normalized = SentencePieceNormalizer(
            rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False
        ).normalize(text)
        assert normalized != text
        ids = tokenizers.source.encode(text)
        assert tokenizers.source.decode(ids) == normalized
        assert tokenizers.source.decode(tokenizers.source.encode_sampled(text, 0.3, 7)) == normalized
        assert ids == tokenizers.source.encode(normalized)


def test_a_joint_vocabulary_of_two_normalizations_has_the_subwords_of_both(toy_pairs: Pairs) -> None:
    source, target = (["½ of it"] * 50, ["½ davon！"] * 50)
    tokenizers = train_tokenizers(source, target, TokenizerOptions(vocab_size=284))
    models = [PieceTable.read(side.to_bytes()) for side in (tokenizers.source, tokenizers.target)]
    assert models[0] == models[1]
    assert tokenizers.joint
    assert tokenizers.source.digest != tokenizers.target.digest
    subwords = set(tokenizers.target.subwords(range(tokenizers.target.vocabulary_size)))
    assert {"½", "⁄", "！"} <= subwords  # as the targets have them, and as the normalized sources have them
    same = train_tokenizers(source, target, TokenizerOptions(vocab_size=283, target_normalization="nmt_nfkc"))
    assert same.source is same.target
    assert tokenizers.digest != same.digest


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_learning_from_normalized_lines_gives_sentencepieces_own_model(rule: Any, kind: Any, lines: list[str]) -> None:
    lines = [*lines, *KEPT_TARGETS * 3]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        vocab_size=350,
        byte_fallback=True,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        character_coverage=1.0,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        num_threads=4,
        minloglevel=2,
    )
    expected, found = Tokenizer(model.getvalue()), train_tokenizer(lines, TokenizerOptions(kind, 350), rule)
    assert PieceTable.read(expected.to_bytes()) == PieceTable.read(found.to_bytes())
    assert expected.digest == found.digest


def test_decode_never_fails_and_never_breaks_the_line(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = tokenizer.decode([rng.randrange(-3, 400) for _ in range(rng.randrange(40))])
        assert len(text.splitlines()) <= 1
        text.encode("utf-8")


def test_decode_replaces_invalid_bytes_and_line_breaks(tokenizer: Tokenizer) -> None:
    # Byte fallback can produce the byte of a line break, which would split a translation into two lines.
    byte = {int(tokenizer.subword(id)[3:5], 16): id for id in range(4, 260)}
    for broken in ("\n", "\r", "\x0b", "\x85", "\u2028", "\u2029", "\x1e"):
        ids = [byte[value] for value in f"a{broken}b".encode()]
        assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode([byte[0xF0], byte[0x9F], byte[ord("a")]]) == "\ufffd\ufffda"
    assert tokenizer.decode([byte[ord("a")], byte[ord("\t")]]) == "a\t"


def test_decode_skips_special_and_unknown_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the green house")
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, PAD_ID, 380, 10**9, -1]) == "the green house"
    assert tokenizer.decode(torch.tensor(ids)) == "the green house"
    assert tokenizer.decode([]) == ""
    assert "⁇" in tokenizer.decode([*ids, UNK_ID])


def test_byte_fallback_leaves_nothing_unknown(
    lines: list[str], options: TokenizerOptions, tokenizer: Tokenizer
) -> None:
    assert tokenizer.never_produced == (PAD_ID, UNK_ID, BOS_ID)
    without = train_tokenizer(lines, replace(options, byte_fallback=False, vocab_size=100))
    assert without.never_produced == (PAD_ID, BOS_ID)
    assert UNK_ID in without.encode("漢")


def test_user_symbols_stay_whole(lines: list[str], options: TokenizerOptions) -> None:
    tokenizer = train_tokenizer(lines, replace(options, user_symbols=["<2de>", "a,b"]))
    assert "<2de>" in tokenizer.subwords(tokenizer.encode("<2de> house"))
    assert tokenizer.subwords([4, 5]) == ["<2de>", "a,b"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocabulary_too_large_names_the_largest(kind: Any, lines: list[str]) -> None:
    options = TokenizerOptions(kind=kind, vocab_size=50_000)
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size=50000 is too large.*possible is \d+") as caught:
        train_tokenizer(lines, options)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    assert train_tokenizer(lines, replace(options, vocab_size=largest)).vocabulary_size == largest
    with pytest.raises(InputError, match=f"largest possible is {largest}"):
        train_tokenizer(lines, replace(options, vocab_size=largest + 1))


def test_vocabulary_too_small_names_the_smallest(lines: list[str], options: TokenizerOptions) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size=200 is too small.*possible is \d+ ") as caught:
        train_tokenizer(lines, replace(options, vocab_size=200))
    smallest = int(str(caught.value).split("possible is ")[1].split(" ")[0])
    assert train_tokenizer(lines, replace(options, vocab_size=smallest)).vocabulary_size == smallest


def test_text_without_usable_lines_is_refused(options: TokenizerOptions) -> None:
    for lines in ([], ["", "  "], ["x" * (MAX_TRAINING_LINE_BYTES + 1)]):
        with pytest.raises(InputError, match="no text of the source side to learn from"):
            train_tokenizers(lines, ["text"], replace(options, joint=False))


@pytest.mark.parametrize(
    "bad",
    [
        {"user_symbols": ["<s>"]},
        {"user_symbols": ["a b"]},
        {"user_symbols": ["a", "a"]},
    ],
)
def test_impossible_user_symbols_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"tokenizer\.{next(iter(bad))}"):
        TokenizerOptions(**bad)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sampled_encoding_is_a_function_of_the_seed(kind: Any, lines: list[str], options: TokenizerOptions) -> None:
    tokenizer = train_tokenizer(lines, replace(options, kind=kind, vocab_size=320))
    alpha = 0.3 if kind == "bpe" else 0.02
    text = "the small green house sees eleven mountains under the bridge"
    first = [tokenizer.encode_sampled(text, alpha, seed) for seed in range(20)]
    assert len({tuple(ids) for ids in first}) > 10
    assert {tokenizer.decode(ids) for ids in first} == {text}
    found: dict[int, list[list[int]]] = {}

    def sample(thread: int) -> None:
        found[thread] = [tokenizer.encode_sampled(text, alpha, seed) for seed in range(19, -1, -1)][::-1]

    threads = [threading.Thread(target=sample, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), first)


def test_sampled_encoding_takes_any_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_sampled("a\ud800", 0.1, 2**32 - 1)
    assert tokenizer.encode_sampled("", 0.1, 0) == []


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("normalization", ["nmt_nfkc", "identity"])
def test_a_checkpoint_restores_the_tokenizers(
    joint: bool, normalization: Any, toy_pairs: Pairs, tmp_path: Path
) -> None:
    source, target = ([pair[side] for pair in toy_pairs(300)] for side in (0, 1))
    options = TokenizerOptions(vocab_size=320, joint=joint, target_normalization=normalization)
    tokenizers = train_tokenizers(source, target, options)
    assert tokenizers.joint is joint
    torch.save(tokenizers.to_checkpoint(), tmp_path / "x.pt")
    loaded = Tokenizers.from_checkpoint(torch.load(tmp_path / "x.pt", weights_only=True))
    assert loaded.digest == tokenizers.digest
    assert loaded.joint is joint
    assert (loaded.source is loaded.target) is (joint and normalization == "nmt_nfkc")
    for side in (0, 1):
        assert loaded[side].encode(target[0]) == tokenizers[side].encode(target[0])
    assert pickle.loads(pickle.dumps(tokenizers.target)).digest == tokenizers.target.digest


def test_malformed_checkpoint_entries_are_refused(tokenizer: Tokenizer) -> None:
    good = Tokenizers(tokenizer, tokenizer).to_checkpoint()
    source = good["source"]
    for entry, message in (
        (None, "must hold kind, files and framing"),
        (source | {"kind": "words"}, "kind must be one of sentencepiece, pretokenized, word_character, found 'words'"),
        (source | {"framing": {"bos": False, "eos": False}}, "framing must be"),
        (source | {"files": {}}, "must be a tensor of bytes"),
        (source | {"files": {"model": torch.zeros(9, dtype=torch.uint8)}}, "tokenizer: "),
    ):
        with pytest.raises(InputError, match=message):
            Tokenizers.from_checkpoint(good | {"source": entry})


def test_the_models_of_a_preprocessed_folder_can_be_reused(tmp_path: Path) -> None:
    sizes = {"num_train": 200, "num_dev": 5, "num_test": 5}
    first = preprocess(DemoCorpus(**sizes, preprocessed=str(tmp_path / "first")), TokenizerOptions(vocab_size=500))
    models = [str(first.folder / "tokenizer" / f"{side}.model") for side in ("source", "target")]
    other = DemoCorpus(**sizes, seed=2, preprocessed=str(tmp_path / "second"))
    second = preprocess(other, TokenizerFiles(*models))
    assert second.tokenizers.digest == first.tokenizers.digest
    assert second.tokenizers.joint
    assert second.fingerprint != first.fingerprint


def test_the_preprocessed_folder_depends_on_the_models_and_not_on_their_paths(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (TokenizerFiles(str(tmp_path / name), str(tmp_path / name)) for name in "abc")
    corpus = DemoCorpus()
    assert preprocessed_folder(corpus, a) == preprocessed_folder(corpus, b) != preprocessed_folder(corpus, c)


def test_missing_and_invalid_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "source.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"sourc\.model: no such file; did you mean .*source\.model"):
        TokenizerFiles(str(tmp_path / "sourc.model"), str(tmp_path / "source.model")).read()
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        TokenizerFiles(str(tmp_path), str(tmp_path / "source.model")).read()
    broken = str(tmp_path / "source.model")
    with pytest.raises(InputError, match=r"tokenizer\.source=.*source\.model .*not a SentencePiece model"):
        TokenizerFiles(broken, broken).read()


def test_a_pipe_as_a_model_is_refused_by_its_key(tmp_path: Path) -> None:
    """The first reading, for the hash, took the model out of the pipe; the next one found special ids of -1."""
    (tmp_path / "target.model").write_bytes(b"model")
    read_end, write_end = os.pipe()
    os.write(write_end, b"model")
    os.close(write_end)
    with open(read_end, "rb"):
        options = TokenizerFiles(f"/dev/fd/{read_end}", str(tmp_path / "target.model"))
        for read in (options.settings, options.read):
            with pytest.raises(InputError, match=r"tokenizer\.source=/dev/fd/\d+ is no plain file, .* several times"):
                read()
