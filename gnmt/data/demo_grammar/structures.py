"""Sentence structures: each function draws one English-German sentence of its structure.

Main clauses come first (statements, negation, questions, commands, possession), then sentences with subordinate
clauses (reasons, conditions, time, indirect speech, purpose) and relative clauses. A function returns None if the drawn
words do not make a good sentence; the caller then begins another one.
"""

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

Sentence = tuple[str, str] | None  # English and German

# Classes of verbs: with an imperative, actions, repeatable actions, with a place, with an object.
COMMANDS = tuple(verb for verb in VERBS if verb.has_imperative)
EVENTS = tuple(verb for verb in VERBS if not verb.stative)
_ONCE = verbs_named("build, steal, tear up, translate, hide, look for, throw away, cry")
REPEATED = tuple(verb for verb in EVENTS if verb not in _ONCE)
_LOCATED = tuple(verb for verb in VERBS if set(verb.complement) & {"scene", "work", "shore"})
_WITH_OBJECT = tuple(verb for verb in VERBS if verb.direct or (verb.indirect and "person" in verb.subject))
_GOING = verbs_named("walk, drive, run")
_PLACED = (*_LOCATED, *_GOING, *verbs_named("live, stand, lie, sit, wait"))

# An errand: get a thing, then use it.
_GETTING = verbs_named("buy, find, order, steal, bring along, write")
_USING = verbs_named("eat, drink, read, wash, sell, use, hide, lose, repair, put on, try, tear up")

# Aims of leaving the house, and aims of getting up.
_AIMS_OUTSIDE = verbs_named("buy, sell, look for, visit, meet, photograph, invite, pick up, help, thank, congratulate")
_AIMS = verbs_named("call, look for, feed, wake up, open, close, turn on, turn off, clean, repair, paint, wash, help")
_DUTIES = (*_AIMS_OUTSIDE, *_AIMS)
# Actions that follow from a mood.
_MOOD_VERBS = {
    "tired": ("sleep", "stay", "fall asleep", "drink", "come back", "turn off"),
    "happy": ("laugh", "dance", "sing", "play", "thank", "invite", "greet"),
    "sad": ("cry", "stay", "call", "visit", "write", "drink"),
    "sick": ("sleep", "stay", "drink", "call", "fall asleep"),
    "hungry": ("eat", "order", "cook", "bake", "cut", "buy"),
    "nervous": ("stay", "call", "cry", "drink"),
}
# Modal verbs of wishes and duties, and actions that prepare for them.
_PRESSING = ("must", "want to", "would like to", "had to", "wanted to")
_PREPARING = verbs_named("get up, come back, wait, call, drive, walk, wake up")
# By verb: adjectives of a thing that are reasons for the action, and reasons against it.
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
# Actions that last for a part of a life.
_LASTING = verbs_named("live, work, travel, read, write, draw, know, love, need, help, visit, sell")
# Movements that serve an aim outside or at home.
_LEAVING = verbs_named("walk, drive")
_COMING = verbs_named("get up, come back")
# Actions that a person can hope to do.
_DOING = tuple(
    verb for verb in EVENTS if (verb.direct or verb.indirect) and verb.lemma not in ("look for", "follow", "carry")
)

_DEFINITE_DETERMINERS = (words.THE, words.THIS, words.THESE, *words.POSSESSIVES.values())


def statement(clause: Clause) -> Sentence:
    """Return a clause as a statement."""
    return f"{clause.to_english()} .", f"{clause.to_german('second')} ."


def definite(phrase: Phrase | None) -> bool:
    """Return True if a phrase is definite (or absent), so that `nicht` can follow it."""
    return phrase is None or isinstance(phrase, Pronoun) or phrase.determiner in _DEFINITE_DETERMINERS


def can_negate(clause: Clause) -> bool:
    """Return True if the clause can be negated with `nicht` or `kein`."""
    direct = clause.direct
    if not definite(clause.subject) or not (definite(direct) or (direct is not None and direct.negatable)):
        return False
    return clause.place is None or definite(clause.place.phrase)


def present(s: Sampler) -> Sentence:
    """Draw a statement in the present."""
    clause = s.clause("present")
    if not clause.verb.stative and s.chance(0.35):
        clause = replace(clause, time=s.adverbial(words.PRESENT_TIMES), time_first=s.chance(0.5))
    return statement(clause)


