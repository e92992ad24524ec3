"""Where a system fails: words by their frequency in training, numbers, names, negation, repetitions, copied words.

All functions compare words of translations and references, as sacreBLEU's BLEU tokenizes them. They count; `report`
turns the counts into tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sacrebleu.metrics.bleu import BLEU

Words = list[str]

# The smallest and the largest number of occurrences in the training text; None: no upper limit.
FREQUENCY_RANGES = ((0, 0), (1, 4), (5, 19), (20, 99), (100, 999), (1000, None))

# Words that negate, lower-cased, by ISO 639 code. `n't` and the like are the ends of words that begin otherwise.
_NEGATIONS = {
    "de": {
        *("nicht", "nichts", "nie", "niemals", "niemand", "niemanden", "niemandem", "nirgends", "nirgendwo", "weder"),
        *("ohne", "kein", "keine", "keinen", "keinem", "keiner", "keines"),
    },
    "en": {"not", "no", "never", "nothing", "nobody", "none", "nowhere", "neither", "nor", "without", "cannot"},
    "fr": {"ne", "n", "pas", "jamais", "rien", "personne", "aucun", "aucune", "ni", "sans"},
    "es": {"no", "nunca", "jamás", "nada", "nadie", "ningún", "ninguno", "ninguna", "ni", "sin", "tampoco"},
}
NEGATION_LANGUAGES = tuple(_NEGATIONS)
_NEGATION_ENDINGS = {"en": ("n't", "n’t")}


def split_words(texts: Iterable[str], tokenize: str = "13a", lowercase: bool = False) -> list[Words]:
    """Return the words of each text, as BLEU with this tokenization counts them."""
    tokenizer = BLEU(tokenize=tokenize).tokenizer
    return [tokenizer((text.lower() if lowercase else text).rstrip()).split() for text in texts]


class Counts(NamedTuple):
    """Occurrences of some kind of word, clipped by sentence where they are matched.

    Attributes:
        matched: In the translation and in the reference of the same sentence.
        produced: In the translations.
        expected: In the references.
    """

    matched: int
    produced: int
    expected: int

    @property
    def precision(self) -> float | None:
        """The share of the produced words that the reference has, in percent."""
        return 100 * self.matched / self.produced if self.produced else None

    @property
    def recall(self) -> float | None:
        """The share of the expected words that the translation has, in percent."""
        return 100 * self.matched / self.expected if self.expected else None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall, in percent."""
        total = self.produced + self.expected
        return 200 * self.matched / total if total else None


def count_matches(
    translations: Sequence[Words], references: Sequence[Words], is_counted: Callable[[str, int], bool]
) -> Counts:
    """Count the words for which `is_counted(word, sentence index)` is true."""
    matched = produced = expected = 0
    for index, (translation, reference) in enumerate(zip(translations, references, strict=True)):
        ours = Counter(word for word in translation if is_counted(word, index))
        theirs = Counter(word for word in reference if is_counted(word, index))
        matched += (ours & theirs).total()
        produced += ours.total()
        expected += theirs.total()
    return Counts(matched, produced, expected)


def by_frequency(
    translations: Sequence[Words], references: Sequence[Words], frequencies: Mapping[str, int]
) -> list[Counts]:
    """Return the counts of the words of each of `FREQUENCY_RANGES`.

    Args:
        translations, references: Words of each sentence.
        frequencies: Occurrences of each word in the training text's target side.
    """

    def in_range(low: int, high: int | None) -> Callable[[str, int], bool]:
        return lambda word, _: low <= frequencies.get(word, 0) and (high is None or frequencies.get(word, 0) <= high)

    return [count_matches(translations, references, in_range(low, high)) for low, high in FREQUENCY_RANGES]


def numbers(translations: Sequence[Words], references: Sequence[Words]) -> Counts:
    """Return the counts of words with a digit."""
    return count_matches(translations, references, lambda word, _: any(letter.isdigit() for letter in word))


def names(translations: Sequence[Words], references: Sequence[Words], sources: Sequence[Words]) -> Counts:
    """Return the counts of capitalized words that the source has too, after its first word.

    Such words are mostly names. Names that are spelled differently in the two languages are not counted.
    """
    candidates = [{word for word in source[1:] if word[:1].isupper()} for source in sources]
    return count_matches(translations, references, lambda word, index: word in candidates[index])


def knows_negations(language: str) -> bool:
    """Return whether `negation` knows the negations of a language."""
    return _code(language) in NEGATION_LANGUAGES


