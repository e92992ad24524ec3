"""The verbs of the lexicon, with frames that select their arguments by kind of noun.

Each line of the table is a verb: `english | german | subject | direct object | dative object | complement | flags`.

- English: `eat ate eaten`, a regular verb `cook`, `look_for` (fixed particle), `pick+up` (particle after a pronoun).
- German: `lesen liest las gelesen` (infinitive, third person, past, participle), or the infinitive of a weak verb.
  A bar marks a separable prefix (`an|rufen ruft rief gerufen`).
- Subject and objects: kinds of noun, see `nouns`. Complement: names in `words.PLACES`.
- Flags: `stative` (no progressive in English), `sein` (perfect with sein), `imperative` (commands make sense),
  `unwanted` (happens against the subject's will, so it occurs only in past tenses).
"""

from __future__ import annotations

from dataclasses import dataclass

from gnmt.data.demo_grammar.morphology import EnglishVerb, GermanVerb, english_verb, german_verb


@dataclass(frozen=True)
class Verb:
    """An English-German pair of verbs with its frame: the kinds of noun that each argument accepts."""

    english: EnglishVerb
    german: GermanVerb
    subject: tuple[str, ...]
    direct: tuple[str, ...] = ()
    indirect: tuple[str, ...] = ()
    complement: tuple[str, ...] = ()
    stative: bool = False
    has_imperative: bool = False
    unwanted: bool = False

    @property
    def lemma(self) -> str:
        return f"{self.english.base} {self.english.particle}".strip()


