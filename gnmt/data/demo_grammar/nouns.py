"""The nouns of the lexicon.

Each line of the table is a noun: `english [plural] | gender German plural [genitive] | kinds`.

- The gender is m, f or n. `m*` marks weak masculines, in which every form but the nominative singular equals the plural
  (der Junge, den Jungen).
- The plural `-` marks nouns without one (mass nouns, events).
- Kinds are semantic classes. A verb or an adjective lists the kinds of noun that it combines with, so the grammar never
  generates "eat a bicycle". The English word of a noun is a kind too. Kinds of places select activities: `scene` allows
  any pastime, `work` and `home` allow working and living, `visit` allows visits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from gnmt.data.demo_grammar.morphology import plural_of

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True)
class Noun:
    """An English-German pair of nouns; `german_plural` is empty if the noun has no plural."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    german_genitive: str
    gender: Gender
    weak: bool
    kinds: tuple[str, ...]

    @property
    def countable(self) -> bool:
        return bool(self.german_plural)

    def is_any(self, kinds: tuple[str, ...]) -> bool:
        """Return True if the noun is of one of the kinds."""
        return any(kind in self.kinds for kind in kinds)


_TABLE = """
man men | m Mann Männer | person male
boy | m* Junge Jungen | person male
father | m Vater Väter | person family male
brother | m Bruder Brüder | person family male
son | m Sohn Söhne | person family male
uncle | m Onkel Onkel | person family male
grandfather | m Großvater Großväter | person family male
friend | m Freund Freunde | person close male
neighbor | m* Nachbar Nachbarn | person close male
teacher | m Lehrer Lehrer | person close male
doctor | m Arzt Ärzte | person close male
student | m* Student Studenten | person close male
cook | m Koch Köche Kochs | person male
gardener | m Gärtner Gärtner | person male
artist | m Künstler Künstler | person male
tourist | m* Tourist Touristen | person male
colleague | m* Kollege Kollegen | person close male
customer | m* Kunde Kunden | person male
guest | m Gast Gäste | person close male
king | m König Könige Königs | person male
woman women | f Frau Frauen | person female
mother | f Mutter Mütter | person family female
sister | f Schwester Schwestern | person family female
daughter | f Tochter Töchter | person family female
aunt | f Tante Tanten | person family female
grandmother | f Großmutter Großmütter | person family female
queen | f Königin Königinnen | person female
nurse | f Krankenschwester Krankenschwestern | person female
waitress | f Kellnerin Kellnerinnen | person female
actress | f Schauspielerin Schauspielerinnen | person female
child children | n Kind Kinder | person family
girl | n Mädchen Mädchen | person
dog | m Hund Hunde | animal pet
cat | f Katze Katzen | animal pet
bird | m Vogel Vögel | animal
horse | n Pferd Pferde | animal farm
cow | f Kuh Kühe | animal farm
goat | f Ziege Ziegen | animal farm
pig | n Schwein Schweine | animal farm
rabbit | n Kaninchen Kaninchen | animal pet
mouse mice | f Maus Mäuse | animal
bear | m* Bär Bären | animal beast
lion | m* Löwe Löwen | animal beast
elephant | m* Elefant Elefanten | animal beast
monkey | m* Affe Affen | animal beast
apple | m Apfel Äpfel | food fruit
orange | f Orange Orangen | food fruit
banana | f Banane Bananen | food fruit
pear | f Birne Birnen | food fruit
tomato tomatoes | f Tomate Tomaten | food fruit
potato potatoes | f Kartoffel Kartoffeln | food cooked
carrot | f Karotte Karotten | food cooked
egg | n Ei Eier | food cooked
cake | m Kuchen Kuchen | food baked
sausage | f Wurst Würste | food
bread | n Brot - | food baked
cheese | m Käse - Käses | food
meat | n Fleisch - | food cooked
rice | m Reis - | food cooked
soup | f Suppe - | food cooked
honey | m Honig - | food
water | n Wasser - | drink
milk | f Milch - | drink
coffee | m Kaffee - Kaffees | drink
tea | m Tee - Tees | drink
juice | m Saft - | drink
lemonade | f Limonade - | drink
wine | m Wein - | drink
book | n Buch Bücher | text written lies ware
letter | m Brief Briefe | text written lies post paper sealed
newspaper | f Zeitung Zeitungen | text lies ware paper
story stories | f Geschichte Geschichten | text written tale
poem | n Gedicht Gedichte | text written
novel | m Roman Romane | text written lies ware
report | m Bericht Berichte | text written lies post paper
car | n Auto Autos | vehicle machine ware
bicycle | n Fahrrad Fahrräder | vehicle machine ware
motorcycle | n Motorrad Motorräder | vehicle machine ware
bus | m Bus Busse Busses | transport
train | m Zug Züge | transport
ship | n Schiff Schiffe | transport built
boat | n Boot Boote | vehicle built ware
coat | m Mantel Mäntel | garment ware lies
shoe | m Schuh Schuhe | garment ware lies
shirt | n Hemd Hemden | garment ware lies
hat | m Hut Hüte | garment ware lies
jacket | f Jacke Jacken | garment ware lies
sock | f Socke Socken | garment ware lies
sweater | m Pullover Pullover | garment ware lies
scarf scarves | m Schal Schals Schals | garment ware lies
lamp | f Lampe Lampen | item switch machine ware stands
computer | m Computer Computer | item switch machine ware
radio | n Radio Radios | item switch machine ware stands
camera | f Kamera Kameras | item switch machine ware lies
telephone | n Telefon Telefone | item machine ware
clock | f Uhr Uhren | item machine ware
bottle | f Flasche Flaschen | item vessel stands
cup | f Tasse Tassen | item ware stands dish
glass | n Glas Gläser | item ware stands dish
plate | m Teller Teller | item ware stands dish
knife knives | n Messer Messer | item ware lies dish
key | m Schlüssel Schlüssel | item lies
bag | f Tasche Taschen | item ware vessel lies
suitcase | m Koffer Koffer | item ware vessel stands
box | f Kiste Kisten | item vessel stands
umbrella | m Regenschirm Regenschirme Regenschirms | item ware lies
ball | m Ball Bälle | item ware lies
picture | n Bild Bilder | item drawn ware post paper
map | f Karte Karten | item drawn ware lies paper
flower | f Blume Blumen | item ware drawn
gift | n Geschenk Geschenke | item post lies sealed
guitar | f Gitarre Gitarren | item ware lies
violin | f Geige Geigen | item ware lies
ring | m Ring Ringe | item ware lies
vase | f Vase Vasen | item ware stands
table | m Tisch Tische | furniture ware surface
chair | m Stuhl Stühle | furniture ware surface
bed | n Bett Betten | furniture ware surface
bench | f Bank Bänke | surface
carpet | m Teppich Teppiche Teppichs | ware surface
door | f Tür Türen | opening painted
window | n Fenster Fenster | opening
house | n Haus Häuser | place landmark scene home built enter building painted
garden | m Garten Gärten | place scene enter outdoors
kitchen | f Küche Küchen | place scene enter painted
room | n Zimmer Zimmer | place scene enter painted
park | m Park Parks Parks | place scene enter outdoors
city cities | f Stadt Städte | place home visit enter
village | n Dorf Dörfer | place home visit
school | f Schule Schulen | place landmark work reach building
office | n Büro Büros | place work reach
church | f Kirche Kirchen | place landmark visit reach built building
museum | n Museum Museen | place landmark work visit reach building
restaurant | n Restaurant Restaurants | place landmark work enter reach building
hotel | n Hotel Hotels | place landmark work enter reach building
library libraries | f Bibliothek Bibliotheken | place landmark work visit reach building
hospital | n Krankenhaus Krankenhäuser | place landmark work reach building
theater | n Theater Theater | place landmark work visit reach building
station | m Bahnhof Bahnhöfe Bahnhofs | place landmark reach building
forest | m Wald Wälder | place enter outdoors wild
bridge | f Brücke Brücken | place built crossing
street | f Straße Straßen | place crossing
lake | m See Seen Sees | place shore
river | m Fluss Flüsse | place shore
tree | m Baum Bäume | drawn landmark
meal | n Essen - Essens | event
concert | n Konzert - Konzerts | event
lesson | m Unterricht - Unterrichts | event
party | f Feier - | event
meeting | f Sitzung - | event
trip | f Reise - | event
storm | m Sturm - Sturms | trouble
rain | m Regen - Regens | trouble
snow | m Schnee - Schnees | trouble
noise | m Lärm - Lärms | trouble
"""


