"""Sentence structures of the demo grammar."""

from __future__ import annotations

from dataclasses import replace

from gnmt.data.demo_grammar import words
from gnmt.data.demo_grammar.clauses import Adverbial, Clause, NounPhrase, Phrase, Pronoun, RelativeClause, Role, Tense
from gnmt.data.demo_grammar.sampling import Sampler, fitting_adjectives, reference_to
from gnmt.data.demo_grammar.verbs import (
    BE,
    BELIEVE,
    HAVE,
    HOPE,
    KNOW,
    MODALS,
    RAIN,
    SAY,
    SNOW,
    STAY,
    VERBS,
    verbs_named,
)
from gnmt.data.demo_grammar.words import Adjective

Sentence = tuple[str, str] | None

COMMANDS = tuple(verb for verb in VERBS if verb.calls)
EVENTS = tuple(verb for verb in VERBS if not verb.state)
_SETTLED = (words.THE, words.THIS, words.THESE, *words.POSSESSIVES.values())


def statement(clause: Clause) -> Sentence:
    return f"{clause.say_english()} .", f"{clause.say_german('second')} ."


def definite(phrase: Phrase | None) -> bool:
    """Whether a phrase names what is known, so that `nicht` may stand behind it."""
    return phrase is None or isinstance(phrase, Pronoun) or phrase.determiner in _SETTLED


def can_negate(clause: Clause) -> bool:
    direct = clause.direct
    if not definite(clause.subject) or not (definite(direct) or (direct is not None and direct.negatable)):
        return False
    return clause.place is None or definite(clause.place.phrase)


def present(s: Sampler) -> Sentence:
    clause = s.clause("present")
    if not clause.verb.state and s.chance(0.35):
        clause = replace(clause, time=s.adverbial(words.PRESENT_TIMES), time_first=s.chance(0.5))
    return statement(clause)


def habit(s: Sampler) -> Sentence:
    """Every day, often: the English simple present."""
    clause = s.clause("habit", verbs=REPEATED)
    if not definite(clause.subject):
        return None
    if s.chance(0.5):
        return statement(replace(clause, habitual=True, time=s.adverbial(words.FREQUENCIES, frequency=True)))
    return statement(replace(clause, habitual=True, time=s.adverbial(words.HABITS), time_first=s.chance(0.5)))


_ONCE = verbs_named("build, steal, tear up, translate, hide, look for, throw away, cry")
REPEATED = tuple(verb for verb in EVENTS if verb not in _ONCE)


def past(s: Sampler) -> Sentence:
    clause = s.clause("past", "past")
    if clause.verb.state or s.chance(0.3):
        return statement(clause)
    if s.chance(0.25):
        return statement(replace(clause, time=s.occasion(), time_first=s.chance(0.6)))
    return statement(replace(clause, time=s.adverbial(words.PAST_TIMES), time_first=s.chance(0.55)))


def perfect(s: Sampler) -> Sentence:
    clause = s.clause("perfect", "perfect", verbs=EVENTS, complement=False)
    if not definite(clause.subject) or not definite(clause.direct) or s.chance(0.3):
        return statement(clause)
    return statement(replace(clause, aspect=s.pick(("already", "just", "yet"))))


def future(s: Sampler) -> Sentence:
    clause = s.clause("future", "future", verbs=EVENTS)
    if s.chance(0.7):
        time = s.adverbial(words.FUTURE_TIMES) if s.chance(0.8) else s.occasion()
        if time.english.startswith(("because", "despite")):
            return None
        clause = replace(clause, time=time, time_first=s.chance(0.6))
    return statement(clause)


def modal(s: Sampler) -> Sentence:
    return statement(s.clause("modal", modal=s.modal()))


def fronted_place(s: Sampler) -> Sentence:
    """In the garden the child is playing: inversion after a place."""
    clause = s.clause("fronted_place", s.pick(("present", "past")), verbs=_LOCATED, subject=None)
    if clause.place is None or clause.place.preposition.english in ("with", "without"):
        return None
    return statement(replace(clause, place_first=True))


_LOCATED = tuple(verb for verb in VERBS if set(verb.complement) & {"scene", "work", "shore"})


def negation(s: Sampler) -> Sentence:
    tense: Tense = s.pick(("present", "present", "past", "future"))
    chosen = s.modal(negated=True) if s.chance(0.3) else None
    if chosen is not None:
        tense = "present"
    clause = s.clause("negation", tense, modal=chosen, complement=False)
    return statement(replace(clause, negated=True)) if can_negate(clause) else None