_TABLE = """
eat ate eaten | essen isst aß gegessen | person | food | - | - | imperative
drink drank drunk | trinken trinkt trank getrunken | person | drink | - | - | imperative
cook | kochen | person | cooked | - | - | imperative
bake | backen backt backte gebacken | person | baked | - | - | imperative
cut cut cut | schneiden schneidet schnitt geschnitten | person | fruit baked | - | - | imperative
try | probieren | person | food drink | - | - | -
order | bestellen | person | food drink | - | - | imperative
read read read | lesen liest las gelesen | person | text | - | scene | imperative
write wrote written | schreiben schreibt schrieb geschrieben | person | written | - | - | imperative
translate | übersetzen übersetzt übersetzte übersetzt | person | written | - | - | imperative
tear+up tore torn | zerreißen zerreißt zerriss zerrissen | person | paper | - | - | -
find found found | finden findet fand gefunden | person | item garment text | - | - | unwanted
lose lost lost | verlieren verliert verlor verloren | person | lies | - | - | unwanted
buy bought bought | kaufen | person | ware food | - | benefit | imperative
sell sold sold | verkaufen | person | ware vehicle | - | - | imperative
look_for | suchen | person | item garment text pet | - | - | imperative
need | brauchen | person | ware item garment | - | - | stative
see saw seen | sehen sieht sah gesehen | person | animal person vehicle landmark | - | - | stative
hear heard heard | hören | person | animal person | - | - | stative
love | lieben | person | family drink fruit outdoors | - | - | stative
know knew known | kennen kennt kannte gekannt | person | person tale | - | - | stative
visit | besuchen | person | person visit | - | - | imperative
meet met met | treffen trifft traf getroffen | person | person | - | scene | -
greet | begrüßen | person | person | - | - | imperative
photograph | fotografieren | person | animal person landmark | - | - | imperative
draw drew drawn | zeichnen | person | animal drawn | - | scene | imperative
watch | beobachten | person | animal | - | - | imperative
feed fed fed | füttern | person | animal | - | - | imperative
protect | beschützen | person | pet farm | - | - | imperative
invite | ein|laden lädt lud geladen | person | person | - | - | imperative
call | an|rufen ruft rief gerufen | person | person | - | - | imperative
pick+up | ab|holen | person | person | - | - | imperative
wake+up woke woken | auf|wecken | person | person pet | - | - | imperative
open | auf|machen | person | opening vessel sealed | - | - | imperative
close | zu|machen | person | opening vessel | - | - | imperative
turn+on | ein|schalten | person | switch | - | - | imperative
turn+off | aus|schalten | person | switch | - | - | imperative
put+on put put | an|ziehen zieht zog gezogen | person | garment | - | - | imperative
take+off took taken | aus|ziehen zieht zog gezogen | person | garment | - | - | imperative
try+on | an|probieren | person | garment | - | - | imperative
bring+along brought brought | mit|bringen bringt brachte gebracht | person | food item | - | - | imperative
throw+away threw thrown | weg|werfen wirft warf geworfen | person | dish paper food | - | - | imperative
clean | putzen | person | opening scene | - | - | imperative
wash | waschen wäscht wusch gewaschen | person | garment dish fruit vehicle pet | - | - | imperative
dry | ab|trocknen | person | dish | - | - | imperative
repair | reparieren | person | machine | - | - | imperative
paint | streichen streicht strich gestrichen | person | painted | - | - | imperative
build built built | bauen | person | built | - | - | -
carry | tragen trägt trug getragen | person | item | - | inside | imperative
use | benutzen | person | switch dish | - | - | imperative
hide hid hidden | verstecken | person | lies | - | - | imperative
steal stole stolen | stehlen stiehlt stahl gestohlen | person | ware vehicle | - | - | unwanted
forget forgot forgotten | vergessen vergisst vergaß vergessen | person | lies | - | - | unwanted
lay laid laid | legen | person | lies | - | surface | imperative
place | stellen | person | stands | - | surface | imperative
help | helfen hilft half geholfen | person | - | person | scene | imperative
thank | danken | person | - | person | - | imperative
answer | antworten | person | - | person | - | imperative
follow | folgen | person pet | - | person | - | sein imperative
trust | vertrauen | person | - | person | - | stative
listen_to | zu|hören | person | - | person | - | imperative
congratulate | gratulieren | person | - | person | - | imperative
belong_to | gehören | item garment vehicle | - | person | - | stative
give gave given | geben gibt gab gegeben | person | item food garment text | person | - | imperative
show showed shown | zeigen | person | item garment text landmark | person | - | imperative
send sent sent | schicken | person | post | person | - | imperative
lend lent lent | leihen leiht lieh geliehen | person | item garment vehicle | person | - | imperative
bring brought brought | bringen bringt brachte gebracht | person | item food drink text | person | - | imperative
offer | an|bieten bietet bot geboten | person | food drink | person | - | imperative
tell told told | erzählen | person | tale | person | - | imperative
sleep slept slept | schlafen schläft schlief geschlafen | person pet | - | - | scene | -
work | arbeiten | person | - | - | work | -
laugh | lachen | person | - | - | - | -
cry | weinen | person | - | - | scene | -
wait | warten | person | - | - | outside | imperative
sing sang sung | singen singt sang gesungen | person | - | - | scene | -
dance | tanzen | person | - | - | scene partner | -
play | spielen | person pet | - | - | scene | -
live | wohnen | person | - | - | home | stative
sit sat sat | sitzen sitzt saß gesessen | person pet | - | - | seat | -
stand stood stood | stehen steht stand gestanden | stands | - | - | surface | -
lie lay lain | liegen liegt lag gelegen | lies | - | - | surface | -
walk | gehen geht ging gegangen | person | - | - | inside toward through | sein
drive drove driven | fahren fährt fuhr gefahren | person | - | - | toward over town | sein
run ran run | laufen läuft lief gelaufen | person pet | - | - | inside toward through over | sein
swim swam swum | schwimmen schwimmt schwamm geschwommen | person | - | - | shore | sein
travel | reisen | person | - | - | town partner | sein
arrive | an|kommen kommt kam gekommen | person transport | - | - | - | sein
get_up got got | auf|stehen steht stand gestanden | person | - | - | - | sein
fall_asleep fell fallen | ein|schlafen schläft schlief geschlafen | person | - | - | - | sein
come_back came come | zurück|kommen kommt kam gekommen | person | - | - | - | sein
depart | ab|fahren fährt fuhr gefahren | transport | - | - | - | sein
"""


