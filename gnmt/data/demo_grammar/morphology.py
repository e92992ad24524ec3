"""Inflection of English and German words.

English comes first: plurals, indefinite articles, and the forms of verbs. German follows: articles, adjectives,
relative pronouns, and the forms of verbs. Regular forms are derived, and irregular ones are given by the lexicon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Agreement = Literal["m", "f", "n", "pl"]  # gender in the singular, or plural
Case = Literal["nom", "acc", "dat", "gen"]
Declension = Literal["definite", "der-word", "ein-word", "quantity", "none"]

_CASES: tuple[Case, ...] = ("nom", "acc", "dat", "gen")
_VOWELS = "aeiou"
# English verbs of one syllable that double their last consonant before -ing.
_DOUBLING = ("sit", "swim", "run", "cut", "get", "put", "forget")
# German prefixes that are not separable; participles with them lack ge-.
_INSEPARABLE = ("be", "ver", "er", "ent", "zer", "emp")
# German personal pronouns, by the English subject form.
PRONOUNS: dict[str, dict[Case, str]] = {
    "I": {"nom": "ich", "acc": "mich", "dat": "mir"},
    "you": {"nom": "du", "acc": "dich", "dat": "dir"},
    "he": {"nom": "er", "acc": "ihn", "dat": "ihm"},
    "she": {"nom": "sie", "acc": "sie", "dat": "ihr"},
    "we": {"nom": "wir", "acc": "uns", "dat": "uns"},
    "they": {"nom": "sie", "acc": "sie", "dat": "ihnen"},
    "it": {"nom": "es", "acc": "es", "dat": "ihm"},
}
# German pronouns for `it`, by the gender of the noun that it replaces.
IT: dict[str, dict[Case, str]] = {
    "m": {"nom": "er", "acc": "ihn", "dat": "ihm"},
    "f": {"nom": "sie", "acc": "sie", "dat": "ihr"},
    "n": {"nom": "es", "acc": "es", "dat": "ihm"},
}


def plural_of(noun: str) -> str:
    """Return the regular plural of an English noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun + "s"


def with_article(words: str) -> str:
    """Return English words with `a` or `an` before them, by the sound of the first one."""
    sounds_like_vowel = words[0] in _VOWELS and not words.startswith("use")
    return f"{'an' if sounds_like_vowel else 'a'} {words}"


@dataclass(frozen=True)
class EnglishVerb:
    """An English verb.

    Args:
        base, past, participle: Its principal parts.
        particle: Particle or preposition that follows the verb, or "".
        movable: The particle follows an object pronoun (pick him up).
    """

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
    """Parse `eat ate eaten`, a regular verb `cook`, a fixed particle `look_for` or a movable one `pick+up`."""
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
    """Return the present or past form of `to be`."""
    if past:
        return "were" if plural or person == 2 else "was"
    if plural or person == 2:
        return "are"
    return "am" if person == 1 else "is"


def _paradigm(**rows: str) -> dict[Agreement, dict[Case, str]]:
    """Parse a paradigm: for each agreement class the four forms in nom, acc, dat, gen; `-` is the empty ending."""
    classes: tuple[Agreement, ...] = ("m", "f", "n", "pl")
    return {
        agreement: {case: form.replace("-", "") for case, form in zip(_CASES, rows[agreement].split(), strict=True)}
        for agreement in classes
    }


_DEFINITE = _paradigm(m="der den dem des", f="die die der der", n="das das dem des", pl="die die den der")
_DER_WORD = _paradigm(m="er en em es", f="e e er er", n="es es em es", pl="e e en er")
_EIN_WORD = _paradigm(m="- en em es", f="e e er er", n="- - em es", pl="e e en er")
_RELATIVE = _paradigm(m="der den dem dessen", f="die die der deren", n="das das dem dessen", pl="die die denen deren")
_WEAK = _paradigm(m="e en en en", f="e e en en", n="e e en en", pl="en en en en")
_MIXED = _paradigm(m="er en en en", f="e e en en", n="es es en en", pl="en en en en")
_STRONG = _paradigm(m="er en em en", f="e e er er", n="es es em en", pl="e e en er")


def article(stem: str, declension: Declension, agreement: Agreement, case: Case) -> str:
    """Return the inflected form of a German determiner.

    Args:
        stem: The stem, such as `dies`, `kein` or `ihr`. The definite article has none.
        declension: Its declension; `none` leaves the stem uninflected (numbers, bare nouns).
        agreement, case: Agreement class and case of the noun.
    """
    if declension == "definite":
        return _DEFINITE[agreement][case]
    if declension == "none":
        return stem
    return stem + (_EIN_WORD if declension == "ein-word" else _DER_WORD)[agreement][case]


