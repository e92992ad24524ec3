"""Inflection and agreement, compared with tables that are written out here."""

from __future__ import annotations

import pytest

from gnmt.data.demo_grammar import words
from gnmt.data.demo_grammar.clauses import NounPhrase, PrepositionalPhrase
from gnmt.data.demo_grammar.morphology import (
    IT,
    PRONOUNS,
    Agreement,
    Case,
    article,
    be,
    english_verb,
    german_verb,
    relative_pronoun,
    with_article,
)
from gnmt.data.demo_grammar.nouns import NOUNS, Noun
from gnmt.data.demo_grammar.verbs import ALL_VERBS, MODALS, VERBS, Verb
from gnmt.data.demo_grammar.words import Adjective, Determiner

CASES: tuple[Case, ...] = ("nom", "acc", "dat", "gen")
OLD = Adjective("old", "alt", ())
STEMS = ("mein", "dein", "sein", "ihr", "unser", "ihr")


def noun(english: str) -> Noun:
    return next(n for n in NOUNS if n.english == english)


def verb(lemma: str) -> Verb:
    return next(v for v in ALL_VERBS if v.lemma == lemma)


def declined(determiner: Determiner, word: str, plural: bool = False, adjective: Adjective | None = OLD) -> list[str]:
    phrase = NounPhrase(determiner, noun(word), plural, adjective)
    return [phrase.to_german(case) for case in CASES]


DEFINITE = {
    ("man", False): "der alte Mann, den alten Mann, dem alten Mann, des alten Mannes",
    ("woman", False): "die alte Frau, die alte Frau, der alten Frau, der alten Frau",
    ("child", False): "das alte Kind, das alte Kind, dem alten Kind, des alten Kindes",
    ("child", True): "die alten Kinder, die alten Kinder, den alten Kindern, der alten Kinder",
}
INDEFINITE = {
    "man": "ein alter Mann, einen alten Mann, einem alten Mann, eines alten Mannes",
    "woman": "eine alte Frau, eine alte Frau, einer alten Frau, einer alten Frau",
    "child": "ein altes Kind, ein altes Kind, einem alten Kind, eines alten Kindes",
}
EIN_WORDS = {
    ("man", False): "{} alter Mann, {}en alten Mann, {}em alten Mann, {}es alten Mannes",
    ("woman", False): "{}e alte Frau, {}e alte Frau, {}er alten Frau, {}er alten Frau",
    ("child", False): "{} altes Kind, {} altes Kind, {}em alten Kind, {}es alten Kindes",
    ("child", True): "{}e alten Kinder, {}e alten Kinder, {}en alten Kindern, {}er alten Kinder",
}
DER_WORDS = {
    ("man", False): "{}er alte Mann, {}en alten Mann, {}em alten Mann, {}es alten Mannes",
    ("woman", False): "{}e alte Frau, {}e alte Frau, {}er alten Frau, {}er alten Frau",
    ("child", False): "{}es alte Kind, {}es alte Kind, {}em alten Kind, {}es alten Kindes",
    ("child", True): "{}e alten Kinder, {}e alten Kinder, {}en alten Kindern, {}er alten Kinder",
}
STRONG = {
    ("cheese", False): "alter Käse, alten Käse, altem Käse, alten Käses",
    ("milk", False): "alte Milch, alte Milch, alter Milch, alter Milch",
    ("water", False): "altes Wasser, altes Wasser, altem Wasser, alten Wassers",
    ("book", True): "alte Bücher, alte Bücher, alten Büchern, alter Bücher",
}


@pytest.mark.parametrize(("word", "plural"), DEFINITE)
def test_definite_article_takes_weak_endings(word: str, plural: bool) -> None:
    assert ", ".join(declined(words.THE, word, plural)) == DEFINITE[word, plural]


@pytest.mark.parametrize("word", INDEFINITE)
def test_indefinite_article_takes_mixed_endings(word: str) -> None:
    assert ", ".join(declined(words.A, word)) == INDEFINITE[word]


