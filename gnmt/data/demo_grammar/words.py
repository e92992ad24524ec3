"""The other words of the lexicon: adjectives, determiners, prepositions, and adverbials of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from gnmt.data.demo_grammar.morphology import Case, Declension


@dataclass(frozen=True)
class Adjective:
    """An English-German pair of adjectives and the kinds of noun that they modify."""

    english: str
    german: str
    kinds: tuple[str, ...]


_ADJECTIVES = """
young jung | person animal
old alt | person animal ware vehicle text garment furniture transport landmark home
tall groß | person
small klein | animal item vehicle furniture home place opening child
big groß | animal vehicle transport furniture home place vessel opening cake
tired müde | person animal
happy glücklich | person
sad traurig | person tale
friendly freundlich | person pet
sick krank | person animal
rich reich | person
poor arm | person
famous berühmt | person landmark novel poem
strong stark | person beast
clever klug | person pet
polite höflich | person
hungry hungrig | person animal
nervous nervös | person
wild wild | beast
new neu | ware vehicle text garment machine furniture key
expensive teuer | ware vehicle garment wine
cheap billig | ware vehicle garment
beautiful schön | garment drawn place landmark vase ring
broken kaputt | machine opening furniture
heavy schwer | vessel furniture machine
light leicht | garment vessel
dirty schmutzig | garment dish opening scene vehicle pet
clean sauber | garment dish opening
empty leer | vessel scene dish
modern modern | building machine furniture
quiet ruhig | scene home
dark dunkel | enter
red rot | garment vehicle drawn vessel dish opening
blue blau | garment vehicle vessel dish ware
green grün | garment vehicle vessel opening
white weiß | garment pet vehicle dish furniture
black schwarz | garment pet vehicle vessel
yellow gelb | garment vehicle dish drawn
brown braun | pet farm furniture vessel
fresh frisch | food drink
delicious lecker | food drink
sweet süß | fruit baked juice drink
warm warm | drink cooked garment
cold kalt | drink
interesting interessant | text landmark
boring langweilig | text event
long lang | written event crossing coat scarf sweater
short kurz | written event coat scarf sweater
funny lustig | text person
"""

ADJECTIVES: tuple[Adjective, ...] = tuple(
    Adjective(english, german, tuple(kinds.split()))
    for english, german, _, kinds in (line.split(" ", 3) for line in _ADJECTIVES.strip().split("\n"))
)
# Temporary states, which can be the reason for an action; the other adjectives are lasting properties.
MOODS = ("tired", "happy", "sad", "sick", "hungry", "nervous")


@dataclass(frozen=True)
class Determiner:
    """An English-German pair of determiners; `german` is the stem that `declension` inflects."""

    english: str
    german: str
    declension: Declension


THE = Determiner("the", "", "definite")
A = Determiner("a", "ein", "ein-word")
BARE = Determiner("", "", "none")
NO = Determiner("no", "kein", "ein-word")
THIS = Determiner("this", "dies", "der-word")
THESE = Determiner("these", "dies", "der-word")
EVERY = Determiner("every", "jed", "der-word")
WHICH = Determiner("which", "welch", "der-word")
POSSESSIVES: dict[str, Determiner] = {
    "I": Determiner("my", "mein", "ein-word"),
    "you": Determiner("your", "dein", "ein-word"),
    "he": Determiner("his", "sein", "ein-word"),
    "she": Determiner("her", "ihr", "ein-word"),
    "we": Determiner("our", "unser", "ein-word"),
    "they": Determiner("their", "ihr", "ein-word"),
}
NUMBERS: tuple[Determiner, ...] = tuple(
    Determiner(english, german, "none")
    for english, german in (
        ("two", "zwei"),
        ("three", "drei"),
        ("four", "vier"),
        ("five", "fünf"),
        ("six", "sechs"),
        ("seven", "sieben"),
        ("eight", "acht"),
        ("nine", "neun"),
        ("ten", "zehn"),
        ("twelve", "zwölf"),
    )
)
# Indefinite quantities are inflected like adjectives, and so are the adjectives after them.
MANY = Determiner("many", "viel", "quantity")
SOME = Determiner("some", "einig", "quantity")


@dataclass(frozen=True)
class Preposition:
    """An English-German pair of prepositions and the case that the German one requires."""

    english: str
    german: str
    case: Case


def _preposition(text: str) -> Preposition:
    """Parse `in front of | vor dat`: English, German and the case."""
    english, german = text.split(" | ")
    *words, case = german.split()
    return Preposition(english, " ".join(words), cast(Case, case))


@dataclass(frozen=True)
class PlaceFrame:
    """The prepositional complements of a verb: prepositions with the kinds of noun that each accepts."""

    choices: tuple[tuple[Preposition, tuple[str, ...]], ...]


def _frame(*lines: str) -> PlaceFrame:
    """Parse prepositions with the kinds of noun after them: `on | auf dat | chair bench`."""
    choices = []
    for line in lines:
        head, kinds = line.rsplit(" | ", 1)
        choices.append((_preposition(head), tuple(kinds.split())))
    return PlaceFrame(tuple(choices))


# Places by the name that a verb's complement uses.
PLACES: dict[str, PlaceFrame] = {
    "scene": _frame("in | in dat | scene", "in front of | vor dat | building"),
    "work": _frame("in | in dat | work"),
    "home": _frame("in | in dat | home"),
    "shore": _frame("in | in dat | shore"),
    "outside": _frame("in front of | vor dat | landmark", "behind | hinter dat | landmark", "at | an dat | shore"),
    "seat": _frame("on | auf dat | chair bench bed carpet", "under | unter dat | tree", "next to | neben dat | person"),
    "inside": _frame("into | in acc | enter"),
    "toward": _frame("to | zu dat | reach person"),
    "through": _frame("through | durch acc | enter"),
    "over": _frame("across | über acc | crossing", "around | um acc | building"),
    "town": _frame("through | durch acc | city village forest"),
    "partner": _frame("with | mit dat | person", "without | ohne acc | person"),
    "benefit": _frame("for | für acc | person"),
}
# English `on the table` is auf + accusative after verbs of motion (lay), auf + dative after verbs of rest (lie).
ON_SURFACE = {
    "rest": _frame("on | auf dat | surface", "under | unter dat | furniture", "next to | neben dat | furniture"),
    "motion": _frame("on | auf acc | surface", "under | unter acc | furniture", "next to | neben acc | furniture"),
}
EVENT_PREPOSITIONS = (
    _preposition("after | nach dat"),
    _preposition("before | vor dat"),
    _preposition("during | während gen"),
)
TROUBLE_PREPOSITIONS = (_preposition("because of | wegen gen"), _preposition("despite | trotz gen"))

# Adverbials of time, by the tense that they require.
PAST_TIMES = (
    ("yesterday", "gestern"),
    ("last week", "letzte Woche"),
    ("last year", "letztes Jahr"),
    ("on Monday", "am Montag"),
    ("on Friday", "am Freitag"),
    ("three days ago", "vor drei Tagen"),
    ("last night", "letzte Nacht"),
)
FUTURE_TIMES = (
    ("tomorrow", "morgen"),
    ("next week", "nächste Woche"),
    ("next year", "nächstes Jahr"),
    ("soon", "bald"),
    ("tonight", "heute Abend"),
    ("in an hour", "in einer Stunde"),
)
PRESENT_TIMES = (("now", "jetzt"), ("today", "heute"), ("at the moment", "im Moment"))
HABITS = (
    ("every day", "jeden Tag"),
    ("every evening", "jeden Abend"),
    ("in the morning", "am Morgen"),
    ("on Sundays", "sonntags"),
    ("in summer", "im Sommer"),
    ("in winter", "im Winter"),
)
# Adverbs of frequency precede the verb in English and follow it in German.
FREQUENCIES = (("often", "oft"), ("always", "immer"), ("sometimes", "manchmal"), ("never", "nie"), ("rarely", "selten"))
