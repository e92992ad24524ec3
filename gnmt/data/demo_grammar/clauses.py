"""Phrases and clauses, and their word order in English and German.

A `Clause` holds the content that both languages share. Its methods `to_english` and `to_german` render it as a
statement or a subordinate clause; further methods render questions, commands and infinitives. `NounPhrase`, `Pronoun`
and `PrepositionalPhrase` are its parts, and a `RelativeClause` modifies a noun phrase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gnmt.data.demo_grammar.morphology import (
    IT,
    PRONOUNS,
    Agreement,
    Case,
    adjective,
    article,
    be,
    relative_pronoun,
    with_article,
)
from gnmt.data.demo_grammar.nouns import Noun
from gnmt.data.demo_grammar.verbs import Modal, Verb
from gnmt.data.demo_grammar.words import NO, A, Adjective, Determiner, Preposition

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
Tense = Literal["present", "past", "perfect", "pluperfect", "future"]
Role = Literal["subject", "direct", "indirect", "place"]
# Forms of werden, sein and haben: ich, du, er, plural.
_FUTURE = ("werde", "wirst", "wird", "werden")
_SEIN = ("bin", "bist", "ist", "sind")
_HABEN = ("habe", "hast", "hat", "haben")
_WAR = ("war", "warst", "war", "waren")
_HATTE = ("hatte", "hattest", "hatte", "hatten")


@dataclass(frozen=True)
class Pronoun:
    """A personal pronoun, by its English subject form; `it` replaces the noun `antecedent`."""

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

    def to_english(self, as_subject: bool) -> str:
        return self.english if as_subject else _ENGLISH_OBJECTS.get(self.english, self.english)

    def to_german(self, case: Case, negated: bool = False) -> str:
        if self.antecedent is not None and self.english == "it":
            return IT[self.antecedent.gender][case]
        return PRONOUNS[self.english][case]


@dataclass(frozen=True)
class NounPhrase:
    """A noun with determiner and adjective, and possibly an owner (the boy's dog) or a relative clause."""

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
    def agreement(self) -> Agreement:
        return "pl" if self.plural else self.noun.gender

    @property
    def negatable(self) -> bool:
        """True if negation changes the determiner to `kein` instead of adding `nicht`."""
        return self.determiner is A or (self.determiner.declension == "none" and not self.determiner.german)

    def to_english(self, as_subject: bool) -> str:
        noun = self.noun.english_plural if self.plural else self.noun.english
        words = f"{self.adjective.english} {noun}" if self.adjective else noun
        if self.owner is not None:
            return f"{self.owner.to_english(False)}'s {words}"
        if self.determiner is A:
            words = with_article(words)
        elif self.determiner.english:
            words = f"{self.determiner.english} {words}"
        return words if self.relative is None else f"{words} {self.relative.to_english(self)}"

    def to_german(self, case: Case, negated: bool = False) -> str:
        determiner = NO if negated else self.determiner
        words = [article(determiner.german, determiner.declension, self.agreement, case)]
        if self.adjective is not None:
            words.append(adjective(self.adjective.german, determiner.declension, self.agreement, case))
        words.append(self.german_noun(case))
        if self.owner is not None:
            words.append(self.owner.to_german("gen"))
        if self.relative is not None:
            words.append(f", {self.relative.to_german(self)} ,")
        return " ".join(word for word in words if word)

    def german_noun(self, case: Case) -> str:
        """Return the declined noun alone."""
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
    """A preposition with its noun phrase or pronoun."""

    preposition: Preposition
    phrase: Phrase

    def to_english(self) -> str:
        return f"{self.preposition.english} {self.phrase.to_english(False)}"

    def to_german(self) -> str:
        """Return the phrase with the usual contractions (im Haus, zur Schule)."""
        words = f"{self.preposition.german} {self.phrase.to_german(self.preposition.case)}"
        for full, short in _CONTRACTIONS.items():
            if words.startswith(full + " "):
                return short + words.removeprefix(full)
        return words


@dataclass(frozen=True)
class Adverbial:
    """An English-German pair of adverbials; those of frequency precede the verb in English."""

    english: str
    german: str
    frequency: bool = False


@dataclass(frozen=True)
class Clause:
    """The content of a clause.

    Args:
        subject, verb, tense, modal: Subject and predicate; with a modal verb, `tense` is that of the modal.
        habitual: English has the simple present instead of the progressive.
        negated: The clause is negated.
        direct, indirect: Accusative and dative object.
        place, time: Adverbials; `place_first` and `time_first` put them at the beginning.
        predicate: Adjective after `to be`.
        ending: Adverbial after all others.
        aspect: Adverb of the perfect: already, just, not yet.
        missing: Role that a question word or a relative pronoun fills, so that it is omitted here.
    """

    subject: Phrase
    verb: Verb
    tense: Tense = "present"
    modal: Modal | None = None
    habitual: bool = False
    negated: bool = False
    direct: Phrase | None = None
    indirect: Phrase | None = None
    place: PrepositionalPhrase | None = None
    time: Adverbial | None = None
    time_first: bool = False
    place_first: bool = False
    predicate: Adjective | None = None
    ending: Adverbial | None = None
    aspect: Literal["already", "just", "yet", None] = None
    missing: Role | None = None

    # ---- English ----

    def to_english(self) -> str:
        """Return the English statement, or the subordinate clause without its conjunction."""
        auxiliary, main = self._english_verbs(question=False)
        frequency = self.time.english if self.time is not None and self.time.frequency else ""
        adverb = {"already": "already", "just": "just", "yet": "not", None: frequency}[self.aspect]
        negation = "not" if self.negated else ""
        if auxiliary == "can" and self.negated:
            auxiliary, negation = "cannot", ""
        subject = "" if self.missing == "subject" else self.subject.to_english(True)
        return _join(self._english_front(), subject, auxiliary, negation, adverb, main, self._english_rest())

    def english_question(self) -> str:
        """Return the English question from the auxiliary on; a question word may precede it."""
        auxiliary, main = self._english_verbs(question=True)
        frequency = self.time.english if self.time is not None and self.time.frequency else ""
        adverb = "already" if self.aspect == "already" else frequency
        return _join(auxiliary, self.subject.to_english(True), adverb, main, self._english_rest())

    def english_infinitive(self) -> str:
        """Return `to`, the English infinitive and its complements, without the subject."""
        return _join("to", self.verb.english.base, self._english_rest())

    def english_command(self) -> str:
        """Return the English imperative with its complements."""
        return _join(self.verb.english.base, self._english_rest())

    def _english_verbs(self, question: bool) -> tuple[str, str]:
        """Return the auxiliary, or "", and the main verb."""
        verb, third = self.verb.english, self.subject.person == 3 and not self.subject.plural
        needs_do = question or self.negated
        if self.modal is not None:
            return self._english_modal(self.modal, needs_do, third)
        if self.tense == "future":
            return "will", verb.base
        if self.tense == "perfect":
            return "has" if third else "have", verb.participle
        if self.tense == "pluperfect":
            return "had", verb.participle
        if verb.base == "be":
            return be(self.subject.person, self.subject.plural, self.tense == "past"), ""
        if self.tense == "past":
            return ("did", verb.base) if needs_do else ("", verb.past)
        if not self.habitual and not self.verb.stative:
            return be(self.subject.person, self.subject.plural, False), verb.gerund
        if needs_do:
            return "does" if third else "do", verb.base
        return "", verb.third_person if third else verb.base

    def _english_modal(self, modal: Modal, needs_do: bool, third: bool) -> tuple[str, str]:
        base = self.verb.english.base
        if needs_do and modal.do_support:
            return "did" if modal.past else "does" if third else "do", f"{modal.english_base} {base}"
        if " " in modal.english and not modal.english.startswith("would"):
            return "", f"{modal.english_third if third else modal.english} {base}"
        auxiliary, _, rest = modal.english.partition(" ")
        return auxiliary, f"{rest} {base}".strip()

    def _english_front(self) -> str:
        if self.time_first and self.time is not None:
            return self.time.english
        if self.place_first and self.place is not None:
            return self.place.to_english()
        return ""

    def _english_rest(self) -> str:
        """Return all that follows the main verb."""
        particle = self.verb.english.particle
        goal = self.direct if self.direct is not None else self.indirect
        words = [] if self.missing == "indirect" or self.indirect is None else [self.indirect.to_english(False)]
        if self.direct is not None and self.missing != "direct":
            words.append(self.direct.to_english(False))
        if particle and self.verb.english.movable and isinstance(goal, Pronoun):
            words.append(particle)
        elif particle:
            words.insert(0, particle)
        if self.predicate is not None:
            words.append(self.predicate.english)
        if self.place is not None and not self.place_first:
            words.append(self.place.preposition.english if self.missing == "place" else self.place.to_english())
        if self.ending is not None:
            words.append(self.ending.english)
        if self.aspect == "yet":
            words.append("yet")
        if self.time is not None and not self.time.frequency and not self.time_first:
            words.append(self.time.english)
        return _join(*words)

    # ---- German ----

    def to_german(self, order: Literal["second", "first", "last"]) -> str:
        """Return the German clause with the finite verb second (statement), first (question) or last (subordinate)."""
        finite, rest = self._german_verbs()
        subject = "" if self.missing == "subject" else self.subject.to_german("nom")
        middle = self._german_middle()
        if order == "first":
            return _join(finite, subject, *middle, rest)
        if order == "last":
            # A separable prefix is joined to the final verb: weil er sie anruft.
            joined = rest + finite if rest and rest == self.verb.german.prefix else _join(rest, finite)
            return _join(subject, *middle, joined)
        front = self._german_front()
        if front:
            return _join(front, finite, subject, *middle, rest)
        return _join(subject, finite, *middle, rest)

    def german_infinitive(self) -> str:
        """Return the complements and the German infinitive with zu: das Kind abzuholen."""
        return _join(*self._german_middle(), self.verb.german.zu_infinitive)

    def german_command(self) -> str:
        """Return the German imperative (du) with its complements."""
        return _join(self.verb.german.imperative, *self._german_middle(), self.verb.german.prefix)

    def _german_verbs(self) -> tuple[str, str]:
        """Return the finite verb, and the infinitive, participle or prefix that ends a main clause."""
        verb, person, plural = self.verb.german, self.subject.person, self.subject.plural
        form = 3 if plural else person - 1
        if self.modal is not None:
            return self.modal.german_present[form], verb.full_infinitive
        if self.tense == "future":
            return _FUTURE[form], verb.full_infinitive
        if self.tense == "perfect":
            return (_SEIN if verb.sein else _HABEN)[form], verb.full_participle
        if self.tense == "pluperfect":
            return (_WAR if verb.sein else _HATTE)[form], verb.full_participle
        return (verb.preterite if self.tense == "past" else verb.present)(person, plural), verb.prefix

    def _german_front(self) -> str:
        if self.time_first and self.time is not None:
            return self.time.german
        if self.place_first and self.place is not None:
            return self.place.to_german()
        return ""

    def _german_middle(self) -> list[str]:
        """Return the middle field: pronouns, time, noun phrases, aspect, negation, place, ending, predicate."""
        kein = self.negated and self.direct is not None and self.direct.negatable
        objects: list[tuple[Phrase, str]] = []
        if self.indirect is not None and self.missing != "indirect":
            objects.append((self.indirect, self.indirect.to_german("dat")))
        if self.direct is not None and self.missing != "direct":
            objects.append((self.direct, self.direct.to_german("acc", kein)))
        words = [german for phrase, german in objects if isinstance(phrase, Pronoun)]
        if self.time is not None and not self.time_first:
            words.append(self.time.german)
        words += [german for phrase, german in objects if isinstance(phrase, NounPhrase)]
        if self.aspect is not None:
            words.append({"already": "schon", "just": "gerade", "yet": "noch nicht"}[self.aspect])
        if self.negated and not kein:
            words.append("nicht")
        if self.place is not None and not self.place_first and self.missing != "place":
            words.append(self.place.to_german())
        if self.ending is not None:
            words.append(self.ending.german)
        if self.predicate is not None:
            words.append(self.predicate.german)
        return words


@dataclass(frozen=True)
class RelativeClause:
    """A relative clause; its head, the noun phrase that it modifies, fills the `missing` role of the clause."""

    clause: Clause

    def to_english(self, head: NounPhrase) -> str:
        is_person = head.noun.is_any(("person",))
        if self.clause.missing == "place":
            assert self.clause.place is not None
            return _join(self.clause.place.preposition.english, "which", self._without_place().to_english())
        if self.clause.missing == "subject":
            return _join("who" if is_person else "that", self._agreeing(head).to_english())
        return _join("whom" if is_person else "that", self.clause.to_english())

    def to_german(self, head: NounPhrase) -> str:
        missing = self.clause.missing
        if missing == "place":
            assert self.clause.place is not None
            preposition = self.clause.place.preposition
            pronoun = f"{preposition.german} {relative_pronoun(head.agreement, preposition.case)}"
            return _join(pronoun, self._without_place().to_german("last"))
        cases: dict[str, Case] = {"subject": "nom", "direct": "acc", "indirect": "dat"}
        assert missing is not None
        pronoun = relative_pronoun(head.agreement, cases[missing])
        return _join(pronoun, self._agreeing(head).to_german("last"))

    def _without_place(self) -> Clause:
        return replace(self.clause, place=None, missing=None)

    def _agreeing(self, head: NounPhrase) -> Clause:
        """Return the clause with the head as its subject if the subject is missing, so that the verb agrees with it."""
        return (
            replace(self.clause, subject=replace(head, relative=None))
            if self.clause.missing == "subject"
            else self.clause
        )


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