@pytest.mark.parametrize(("word", "plural"), EIN_WORDS)
@pytest.mark.parametrize(
    ("determiner", "stem"),
    [
        (words.NO, "kein"),
        *zip(words.POSSESSIVES.values(), STEMS, strict=True),
    ],
)
def test_kein_and_possessives_are_declined_as_ein_words(
    word: str, plural: bool, determiner: Determiner, stem: str
) -> None:
    assert ", ".join(declined(determiner, word, plural)) == EIN_WORDS[word, plural].replace("{}", stem)


@pytest.mark.parametrize(("word", "plural"), DER_WORDS)
@pytest.mark.parametrize(("determiner", "stem"), [(words.THIS, "dies"), (words.WHICH, "welch"), (words.EVERY, "jed")])
def test_der_words_take_weak_endings(word: str, plural: bool, determiner: Determiner, stem: str) -> None:
    assert ", ".join(declined(determiner, word, plural)) == DER_WORDS[word, plural].replace("{}", stem)


@pytest.mark.parametrize(("word", "plural"), STRONG)
def test_bare_nouns_take_strong_endings(word: str, plural: bool) -> None:
    assert ", ".join(declined(words.BARE, word, plural)) == STRONG[word, plural]


def test_numbers_and_quantities_take_strong_endings() -> None:
    assert declined(words.NUMBERS[1], "book", True) == [
        *("drei alte Bücher", "drei alte Bücher", "drei alten Büchern", "drei alter Bücher")
    ]
    assert declined(words.MANY, "dog", True) == [
        *("viele alte Hunde", "viele alte Hunde", "vielen alten Hunden", "vieler alter Hunde")
    ]


def test_adjective_stems_that_drop_a_letter() -> None:
    expensive, tired, dark = (Adjective("", german, ()) for german in ("teuer", "müde", "dunkel"))
    assert declined(words.A, "car", adjective=expensive)[0] == "ein teures Auto"
    assert declined(words.THE, "man", adjective=tired)[1] == "den müden Mann"
    assert declined(words.A, "room", adjective=dark)[0] == "ein dunkles Zimmer"


def test_weak_masculines_decline_in_every_case_but_the_nominative() -> None:
    for word, forms in {
        "boy": "der Junge, den Jungen, dem Jungen, des Jungen",
        "student": "der Student, den Studenten, dem Studenten, des Studenten",
        "neighbor": "der Nachbar, den Nachbarn, dem Nachbarn, des Nachbarn",
        "bear": "der Bär, den Bären, dem Bären, des Bären",
    }.items():
        assert ", ".join(declined(words.THE, word, adjective=None)) == forms


RELATIVE: dict[Agreement, str] = {
    "m": "der den dem dessen",
    "f": "die die der deren",
    "n": "das das dem dessen",
    "pl": "die die denen deren",
}


@pytest.mark.parametrize("agreement", RELATIVE)
def test_relative_pronouns_agree_with_their_head(agreement: Agreement) -> None:
    assert " ".join(relative_pronoun(agreement, case) for case in CASES) == RELATIVE[agreement]


def test_personal_pronouns_are_declined() -> None:
    table = {
        "I": "ich mich mir",
        "you": "du dich dir",
        "he": "er ihn ihm",
        "she": "sie sie ihr",
        "we": "wir uns uns",
        "they": "sie sie ihnen",
        "it": "es es ihm",
    }
    assert {key: " ".join(forms.values()) for key, forms in PRONOUNS.items()} == table
    assert {key: " ".join(forms.values()) for key, forms in IT.items()} == {
        "m": "er ihn ihm",
        "f": "sie sie ihr",
        "n": "es es ihm",
    }


def test_definite_article_alone() -> None:
    classes: tuple[Agreement, ...] = ("m", "f", "n", "pl")
    forms = [" ".join(article("", "definite", agreement, case) for agreement in classes) for case in CASES]
    assert forms == ["der die das die", "den die das die", "dem der dem den", "des der des der"]


