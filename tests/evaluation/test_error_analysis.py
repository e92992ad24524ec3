"""Counts of words, numbers, names, negations, repetitions, copies and phrases, on sentences counted by hand."""

from itertools import pairwise

import pytest

from gnmt.evaluation.error_analysis import (
    FREQUENCY_RANGES,
    Counts,
    by_frequency,
    copied_words,
    count_matches,
    names,
    negation,
    numbers,
    phrase_differences,
    repeated_phrase,
    repetitions,
    split_words,
)


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


def test_words_are_those_of_bleu() -> None:
    assert split_words(["Ein Hund, der 3,5 kg wiegt.\n", ""]) == [
        ["Ein", "Hund", ",", "der", "3,5", "kg", "wiegt", "."],
        [],
    ]
    assert split_words(["Ein Hund"], tokenize="char", lowercase=True) == [list("einhund")]


def test_matches_are_clipped_by_sentence() -> None:
    counts = count_matches(words("a a b", "b"), words("a b b", "a"), lambda word, index: True)
    assert counts == Counts(matched=2, produced=4, expected=4)
    assert (counts.precision, counts.recall, counts.f1) == (50, 50, 50)
    assert Counts(0, 0, 0).precision is Counts(0, 0, 0).recall is Counts(0, 0, 0).f1 is None


def test_words_by_their_frequency() -> None:
    found = by_frequency(words("new rare the"), words("new the the rare2"), {"the": 5000, "rare": 2, "rare2": 4})
    assert found[0] == Counts(1, 1, 1)  # new: 0 occurrences
    assert found[1] == Counts(0, 1, 1)  # rare, rare2
    assert found[-1] == Counts(1, 1, 2)  # the
    assert sum(counts.expected for counts in found) == 4
    assert all(high is not None and high + 1 == low for (_, high), (low, _) in pairwise(FREQUENCY_RANGES))


def test_numbers_and_names() -> None:
    assert numbers(words("in 1999 um 12:30"), words("in 1998 um 12:30")) == Counts(1, 2, 2)
    # "The" begins the sentence, so it is no name; "Haus" is not in the source.
    sources = words("The man from Berlin sees Tom")
    assert names(words("The Haus Tom"), words("Der Mann aus Berlin sieht Tom im Haus"), sources) == Counts(1, 1, 2)


@pytest.mark.parametrize(
    ("language", "negated", "other"),
    [
        ("de", "Das ist KEINE Katze", "Das ist eine Katze"),
        ("en-GB", "He doesn't", "He does"),
        ("fr", "il ne va", "il va"),
    ],
)
def test_negation(language: str, negated: str, other: str) -> None:
    counts = negation(words(negated, negated, other), words(negated, other, negated), language)
    assert counts == Counts(1, 2, 2)
    assert negation(words(negated), words(negated), "xx") is None


def test_repeated_phrases() -> None:
    assert repeated_phrase(["ein", "Mann", "und", "ein", "Mann", "und", "geht"]) == ["ein", "Mann", "und"]
    assert repeated_phrase(["sehr", "sehr", "gut"]) == ["sehr"]
    assert repeated_phrase(["ein", "Mann", "und", "ein", "Kind"]) is None
    assert repeated_phrase(["was", "?", "!", "!", "!"]) is None
    found = repetitions(words("sehr sehr gut", "sehr sehr gut"), words("sehr gut", "wirklich sehr sehr gut"))
    assert found == {0: "sehr"}


def test_copied_words() -> None:
    copied = copied_words(words("ein dog dog , Tom"), words("ein Hund , Tom"), words("a dog , Tom"))
    assert copied == {"dog": 2}


def test_a_word_of_both_languages_is_not_copied() -> None:
    """Most of the words that a report called copied were German: in, an."""
    translations, references = words("in dem Bus", "dog in Haus"), words("im Bus", "Hund in Haus")
    assert copied_words(translations, references, words("in the bus", "dog in house")) == {"dog": 1}


def test_phrases_that_are_produced_too_often_or_too_seldom() -> None:
    too_often, too_seldom = phrase_differences(words(*["das ist gut"] * 4), words(*["das war gut"] * 4), largest=2)
    assert [found.phrase for found in too_often] == ["das ist", "ist gut"]  # `ist` is inside of both
    assert {(found.produced, found.expected) for found in too_often} == {(4, 0)}
    assert [found.phrase for found in too_seldom] == ["das war", "war gut"]
    assert phrase_differences(words("a b"), words("a b")) == ([], [])
