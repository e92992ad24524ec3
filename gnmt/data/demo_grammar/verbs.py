"""The verbs of the embedded corpus, with the frames that select their arguments by kind of noun.

One verb a line: `english | german | subject | direct object | dative object | complement | flags`.
English: `eat ate eaten`, a regular `cook`, `look_for` (fixed particle), `pick+up` (particle behind a pronoun).
German: `lesen liest las gelesen` (infinitive, third person, past, participle) or a weak verb's infinitive alone; a
bar marks a separable prefix (`an|rufen ruft rief gerufen`).
Complements are names of `PLACES` in words.py, e.g. where one works. Flags: `state` (no progressive in English),
`sein` (perfect with sein), `calls` (its imperative makes sense),
`mishap` (unwanted, and so only told of the past).
"""

from __future__ import annotations

from dataclasses import dataclass

from gnmt.data.demo_grammar.morphology import EnglishVerb, GermanVerb, english_verb, german_verb


@dataclass(frozen=True)
class Verb:
    """An English-German pair of verbs with its frame: the kinds of noun that each argument may be."""

    english: EnglishVerb
    german: GermanVerb
    subject: tuple[str, ...]
    direct: tuple[str, ...] = ()
    indirect: tuple[str, ...] = ()
    complement: tuple[str, ...] = ()
    state: bool = False
    calls: bool = False
    mishap: bool = False

    @property
    def lemma(self) -> str:
        return f"{self.english.base} {self.english.particle}".strip()