def _genitive(german: str, gender: Gender) -> str:
    """Return the regular genitive singular: unchanged feminines, -es after a sibilant or one syllable, otherwise -s."""
    if gender == "f":
        return german
    num_vowels = sum(
        1
        for i, letter in enumerate(german.lower())
        if letter in "aeiouyäöü" and (i == 0 or german.lower()[i - 1] not in "aeiouyäöü")
    )
    if german.endswith(("s", "ß", "x", "z", "sch")) or (num_vowels == 1 and german[-1] not in "aeiou"):
        return german + "es"
    return german + "s"


def _parse(line: str) -> Noun:
    english, german, kinds = (part.split() for part in line.split("|"))
    gender, singular, plural, *genitive = german
    weak = gender == "m*"
    base: Gender = "m" if gender in ("m", "m*") else "f" if gender == "f" else "n"
    return Noun(
        english=english[0],
        english_plural=english[1] if len(english) > 1 else plural_of(english[0]),
        german=singular,
        german_plural="" if plural == "-" else plural,
        german_genitive=genitive[0] if genitive else plural if weak else _genitive(singular, base),
        gender=base,
        weak=weak,
        kinds=(*kinds, english[0]),
    )


NOUNS: tuple[Noun, ...] = tuple(_parse(line) for line in _TABLE.strip().split("\n"))


@cache
def nouns_of(*kinds: str) -> tuple[Noun, ...]:
    """Return the nouns of any of the kinds, in the order of the table."""
    return tuple(noun for noun in NOUNS if noun.is_any(kinds))