def habit(s: Sampler) -> Sentence:
    """Draw a habit (every day, often), in the English simple present."""
    clause = s.clause("habit", verbs=REPEATED)
    if not definite(clause.subject):
        return None
    if s.chance(0.5):
        return statement(replace(clause, habitual=True, time=s.adverbial(words.FREQUENCIES, frequency=True)))
    return statement(replace(clause, habitual=True, time=s.adverbial(words.HABITS), time_first=s.chance(0.5)))


def past(s: Sampler) -> Sentence:
    """Draw a statement in the simple past."""
    clause = s.clause("past", "past")
    if clause.verb.stative or s.chance(0.3):
        return statement(clause)
    if s.chance(0.25):
        return statement(replace(clause, time=s.occasion(), time_first=s.chance(0.6)))
    return statement(replace(clause, time=s.adverbial(words.PAST_TIMES), time_first=s.chance(0.55)))


def perfect(s: Sampler) -> Sentence:
    """Draw a statement in the perfect, with already, just or not yet."""
    clause = s.clause("perfect", "perfect", verbs=EVENTS, complement=False)
    if not definite(clause.subject) or not definite(clause.direct) or s.chance(0.3):
        return statement(clause)
    return statement(replace(clause, aspect=s.pick(("already", "just", "yet"))))


def future(s: Sampler) -> Sentence:
    """Draw a statement in the future."""
    clause = s.clause("future", "future", verbs=EVENTS)
    if s.chance(0.7):
        time = s.adverbial(words.FUTURE_TIMES) if s.chance(0.8) else s.occasion()
        if time.english.startswith(("because", "despite")):
            return None
        clause = replace(clause, time=time, time_first=s.chance(0.6))
    return statement(clause)


def modal(s: Sampler) -> Sentence:
    """Draw a statement with a modal verb."""
    return statement(s.clause("modal", modal=s.modal()))


def fronted_place(s: Sampler) -> Sentence:
    """Draw a statement that begins with a place: in the garden the child is playing."""
    clause = s.clause("fronted_place", s.pick(("present", "past")), verbs=_LOCATED, subject=None)
    if clause.place is None or clause.place.preposition.english in ("with", "without"):
        return None
    return statement(replace(clause, place_first=True))


def negation(s: Sampler) -> Sentence:
    """Draw a negated statement."""
    tense: Tense = s.pick(("present", "present", "past", "future"))
    chosen = s.modal(negated=True) if s.chance(0.3) else None
    if chosen is not None:
        tense = "present"
    clause = s.clause("negation", tense, modal=chosen, complement=False)
    return statement(replace(clause, negated=True)) if can_negate(clause) else None


def _in_question_tense(clause: Clause) -> Clause:
    """Replace the past by the perfect, as German questions do, except with sein, haben and modal verbs."""
    if clause.tense != "past" or clause.verb in (BE, HAVE):
        return clause
    return replace(clause, tense="perfect")


def yes_no(s: Sampler) -> Sentence:
    """Draw a yes-no question."""
    tense: Tense = s.pick(("present", "present", "past", "future"))
    clause = s.clause("yes_no", tense, complement=tense != "past")
    if s.chance(0.3):
        chosen = s.modal(past=False)
        if (
            clause.verb.stative
            or clause.verb.unwanted
            or chosen.english.startswith("would")
            or chosen.english == "must"
        ):
            return None
        clause = replace(clause, tense="present", modal=chosen)
    if isinstance(clause.subject, NounPhrase) and not definite(clause.subject):
        return None
    return f"{clause.english_question()} ?", f"{_in_question_tense(clause).to_german('first')} ?"


def who(s: Sampler) -> Sentence:
    """Draw a question for the subject: who ... (wer)."""
    clause = s.clause("who", s.pick(("present", "past", "future")), subject=Pronoun("he"))
    clause = replace(clause, missing="subject")
    return f"who {clause.to_english()} ?", f"wer {_in_question_tense(clause).to_german('first')} ?"