_TABLE = """
eat ate eaten | essen isst aß gegessen | person | food | - | - | calls
drink drank drunk | trinken trinkt trank getrunken | person | drink | - | - | calls
cook | kochen | person | cooked | - | - | calls
bake | backen backt backte gebacken | person | baked | - | - | calls
cut cut cut | schneiden schneidet schnitt geschnitten | person | fruit baked | - | - | calls
try | probieren | person | food drink | - | - | -
order | bestellen | person | food drink | - | - | calls
read read read | lesen liest las gelesen | person | text | - | scene | calls
write wrote written | schreiben schreibt schrieb geschrieben | person | written | - | - | calls
translate | übersetzen übersetzt übersetzte übersetzt | person | written | - | - | calls
tear+up tore torn | zerreißen zerreißt zerriss zerrissen | person | paper | - | - | -
find found found | finden findet fand gefunden | person | item garment text | - | - | mishap
lose lost lost | verlieren verliert verlor verloren | person | lies | - | - | mishap
buy bought bought | kaufen | person | ware food | - | benefit | calls
sell sold sold | verkaufen | person | ware vehicle | - | - | calls
look_for | suchen | person | item garment text pet | - | - | calls
need | brauchen | person | ware item garment | - | - | state
see saw seen | sehen sieht sah gesehen | person | animal person vehicle landmark | - | - | state
hear heard heard | hören | person | animal person | - | - | state
love | lieben | person | family drink fruit outdoors | - | - | state
know knew known | kennen kennt kannte gekannt | person | person tale | - | - | state
visit | besuchen | person | person visit | - | - | calls
meet met met | treffen trifft traf getroffen | person | person | - | scene | -
greet | begrüßen | person | person | - | - | calls
photograph | fotografieren | person | animal person landmark | - | - | calls
draw drew drawn | zeichnen | person | animal drawn | - | scene | calls
watch | beobachten | person | animal | - | - | calls
feed fed fed | füttern | person | animal | - | - | calls
protect | beschützen | person | pet farm | - | - | calls
invite | ein|laden lädt lud geladen | person | person | - | - | calls
call | an|rufen ruft rief gerufen | person | person | - | - | calls
pick+up | ab|holen | person | person | - | - | calls
wake+up woke woken | auf|wecken | person | person pet | - | - | calls
open | auf|machen | person | opening vessel sealed | - | - | calls
close | zu|machen | person | opening vessel | - | - | calls
turn+on | ein|schalten | person | switch | - | - | calls
turn+off | aus|schalten | person | switch | - | - | calls
put+on put put | an|ziehen zieht zog gezogen | person | garment | - | - | calls
take+off took taken | aus|ziehen zieht zog gezogen | person | garment | - | - | calls
try+on | an|probieren | person | garment | - | - | calls
bring+along brought brought | mit|bringen bringt brachte gebracht | person | food item | - | - | calls
throw+away threw thrown | weg|werfen wirft warf geworfen | person | dish paper food | - | - | calls
clean | putzen | person | opening scene | - | - | calls
wash | waschen wäscht wusch gewaschen | person | garment dish fruit vehicle pet | - | - | calls
dry | ab|trocknen | person | dish | - | - | calls
repair | reparieren | person | machine | - | - | calls
paint | streichen streicht strich gestrichen | person | painted | - | - | calls
build built built | bauen | person | built | - | - | -
carry | tragen trägt trug getragen | person | item | - | inside | calls
use | benutzen | person | switch dish | - | - | calls
hide hid hidden | verstecken | person | lies | - | - | calls
steal stole stolen | stehlen stiehlt stahl gestohlen | person | ware vehicle | - | - | mishap
forget forgot forgotten | vergessen vergisst vergaß vergessen | person | lies | - | - | mishap
lay laid laid | legen | person | lies | - | surface | calls
place | stellen | person | stands | - | surface | calls
help | helfen hilft half geholfen | person | - | person | scene | calls
thank | danken | person | - | person | - | calls
answer | antworten | person | - | person | - | calls
follow | folgen | person pet | - | person | - | sein calls
trust | vertrauen | person | - | person | - | state
listen_to | zu|hören | person | - | person | - | calls
congratulate | gratulieren | person | - | person | - | calls
belong_to | gehören | item garment vehicle | - | person | - | state
give gave given | geben gibt gab gegeben | person | item food garment text | person | - | calls
show showed shown | zeigen | person | item garment text landmark | person | - | calls
send sent sent | schicken | person | post | person | - | calls
lend lent lent | leihen leiht lieh geliehen | person | item garment vehicle | person | - | calls
bring brought brought | bringen bringt brachte gebracht | person | item food drink text | person | - | calls
offer | an|bieten bietet bot geboten | person | food drink | person | - | calls
tell told told | erzählen | person | tale | person | - | calls
sleep slept slept | schlafen schläft schlief geschlafen | person pet | - | - | scene | -
work | arbeiten | person | - | - | work | -
laugh | lachen | person | - | - | - | -
cry | weinen | person | - | - | scene | -
wait | warten | person | - | - | outside | calls
sing sang sung | singen singt sang gesungen | person | - | - | scene | -
dance | tanzen | person | - | - | scene partner | -
play | spielen | person pet | - | - | scene | -
live | wohnen | person | - | - | home | state
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
        state="state" in flags.split(),
        calls="calls" in flags.split(),
        mishap="mishap" in flags.split(),
    )


VERBS: tuple[Verb, ...] = tuple(_parse(line) for line in _TABLE.strip().split("\n"))

# Verbs that govern a clause or an adjective; their structures name them.
BE = Verb(english_verb("be was been"), german_verb("sein ist war gewesen", sein=True), ("person",), state=True)
HAVE = Verb(
    english_verb("have had had"),
    german_verb("haben hat hatte gehabt"),
    ("person",),
    direct=("pet", "vehicle", "ware"),
    state=True,
)
STAY = Verb(english_verb("stay"), german_verb("bleiben bleibt blieb geblieben", sein=True), ("person",))
KNOW = Verb(english_verb("know knew known"), german_verb("wissen weiß wusste gewusst"), ("person",), state=True)
BELIEVE = Verb(english_verb("believe"), german_verb("glauben"), ("person",), state=True)
HOPE = Verb(english_verb("hope"), german_verb("hoffen"), ("person",), state=True)
SAY = Verb(english_verb("say said said"), german_verb("sagen"), ("person",), state=True)
RAIN = Verb(english_verb("rain"), german_verb("regnen"), ())
SNOW = Verb(english_verb("snow"), german_verb("schneien"), ())
CLAUSE_VERBS = (KNOW, BELIEVE, HOPE, SAY)
ALL_VERBS: tuple[Verb, ...] = (*VERBS, BE, HAVE, STAY, *CLAUSE_VERBS, RAIN, SNOW)


def verbs_named(lemmas: str) -> tuple[Verb, ...]:
    """Verbs of the table by their English lemmas, divided by `, `."""
    by_lemma = {verb.lemma: verb for verb in VERBS}
    return tuple(by_lemma[lemma] for lemma in lemmas.split(", "))


@dataclass(frozen=True)
class Modal:
    """A modal verb. `do_support`: English treats it as a full verb with `to` (do not want to)."""

    english: str
    english_third: str
    german: str  # infinitive, for lookup and counting
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
