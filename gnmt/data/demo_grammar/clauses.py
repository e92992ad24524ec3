"""Phrases and clauses of the demo grammar in both languages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gnmt.data.demo_grammar.morphology import (
    IT,
    PRONOUNS,
    Case,
    Slot,
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


Tense = Literal["present", "past", "perfect", "pluperfect", "future"]
Role = Literal["subject", "direct", "indirect", "place"]

_FUTURE = ("werde", "wirst", "wird", "werden")
_SEIN = ("bin", "bist", "ist", "sind")
_HABEN = ("habe", "hast", "hat", "haben")
_WAR = ("war", "warst", "war", "waren")
_HATTE = ("hatte", "hattest", "hatte", "hatten")


@dataclass(frozen=True)
class Adverbial:
    """A pair of words or phrases of time or manner. `frequency` ones stand before the verb in English."""

    english: str
    german: str
    frequency: bool = False


@dataclass(frozen=True)
class Clause:
    """The content of a clause. `missing` is the role that a question word or a relative pronoun takes over.

    `habitual` chooses the English simple present, where the progressive is the rule. `aspect` is what a perfect
    says beside its tense: already, just, not yet.
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

    def say_english(self) -> str:
        """A statement or a subordinate clause without its conjunction."""
        auxiliary, main = self._english_verbs(question=False)
        frequency = self.time.english if self.time is not None and self.time.frequency else ""
        adverb = {"already": "already", "just": "just", "yet": "not", None: frequency}[self.aspect]
        negation = "not" if self.negated else ""
        if auxiliary == "can" and self.negated:
            auxiliary, negation = "cannot", ""
        subject = "" if self.missing == "subject" else self.subject.say_english(True)
        return _join(self._english_front(), subject, auxiliary, negation, adverb, main, self._english_rest())

    def ask_english(self) -> str:
        """A question with the auxiliary first; a question word may be put before it."""
        auxiliary, main = self._english_verbs(question=True)
        frequency = self.time.english if self.time is not None and self.time.frequency else ""
        adverb = "already" if self.aspect == "already" else frequency
        return _join(auxiliary, self.subject.say_english(True), adverb, main, self._english_rest())

    def english_infinitive(self) -> str:
        """`to` and the infinitive with its objects, without the subject."""
        return _join("to", self.verb.english.base, self._english_rest())

    def command_english(self) -> str:
        return _join(self.verb.english.base, self._english_rest())

    def _english_verbs(self, question: bool) -> tuple[str, str]:
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
        if not self.habitual and not self.verb.state:
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
            return self.place.say_english()
        return ""

    def _english_rest(self) -> str:
        """What follows the main verb."""
        particle = self.verb.english.particle
        goal = self.direct if self.direct is not None else self.indirect
        words = [] if self.missing == "indirect" or self.indirect is None else [self.indirect.say_english(False)]
        if self.direct is not None and self.missing != "direct":
            words.append(self.direct.say_english(False))
        if particle and self.verb.english.movable and isinstance(goal, Pronoun):
            words.append(particle)
        elif particle:
            words.insert(0, particle)
        if self.predicate is not None:
            words.append(self.predicate.english)
        if self.place is not None and not self.place_first:
            words.append(self.place.preposition.english if self.missing == "place" else self.place.say_english())
        if self.ending is not None:
            words.append(self.ending.english)
        if self.aspect == "yet":
            words.append("yet")
        if self.time is not None and not self.time.frequency and not self.time_first:
            words.append(self.time.english)
        return _join(*words)

    # ---- German ----

    def say_german(self, order: Literal["second", "first", "last"]) -> str:
        """The clause with the finite verb second, first (questions, behind what is put in front) or last."""
        finite, rest = self._german_verbs()
        subject = "" if self.missing == "subject" else self.subject.say_german("nom")
        middle = self._german_middle()
        if order == "first":
            return _join(finite, subject, *middle, rest)
        if order == "last":
            # A prefix joins the finite verb there: weil er sie anruft.
            joined = rest + finite if rest and rest == self.verb.german.prefix else _join(rest, finite)
            return _join(subject, *middle, joined)
        front = self._german_front()
        if front:
            return _join(front, finite, subject, *middle, rest)
        return _join(subject, finite, *middle, rest)

    def german_infinitive(self) -> str:
        """The objects and the infinitive with zu, the prefix before it: das Kind abzuholen."""
        return _join(*self._german_middle(), self.verb.german.zu_infinitive)

    def command_german(self) -> str:
        return _join(self.verb.german.imperative, *self._german_middle(), self.verb.german.prefix)

    def _german_verbs(self) -> tuple[str, str]:
        """The finite verb, and what ends the main clause."""
        verb, person, plural = self.verb.german, self.subject.person, self.subject.plural
        cell = 3 if plural else person - 1
        if self.modal is not None:
            return self.modal.german_present[cell], verb.full_infinitive
        if self.tense == "future":
            return _FUTURE[cell], verb.full_infinitive
        if self.tense == "perfect":
            return (_SEIN if verb.sein else _HABEN)[cell], verb.full_participle
        if self.tense == "pluperfect":
            return (_WAR if verb.sein else _HATTE)[cell], verb.full_participle
        return (verb.preterite if self.tense == "past" else verb.present)(person, plural), verb.prefix

    def _german_front(self) -> str:
        if self.time_first and self.time is not None:
            return self.time.german
        if self.place_first and self.place is not None:
            return self.place.say_german()
        return ""

    def _german_middle(self) -> list[str]:
        kein = self.negated and self.direct is not None and self.direct.negatable
        objects: list[tuple[Phrase, str]] = []
        if self.indirect is not None and self.missing != "indirect":
            objects.append((self.indirect, self.indirect.say_german("dat")))
        if self.direct is not None and self.missing != "direct":
            objects.append((self.direct, self.direct.say_german("acc", kein)))
        words = [german for phrase, german in objects if isinstance(phrase, Pronoun)]
        if self.time is not None and not self.time_first:
            words.append(self.time.german)
        words += [german for phrase, german in objects if isinstance(phrase, NounPhrase)]
        if self.aspect is not None:
            words.append({"already": "schon", "just": "gerade", "yet": "noch nicht"}[self.aspect])
        if self.negated and not kein:
            words.append("nicht")
        if self.place is not None and not self.place_first and self.missing != "place":
            words.append(self.place.say_german())
        if self.ending is not None:
            words.append(self.ending.german)
        if self.predicate is not None:
            words.append(self.predicate.german)
        return words


