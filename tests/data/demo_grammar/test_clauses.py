"""Word order of English and German clauses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gnmt.data.demo_grammar import words
from gnmt.data.demo_grammar.clauses import (
    Adverbial,
    Clause,
    NounPhrase,
    PrepositionalPhrase,
    Pronoun,
    RelativeClause,
    Tense,
)
from gnmt.data.demo_grammar.nouns import NOUNS, Noun
from gnmt.data.demo_grammar.verbs import ALL_VERBS, BE, MODALS, Verb
from gnmt.data.demo_grammar.words import ADJECTIVES, Determiner, Preposition

YESTERDAY = Adverbial("yesterday", "gestern")


def noun(english: str) -> Noun:
    return next(n for n in NOUNS if n.english == english)


def verb(lemma: str) -> Verb:
    return next(v for v in ALL_VERBS if v.lemma == lemma)


def the(word: str, plural: bool = False, determiner: Determiner = words.THE) -> NounPhrase:
    return NounPhrase(determiner, noun(word), plural)


CALLS = Clause(the("woman"), verb("call"), direct=the("boy"))
BUYS = Clause(the("man"), verb("buy"), direct=the("car"))
MUST = next(m for m in MODALS if m.english == "must")
WANT = next(m for m in MODALS if m.english == "want to")
CAN = next(m for m in MODALS if m.english == "can")


@pytest.mark.parametrize(
    ("tense", "english", "main", "last"),
    [
        ("present", "is calling", "Frau ruft den Jungen an", "Frau den Jungen anruft"),
        ("past", "called", "Frau rief den Jungen an", "Frau den Jungen anrief"),
        ("perfect", "has called", "Frau hat den Jungen angerufen", "Frau den Jungen angerufen hat"),
        ("pluperfect", "had called", "Frau hatte den Jungen angerufen", "Frau den Jungen angerufen hatte"),
        ("future", "will call", "Frau wird den Jungen anrufen", "Frau den Jungen anrufen wird"),
    ],
)
def test_separable_verb_in_every_tense_and_order(tense: Tense, english: str, main: str, last: str) -> None:
    clause = replace(CALLS, tense=tense)
    assert clause.to_english() == f"the woman {english} the boy"
    assert clause.to_german("second") == f"die {main}"
    assert clause.to_german("last") == f"die {last}"


def test_verb_is_second_after_a_fronted_time_or_place() -> None:
    clause = replace(BUYS, tense="past", time=YESTERDAY, time_first=True)
    assert (clause.to_english(), clause.to_german("second")) == (
        *("yesterday the man bought the car", "gestern kaufte der Mann das Auto"),
    )
    place = PrepositionalPhrase(Preposition("in", "in", "dat"), the("garden"))
    sings = Clause(the("child"), verb("sing"), place=place, place_first=True)
    assert sings.to_german("second") == "im Garten singt das Kind"


def test_time_precedes_nouns_but_follows_pronouns() -> None:
    helps = Clause(the("man"), verb("help"), "past", indirect=the("child"), time=YESTERDAY)
    assert helps.to_german("second") == "der Mann half gestern dem Kind"
    assert replace(helps, indirect=Pronoun("she")).to_german("second") == "der Mann half ihr gestern"


def test_sein_perfect_has_its_participle_last() -> None:
    place = PrepositionalPhrase(Preposition("to", "zu", "dat"), the("station"))
    clause = Clause(the("child", True), verb("drive"), "perfect", place=place)
    assert clause.to_english() == "the children have driven to the station"
    assert clause.to_german("second") == "die Kinder sind zum Bahnhof gefahren"


def test_dative_before_accusative_and_pronoun_first() -> None:
    gives = Clause(Pronoun("she"), verb("give"), "past", indirect=the("child"), direct=the("ball", determiner=words.A))
    assert gives.to_english() == "she gave the child a ball"
    assert gives.to_german("second") == "sie gab dem Kind einen Ball"
    assert replace(gives, indirect=Pronoun("I")).to_german("second") == "sie gab mir einen Ball"


def test_negation_is_kein_before_indefinite_and_nicht_after_definite_objects() -> None:
    no = replace(BUYS, negated=True)
    assert (no.to_english(), no.to_german("second")) == (
        *("the man is not buying the car", "der Mann kauft das Auto nicht"),
    )
    indefinite = replace(no, tense="past", direct=the("car", determiner=words.A))
    assert indefinite.to_english() == "the man did not buy a car"
    assert indefinite.to_german("second") == "der Mann kaufte kein Auto"
    bare = replace(no, tense="future", direct=NounPhrase(words.BARE, noun("milk")))
    assert bare.to_german("second") == "der Mann wird keine Milch kaufen"
    assert replace(CALLS, negated=True).to_german("second") == "die Frau ruft den Jungen nicht an"


def test_modals_put_the_infinitive_last() -> None:
    must = replace(CALLS, modal=MUST)
    assert (must.to_english(), must.to_german("second")) == (
        *("the woman must call the boy", "die Frau muss den Jungen anrufen"),
    )
    assert must.to_german("last") == "die Frau den Jungen anrufen muss"
    assert replace(CALLS, modal=CAN, negated=True).to_english() == "the woman cannot call the boy"
    assert replace(CALLS, modal=WANT, negated=True).to_english() == "the woman does not want to call the boy"
    assert replace(CALLS, modal=WANT).english_question() == "does the woman want to call the boy"


def test_questions_begin_with_the_verb() -> None:
    assert (CALLS.english_question(), CALLS.to_german("first")) == (
        *("is the woman calling the boy", "ruft die Frau den Jungen an"),
    )
    assert replace(BUYS, tense="past").english_question() == "did the man buy the car"
    needs = Clause(the("man"), verb("need"), direct=the("car"))
    assert needs.english_question() == "does the man need the car"


def test_english_particles_follow_pronouns() -> None:
    picks = Clause(Pronoun("he"), verb("pick up"), "past", direct=Pronoun("she"))
    assert picks.to_english() == "he picked her up"
    assert replace(picks, direct=the("child")).to_english() == "he picked up the child"
    assert Clause(Pronoun("he"), verb("listen to"), "past", indirect=Pronoun("they")).to_english() == (
        "he listened to them"
    )


@pytest.mark.parametrize(
    ("head", "inner", "english", "german"),
    [
        (
            the("boy"),
            Clause(the("boy"), verb("call"), direct=the("woman"), missing="subject"),
            "the boy who is calling the woman",
            "den Jungen , der die Frau anruft ,",
        ),
        (
            the("apple"),
            Clause(Pronoun("he"), verb("buy"), "past", direct=the("apple"), missing="direct"),
            "the apple that he bought",
            "den Apfel , den er kaufte ,",
        ),
        (
            the("woman", True),
            Clause(Pronoun("he"), verb("help"), indirect=the("woman", True), missing="indirect"),
            "the women whom he is helping",
            "die Frauen , denen er hilft ,",
        ),
        (
            the("city"),
            Clause(
                Pronoun("she"),
                verb("live"),
                place=PrepositionalPhrase(Preposition("in", "in", "dat"), the("city")),
                missing="place",
            ),
            "the city in which she lives",
            "die Stadt , in der sie wohnt ,",
        ),
    ],
)
def test_relative_pronoun_has_the_gender_of_its_head_and_the_case_of_its_role(
    head: NounPhrase, inner: Clause, english: str, german: str
) -> None:
    phrase = replace(head, relative=RelativeClause(inner))
    assert phrase.to_english(False) == english
    assert phrase.to_german("acc") == german


def test_owner_is_a_genitive() -> None:
    phrase = NounPhrase(words.THE, noun("car"), owner=the("student"))
    assert (phrase.to_english(True), phrase.to_german("dat")) == ("the student's car", "dem Auto des Studenten")


def test_it_takes_the_gender_of_its_noun() -> None:
    forms = [Pronoun("it", noun(word)).to_german("acc") for word in ("apple", "soup", "book")]
    assert forms == ["ihn", "sie", "es"]


def test_infinitives_and_commands_have_no_subject() -> None:
    picks = Clause(Pronoun("you"), verb("pick up"), direct=the("child"))
    assert (picks.english_infinitive(), picks.german_infinitive()) == ("to pick up the child", "das Kind abzuholen")
    assert (picks.english_command(), picks.german_command()) == ("pick up the child", "hol das Kind ab")


def test_two_way_prepositions_take_the_accusative_with_motion_only() -> None:
    on = {name: frame.choices[0][0] for name, frame in words.ON_SURFACE.items()}
    motion = PrepositionalPhrase(on["motion"], the("table"))
    rest = PrepositionalPhrase(on["rest"], the("table"))
    assert motion.to_english() == rest.to_english() == "on the table"
    assert (motion.to_german(), rest.to_german()) == ("auf den Tisch", "auf dem Tisch")


def test_aspects_of_the_perfect_and_adverbs_of_frequency() -> None:
    perfect = replace(BUYS, tense="perfect")
    assert replace(perfect, aspect="yet").to_english() == "the man has not bought the car yet"
    assert replace(perfect, aspect="yet").to_german("second") == "der Mann hat das Auto noch nicht gekauft"
    assert replace(perfect, aspect="already").to_german("last") == "der Mann das Auto schon gekauft hat"
    tired = next(a for a in ADJECTIVES if a.english == "tired")
    often = Adverbial("often", "oft", frequency=True)
    is_tired = Clause(Pronoun("you"), BE, predicate=tired, time=often)
    assert (is_tired.to_english(), is_tired.to_german("second")) == ("you are often tired", "du bist oft müde")