def whom_or_what(s: Sampler) -> Sentence:
    """Draw a question for the direct or dative object: who ... (wen, wem), what ... (was)."""
    clause = s.clause("whom_or_what", s.pick(("present", "past", "future")), verbs=_WITH_OBJECT, complement=False)
    if not definite(clause.subject):
        return None
    missing = clause.direct if clause.direct is not None else clause.indirect
    if isinstance(missing, NounPhrase) and not missing.noun.is_any(("person",)):
        if clause.verb.stative and clause.verb.lemma != "need":
            return None
        clause = replace(clause, missing="direct")
        return f"what {clause.english_question()} ?", f"was {_in_question_tense(clause).to_german('first')} ?"
    dative = clause.direct is None
    clause = replace(clause, missing="indirect" if dative else "direct")
    question_word = "wem" if dative else "wen"
    return f"who {clause.english_question()} ?", f"{question_word} {_in_question_tense(clause).to_german('first')} ?"


def where(s: Sampler) -> Sentence:
    """Draw a question for a place (wo) or a direction (wohin)."""
    clause = s.clause("where", s.pick(("present", "past")), verbs=_PLACED, complement=False)
    if not definite(clause.subject):
        return None
    clause = replace(clause, place=None)
    word = "wohin" if clause.verb in _GOING else "wo"
    return f"where {clause.english_question()} ?", f"{word} {_in_question_tense(clause).to_german('first')} ?"


def when_or_why(s: Sampler) -> Sentence:
    """Draw a question for a time or a reason."""
    word, german_word = s.pick((("when", "wann"), ("why", "warum")))
    tense: Tense = s.pick(("past", "future")) if word == "when" else s.pick(("past", "present"))
    clause = s.clause("when_or_why", tense, verbs=EVENTS, complement=False)
    if not definite(clause.subject):
        return None
    return f"{word} {clause.english_question()} ?", f"{german_word} {_in_question_tense(clause).to_german('first')} ?"


def which_or_how_many(s: Sampler) -> Sentence:
    """Draw a question with a question word in the object: which book, how many books."""
    clause = s.clause("which_or_how_many", s.pick(("present", "past")), verbs=_WITH_OBJECT, complement=False)
    direct = clause.direct
    if not isinstance(direct, NounPhrase) or not direct.noun.countable or not definite(clause.subject):
        return None
    if direct.noun.is_any(("person",)) or clause.verb.stative:
        return None
    clause = replace(clause, missing="direct")
    if s.chance(0.5):
        head = replace(direct, determiner=words.WHICH, owner=None)
    else:
        head = NounPhrase(words.BARE, direct.noun, True, direct.adjective)
        many = ("how many ", "wie viele ")
        english, german = many[0] + head.to_english(False), many[1] + head.to_german("acc")
        return f"{english} {clause.english_question()} ?", f"{german} {_in_question_tense(clause).to_german('first')} ?"
    return (
        f"{head.to_english(False)} {clause.english_question()} ?",
        f"{head.to_german('acc')} {_in_question_tense(clause).to_german('first')} ?",
    )


def command(s: Sampler) -> Sentence:
    """Draw a command, possibly negated or with please."""
    clause = s.clause("command", verbs=COMMANDS, subject=Pronoun("you"))
    negated = s.chance(0.25)
    if negated:
        if not can_negate(clause) or not definite(clause.direct):
            return None
        clause = replace(clause, negated=True)
    do_not = "do not " if negated else ""
    if s.chance(0.5):
        return f"please {do_not}{clause.english_command()} .", f"bitte {clause.german_command()} ."
    return f"{do_not}{clause.english_command()} !", f"{clause.german_command()} !"


def description(s: Sampler) -> Sentence:
    """Draw a statement or question with an adjective: the boy's dog is small."""
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
        return f"{clause.english_question()} ?", f"{clause.to_german('first')} ?"
    return statement(clause)


def _owned(s: Sampler, subject: NounPhrase) -> NounPhrase:
    ownable = subject.noun.is_any(("pet", "ware", "vehicle", "text", "family"))
    if subject.determiner is words.THE and ownable and s.chance(0.4):
        return replace(subject, owner=NounPhrase(words.THE, s.noun(("male", "female"))))
    return subject


def personal_adjectives() -> tuple[Adjective, ...]:
    """Return the adjectives that can modify persons."""
    return tuple(adjective for adjective in words.ADJECTIVES if "person" in adjective.kinds)


