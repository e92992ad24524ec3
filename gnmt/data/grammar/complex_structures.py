"""Sentences of two clauses: subordinate and relative clauses, infinitives of purpose, coordination.

German puts the finite verb of these second clauses last; where such a clause comes first, the main clause begins
with its verb. See structures.py for what a structure is.
"""

from __future__ import annotations

from dataclasses import replace

from gnmt.data.grammar import words
from gnmt.data.grammar.clauses import Adverbial, Clause, Tense
from gnmt.data.grammar.phrases import NounPhrase, Phrase, Pronoun
from gnmt.data.grammar.sampling import Sampler, fitting_adjectives, reference_to
from gnmt.data.grammar.structures import EVENTS, REPEATED, Sentence, can_negate, definite
from gnmt.data.grammar.verbs import BE, BELIEVE, HOPE, KNOW, MODALS, RAIN, SAY, SNOW, STAY, VERBS, verbs_named

_IT = Pronoun("it")
# What one goes out for, what one gets up for.
_AIMS_OUTSIDE = verbs_named("buy, sell, look for, visit, meet, photograph, invite, pick up, help, thank, congratulate")
_AIMS = verbs_named("call, look for, feed, wake up, open, close, turn on, turn off, clean, repair, paint, wash, help")
_DUTIES = (*_AIMS_OUTSIDE, *_AIMS)


def _linked(main: Clause, conjunction: tuple[str, str], second: Clause, second_first: bool) -> Sentence:
    """Two clauses with the subordinate one last or first; English has a comma only in the latter case."""
    english, german = conjunction
    if second_first:
        return (
            f"{english} {second.say_english()} , {main.say_english()} .",
            f"{german} {second.say_german('last')} , {main.say_german('first')} .",
        )
    return (
        f"{main.say_english()} {english} {second.say_english()} .",
        f"{main.say_german('second')} , {german} {second.say_german('last')} .",
    )


def _named(s: Sampler) -> Phrase:
    """A person whom a pronoun can take up again, or a pronoun."""
    return Pronoun(s.pick(("I", "he", "she", "we", "they"))) if s.chance(0.3) else s.someone(described=False)


def _mood(s: Sampler, subject: Phrase, tense: Tense) -> Clause:
    """He is tired."""
    adjective = s.pick(tuple(a for a in words.ADJECTIVES if a.english in words.MOODS))
    return Clause(subject, BE, tense, predicate=adjective)


def _effect(s: Sampler, mood: Clause, structure: str, tense: Tense, subject: Phrase, willingly: bool) -> Clause:
    """What one does because of a mood, or (not `willingly`) in spite of it."""
    assert mood.predicate is not None
    doings = _MOOD_VERBS[mood.predicate.english]
    if willingly and "stay" in doings and s.chance(0.3):
        return _staying(subject, tense)
    verbs = [verb for verb in EVENTS if (verb.lemma in doings) == willingly]
    return s.clause(structure, tense, verbs=verbs, subject=subject, complement=False)


_MOOD_VERBS = {
    "tired": ("sleep", "stay", "fall asleep", "drink", "come back", "turn off"),
    "happy": ("laugh", "dance", "sing", "play", "thank", "invite", "greet"),
    "sad": ("cry", "stay", "call", "visit", "write", "drink"),
    "sick": ("sleep", "stay", "drink", "call", "fall asleep"),
    "hungry": ("eat", "order", "cook", "bake", "cut", "buy"),
    "nervous": ("stay", "call", "cry", "drink"),
}


def _staying(subject: Phrase, tense: Tense) -> Clause:
    return Clause(subject, STAY, tense, ending=Adverbial("at home", "zu Hause"))


def _weather(s: Sampler, tense: Tense) -> Clause:
    return Clause(_IT, s.pick((RAIN, SNOW)), tense)


def reason(s: Sampler) -> Sentence:
    """Because and although, about the same person or the weather."""
    conjunction = s.pick((("because", "weil"), ("although", "obwohl")))
    tense: Tense = s.pick(("present", "past"))
    subject = _named(s)
    roll = s.chance(0.5)
    if roll:
        second = _mood(s, reference_to(subject), tense)
        if conjunction[0] == "although" and second.predicate is not None and second.predicate.english == "happy":
            return None
        main = _effect(s, second, "reason", tense, subject, willingly=conjunction[0] == "because")
    elif s.chance(0.3):
        second = _weather(s, tense)
        main = _staying(subject, tense)
    else:
        modal = s.pick(tuple(m for m in MODALS if m.english in _PRESSING and m.past == (tense == "past")))
        second = s.clause("reason", verbs=_DUTIES, subject=reference_to(subject), modal=modal, complement=False)
        main = s.clause("reason", tense, verbs=_PREPARING, subject=subject, complement=False)
    return _linked(main, conjunction, second, second_first=s.chance(0.3))


