"""Random noun phrases and clauses that make sense.

`Sampler` draws the parts of one sentence after another. The functions below it decide which words combine.
"""

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
# Complements that the verb cannot do without.
_REQUIRED = ("inside", "toward", "through", "over", "town", "home", "seat", "surface", "shore")
# Nouns of unique persons, which are always singular and definite.
_UNIQUE = ("king", "queen", "father", "mother")
# Verbs whose object does not belong to the subject, so it has no possessive.
_FROM_OTHERS = ("buy", "steal", "order")


class NothingFitsError(Exception):
    """The sentence already contains every noun that fits here; the caller begins another sentence."""


class Sampler:
    """Draw the parts of one sentence after another from a random stream.

    Only `Random.random` is used, because Python guarantees that its values are the same in all versions.
    `combinations` collects the combinations of words in the current sentence, and `begin` clears it.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: list[str] = []
        self.combinations: list[Combination] = []

    def begin(self) -> None:
        """Begin a sentence."""
        self._used = []
        self.combinations = []

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._rng.random() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """Return one of the items, all equally probable."""
        return items[int(self._rng.random() * len(items))]

    # ---- noun phrases ----

    def noun(self, kinds: tuple[str, ...], countable: bool = False) -> Noun:
        """Return a noun of one of the kinds that the sentence does not contain yet."""
        nouns = [n for n in nouns_of(*kinds) if n.english not in self._used and (n.countable or not countable)]
        if not nouns:
            raise NothingFitsError
        noun = self.pick(nouns)
        self._used.append(noun.english)
        return noun

    def subject(self, kinds: tuple[str, ...], pronouns: Sequence[str] = _SUBJECTS, described: bool = True) -> Phrase:
        """Return a pronoun (if `kinds` include persons) or a noun phrase, which may be `described` by an adjective."""
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
        """Return a definite person of known natural gender, to whom `he`, `she` or `they` can refer."""
        noun = self.noun(("male", "female"))
        plural = noun.english not in _UNIQUE and self.chance(0.25)
        return self._described(NounPhrase(words.THE, noun, plural), 0.25 if described else 0.0)

    def object(self, verb: Verb, kinds: tuple[str, ...], subject: Phrase) -> Phrase:
        """Return a direct or dative object; it may be a pronoun if `kinds` include persons."""
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
        """Return a prepositional complement (place or companion), by its name in `words.PLACES`."""
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
        """Return a clause with a random verb and its arguments.

        Args:
            structure: Name of the sentence structure, for `combinations`.
            tense: Tense of the clause.
            verbs: Verbs to choose from.
            subject: The subject; None for a random one.
            modal: Modal verb of the clause.
            complement: Optional places may be added; required ones always are.
        """
        verb = self.pick(verbs)
        while not _fits(verb, tense, subject, modal):
            verb = self.pick(verbs)
        self.combinations.append(("structure", structure, verb.lemma))
        if subject is None:
            # Spoken German avoids the simple past with du, and so does this grammar.
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
        """Return a dative object, which is definite, so that it never takes the negation (kein)."""
        if self.chance(0.35):
            return Pronoun(self.pick(_other_pronouns(subject)))
        noun = self.noun(verb.indirect, countable=True)
        own = possessive_of(subject) if _can_be_owned(noun) else None
        plural = noun.english not in _UNIQUE and self.chance(0.2)
        determiner = own if own is not None and self.chance(0.4) else words.THE
        self.combinations.append(("object", verb.lemma, noun.english))
        return self._described(NounPhrase(determiner, noun, plural), 0.15)

    def adverbial(self, pairs: Sequence[tuple[str, str]], frequency: bool = False) -> Adverbial:
        """Return one of the English-German pairs as an adverbial."""
        english, german = self.pick(pairs)
        return Adverbial(english, german, frequency)

    def occasion(self) -> Adverbial:
        """Return a prepositional phrase in the position of a time: after the concert, because of the rain."""
        if self.chance(0.7):
            preposition, kind = self.pick(words.EVENT_PREPOSITIONS), "event"
        else:
            preposition, kind = self.pick(words.TROUBLE_PREPOSITIONS), "trouble"
        phrase = PrepositionalPhrase(preposition, NounPhrase(words.THE, self.noun((kind,))))
        return Adverbial(phrase.to_english(), phrase.to_german())

    def modal(self, past: bool | None = None, negated: bool = False) -> Modal:
        """Return a modal verb; `past` and `negated` restrict the choice."""
        return self.pick([m for m in MODALS if (past is None or m.past == past) and (m.negatable or not negated)])


@cache
def fitting_adjectives(noun: Noun) -> tuple[Adjective, ...]:
    """Return the adjectives that can modify a noun."""
    return tuple(adjective for adjective in words.ADJECTIVES if noun.is_any(adjective.kinds))


def _fits(verb: Verb, tense: Tense, subject: Phrase | None, modal: Modal | None) -> bool:
    if subject is not None and "person" not in verb.subject:
        return False
    if verb.unwanted:
        return modal is None and tense in ("past", "perfect", "pluperfect")
    # Modal verbs express wishes and duties, which need a person and an action.
    return modal is None or (not verb.stative and "person" in verb.subject)


def _can_be_owned(noun: Noun) -> bool:
    """Return True if a noun can have a possessive: my brother, dog or book, but not my queen or station."""
    return noun.is_any(("family", "close", "pet", "farm", "vehicle", "ware", "text", "item", "garment"))


def reference_to(phrase: Phrase) -> Pronoun:
    """Return the pronoun that refers to a phrase."""
    if isinstance(phrase, Pronoun):
        return phrase
    if phrase.plural:
        return Pronoun("they")
    if phrase.noun.is_any(("person",)):
        return Pronoun("he" if "male" in phrase.noun.kinds else "she")
    return Pronoun("it", phrase.noun)


def possessive_of(subject: Phrase) -> Determiner | None:
    """Return the possessive that refers to a subject; None if its gender is ambiguous (child, animal)."""
    if isinstance(subject, Pronoun):
        return words.POSSESSIVES.get(subject.english)
    if subject.plural:
        return words.POSSESSIVES["they"]
    if "male" in subject.noun.kinds:
        return words.POSSESSIVES["he"]
    return words.POSSESSIVES["she"] if "female" in subject.noun.kinds else None


def _other_pronouns(subject: Phrase) -> tuple[str, ...]:
    """Return the pronouns that cannot refer to the subject."""
    if isinstance(subject, Pronoun):
        if subject.english in ("I", "we"):
            return ("you", "he", "she", "they")
        if subject.english == "you":
            return ("I", "he", "she", "we", "they")
        return tuple(pronoun for pronoun in _SUBJECTS if pronoun != subject.english)
    return _SUBJECTS
