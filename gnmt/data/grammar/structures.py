"""Main clauses as sentences: tenses, fronted adverbials, questions, negation, commands, descriptions.

Each structure draws its content from a Sampler and returns the English and the German words of one sentence, its
last punctuation included, or None when the draw does not suit it.
"""

from __future__ import annotations

from dataclasses import replace

from gnmt.data.grammar import words
from gnmt.data.grammar.clauses import Clause, Tense
from gnmt.data.grammar.phrases import NounPhrase, Phrase, Pronoun
from gnmt.data.grammar.sampling import Sampler, fitting_adjectives
from gnmt.data.grammar.verbs import BE, HAVE, VERBS, verbs_named
from gnmt.data.grammar.words import Adjective

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
