"""Random content for clauses: who, what, where and when, chosen so that it makes sense."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from gnmt.data.demo_grammar import words
from gnmt.data.demo_grammar.clauses import Adverbial, Clause, NounPhrase, Phrase, PrepositionalPhrase, Pronoun, Tense
from gnmt.data.demo_grammar.nouns import Noun, nouns_of
from gnmt.data.demo_grammar.verbs import MODALS, VERBS, Modal, Verb
from gnmt.data.demo_grammar.words import Adjective, Determiner

Item = TypeVar("Item")
Combination = tuple[str, str, str]

_SUBJECTS = ("I", "you", "he", "she", "we", "they")
_NOUNS_BY_KINDS: dict[tuple[str, ...], tuple[Noun, ...]] = {}
# Complements without which the verb says nothing.
_REQUIRED = ("inside", "toward", "through", "over", "town", "home", "seat", "surface", "shore")
# One of a kind, so neither counted nor described by `every`.
_UNIQUE = ("king", "queen", "father", "mother")


# Verbs whose object does not belong to the subject yet.
_FROM_OTHERS = ("buy", "steal", "order")


class NothingFitsError(Exception):
    """The sentence in the making already holds every noun that could stand here: begin another one."""


class Sampler:
    """Draws the parts of one sentence after another from one random stream.

    Only `Random.random` is used, whose values Python guarantees to stay the same from version to version.
    `combinations` collects what the sentence in the making combines; `begin` clears it.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: list[str] = []
        self.combinations: list[Combination] = []

    def begin(self) -> None:
        self._used = []
        self.combinations = []

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self._rng.random() * len(items))]

    # ---- noun phrases ----

    def noun(self, kinds: tuple[str, ...], countable: bool = False) -> Noun:
        """A noun of one of the kinds which the sentence does not hold yet."""
        if kinds not in _NOUNS_BY_KINDS:
            _NOUNS_BY_KINDS[kinds] = nouns_of(*kinds)
        nouns = [n for n in _NOUNS_BY_KINDS[kinds] if n.english not in self._used and (n.countable or not countable)]
        if not nouns:
            raise NothingFitsError
        noun = self.pick(nouns)
        self._used.append(noun.english)
        return noun

    def subject(self, kinds: tuple[str, ...], pronouns: Sequence[str] = _SUBJECTS, described: bool = True) -> Phrase:
        if "person" in kinds and pronouns and self.chance(0.3):
            return Pronoun(self.pick(pronouns))
        noun = self.noun(kinds, countable=True)
        roll = self._rng.random()
        if "family" in noun.kinds:
            determiner = words.THE if roll < 0.4 else words.POSSESSIVES[self.pick(_SUBJECTS)]
            plural = noun.english not in _UNIQUE and self.chance(0.2)
        elif noun.english in _UNIQUE or roll < 0.6 or (roll < 0.75 and not noun.is_any(("close", "pet"))):
            determiner, plural = words.THE, 0.45 < roll < 0.6 and noun.english not in _UNIQUE
        elif roll < 0.75:
            determiner, plural = words.POSSESSIVES[self.pick(_SUBJECTS)], roll > 0.72
        elif roll < 0.83:
            determiner, plural = words.A, False
        elif roll < 0.90:
            determiner, plural = self.pick(words.NUMBERS), True
        elif roll < 0.95:
            determiner, plural = self.pick((words.THIS, words.THESE, words.EVERY)), False
            plural = determiner is words.THESE
        else:
            determiner, plural = self.pick((words.MANY, words.SOME)), True
        return self._described(NounPhrase(determiner, noun, plural), 0.25 if described else 0.0)

    def someone(self, described: bool = True) -> NounPhrase:
        """A definite person of known natural gender, to whom `he`, `she` or `they` can refer."""
        noun = self.noun(("male", "female"))
        plural = noun.english not in _UNIQUE and self.chance(0.25)
        return self._described(NounPhrase(words.THE, noun, plural), 0.25 if described else 0.0)

    def object(self, verb: Verb, kinds: tuple[str, ...], subject: Phrase) -> Phrase:
        """A direct or dative object; a pronoun only where people are meant."""
        if "person" in kinds and self.chance(0.25):
            return Pronoun(self.pick(_other_pronouns(subject)))
        noun = self.noun(kinds)
        self.combinations.append(("object", verb.lemma, noun.english))
        determiner, plural = self._object_determiner(
            noun, None if verb.lemma in _FROM_OTHERS else possessive_of(subject)
        )
        phrase = self._described(NounPhrase(determiner, noun, plural), 0.3)
        if phrase.adjective is None and determiner is words.THE and _can_be_owned(noun) and self.chance(0.12):
            owner = self.noun(("male", "female"))
            return replace(phrase, owner=NounPhrase(words.THE, owner))
        return phrase

    def _object_determiner(self, noun: Noun, own: Determiner | None) -> tuple[Determiner, bool]:
        own = own if _can_be_owned(noun) else None
        roll = self._rng.random()
        if "family" in noun.kinds or noun.english in _UNIQUE:
            return (own if own is not None and roll < 0.7 else words.THE), False
        if not noun.countable:
            return (words.THE if roll < 0.5 else words.BARE), False
        if roll < 0.3:
            return words.THE, roll > 0.22
        if roll < 0.58:
            return words.A, False
        if roll < 0.72:
            return (own or words.THE), roll > 0.68
        if roll < 0.82:
            return self.pick(words.NUMBERS), True
        if roll < 0.88:
            return self.pick((words.MANY, words.SOME)), True
        if roll < 0.95:
            determiner = self.pick((words.THIS, words.THESE))
            return determiner, determiner is words.THESE
        return words.BARE, True

    def _described(self, phrase: NounPhrase, probability: float) -> NounPhrase:
        if not self.chance(probability):
            return phrase
        fitting = fitting_adjectives(phrase.noun)
        if not fitting:
            return phrase
        adjective = self.pick(fitting)
        self.combinations.append(("adjective", adjective.english, phrase.noun.english))
        return replace(phrase, adjective=adjective)

    def place(self, name: str, subject: Phrase, motion: bool = False) -> PrepositionalPhrase:
        """A place or a companion, from a frame of `words.PLACES`."""
        frame = words.ON_SURFACE["motion" if motion else "rest"] if name == "surface" else words.PLACES[name]
        preposition, kinds = self.pick(frame.choices)
        noun = self.noun(kinds, countable=True)
        own = possessive_of(subject) if _can_be_owned(noun) else None
        roll = self._rng.random()
        determiner = words.THE
        if noun.is_any(("person",)) and own is not None and roll < 0.6:
            determiner = own
        elif noun.english not in _UNIQUE and roll > 0.85 and "family" not in noun.kinds:
            determiner = words.A
        phrase = NounPhrase(determiner, noun)
        return PrepositionalPhrase(preposition, self._described(phrase, 0.12))

    # ---- clauses ----

    def clause(
        self,
        structure: str,
        tense: Tense = "present",
        verbs: Sequence[Verb] = VERBS,
        subject: Phrase | None = None,
        modal: Modal | None = None,
        complement: bool = True,
    ) -> Clause:
        """A clause about anything. `complement=False` leaves out places that the verb can do without."""
        verb = self.pick(verbs)
        while not _fits(verb, tense, subject, modal):
            verb = self.pick(verbs)
        self.combinations.append(("structure", structure, verb.lemma))
        if subject is None:
            # Spoken German avoids the simple past with du; the grammar does too.
            pronouns = ("I", "he", "she", "we", "they") if tense == "past" else _SUBJECTS
            subject = self.subject(verb.subject, pronouns)
        clause = Clause(subject, verb, tense, modal)
        if verb.indirect:
            clause = replace(clause, indirect=self._receiver(verb, subject))
        if verb.direct:
            direct = self.object(verb, verb.direct, subject)
            clause = replace(clause, direct=direct)
        required = any(name in _REQUIRED for name in verb.complement) and not (
            verb.direct and "inside" in verb.complement
        )
        if verb.complement and (required or (complement and self.chance(0.4))):
            motion = bool(verb.direct)
            clause = replace(clause, place=self.place(self.pick(verb.complement), subject, motion))
        return clause

    def _receiver(self, verb: Verb, subject: Phrase) -> Phrase:
        """A dative object: definite, so that negation never has to go into it."""
        if self.chance(0.35):
            return Pronoun(self.pick(_other_pronouns(subject)))
        noun = self.noun(verb.indirect, countable=True)
        own = possessive_of(subject) if _can_be_owned(noun) else None
        plural = noun.english not in _UNIQUE and self.chance(0.2)
        determiner = own if own is not None and self.chance(0.4) else words.THE
        self.combinations.append(("object", verb.lemma, noun.english))
        return self._described(NounPhrase(determiner, noun, plural), 0.15)

    def adverbial(self, pairs: Sequence[tuple[str, str]], frequency: bool = False) -> Adverbial:
        english, german = self.pick(pairs)
        return Adverbial(english, german, frequency)

    def occasion(self) -> Adverbial:
        """After the concert, because of the rain: a prepositional phrase that serves as a time."""
        if self.chance(0.7):
            preposition, kind = self.pick(words.EVENT_PREPOSITIONS), "event"
        else:
            preposition, kind = self.pick(words.TROUBLE_PREPOSITIONS), "trouble"
        phrase = PrepositionalPhrase(preposition, NounPhrase(words.THE, self.noun((kind,))))
        return Adverbial(phrase.say_english(), phrase.say_german())

    def modal(self, past: bool | None = None, negated: bool = False) -> Modal:
        return self.pick(
            [m for m in MODALS if (past is None or m.past == past) and (m.negatable or not negated)],
        )