def _kinds(text: str) -> tuple[str, ...]:
    return () if text == "-" else tuple(text.split())


def _parse(line: str) -> Verb:
    english, german, subject, direct, indirect, complement, flags = (part.strip() for part in line.split("| "))
    return Verb(
        english=english_verb(english),
        german=german_verb(german, sein="sein" in flags.split()),
        subject=_kinds(subject),
        direct=_kinds(direct),
        indirect=_kinds(indirect),
        complement=_kinds(complement),
        stative="stative" in flags.split(),
        has_imperative="imperative" in flags.split(),
        unwanted="unwanted" in flags.split(),
    )


VERBS: tuple[Verb, ...] = tuple(_parse(line) for line in _TABLE.strip().split("\n"))

# Verbs that govern a clause or an adjective; their structures name them.
BE = Verb(english_verb("be was been"), german_verb("sein ist war gewesen", sein=True), ("person",), stative=True)
HAVE = Verb(
    english_verb("have had had"),
    german_verb("haben hat hatte gehabt"),
    ("person",),
    direct=("pet", "vehicle", "ware"),
    stative=True,
)
STAY = Verb(english_verb("stay"), german_verb("bleiben bleibt blieb geblieben", sein=True), ("person",))
KNOW = Verb(english_verb("know knew known"), german_verb("wissen weiß wusste gewusst"), ("person",), stative=True)
BELIEVE = Verb(english_verb("believe"), german_verb("glauben"), ("person",), stative=True)
HOPE = Verb(english_verb("hope"), german_verb("hoffen"), ("person",), stative=True)
SAY = Verb(english_verb("say said said"), german_verb("sagen"), ("person",), stative=True)
RAIN = Verb(english_verb("rain"), german_verb("regnen"), ())
SNOW = Verb(english_verb("snow"), german_verb("schneien"), ())
CLAUSE_VERBS = (KNOW, BELIEVE, HOPE, SAY)
ALL_VERBS: tuple[Verb, ...] = (*VERBS, BE, HAVE, STAY, *CLAUSE_VERBS, RAIN, SNOW)


def verbs_named(lemmas: str) -> tuple[Verb, ...]:
    """Return verbs of the table by their English lemmas, which `, ` separates."""
    by_lemma = {verb.lemma: verb for verb in VERBS}
    return tuple(by_lemma[lemma] for lemma in lemmas.split(", "))


@dataclass(frozen=True)
class Modal:
    """An English-German pair of modal verbs; with `do_support`, English negates it as a full verb (do not want to)."""

    english: str
    english_third: str
    german: str  # infinitive
    german_present: tuple[str, str, str, str]  # ich, du, er, wir/sie
    negatable: bool
    english_base: str = ""
    past: bool = False

    @property
    def do_support(self) -> bool:
        return bool(self.english_base)


MODALS: tuple[Modal, ...] = (
    Modal("can", "can", "können", ("kann", "kannst", "kann", "können"), True),
    Modal("must", "must", "müssen", ("muss", "musst", "muss", "müssen"), False),
    Modal("may", "may", "dürfen", ("darf", "darfst", "darf", "dürfen"), True),
    Modal("should", "should", "sollen", ("sollte", "solltest", "sollte", "sollten"), True),
    Modal("want to", "wants to", "wollen", ("will", "willst", "will", "wollen"), True, "want to"),
    Modal("would like to", "would like to", "mögen", ("möchte", "möchtest", "möchte", "möchten"), False),
    Modal("could", "could", "können", ("konnte", "konntest", "konnte", "konnten"), True, past=True),
    Modal("had to", "had to", "müssen", ("musste", "musstest", "musste", "mussten"), False, "have to", past=True),
    Modal("wanted to", "wanted to", "wollen", ("wollte", "wolltest", "wollte", "wollten"), True, "want to", past=True),
)