def _asked(clause: Clause) -> Clause:
    """German asks about the past in the perfect, where the verb is not sein, haben or a modal."""
    if clause.tense != "past" or clause.verb in (BE, HAVE):
        return clause
    return replace(clause, tense="perfect")


def yes_no(s: Sampler) -> Sentence:
    tense: Tense = s.pick(("present", "present", "past", "future"))
    clause = s.clause("yes_no", tense, complement=tense != "past")
    if s.chance(0.3):
        chosen = s.modal(past=False)
        if clause.verb.state or clause.verb.mishap or chosen.english.startswith("would") or chosen.english == "must":
            return None
        clause = replace(clause, tense="present", modal=chosen)
    if isinstance(clause.subject, NounPhrase) and not definite(clause.subject):
        return None
    return f"{clause.ask_english()} ?", f"{_asked(clause).say_german('first')} ?"


def who(s: Sampler) -> Sentence:
    """Who is asking: the subject is missing."""
    clause = s.clause("who", s.pick(("present", "past", "future")), subject=Pronoun("he"))
    clause = replace(clause, missing="subject")
    return f"who {clause.say_english()} ?", f"wer {_asked(clause).say_german('first')} ?"


def whom_or_what(s: Sampler) -> Sentence:
    """The direct or dative object is missing: who ... wen or wem, what ... was."""
    clause = s.clause("whom_or_what", s.pick(("present", "past", "future")), verbs=_WITH_OBJECT, complement=False)
    if not definite(clause.subject):
        return None
    missed = clause.direct if clause.direct is not None else clause.indirect
    if isinstance(missed, NounPhrase) and not missed.noun.is_any(("person",)):
        if clause.verb.state and clause.verb.lemma != "need":
            return None
        clause = replace(clause, missing="direct")
        return f"what {clause.ask_english()} ?", f"was {_asked(clause).say_german('first')} ?"
    dative = clause.direct is None
    clause = replace(clause, missing="indirect" if dative else "direct")
    question_word = "wem" if dative else "wen"
    return f"who {clause.ask_english()} ?", f"{question_word} {_asked(clause).say_german('first')} ?"


_WITH_OBJECT = tuple(verb for verb in VERBS if verb.direct or (verb.indirect and "person" in verb.subject))


def where(s: Sampler) -> Sentence:
    """Where: wo for a place, wohin for a direction."""
    clause = s.clause("where", s.pick(("present", "past")), verbs=_PLACED, complement=False)
    if not definite(clause.subject):
        return None
    clause = replace(clause, place=None)
    word = "wohin" if clause.verb in _GOING else "wo"
    return f"where {clause.ask_english()} ?", f"{word} {_asked(clause).say_german('first')} ?"


_GOING = verbs_named("walk, drive, run")
_PLACED = (*_LOCATED, *_GOING, *verbs_named("live, stand, lie, sit, wait"))


def when_or_why(s: Sampler) -> Sentence:
    word, german_word = s.pick((("when", "wann"), ("why", "warum")))
    tense: Tense = s.pick(("past", "future")) if word == "when" else s.pick(("past", "present"))
    clause = s.clause("when_or_why", tense, verbs=EVENTS, complement=False)
    if not definite(clause.subject):
        return None
    return f"{word} {clause.ask_english()} ?", f"{german_word} {_asked(clause).say_german('first')} ?"


def which_or_how_many(s: Sampler) -> Sentence:
    """Which book, how many books: a question word inside the object."""
    clause = s.clause("which_or_how_many", s.pick(("present", "past")), verbs=_WITH_OBJECT, complement=False)
    direct = clause.direct
    if not isinstance(direct, NounPhrase) or not direct.noun.countable or not definite(clause.subject):
        return None
    if direct.noun.is_any(("person",)) or clause.verb.state:
        return None
    clause = replace(clause, missing="direct")
    if s.chance(0.5):
        head = replace(direct, determiner=words.WHICH, owner=None)
    else:
        head = NounPhrase(words.BARE, direct.noun, True, direct.adjective)
        many = ("how many ", "wie viele ")
        english, german = many[0] + head.say_english(False), many[1] + head.say_german("acc")
        return f"{english} {clause.ask_english()} ?", f"{german} {_asked(clause).say_german('first')} ?"
    return (
        f"{head.say_english(False)} {clause.ask_english()} ?",
        f"{head.say_german('acc')} {_asked(clause).say_german('first')} ?",
    )