@cache
def fitting_adjectives(noun: Noun) -> tuple[Adjective, ...]:
    return tuple(adjective for adjective in words.ADJECTIVES if noun.is_any(adjective.kinds))


def _fits(verb: Verb, tense: Tense, subject: Phrase | None, modal: Modal | None) -> bool:
    if subject is not None and "person" not in verb.subject:
        return False
    if verb.mishap:
        return modal is None and tense in ("past", "perfect", "pluperfect")
    # Neither states nor things have wishes and duties.
    return modal is None or (not verb.state and "person" in verb.subject)


def _can_be_owned(noun: Noun) -> bool:
    """Somebody's brother, friend, dog or book, but not somebody's queen or station."""
    return noun.is_any(("family", "close", "pet", "farm", "vehicle", "ware", "text", "item", "garment"))


def reference_to(phrase: Phrase) -> Pronoun:
    """The pronoun for a person named before."""
    if isinstance(phrase, Pronoun):
        return phrase
    if phrase.plural:
        return Pronoun("they")
    if phrase.noun.is_any(("person",)):
        return Pronoun("he" if "male" in phrase.noun.kinds else "she")
    return Pronoun("it", phrase.noun)


def possessive_of(subject: Phrase) -> Determiner | None:
    """The subject's own possessive; None where English or German leaves the choice open (child, animal)."""
    if isinstance(subject, Pronoun):
        return words.POSSESSIVES.get(subject.english)
    if subject.plural:
        return words.POSSESSIVES["they"]
    if "male" in subject.noun.kinds:
        return words.POSSESSIVES["he"]
    return words.POSSESSIVES["she"] if "female" in subject.noun.kinds else None


def _other_pronouns(subject: Phrase) -> tuple[str, ...]:
    """Pronouns that do not overlap with the subject or seem to."""
    if isinstance(subject, Pronoun):
        if subject.english in ("I", "we"):
            return ("you", "he", "she", "they")
        if subject.english == "you":
            return ("I", "he", "she", "we", "they")
        return tuple(pronoun for pronoun in _SUBJECTS if pronoun != subject.english)
    return _SUBJECTS