def possession(s: Sampler) -> Sentence:
    """Draw a statement of possession: has a car, had no car, does not have a car."""
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
    """Draw two coordinated clauses: bought an apple and ate it. The German pronoun has the gender of the noun."""
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
    german = f"{finite} {pronoun.to_german('acc')} {verb.german.prefix}".strip()
    return f"{first.to_english()} and {second.to_english()} .", f"{first.to_german('second')} und {german} ."


def _subordinated(main: Clause, conjunction: tuple[str, str], second: Clause, second_first: bool) -> Sentence:
    """Return a main and a subordinate clause, the subordinate one last, or first if `second_first`."""
    english, german = conjunction
    if second_first:
        return (
            f"{english} {second.to_english()} , {main.to_english()} .",
            f"{german} {second.to_german('last')} , {main.to_german('first')} .",
        )
    return (
        f"{main.to_english()} {english} {second.to_english()} .",
        f"{main.to_german('second')} , {german} {second.to_german('last')} .",
    )


def _antecedent(s: Sampler) -> Phrase:
    """Draw a pronoun, or a person to whom a pronoun can refer."""
    return Pronoun(s.pick(("I", "he", "she", "we", "they"))) if s.chance(0.3) else s.someone(described=False)


def _mood(s: Sampler, subject: Phrase, tense: Tense) -> Clause:
    """Draw a clause about a temporary state: he is tired."""
    adjective = s.pick(tuple(a for a in words.ADJECTIVES if a.english in words.MOODS))
    return Clause(subject, BE, tense, predicate=adjective)


def _effect(s: Sampler, mood: Clause, structure: str, tense: Tense, subject: Phrase, willingly: bool) -> Clause:
    """Draw an action that follows from a mood, or, if not `willingly`, one that happens in spite of it."""
    assert mood.predicate is not None
    doings = _MOOD_VERBS[mood.predicate.english]
    if willingly and "stay" in doings and s.chance(0.3):
        return _staying(subject, tense)
    verbs = [verb for verb in EVENTS if (verb.lemma in doings) == willingly]
    return s.clause(structure, tense, verbs=verbs, subject=subject, complement=False)


def _staying(subject: Phrase, tense: Tense) -> Clause:
    return Clause(subject, STAY, tense, ending=Adverbial("at home", "zu Hause"))


def _weather(s: Sampler, tense: Tense) -> Clause:
    return Clause(Pronoun("it"), s.pick((RAIN, SNOW)), tense)


def reason(s: Sampler) -> Sentence:
    """Draw a reason (because) or a concession (although) about the same person or the weather."""
    conjunction = s.pick((("because", "weil"), ("although", "obwohl")))
    tense: Tense = s.pick(("present", "past"))
    subject = _antecedent(s)
    if s.chance(0.5):
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
    return _subordinated(main, conjunction, second, second_first=s.chance(0.3))


def reason_of_thing(s: Sampler) -> Sentence:
    """Draw a reason about a thing: does not buy the car because it is expensive."""
    tense: Tense = s.pick(("present", "past"))
    main = s.clause("reason_of_thing", tense, verbs=_HANDLING, subject=_antecedent(s), complement=False)
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
    return _subordinated(replace(main, negated=negated), ("because", "weil"), second, second_first=False)


def condition(s: Sampler) -> Sentence:
    """Draw a condition: when it rains, if he is tired."""
    conjunction = s.pick((("when", "wenn"), ("if", "wenn")))
    subject = _antecedent(s)
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
    return _subordinated(main, conjunction, second, second_first=s.chance(0.5))


def when_past(s: Sampler) -> Sentence:
    """Draw a time in the past: when he was young (als, because it is a single time)."""
    subject = _antecedent(s)
    adjective = s.pick(tuple(a for a in words.ADJECTIVES if a.english in ("young", "poor", "rich", "sick")))
    main = s.clause("when_past", "past", verbs=_LASTING, subject=subject, complement=False)
    second = Clause(reference_to(subject), BE, "past", predicate=adjective)
    return _subordinated(main, ("when", "als"), second, second_first=s.chance(0.5))


def meanwhile(s: Sampler) -> Sentence:
    """Draw two simultaneous actions of two persons (while)."""
    someone = Pronoun(s.pick(("I", "we"))) if s.chance(0.3) else s.someone(described=False)
    first = s.clause("meanwhile", verbs=EVENTS, subject=someone, complement=False)
    second = s.clause("meanwhile", verbs=EVENTS, subject=s.someone(described=False), complement=False)
    return _subordinated(first, ("while", "während"), second, second_first=s.chance(0.4))