# Wishes and duties give reasons for getting up or driving somewhere.
_PRESSING = ("must", "want to", "would like to", "had to", "wanted to")
_PREPARING = verbs_named("get up, come back, wait, call, drive, walk, wake up")


def reason_of_thing(s: Sampler) -> Sentence:
    """Does not buy the car because it is expensive: the pronoun takes the noun's German gender."""
    tense: Tense = s.pick(("present", "past"))
    main = s.clause("reason_of_thing", tense, verbs=_HANDLING, subject=_named(s), complement=False)
    thing = main.direct
    if not isinstance(thing, NounPhrase) or thing.adjective is not None or not definite(thing):
        return None
    negated = s.chance(0.4)
    reasons = _HANDLED_BECAUSE[main.verb.lemma][1 if negated else 0].split()
    fitting = [adjective for adjective in fitting_adjectives(thing.noun) if adjective.english in reasons]
    if not fitting or (negated and not can_negate(main)):
        return None
    adjective = s.pick(fitting)
    s.combinations.append(("adjective", adjective.english, thing.noun.english))
    second = Clause(reference_to(thing), BE, tense, predicate=adjective)
    return _linked(replace(main, negated=negated), ("because", "weil"), second, second_first=False)


# What speaks for doing something with a thing, and what against it.
_HANDLED_BECAUSE = {
    "buy": ("cheap beautiful interesting fresh delicious modern funny", "expensive broken old boring dirty"),
    "sell": ("old broken heavy boring small", "beautiful new interesting"),
    "eat": ("delicious fresh warm sweet", "cold old big"),
    "drink": ("delicious fresh cold warm sweet", "cold warm expensive"),
    "read": ("interesting funny short", "boring long"),
    "order": ("delicious fresh cheap sweet", "expensive cold sweet"),
    "wash": ("dirty", "clean new expensive"),
    "dry": ("expensive beautiful", "dirty"),
    "use": ("modern new light", "old broken heavy expensive dirty"),
    "repair": ("broken old", "old new cheap"),
    "clean": ("dirty", "clean"),
    "try on": ("beautiful modern light cheap", "dirty short long expensive"),
    "put on": ("warm beautiful light", "dirty short long heavy"),
    "look for": ("expensive beautiful new", "old cheap broken"),
    "carry": ("heavy beautiful", "heavy dirty"),
    "throw away": ("broken old dirty", "beautiful new expensive fresh"),
}
_HANDLING = tuple(verb for verb in VERBS if verb.lemma in _HANDLED_BECAUSE)


def condition(s: Sampler) -> Sentence:
    """When it rains, if he is tired."""
    conjunction = s.pick((("when", "wenn"), ("if", "wenn")))
    subject = _named(s)
    tense: Tense = "future" if conjunction[0] == "if" else "present"
    if s.chance(0.6):
        second = _mood(s, reference_to(subject), "present")
        main = _effect(s, second, "condition", tense, subject, willingly=True)
    else:
        second = replace(_weather(s, "present"), habitual=True)
        main = s.clause("condition", tense, verbs=REPEATED, subject=subject, complement=False)
        if s.chance(0.3):
            main = _staying(subject, tense)
    main = replace(main, habitual=True)
    return _linked(main, conjunction, second, second_first=s.chance(0.5))


def when_past(s: Sampler) -> Sentence:
    """When he was young: `when` of a single past is als."""
    subject = _named(s)
    adjective = s.pick(tuple(a for a in words.ADJECTIVES if a.english in ("young", "poor", "rich", "sick")))
    main = s.clause("when_past", "past", verbs=_LASTING, subject=subject, complement=False)
    second = Clause(reference_to(subject), BE, "past", predicate=adjective)
    return _linked(main, ("when", "als"), second, second_first=s.chance(0.5))


# What one does for a part of one's life.
_LASTING = verbs_named("live, work, travel, read, write, draw, know, love, need, help, visit, sell")