@dataclass(frozen=True)
class RelativeClause:
    """A clause that describes the phrase which fills its `missing` role."""

    clause: Clause

    def say_english(self, head: NounPhrase) -> str:
        is_person = head.noun.is_any(("person",))
        if self.clause.missing == "place":
            assert self.clause.place is not None
            return _join(self.clause.place.preposition.english, "which", self._without_place().say_english())
        if self.clause.missing == "subject":
            return _join("who" if is_person else "that", self._agreeing(head).say_english())
        return _join("whom" if is_person else "that", self.clause.say_english())

    def say_german(self, head: NounPhrase) -> str:
        missing = self.clause.missing
        if missing == "place":
            assert self.clause.place is not None
            preposition = self.clause.place.preposition
            pronoun = f"{preposition.german} {relative_pronoun(head.slot, preposition.case)}"
            return _join(pronoun, self._without_place().say_german("last"))
        cases: dict[str, Case] = {"subject": "nom", "direct": "acc", "indirect": "dat"}
        assert missing is not None
        pronoun = relative_pronoun(head.slot, cases[missing])
        return _join(pronoun, self._agreeing(head).say_german("last"))

    def _without_place(self) -> Clause:
        return replace(self.clause, place=None, missing=None)

    def _agreeing(self, head: NounPhrase) -> Clause:
        """The verb of a subject relative clause agrees with the head."""
        return (
            replace(self.clause, subject=replace(head, relative=None))
            if self.clause.missing == "subject"
            else self.clause
        )


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
