"""The splits of the embedded corpus.

A twelfth or so of all combinations (verb with object, structure with verb, adjective with noun) is held out: a
sentence with such a combination never goes to training, and every dev and test sentence has one. So the test asks
for known words in new company. Which combinations those are is a pure function of the seed.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gnmt.data.demo_grammar import structures as one
from gnmt.data.demo_grammar import structures as two
from gnmt.data.demo_grammar.sampling import Combination, NothingFitsError, Sampler
from gnmt.data.demo_grammar.structures import relative
from gnmt.errors import InputError

# Raise it by one whenever any output of `generate` changes: preprocessed folders are identified by it.
CORPUS_VERSION = 1

Pair = tuple[str, str]
HELD_OUT_ONE_IN = 12
# A word of a dev or test sentence has been seen this often in training, in training sets that are large enough.
MIN_SEEN = 3
MIN_TRAIN_FOR_SEEN = 2_000
MIN_WORDS, MAX_WORDS = 4, 14

STRUCTURES: tuple[tuple[Callable[[Sampler], one.Sentence], int], ...] = (
    (one.present, 8),
    (one.habit, 6),
    (one.past, 9),
    (one.perfect, 6),
    (one.future, 6),
    (one.modal, 8),
    (one.fronted_place, 4),
    (one.negation, 8),
    (one.yes_no, 6),
    (one.who, 3),
    (one.whom_or_what, 3),
    (one.where, 2),
    (one.when_or_why, 4),
    (one.which_or_how_many, 4),
    (one.command, 5),
    (one.description, 6),
    (one.possession, 3),
    (one.errand, 4),
    (two.reason, 8),
    (two.reason_of_thing, 5),
    (two.condition, 5),
    (two.when_past, 3),
    (two.meanwhile, 3),
    (two.sequence, 4),
    (two.that_clause, 6),
    (two.whether, 4),
    (two.purpose, 5),
    (two.hope_to, 2),
    (two.contrast, 4),
    (relative, 10),
)
_DRAWS = tuple(structure for structure, weight in STRUCTURES for _ in range(weight))


class DemoPairs(NamedTuple):
    """English-German sentence pairs, each a capitalised sentence with its final punctuation."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


class Sample(NamedTuple):
    """One sentence pair, the name of its structure and what it combines."""

    pair: Pair
    structure: str
    combinations: tuple[Combination, ...]


def samples(seed: int) -> Iterator[Sample]:
    """Sentence pairs without end, repetitions included; a pure function of the seed."""
    # Strings seed a generator through SHA-512, the same on every version of Python.
    sampler = Sampler(random.Random(f"gnmt demo corpus {CORPUS_VERSION} {seed}"))
    while True:
        sampler.begin()
        structure = sampler.pick(_DRAWS)
        try:
            sentence = structure(sampler)
        except NothingFitsError:
            continue
        if sentence is None:
            continue
        pair = _finished(sentence[0]), _finished(sentence[1])
        if MIN_WORDS <= pair[0].count(" ") + 1 <= MAX_WORDS:
            yield Sample(pair, structure.__name__, tuple(sampler.combinations))


def is_held_out(combination: Combination, seed: int) -> bool:
    """Whether a combination is kept from training."""
    text = f"{seed} {' | '.join(combination)}"
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def generate(num_train: int = 20_000, num_dev: int = 500, num_test: int = 500, seed: int = 1) -> DemoPairs:
    """The embedded corpus, the same for the same arguments on every machine.

    No English and no German sentence occurs twice, in one split or in two. Each dev and test sentence holds a
    combination that training lacks; its words all occur in training if that has MIN_TRAIN_FOR_SEEN pairs.
    Raises InputError for sizes out of range, or larger than what the grammar can say.
    """
    for name, number, minimum in (("num_train", num_train, 1), ("num_dev", num_dev, 0), ("num_test", num_test, 0)):
        if number < minimum:
            raise InputError(f"{name}={number}: the demo corpus needs {name} of at least {minimum}")
    num_held_out = num_dev + num_test
    train: list[Pair] = []
    held_out: list[Pair] = []
    waiting: list[Pair] = []
    seen_sentences: set[str] = set()
    seen_words: Counter[str] = Counter()
    max_draws = 100_000 + 20 * (num_train + num_held_out)
    for pair, _, combinations in itertools.islice(samples(seed), max_draws):
        if not seen_sentences.isdisjoint(pair):
            continue
        seen_sentences.update(pair)
        if any(is_held_out(combination, seed) for combination in combinations):
            waiting.append(pair)
        elif len(train) < num_train:
            train.append(pair)
            seen_words.update(words_of(pair))
        if len(train) == num_train:
            # Only now is it known which words training holds.
            held_out += [p for p in waiting if num_train < MIN_TRAIN_FOR_SEEN or _is_known(p, seen_words)]
            waiting.clear()
            if len(held_out) >= num_held_out:
                return DemoPairs(train, held_out[:num_dev], held_out[num_dev:num_held_out])
    raise InputError(
        f"num_train={num_train}, num_dev={num_dev}, num_test={num_test}: the demo grammar found only {len(train)} "
        f"training and {len(held_out)} held-out pairs in {max_draws} draws; ask for fewer"
    )


def words_of(pair: Pair) -> set[str]:
    """The words of both sides, in lower case, marked by their side."""
    english, german = (re.sub("[,.!?]", "", side).lower().split() for side in pair)
    return {f"en {word}" for word in english} | {f"de {word}" for word in german}


def _is_known(pair: Pair, seen_words: Counter[str]) -> bool:
    return all(seen_words[word] >= MIN_SEEN for word in words_of(pair))


def _finished(sentence: str) -> str:
    """Words and punctuation as one writes them: single commas, no space before a mark, a capital at the start."""
    text = re.sub(r"(?: ,)+(?= [,.!?])", "", sentence)
    text = re.sub(r" ([,.!?])", r"\1", text)
    return text[0].upper() + text[1:]
