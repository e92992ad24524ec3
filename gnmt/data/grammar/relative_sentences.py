"""Sentences with a relative clause, whose pronoun agrees with its head and has the case of its own role."""

from __future__ import annotations

from dataclasses import replace

from gnmt.data.grammar import words
from gnmt.data.grammar.clauses import Clause, RelativeClause, Role, Tense
from gnmt.data.grammar.phrases import NounPhrase, Phrase, Pronoun
from gnmt.data.grammar.sampling import Sampler, fitting_adjectives
from gnmt.data.grammar.structures import EVENTS, Sentence, personal_adjectives
from gnmt.data.grammar.verbs import BE, VERBS


def relative(s: Sampler) -> Sentence:
    """A described subject: the woman who is reading is tired."""
    roles: tuple[Role, ...] = ("subject", "subject", "direct", "indirect", "place")
    role = s.pick(roles)
    if role == "place":
        verbs = tuple(verb for verb in VERBS if verb.complement in (("home",), ("work",)))
    elif role == "subject":
        verbs = EVENTS
    else:
        verbs = tuple(
            v for v in EVENTS if (v.direct and not v.indirect if role == "direct" else v.indirect and not v.direct)
        )
    inner_tense: Tense = s.pick(("present", "past"))
    subject = s.someone(described=False)
    inner = s.clause(f"relative_{role}", inner_tense, verbs=verbs, subject=subject, complement=False)
    if role == "subject":
        head: Phrase | None = subject
    elif role == "place":
        head = inner.place.phrase if inner.place is not None else None
    else:
        head = inner.direct if role == "direct" else inner.indirect
    if not isinstance(head, NounPhrase) or head.owner is not None or head.adjective is not None:
        return None
    if role != "subject" and s.chance(0.4):
        inner = replace(inner, subject=Pronoun(s.pick(("I", "he", "she", "we", "they"))))
    head = replace(head, determiner=words.THE)
    described = replace(head, relative=RelativeClause(replace(inner, missing=role)))
    if role == "subject" and s.chance(0.4):
        knower = s.someone(described=False)
        verb = s.pick(tuple(v for v in VERBS if v.lemma in ("know", "see", "meet", "greet")))
        tense: Tense = "present" if verb.state else "past"
        s.combinations.append(("object", verb.lemma, head.noun.english))
        main = Clause(knower, verb, tense, direct=described)
    else:
        person = head.noun.is_any(("person",))
        fitting = personal_adjectives() if person else fitting_adjectives(head.noun)
        if not fitting:
            return None
        adjective = s.pick(fitting)
        s.combinations.append(("adjective", adjective.english, head.noun.english))
        main = Clause(described, BE, s.pick(("present", inner_tense)), predicate=adjective)
    return f"{main.say_english()} .", f"{main.say_german('second')} ."