def command(s: Sampler) -> Sentence:
    clause = s.clause("command", verbs=COMMANDS, subject=Pronoun("you"))
    negated = s.chance(0.25)
    if negated:
        if not can_negate(clause) or not definite(clause.direct):
            return None
        clause = replace(clause, negated=True)
    do_not = "do not " if negated else ""
    if s.chance(0.5):
        return f"please {do_not}{clause.command_english()} .", f"bitte {clause.command_german()} ."
    return f"{do_not}{clause.command_english()} !", f"{clause.command_german()} !"


def description(s: Sampler) -> Sentence:
    """The boy's dog is small."""
    tense: Tense = s.pick(("present", "present", "past"))
    subject = s.subject(("person", "animal", "ware", "place", "vehicle", "food", "text", "opening"), described=False)
    if isinstance(subject, NounPhrase):
        if not definite(subject):
            return None
        subject, adjective = _owned(s, subject), s.pick(fitting_adjectives(subject.noun))
        s.combinations.append(("adjective", adjective.english, subject.noun.english))
    else:
        adjective = s.pick(personal_adjectives())
    s.combinations.append(("structure", "description", adjective.english))
    clause = Clause(subject, BE, tense, predicate=adjective, negated=s.chance(0.2))
    if not clause.negated and adjective.english in words.MOODS and s.chance(0.4):
        clause = replace(clause, time=s.adverbial(words.FREQUENCIES, frequency=True))
    if s.chance(0.2) and clause.time is None and not clause.negated:
        return f"{clause.ask_english()} ?", f"{clause.say_german('first')} ?"
    return statement(clause)


def _owned(s: Sampler, subject: NounPhrase) -> NounPhrase:
    ownable = subject.noun.is_any(("pet", "ware", "vehicle", "text", "family"))
    if subject.determiner is words.THE and ownable and s.chance(0.4):
        return replace(subject, owner=NounPhrase(words.THE, s.noun(("male", "female"))))
    return subject


def personal_adjectives() -> tuple[Adjective, ...]:
    return tuple(adjective for adjective in words.ADJECTIVES if "person" in adjective.kinds)


def possession(s: Sampler) -> Sentence:
    """Has a car, had no car, does not have a car."""
    subject = s.subject(("person",))
    noun = s.noun(HAVE.direct, countable=True)
    s.combinations += [("object", "have", noun.english), ("structure", "possession", noun.english)]
    form = s.pick(("a", "a", "no", "many", "number", "not"))
    plural = form in ("many", "number")
    determiner = {"a": words.A, "not": words.A, "no": words.NO, "many": words.MANY}.get(form) or s.pick(words.NUMBERS)
    adjective = s.pick(fitting_adjectives(noun)) if s.chance(0.5) else None
    if adjective is not None:
        s.combinations.append(("adjective", adjective.english, noun.english))
    if form in ("no", "not") and not definite(subject):
        return None
    thing = NounPhrase(determiner, noun, plural, adjective)
    return statement(Clause(subject, HAVE, s.pick(("present", "past")), direct=thing, negated=form == "not"))


def errand(s: Sampler) -> Sentence:
    """Buy an apple and eat it: the pronoun agrees with the noun's gender in German."""
    subject = s.someone()
    first = s.clause("errand", "past", verbs=_GETTING, subject=subject, complement=False)
    thing = first.direct
    if not isinstance(thing, NounPhrase) or thing.plural:
        return None
    second_verbs = [verb for verb in _USING if thing.noun.is_any(verb.direct)]
    if not second_verbs:
        return None
    verb = s.pick(second_verbs)
    s.combinations.append(("object", verb.lemma, thing.noun.english))
    pronoun = Pronoun("it", thing.noun)
    second = Clause(subject, verb, "past", direct=pronoun, missing="subject")
    finite = verb.german.preterite(3, subject.plural)
    german = f"{finite} {pronoun.say_german('acc')} {verb.german.prefix}".strip()
    return f"{first.say_english()} and {second.say_english()} .", f"{first.say_german('second')} und {german} ."


_GETTING = verbs_named("buy, find, order, steal, bring along, write")
_USING = verbs_named("eat, drink, read, wash, sell, use, hide, lose, repair, put on, try, tear up")


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