# Infinitive: ich, du, er, wir in the present; ich, wir in the past; participle; imperative.
CONJUGATIONS = {
    "buy": "kaufe kaufst kauft kaufen kaufte kauften gekauft kauf",
    "work": "arbeite arbeitest arbeitet arbeiten arbeitete arbeiteten gearbeitet arbeite",
    "read": "lese liest liest lesen las lasen gelesen lies",
    "eat": "esse isst isst essen aß aßen gegessen iss",
    "give": "gebe gibst gibt geben gab gaben gegeben gib",
    "drive": "fahre fährst fährt fahren fuhr fuhren gefahren fahr",
    "find": "finde findest findet finden fand fanden gefunden finde",
    "bring": "bringe bringst bringt bringen brachte brachten gebracht bring",
    "sleep": "schlafe schläfst schläft schlafen schlief schliefen geschlafen schlaf",
    "feed": "füttere fütterst füttert füttern fütterte fütterten gefüttert füttere",
    "draw": "zeichne zeichnest zeichnet zeichnen zeichnete zeichneten gezeichnet zeichne",
    "repair": "repariere reparierst repariert reparieren reparierte reparierten repariert reparier",
    "visit": "besuche besuchst besucht besuchen besuchte besuchten besucht besuch",
    "dance": "tanze tanzt tanzt tanzen tanzte tanzten getanzt tanz",
    "live": "wohne wohnst wohnt wohnen wohnte wohnten gewohnt wohn",
    "call": "rufe rufst ruft rufen rief riefen angerufen ruf",
    "invite": "lade lädst lädt laden lud luden eingeladen lade",
    "pick up": "hole holst holt holen holte holten abgeholt hol",
    "throw away": "werfe wirfst wirft werfen warf warfen weggeworfen wirf",
    "translate": "übersetze übersetzt übersetzt übersetzen übersetzte übersetzten übersetzt übersetz",
    "belong to": "gehöre gehörst gehört gehören gehörte gehörten gehört gehör",
    "be": "bin bist ist sind war waren gewesen sei",
    "have": "habe hast hat haben hatte hatten gehabt hab",
}


@pytest.mark.parametrize("lemma", CONJUGATIONS)
def test_german_conjugation(lemma: str) -> None:
    german = verb(lemma).german
    present = [german.present(person, False) for person in (1, 2, 3)]
    past = [german.preterite(3, False), german.preterite(3, True)]
    forms = [*present, german.present(3, True), *past, german.full_participle, german.imperative]
    assert " ".join(forms) == CONJUGATIONS[lemma]


def test_wissen_and_second_persons() -> None:
    knows = german_verb("wissen weiß wusste gewusst")
    assert [knows.present(p, False) for p in (1, 2, 3)] == ["weiß", "weißt", "weiß"]
    assert knows.present(1, True) == "wissen"
    finds = verb("find").german
    assert (finds.present(2, True), finds.preterite(2, False)) == ("findet", "fandest")
    assert (verb("buy").german.preterite(2, False), verb("buy").german.preterite(2, True)) == ("kauftest", "kauftet")


def test_perfect_auxiliary_is_sein_for_change_of_place_or_state() -> None:
    with_sein = {v.lemma for v in VERBS if v.german.sein}
    assert with_sein == {
        *("walk", "drive", "run", "swim", "travel", "arrive", "get up", "fall asleep", "come back", "depart", "follow")
    }


def test_zu_follows_a_separable_prefix() -> None:
    assert verb("pick up").german.zu_infinitive == "abzuholen"
    assert verb("translate").german.zu_infinitive == "zu übersetzen"


def test_modals_are_conjugated() -> None:
    forms = {modal.english: " ".join(modal.german_present) for modal in MODALS}
    assert forms == {
        "can": "kann kannst kann können",
        "must": "muss musst muss müssen",
        "may": "darf darfst darf dürfen",
        "should": "sollte solltest sollte sollten",
        "want to": "will willst will wollen",
        "would like to": "möchte möchtest möchte möchten",
        "could": "konnte konntest konnte konnten",
        "had to": "musste musstest musste mussten",
        "wanted to": "wollte wolltest wollte wollten",
    }


