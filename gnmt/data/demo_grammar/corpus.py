"""The training, dev and test split of the embedded corpus.

About a twelfth of all combinations (verb with object, structure with verb, adjective with noun) is held out. A sentence
with a held-out combination is never in the training split, and every dev and test sentence has one, so dev and test
measure known words in new combinations. The held-out combinations depend only on the seed.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gnmt.data.demo_grammar import structures
from gnmt.data.demo_grammar.sampling import Combination, NothingFitsError, Sampler
from gnmt.errors import InputError

# Increase it whenever the output of `generate` changes, because preprocessed folders are identified by it.
CORPUS_VERSION = 1

Pair = tuple[str, str]
HELD_OUT_ONE_IN = 12
# Every word of a dev or test sentence occurs in at least MIN_SEEN training pairs, if there are MIN_TRAIN_FOR_SEEN.
MIN_SEEN = 3
MIN_TRAIN_FOR_SEEN = 2_000
MIN_WORDS, MAX_WORDS = 4, 14

# The sentence structures with their weights.
STRUCTURES: tuple[tuple[Callable[[Sampler], structures.Sentence], int], ...] = (
    (structures.present, 8),
    (structures.habit, 6),
    (structures.past, 9),
    (structures.perfect, 6),
    (structures.future, 6),
    (structures.modal, 8),
    (structures.fronted_place, 4),
    (structures.negation, 8),
    (structures.yes_no, 6),
    (structures.who, 3),
    (structures.whom_or_what, 3),
    (structures.where, 2),
    (structures.when_or_why, 4),
    (structures.which_or_how_many, 4),
    (structures.command, 5),
    (structures.description, 6),
    (structures.possession, 3),
    (structures.errand, 4),
    (structures.reason, 8),
    (structures.reason_of_thing, 5),
    (structures.condition, 5),
    (structures.when_past, 3),
    (structures.meanwhile, 3),
    (structures.sequence, 4),
    (structures.that_clause, 6),
    (structures.whether, 4),
    (structures.purpose, 5),
    (structures.hope_to, 2),
    (structures.contrast, 4),
    (structures.relative, 10),
)
_DRAWS = tuple(structure for structure, weight in STRUCTURES for _ in range(weight))


class DemoPairs(NamedTuple):
    """English-German sentence pairs, each a capitalized sentence with its final punctuation."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


class Sample(NamedTuple):
    """A sentence pair, the name of its structure, and its combinations of words."""

    pair: Pair
    structure: str
    combinations: tuple[Combination, ...]


def samples(seed: int) -> Iterator[Sample]:
    """Yield sentence pairs without end, with repetitions; they depend only on the seed."""
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
    """Return True if a combination never occurs in training."""
    text = f"{seed} {' | '.join(combination)}"
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def generate(num_train: int = 20_000, num_dev: int = 500, num_test: int = 500, seed: int = 1) -> DemoPairs:
    """Generate the embedded corpus; equal arguments give equal pairs on every machine.

    No English or German sentence occurs twice in all splits. Each dev and test sentence has a combination that does not
    occur in training; all its words occur there, if training has MIN_TRAIN_FOR_SEEN pairs. Raises InputError for sizes
    out of range, or larger than the grammar can generate.
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
            # The words of training are known only when it is complete.
            held_out += [p for p in waiting if num_train < MIN_TRAIN_FOR_SEEN or _is_known(p, seen_words)]
            waiting.clear()
            if len(held_out) >= num_held_out:
                return DemoPairs(train, held_out[:num_dev], held_out[num_dev:num_held_out])
    raise InputError(
        f"num_train={num_train}, num_dev={num_dev}, num_test={num_test}: the demo grammar found only {len(train)} "
        f"training and {len(held_out)} held-out pairs in {max_draws} draws; reduce the numbers"
    )


def words_of(pair: Pair) -> set[str]:
    """Return the words of both sides in lower case, each with the language as prefix."""
    english, german = (re.sub("[,.!?]", "", side).lower().split() for side in pair)
    return {f"en {word}" for word in english} | {f"de {word}" for word in german}


def _is_known(pair: Pair, seen_words: Counter[str]) -> bool:
    return all(seen_words[word] >= MIN_SEEN for word in words_of(pair))


def _finished(sentence: str) -> str:
    """Return a sentence with single commas, no space before punctuation, and a capital letter at the beginning."""
    text = re.sub(r"(?: ,)+(?= [,.!?])", "", sentence)
    text = re.sub(r" ([,.!?])", r"\1", text)
    return text[0].upper() + text[1:]
