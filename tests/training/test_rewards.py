"""Rewards: GLEU against a plain count of n-grams, BLEU and chrF against sacreBLEU."""

from __future__ import annotations

import random

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID, padded
from gnmt.data.store import PreprocessedData
from gnmt.evaluation.metrics import sentence_gleu
from gnmt.training.rewards import gleu_of_ids, make_reward, subword_gleu

CPU = torch.device("cpu")


def oracle_gleu(hypothesis: list, reference: list) -> float:
    """Count n-grams one by one: each n-gram of the hypothesis removes an equal one from those of the reference."""

    def ngrams(tokens: list) -> list[tuple]:
        return [tuple(tokens[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(tokens) - n + 1)]

    produced, wanted = ngrams(hypothesis), ngrams(reference)
    unmatched, matches = list(wanted), 0
    for ngram in produced:
        if ngram in unmatched:
            unmatched.remove(ngram)
            matches += 1
    if not produced or not wanted:
        return 0.0
    return min(matches / len(produced), matches / len(wanted))


def test_gleu_of_an_example_by_hand():
    # 5 + 4 + 3 + 2 = 14 and 3 + 2 + 1 = 6 n-grams. The smaller set is contained in the larger one.
    longer, shorter = ["the", "cat", "sat", "on", "mats"], ["the", "cat", "sat"]
    assert sentence_gleu(longer, shorter) == sentence_gleu(shorter, longer) == 6 / 14
    # Of three copies of "a", two match; of two copies of "a a", one.
    assert sentence_gleu(["a"] * 3, ["a"] * 2) == 3 / 6
    assert sentence_gleu([], ["a"]) == sentence_gleu(["a"], []) == sentence_gleu([], []) == 0


# Few different ids, so that n-grams repeat; PAD is among them, which a sample may hold.
SENTENCES = st.lists(st.sampled_from([PAD_ID, UNK_ID, 4, 5]), max_size=9)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=6))
@settings(deadline=None, max_examples=150)
def test_both_forms_of_gleu_equal_the_plain_count(pairs):
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    expected = [oracle_gleu(*pair) for pair in pairs]
    assert [sentence_gleu(*pair) for pair in pairs] == expected
    found = gleu_of_ids(padded(hypotheses, CPU), padded(references, CPU))
    assert torch.equal(found, torch.tensor(expected))


def test_subword_gleu_compares_each_sample_with_the_reference_of_its_sentence():
    rng = random.Random(1)

    def ids() -> list[int]:
        return rng.choices(range(4, 8), k=rng.randint(0, 12))

    samples, references = [[ids() for _ in range(3)] for _ in range(5)], [ids() for _ in range(5)]
    expected = [[oracle_gleu(sample, one) for sample in some] for some, one in zip(samples, references, strict=True)]
    assert torch.equal(subword_gleu(samples, references, CPU), torch.tensor(expected))


@pytest.fixture
def tokenizer(preprocessed: PreprocessedData):
    return preprocessed.tokenizers.target


TEXTS = [["ein rotes Haus und kein Baum.", "ein Baum und ein rotes Haus.", ""], ["kein Haus schläft.", "Baum.", "und"]]
REFERENCES = ["ein rotes Haus und ein Baum.", "kein Haus schläft."]


@pytest.mark.parametrize("name", ["word_gleu", "bleu", "chrf"])
def test_rewards_of_texts(tokenizer, name):
    samples = [[tokenizer.encode(text) for text in texts] for texts in TEXTS]
    samples[0][0] = [PAD_ID, BOS_ID, *samples[0][0]]  # possible in a sample, and not part of its text
    found = make_reward(name, tokenizer, "13a")(samples, [tokenizer.encode(text) for text in REFERENCES], CPU)

    def expected(text: str, reference: str) -> float:
        if name == "word_gleu":
            words = (one.replace(".", " .").split() for one in (text, reference))
            return oracle_gleu(*words)
        metric = sacrebleu.sentence_bleu if name == "bleu" else sacrebleu.sentence_chrf
        return metric(text, [reference]).score / 100

    rows = [[expected(text, one) for text in texts] for texts, one in zip(TEXTS, REFERENCES, strict=True)]
    torch.testing.assert_close(found, torch.tensor(rows), rtol=1e-6, atol=0)
    assert found[1, 0] == pytest.approx(1)
    assert found[0, 2] == 0
    assert found.dtype == torch.float32


def test_words_are_those_of_the_tokenization_of_bleu(tokenizer):
    ids = [[tokenizer.encode("ein Haus."), tokenizer.encode("ein Haus")]]
    reference = [tokenizer.encode("ein Haus .")]
    assert make_reward("word_gleu", tokenizer, "13a")(ids, reference, CPU).tolist()[0][0] == 1
    assert make_reward("word_gleu", tokenizer, "none")(ids, reference, CPU).tolist()[0][0] < 0.5
    assert EOS_ID not in ids[0][0]
