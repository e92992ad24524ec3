"""English morphology: plurals, the indefinite article, the forms of verbs."""

from __future__ import annotations

from dataclasses import dataclass

_VOWELS = "aeiou"
# One-syllable verbs that double their last consonant before -ing and -ed.
_DOUBLING = ("sit", "swim", "run", "cut", "get", "put", "forget")


def plural_of(noun: str) -> str:
    """The regular plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun + "s"


def with_article(words: str) -> str:
    """`a` or `an` before the words, by the sound of the first one."""
    sounds_like_vowel = words[0] in _VOWELS and not words.startswith("use")
    return f"{'an' if sounds_like_vowel else 'a'} {words}"


@dataclass(frozen=True)
class EnglishVerb:
    """The forms of one verb. `particle` follows it: `movable` ones go behind an object pronoun (pick him up)."""

    base: str
    past: str
    participle: str
    particle: str = ""
    movable: bool = False

    @property
    def third_person(self) -> str:
        if self.base == "have":
            return "has"
        if self.base.endswith(("s", "x", "ch", "sh", "o")):
            return self.base + "es"
        if self.base.endswith("y") and self.base[-2] not in _VOWELS:
            return self.base[:-1] + "ies"
        return self.base + "s"

    @property
    def gerund(self) -> str:
        if self.base == "lie":
            return "lying"
        if self.base in _DOUBLING:
            return self.base + self.base[-1] + "ing"
        if self.base.endswith("e") and not self.base.endswith("ee"):
            return self.base[:-1] + "ing"
        return self.base + "ing"


def english_verb(text: str) -> EnglishVerb:
    """Parse `eat ate eaten`, a regular `cook`, a fixed `look_for` or a movable `pick+up`."""
    base, *irregular = text.split()
    movable = "+" in base
    base, _, particle = base.replace("+", "_").partition("_")
    past, participle = irregular if irregular else (_regular_past(base), _regular_past(base))
    return EnglishVerb(base, past, participle, particle.replace("_", " "), movable)


def _regular_past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in _VOWELS:
        return base[:-1] + "ied"
    return base + "ed"


def be(person: int, plural: bool, past: bool) -> str:
    """The form of `to be`."""
    if past:
        return "were" if plural or person == 2 else "was"
    if plural or person == 2:
        return "are"
    return "am" if person == 1 else "is"