def test_plurals_are_regular_or_given() -> None:
    table = (
        "man men Mann Männer, woman women Frau Frauen, child children Kind Kinder, mouse mice Maus Mäuse, "
        "city cities Stadt Städte, knife knives Messer Messer, bus buses Bus Busse, box boxes Kiste Kisten, "
        "glass glasses Glas Gläser, potato potatoes Kartoffel Kartoffeln, story stories Geschichte Geschichten, "
        "church churches Kirche Kirchen, house houses Haus Häuser, car cars Auto Autos, boy boys Junge Jungen"
    )
    for entry in table.split(", "):
        english, english_plural, german, german_plural = entry.split()
        found = noun(english)
        assert (found.english_plural, found.german, found.german_plural) == (english_plural, german, german_plural)


def test_dative_plural_takes_n_unless_it_ends_in_n_or_s() -> None:
    datives = {"dog": "den Hunden", "car": "den Autos", "woman": "den Frauen", "apple": "den Äpfeln"}
    assert {w: declined(words.THE, w, True, None)[2] for w in datives} == datives


def test_prepositions_contract_with_articles() -> None:
    def say(frame: str, index: int, word: str) -> str:
        preposition = words.PLACES[frame].choices[index][0]
        return PrepositionalPhrase(preposition, NounPhrase(words.THE, noun(word))).to_german()

    assert say("home", 0, "house") == "im Haus"
    assert say("inside", 0, "house") == "ins Haus"
    assert say("inside", 0, "kitchen") == "in die Küche"
    assert say("toward", 0, "school") == "zur Schule"
    assert say("toward", 0, "doctor") == "zum Arzt"
    assert say("outside", 2, "lake") == "am See"


def test_english_verb_forms() -> None:
    table = {
        "eat": "eats eating ate eaten",
        "write": "writes writing wrote written",
        "wash": "washes washing washed washed",
        "carry": "carries carrying carried carried",
        "cry": "cries crying cried cried",
        "dry": "dries drying dried dried",
        "play": "plays playing played played",
        "sit": "sits sitting sat sat",
        "swim": "swims swimming swam swum",
        "run": "runs running ran run",
        "cut": "cuts cutting cut cut",
        "put on": "puts putting put put",
        "get up": "gets getting got got",
        "forget": "forgets forgetting forgot forgotten",
        "lie": "lies lying lay lain",
        "see": "sees seeing saw seen",
        "use": "uses using used used",
        "open": "opens opening opened opened",
        "visit": "visits visiting visited visited",
        "offer": "offers offering offered offered",
        "have": "has having had had",
    }
    for lemma, forms in table.items():
        english = verb(lemma).english
        assert " ".join((english.third_person, english.gerund, english.past, english.participle)) == forms


def test_english_article_and_be() -> None:
    assert [with_article(w) for w in ("apple", "old car", "umbrella", "green apple")] == [
        *("an apple", "an old car", "an umbrella", "a green apple")
    ]
    assert [be(p, False, False) for p in (1, 2, 3)] == ["am", "are", "is"]
    assert [be(1, False, True), be(2, False, True), be(3, True, True)] == ["was", "were", "were"]
    assert english_verb("pick+up").movable
    assert not english_verb("look_for").movable


def test_lexicon_has_about_three_hundred_different_lemmas() -> None:
    pairs = [("noun", n.english) for n in NOUNS] + [("adjective", a.english) for a in words.ADJECTIVES]
    verbs = [("verb", v.lemma, v.german.full_infinitive) for v in ALL_VERBS]
    assert len({*pairs, *verbs}) == len(pairs) + len(verbs) >= 280
    assert {n.gender for n in NOUNS} == {"m", "f", "n"}