def adjective(stem: str, declension: Declension, agreement: Agreement, case: Case) -> str:
    """Return an inflected attributive adjective.

    The declension of the determiner selects the endings: weak after der-words, mixed after ein-words, otherwise strong.
    """
    table = _STRONG if declension in ("none", "quantity") else _MIXED if declension == "ein-word" else _WEAK
    ending = table[agreement][case]
    if stem.endswith(("euer", "el")):
        stem = stem[:-2] + stem[-1]  # ein teures Kleid, ein dunkles Zimmer
    return stem.removesuffix("e") + ending


def relative_pronoun(agreement: Agreement, case: Case) -> str:
    """Return the German relative pronoun."""
    return _RELATIVE[agreement][case]


@dataclass(frozen=True)
class GermanVerb:
    """A German verb.

    Args:
        infinitive, third_person, past, participle: Its principal parts, without a separable prefix.
        prefix: The separable prefix, which ends a main clause, or "".
        sein: The perfect is formed with sein instead of haben.
    """

    infinitive: str
    third_person: str
    past: str
    participle: str
    prefix: str
    sein: bool

    @property
    def stem(self) -> str:
        return self.infinitive.removesuffix("n").removesuffix("e")

    def present(self, person: int, plural: bool) -> str:
        """Return the present form without prefix; `person` is 1, 2 or 3."""
        if self.infinitive == "sein":
            forms = ("sind", "seid", "sind") if plural else ("bin", "bist", "ist")
            return forms[person - 1]
        if plural:
            return self.infinitive if person != 2 else _with_dental(self.stem, "t")
        if person == 3:
            return self.third_person
        if self.infinitive == "wissen":
            return ("weiß", "weißt")[person - 1]
        if person == 1:
            return self.stem + "e"
        stem = self.third_person.removesuffix("t")
        return stem + ("t" if stem.endswith(("s", "ß", "z")) else "st")

    def preterite(self, person: int, plural: bool) -> str:
        """Return the simple past form without prefix; `person` is 1, 2 or 3."""
        weak = self.past.endswith("te")
        if person == 2 and plural:
            return self.past + "t" if weak else _with_dental(self.past, "t")
        if plural:
            return self.past + ("n" if weak else "en")
        if person == 2:
            hissing = self.past.endswith(("s", "ß", "z", "d", "t"))
            return self.past + ("est" if hissing and not weak else "st")
        return self.past

    @property
    def imperative(self) -> str:
        """The form for `du`: e becomes i as in the present (gib), a is kept (fahr)."""
        if self.infinitive == "sein":
            return "sei"
        present_stem = self.third_person.removesuffix("t")
        if "e" in self.stem and "i" in present_stem and not present_stem.startswith(self.stem):
            return present_stem
        if self.infinitive.endswith(("ern", "eln")) or _needs_e(self.stem):
            return self.stem + "e"
        return self.stem

    @property
    def full_infinitive(self) -> str:
        return self.prefix + self.infinitive

    @property
    def zu_infinitive(self) -> str:
        return f"{self.prefix}zu{self.infinitive}" if self.prefix else f"zu {self.infinitive}"

    @property
    def full_participle(self) -> str:
        return self.prefix + self.participle


def german_verb(text: str, sein: bool = False) -> GermanVerb:
    """Parse `lesen liest las gelesen`, `an|rufen ruft rief gerufen` or the infinitive of a weak verb."""
    infinitive, *principal_parts = text.split()
    prefix, _, bare = infinitive.rpartition("|")
    if principal_parts:
        third_person, past, participle = principal_parts
    else:
        stem = bare.removesuffix("n").removesuffix("e")
        third_person, past = _with_dental(stem, "t"), _with_dental(stem, "te")
        without_ge = bare.endswith("ieren") or bare.startswith(_INSEPARABLE) or bare in ("gehören",)
        participle = ("" if without_ge else "ge") + third_person
    return GermanVerb(bare, third_person, past, participle, prefix, sein)


def _needs_e(stem: str) -> bool:
    """Return True if an e precedes a dental ending: arbeitet, zeichnet, regnet, but lernt, wohnt, filmt."""
    if stem.endswith(("t", "d")):
        return True
    return stem.endswith("chn") or (stem.endswith(("n", "m")) and stem[-2] not in "aeiouäöülrhmn")


def _with_dental(stem: str, ending: str) -> str:
    return stem + ("e" if _needs_e(stem) else "") + ending