def _code(language: str) -> str:
    return language.lower().replace("_", "-").split("-")[0]


def negation(translations: Sequence[Words], references: Sequence[Words], language: str) -> Counts | None:
    """Return the counts of sentences that negate, or None for a language whose negations are not known here.

    A sentence is matched if both translation and reference hold a word that negates.

    Args:
        translations, references: Words of each sentence.
        language: ISO 639 code of the target language; known are German, English, French and Spanish.
    """
    code = _code(language)
    if code not in _NEGATIONS:
        return None
    endings = _NEGATION_ENDINGS.get(code, ())

    def negates(words: Words) -> bool:
        lowered = [word.lower() for word in words]
        return any(word in _NEGATIONS[code] or word.endswith(tuple(endings)) for word in lowered)

    found = [(negates(ours), negates(theirs)) for ours, theirs in zip(translations, references, strict=True)]
    return Counts(
        sum(ours and theirs for ours, theirs in found),
        sum(ours for ours, _ in found),
        sum(theirs for _, theirs in found),
    )


def repeated_phrase(words: Words) -> Words | None:
    """Return the longest phrase of up to 8 words that follows itself at once, or None."""
    for length in range(min(8, len(words) // 2), 0, -1):
        for start in range(len(words) - 2 * length + 1):
            phrase = words[start : start + length]
            if phrase == words[start + length : start + 2 * length] and any(map(str.isalnum, "".join(phrase))):
                return phrase
    return None


def repetitions(translations: Sequence[Words], references: Sequence[Words]) -> dict[int, str]:
    """Return the repeated phrase of each sentence that has one although its reference has none, by index."""
    found = {}
    for index, (translation, reference) in enumerate(zip(translations, references, strict=True)):
        phrase = repeated_phrase(translation)
        if phrase is not None and repeated_phrase(reference) is None:
            found[index] = " ".join(phrase)
    return found


def copied_words(translations: Sequence[Words], references: Sequence[Words], sources: Sequence[Words]) -> Counter[str]:
    """Count the words of its source, with a letter, that a translation holds and no reference of any sentence does.

    A word that both languages have, such as `in`, is in some reference.
    """
    known = {word for reference in references for word in reference}
    copied: Counter[str] = Counter()
    for translation, source in zip(translations, sources, strict=True):
        own = set(source) - known
        copied.update(word for word in translation if word in own and any(map(str.isalpha, word)))
    return copied


@dataclass(frozen=True)
class PhraseDifference:
    """A phrase that a system produces too often or too seldom.

    Args:
        phrase: Its words.
        produced: Occurrences in the translations.
        expected: Occurrences in the references.
    """

    phrase: str
    produced: int
    expected: int


def phrase_differences(
    translations: Sequence[Words], references: Sequence[Words], *, largest: int = 3, number: int = 10
) -> tuple[list[PhraseDifference], list[PhraseDifference]]:
    """Return the phrases that are produced too often, and those that are produced too seldom, the worst first.

    Phrases are ranked by (produced - expected)^2 / (produced + expected). A phrase inside of a longer one that has the
    same two numbers is left out.

    Args:
        translations, references: Words of each sentence.
        largest: Words of the longest phrases.
        number: Phrases to return of each kind, at most.
    """
    produced, expected = (
        Counter(
            tuple(words[start : start + length])
            for words in texts
            for length in range(1, largest + 1)
            for start in range(len(words) - length + 1)
        )
        for texts in (translations, references)
    )

    def rank(phrase: tuple[str, ...]) -> tuple[float, int, tuple[str, ...]]:
        ours, theirs = produced[phrase], expected[phrase]
        return -((ours - theirs) ** 2) / (ours + theirs), -len(phrase), phrase

    chosen: tuple[list[PhraseDifference], list[PhraseDifference]] = ([], [])
    for phrase in sorted(produced.keys() | expected.keys(), key=rank):
        ours, theirs = produced[phrase], expected[phrase]
        if ours == theirs:
            break
        found = chosen[0] if ours > theirs else chosen[1]
        text = " ".join(phrase)
        is_inside = any(
            (longer.produced, longer.expected) == (ours, theirs) and f" {text} " in f" {longer.phrase} "
            for longer in found
        )
        if len(found) < number and not is_inside:
            found.append(PhraseDifference(text, ours, theirs))
        if min(map(len, chosen)) == number:
            break
    return chosen
