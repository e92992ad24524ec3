"""Noun phrases and prepositional phrases, said in English and in German."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnmt.data.grammar.english import with_article
from gnmt.data.grammar.german import IT, PRONOUNS, Case, Slot, adjective, article
from gnmt.data.grammar.nouns import Noun
from gnmt.data.grammar.words import NO, A, Adjective, Determiner, Preposition

if TYPE_CHECKING:
    from gnmt.data.grammar.clauses import RelativeClause

_ENGLISH_OBJECTS = {"I": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
_CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
}


@dataclass(frozen=True)
class Pronoun:
    """A personal pronoun, by its English subject form. `it` stands for the noun `antecedent`."""

    english: str
    antecedent: Noun | None = None

    @property
    def person(self) -> int:
        return {"I": 1, "we": 1, "you": 2}.get(self.english, 3)

    @property
    def plural(self) -> bool:
        return self.english in ("we", "they")

    @property
    def negatable(self) -> bool:
        return False

    def say_english(self, as_subject: bool) -> str:
        return self.english if as_subject else _ENGLISH_OBJECTS.get(self.english, self.english)

    def say_german(self, case: Case, negated: bool = False) -> str:
        if self.antecedent is not None and self.english == "it":
            return IT[self.antecedent.gender][case]
        return PRONOUNS[self.english][case]


@dataclass(frozen=True)
class NounPhrase:
    """Determiner, adjective, noun, and an owner (the boy's dog) or a relative clause."""

    determiner: Determiner
    noun: Noun
    plural: bool = False
    adjective: Adjective | None = None
    owner: NounPhrase | None = None
    relative: RelativeClause | None = None

    @property
    def person(self) -> int:
        return 3

    @property
    def slot(self) -> Slot:
        return "pl" if self.plural else self.noun.gender

    @property
    def negatable(self) -> bool:
        """Whether negation turns the determiner into `kein` rather than adding `nicht`."""
        return self.determiner is A or (self.determiner.declension == "none" and not self.determiner.german)

    def say_english(self, as_subject: bool) -> str:
        noun = self.noun.english_plural if self.plural else self.noun.english
        words = f"{self.adjective.english} {noun}" if self.adjective else noun
        if self.owner is not None:
            return f"{self.owner.say_english(False)}'s {words}"
        if self.determiner is A:
            words = with_article(words)
        elif self.determiner.english:
            words = f"{self.determiner.english} {words}"
        return words if self.relative is None else f"{words} {self.relative.say_english(self)}"

    def say_german(self, case: Case, negated: bool = False) -> str:
        determiner = NO if negated else self.determiner
        words = [article(determiner.german, determiner.declension, self.slot, case)]
        if self.adjective is not None:
            words.append(adjective(self.adjective.german, determiner.declension, self.slot, case))
        words.append(self.german_noun(case))
        if self.owner is not None:
            words.append(self.owner.say_german("gen"))
        if self.relative is not None:
            words.append(f", {self.relative.say_german(self)} ,")
        return " ".join(word for word in words if word)

    def german_noun(self, case: Case) -> str:
        """The declined noun without its companions."""
        noun = self.noun
        if self.plural:
            takes_n = case == "dat" and not noun.german_plural.endswith(("n", "s"))
            return noun.german_plural + "n" if takes_n else noun.german_plural
        if case == "gen":
            return noun.german_genitive
        return noun.german_plural if noun.weak and case != "nom" else noun.german


Phrase = NounPhrase | Pronoun


@dataclass(frozen=True)
class PrepositionalPhrase:
    preposition: Preposition
    phrase: Phrase

    def say_english(self) -> str:
        return f"{self.preposition.english} {self.phrase.say_english(False)}"

    def say_german(self) -> str:
        """With the usual contractions (im Haus, zur Schule)."""
        words = f"{self.preposition.german} {self.phrase.say_german(self.preposition.case)}"
        for full, short in _CONTRACTIONS.items():
            if words.startswith(full + " "):
                return short + words.removeprefix(full)
        return words