def meanwhile(s: Sampler) -> Sentence:
    """While one person does one thing, another does another."""
    someone = Pronoun(s.pick(("I", "we"))) if s.chance(0.3) else s.someone(described=False)
    first = s.clause("meanwhile", verbs=EVENTS, subject=someone, complement=False)
    second = s.clause("meanwhile", verbs=EVENTS, subject=s.someone(described=False), complement=False)
    return _linked(first, ("while", "während"), second, second_first=s.chance(0.4))


def sequence(s: Sampler) -> Sentence:
    """Before and after; what comes after is in the past perfect."""
    subject = _named(s)
    main = s.clause("sequence", "past", verbs=EVENTS, subject=subject, complement=False)
    before = s.chance(0.5)
    second = s.clause(
        "sequence",
        "past" if before else "pluperfect",
        verbs=EVENTS,
        subject=reference_to(subject),
        complement=False,
    )
    return _linked(main, ("before", "bevor") if before else ("after", "nachdem"), second, second_first=s.chance(0.4))


def that_clause(s: Sampler) -> Sentence:
    """Knows, believes, hopes, said that ..."""
    tense: Tense = s.pick(("present", "present", "past"))
    subject = _named(s)
    main = Clause(subject, s.pick((KNOW, BELIEVE, HOPE) if tense == "present" else (KNOW, SAY)), tense)
    content_tense: Tense = s.pick(("present", "perfect", "future")) if tense == "present" else "pluperfect"
    content = s.clause("that_clause", content_tense, verbs=EVENTS, subject=_other(s, subject), complement=False)
    return _linked(main, ("that", "dass"), content, second_first=False)


def _other(s: Sampler, subject: Phrase) -> Phrase:
    """Somebody else, of whom the first one can know something."""
    same = reference_to(subject).english
    return s.subject(("person",), tuple(p for p in ("I", "he", "she", "we", "they") if p != same), described=False)


def whether(s: Sampler) -> Sentence:
    """Does not know whether, knows why: indirect questions."""
    subject = _named(s)
    content = s.clause(
        "whether", s.pick(("present", "perfect", "future")), verbs=EVENTS, subject=_other(s, subject), complement=False
    )
    if not definite(content.subject):
        return None
    word = s.pick((("whether", "ob"), ("whether", "ob"), ("why", "warum"), ("when", "wann")))
    if word[0] == "when":
        content = replace(content, tense="future")
    negated = word[0] == "whether" or s.chance(0.5)
    return _linked(Clause(subject, KNOW, negated=negated), word, content, second_first=False)


def purpose(s: Sampler) -> Sentence:
    """Drives to the station to pick up a guest: um ... zu."""
    subject = _named(s)
    moving, aims = s.pick(((_LEAVING, _AIMS_OUTSIDE), (_COMING, _AIMS)))
    main = s.clause("purpose", s.pick(("present", "past", "future")), verbs=moving, subject=subject)
    aim = s.clause("purpose", verbs=aims, subject=subject, complement=False)
    return (
        f"{main.say_english()} {aim.english_infinitive()} .",
        f"{main.say_german('second')} , um {aim.german_infinitive()} .",
    )


_LEAVING = verbs_named("walk, drive")
_COMING = verbs_named("get up, come back")


def hope_to(s: Sampler) -> Sentence:
    subject = s.subject(("person",), ("I", "you", "he", "she", "we", "they"), described=False)
    aim = s.clause("hope_to", verbs=_DOING, subject=subject, complement=False)
    return (
        f"{Clause(subject, HOPE).say_english()} {aim.english_infinitive()} .",
        f"{Clause(subject, HOPE).say_german('second')} , {aim.german_infinitive()} .",
    )


_DOING = tuple(
    verb for verb in EVENTS if (verb.direct or verb.indirect) and verb.lemma not in ("look for", "follow", "carry")
)


def contrast(s: Sampler) -> Sentence:
    """One does this, but another does that."""
    tense: Tense = s.pick(("present", "past", "future"))
    first = s.clause("contrast", tense, verbs=EVENTS, subject=s.someone(described=False), complement=False)
    comparable = [v for v in EVENTS if v.direct == first.verb.direct or set(v.direct) & set(first.verb.direct)]
    second = s.clause("contrast", tense, verbs=comparable, subject=s.someone(described=False), complement=False)
    return (
        f"{first.say_english()} , but {second.say_english()} .",
        f"{first.say_german('second')} , aber {second.say_german('second')} .",
    )
