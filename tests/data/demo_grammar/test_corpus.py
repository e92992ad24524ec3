"""The splits of the embedded corpus: sizes, disjointness, held-out combinations, determinism."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys

import pytest

from gnmt.data.demo_grammar.corpus import (
    CORPUS_VERSION,
    MAX_WORDS,
    MIN_WORDS,
    STRUCTURES,
    DemoPairs,
    Sample,
    generate,
    is_held_out,
    samples,
    words_of,
)
from gnmt.errors import InputError

# When this changes, raise CORPUS_VERSION by one: preprocessed folders are identified by it.
DIGEST_OF_VERSION = {1: "bf9a67b5f1a4602b"}


def digest(pairs: DemoPairs) -> str:
    text = "\n".join(f"{english}\t{german}" for split in pairs for english, german in split)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def pairs() -> DemoPairs:
    return generate()


@pytest.fixture(scope="module")
def smaller() -> DemoPairs:
    return generate(num_train=4_000, num_dev=100, num_test=100)


@pytest.fixture(scope="module")
def drawn(smaller: DemoPairs) -> dict[str, Sample]:
    """Return the sample of each pair, by its English side."""
    wanted = {english for split in smaller for english, _ in split}
    found: dict[str, Sample] = {}
    for sample in samples(1):
        if sample.pair[0] in wanted:
            found.setdefault(sample.pair[0], sample)
            if len(found) == len(wanted):
                return found
    raise AssertionError("the stream of samples is endless")


def test_splits_have_the_given_sizes_and_are_disjoint(pairs: DemoPairs) -> None:
    assert [len(split) for split in pairs] == [20_000, 500, 500]
    for side in (0, 1):
        sentences = [pair[side] for split in pairs for pair in split]
        assert len(set(sentences)) == len(sentences)


def test_output_of_seed_1_belongs_to_the_version(pairs: DemoPairs) -> None:
    assert digest(pairs) == DIGEST_OF_VERSION[CORPUS_VERSION]


def test_output_is_equal_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import hashlib; from gnmt.data.demo_grammar.corpus import generate; p = generate(500, 20, 20, seed=7); "
        "print(hashlib.sha256(repr(tuple(p)).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(tuple(generate(500, 20, 20, seed=7))).encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here
    assert generate(500, 20, 20, seed=8) != generate(500, 20, 20, seed=7)


def test_test_sentences_are_new_combinations_of_known_words_and_structures(
    smaller: DemoPairs, drawn: dict[str, Sample]
) -> None:
    train = [drawn[english] for english, _ in smaller.train]
    trained_combinations = {combination for sample in train for combination in sample.combinations}
    trained_words = {word for pair in smaller.train for word in words_of(pair)}
    trained_structures = {sample.structure for sample in train}
    assert trained_structures == {structure.__name__ for structure, _ in STRUCTURES}
    for pair in (*smaller.dev, *smaller.test):
        sample = drawn[pair[0]]
        new = [c for c in sample.combinations if c not in trained_combinations]
        assert any(is_held_out(combination, 1) for combination in new), pair
        assert words_of(pair) <= trained_words, pair
        assert sample.structure in trained_structures
    kinds = {c[0] for pair in smaller.test for c in drawn[pair[0]].combinations if c not in trained_combinations}
    assert kinds == {"object", "structure", "adjective"}


def test_no_english_sentence_has_two_translations() -> None:
    translations: dict[str, str] = {}
    for sample in itertools.islice(samples(2), 15_000):
        english, german = sample.pair
        assert translations.setdefault(english, german) == german
    assert len(translations) > 12_000


def test_sentences_have_capitals_and_final_punctuation(pairs: DemoPairs) -> None:
    shape = re.compile(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß']*(?:,? [A-Za-zÄÖÜäöüß']+)*[.?!]")
    for english, german in itertools.chain(*pairs):
        assert shape.fullmatch(english), english
        assert shape.fullmatch(german), german
        assert english[-1] == german[-1]
        assert MIN_WORDS <= len(english.split()) <= MAX_WORDS


def test_verb_ends_subordinate_clauses(pairs: DemoPairs) -> None:
    """With an adjective: weil er müde ist, never weil er ist müde."""
    clauses = [g for _, g in pairs.train if re.search(r", (?:weil|obwohl) (?:er|sie|wir|ich) ", g)]
    moods = "müde|glücklich|traurig|krank|hungrig|nervös"
    with_mood = [g for g in clauses if re.search(rf" (?:{moods}) (?:ist|sind|bin|war|waren)\.", g)]
    assert len(with_mood) > 100
    assert not [g for g in clauses if re.search(rf" (?:ist|sind|bin|war|waren) (?:{moods})\.", g)]


def test_every_phenomenon_occurs_often_in_training(pairs: DemoPairs) -> None:
    patterns = {
        "weil": r", weil ",
        "dass": r", dass ",
        "fronted subordinate": r"^(?:Wenn|Weil|Obwohl|Als|Während|Bevor|Nachdem) \w+ .*, \w+",
        "relative pronoun in the dative": r", (?:dem|denen|der) \w+ \w+ .*, ",
        "genitive": r" des \w+s\b",
        "kein": r"\bkein",
        "um zu": r", um ",
        "sein perfect": r"(?:ist|sind|bin|bist) .*(?:ge\w+|gekommen)[.]",
        "two-way accusative": r" (?:auf|unter) den \w+",
        "du": r"\bdu\b",
        "modal": r"\b(?:muss|kann|will|möchte|darf)\b",
        "number": r"\b(?:zwei|drei|vier|fünf)\b",
    }
    germans = [german for _, german in pairs.train]
    counts = {name: sum(bool(re.search(pattern, g)) for g in germans) for name, pattern in patterns.items()}
    assert min(counts.values()) >= 40, counts


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 0}, "num_train=0"),
        ({"num_train": 10, "num_dev": -1}, "num_dev=-1"),
        ({"num_train": 10, "num_test": -5}, "num_test=-5"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(**sizes)


def test_small_corpora_are_generated() -> None:
    small = generate(num_train=5, num_dev=0, num_test=3)
    assert [len(split) for split in small] == [5, 0, 3]