def sequence(s: Sampler) -> Sentence:
    """Draw two successive actions (before, after); the clause with after is in the past perfect."""
    subject = _antecedent(s)
    main = s.clause("sequence", "past", verbs=EVENTS, subject=subject, complement=False)
    before = s.chance(0.5)
    second = s.clause(
        "sequence",
        "past" if before else "pluperfect",
        verbs=EVENTS,
        subject=reference_to(subject),
        complement=False,
    )
    return _subordinated(
        main, ("before", "bevor") if before else ("after", "nachdem"), second, second_first=s.chance(0.4)
    )


def that_clause(s: Sampler) -> Sentence:
    """Draw a content clause: knows, believes, hopes, said that ..."""
    tense: Tense = s.pick(("present", "present", "past"))
    subject = _antecedent(s)
    main = Clause(subject, s.pick((KNOW, BELIEVE, HOPE) if tense == "present" else (KNOW, SAY)), tense)
    content_tense: Tense = s.pick(("present", "perfect", "future")) if tense == "present" else "pluperfect"
    content = s.clause("that_clause", content_tense, verbs=EVENTS, subject=_other(s, subject), complement=False)
    return _subordinated(main, ("that", "dass"), content, second_first=False)


def _other(s: Sampler, subject: Phrase) -> Phrase:
    """Draw a subject other than `subject`."""
    same = reference_to(subject).english
    return s.subject(("person",), tuple(p for p in ("I", "he", "she", "we", "they") if p != same), described=False)


def whether(s: Sampler) -> Sentence:
    """Draw an indirect question: does not know whether, knows why."""
    subject = _antecedent(s)
    content = s.clause(
        "whether", s.pick(("present", "perfect", "future")), verbs=EVENTS, subject=_other(s, subject), complement=False
    )
    if not definite(content.subject):
        return None
    word = s.pick((("whether", "ob"), ("whether", "ob"), ("why", "warum"), ("when", "wann")))
    if word[0] == "when":
        content = replace(content, tense="future")
    negated = word[0] == "whether" or s.chance(0.5)
    return _subordinated(Clause(subject, KNOW, negated=negated), word, content, second_first=False)


def purpose(s: Sampler) -> Sentence:
    """Draw a purpose: drives to the station to pick up a guest (um ... zu)."""
    subject = _antecedent(s)
    moving, aims = s.pick(((_LEAVING, _AIMS_OUTSIDE), (_COMING, _AIMS)))
    main = s.clause("purpose", s.pick(("present", "past", "future")), verbs=moving, subject=subject)
    aim = s.clause("purpose", verbs=aims, subject=subject, complement=False)
    return (
        f"{main.to_english()} {aim.english_infinitive()} .",
        f"{main.to_german('second')} , um {aim.german_infinitive()} .",
    )


def hope_to(s: Sampler) -> Sentence:
    """Draw an infinitive clause: hopes to buy a car."""
    subject = s.subject(("person",), ("I", "you", "he", "she", "we", "they"), described=False)
    aim = s.clause("hope_to", verbs=_DOING, subject=subject, complement=False)
    return (
        f"{Clause(subject, HOPE).to_english()} {aim.english_infinitive()} .",
        f"{Clause(subject, HOPE).to_german('second')} , {aim.german_infinitive()} .",
    )


def contrast(s: Sampler) -> Sentence:
    """Draw two contrasting actions of two persons (but)."""
    tense: Tense = s.pick(("present", "past", "future"))
    first = s.clause("contrast", tense, verbs=EVENTS, subject=s.someone(described=False), complement=False)
    comparable = [v for v in EVENTS if v.direct == first.verb.direct or set(v.direct) & set(first.verb.direct)]
    second = s.clause("contrast", tense, verbs=comparable, subject=s.someone(described=False), complement=False)
    return (
        f"{first.to_english()} , but {second.to_english()} .",
        f"{first.to_german('second')} , aber {second.to_german('second')} .",
    )


def relative(s: Sampler) -> Sentence:
    """Draw a statement with a relative clause: the woman who is reading is tired."""
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
        tense: Tense = "present" if verb.stative else "past"
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
    return f"{main.to_english()} .", f"{main.to_german('second')} ."
