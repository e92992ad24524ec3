"""Subword regularization: random segmentations of a text that depend on the text and a seed alone.

SentencePiece samples too, but differently in every process, whatever its seed. This module therefore implements BPE
dropout and sampling from a unigram model for the vocabulary of a SentencePiece model. A text is segmented word by word,
so that segmentations of a word can be cached. If a subword can extend over the beginning of a word, the whole text is
segmented as one word instead.

`subword_sampler` makes a sampler for a model: `BPEDropout` or `UnigramSampling`.
"""

from __future__ import annotations

import math
import re
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import accumulate, groupby
from random import Random

import sentencepiece

from gnmt.batch import UNK_ID
from gnmt.data.sentencepiece_model import BYTE, UNUSED, USER_DEFINED, PieceTable
from gnmt.errors import InputError

_SPACE = "▁"
_WORD = re.compile(f"{_SPACE}[^{_SPACE}]*|[^{_SPACE}]+")
_ANY = re.compile("(?s:.+)")
# Longer words are not cached: they are rare and have many segmentations.
_LONGEST_CACHED_WORD = 32
# Maximum number of cached segmentations of a sampler, about 50 MB.
_MAX_CACHED = 100_000
# Log-weight of a character without a subword, so low that it is used only where no subword covers the character.
_UNKNOWN_LOG_WEIGHT = -200.0

# Returns a random number in [0, 1).
Draw = Callable[[], float]

# For each position in a word: cumulative probabilities of the subwords that end there, and start and ids of each.
_Lattice = list[tuple[list[float], list[tuple[int, list[int]]]]]


def subword_sampler(model: bytes, alpha: float) -> SubwordSampler:
    """Return the sampler for a serialized SentencePiece model. Raises InputError for a model of another kind.

    Args:
        model: A BPE or unigram model.
        alpha: The probability of skipping a merge (BPE), or the exponent of the probabilities (unigram).
    """
    table = PieceTable.read(model)
    if table.kind == "bpe":
        return BPEDropout(model, table, alpha)
    if table.kind == "unigram":
        return UnigramSampling(model, table, alpha)
    raise InputError(
        "trainer.subword_regularization needs a tokenizer of kind bpe or unigram, and this one is of kind "
        f"{table.kind}, which has only one segmentation of a text: set trainer.subword_regularization=0"
    )


class SubwordSampler(ABC):
    """Sample segmentations of a text.

    The text is normalized by SentencePiece. User-defined symbols are kept whole, and characters without a subword
    become their bytes, or UNK if the model has no bytes. Several threads may share a sampler.
    """

    def __init__(self, model: bytes, table: PieceTable) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._pieces = table.pieces
        self._id_of = table.mergeable
        self._unused = table.ids(UNUSED)
        bytes_of = sorted(table.ids(BYTE).items())  # <0x00> to <0xFF>
        self._byte_ids = [id for _, id in bytes_of]
        self._symbols = table.ids(USER_DEFINED)
        longest_first = sorted(self._symbols, key=len, reverse=True)
        self._symbol = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        # If a subword has a space after its beginning, merges can extend over words: the whole text is then one word.
        self._word = _ANY if any(_SPACE in piece[1:] for piece in self._id_of) else _WORD

    def encode(self, text: str, seed: int) -> list[int]:
        """Return the ids of a segmentation sampled with a seed of 0 or more, without BOS and EOS."""
        ids: list[int] = []
        draw = Random(seed).random
        normalized: str = self._processor.normalize(text)
        end = 0
        for symbol in self._symbol.finditer(normalized) if self._symbol else ():
            self.add_sampled(self._word.findall(normalized[end : symbol.start()]), draw, ids)
            ids.append(self._symbols[symbol[0]])
            end = symbol.end()
        self.add_sampled(self._word.findall(normalized[end:]), draw, ids)
        return ids if self._byte_ids or UNK_ID not in ids else _merge_unknown_runs(ids)

    @abstractmethod
    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        """Sample a segmentation of the words with random numbers from `draw`, and append its ids to `ids`."""

    def _unknown(self, text: str) -> list[int]:
        """Return the ids of text that no subword covers."""
        return [self._byte_ids[byte] for byte in text.encode("utf-8")] if self._byte_ids else [UNK_ID]


def _merge_unknown_runs(ids: list[int]) -> list[int]:
    """Replace each run of UNK by one UNK, as SentencePiece does."""
    return [id for key, run in groupby(ids) for id in ([key] if key == UNK_ID else run)]


class BPEDropout(SubwordSampler):
    """BPE dropout (Provilkov et al. 2020): byte-pair encoding that skips each merge with a probability.

    The pair with the best score is merged first, and the leftmost of equal ones. A skipped pair is not considered
    again unless one of its two subwords grows. This is SentencePiece's variant of algorithm 1 of the paper, in which
    every pair is considered again after every merge. Probability 0 gives SentencePiece's own segmentation, and 1 gives
    single characters.

    The decisions about a word form a sequence: keep or skip the first merge, the next one, and so on. The number of
    kept merges until the next skipped one is drawn at once, from the geometric distribution, and carries over from word
    to word. Segmentations are cached in a tree by the skipped decisions.
    """

    def __init__(self, model: bytes, table: PieceTable, probability: float) -> None:
        super().__init__(model, table)
        self._rank = {text: -self._pieces[id].score for text, id in self._id_of.items()}
        self._log_keep_probability = math.log1p(-probability) if probability < 1 else -math.inf
        self._unskipped: dict[str, _Segmentation] = {}
        self._num_cached = 0

    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        gap = self._draw_gap(draw)
        for word in words:
            if len(word) > _LONGEST_CACHED_WORD:
                # The geometric distribution has no memory, so a new gap may be drawn for this word.
                ids += self._merged(word, self._draw_skips(draw))[0]
                continue
            segmentation = self._unskipped.get(word) or self._cache_unskipped(word)
            if gap >= segmentation.num_decisions:
                gap -= segmentation.num_decisions
            else:
                segmentation, gap = self._with_skips(word, segmentation, gap, draw)
            ids += segmentation.ids

    def _with_skips(self, word: str, segmentation: _Segmentation, skip: int, draw: Draw) -> tuple[_Segmentation, int]:
        """Return the segmentation that skips decision `skip` and others, drawn here, and the remaining gap."""
        skips: list[int] = []
        while skip < segmentation.num_decisions:
            skips.append(skip)
            following = segmentation.after_skip.get(skip)
            if following is None:
                following = segmentation.after_skip[skip] = _Segmentation(*self._merged(word, iter(skips)))
                self._num_cached += 1
            segmentation = following
            skip += 1 + self._draw_gap(draw)
        return segmentation, skip - segmentation.num_decisions

    def _cache_unskipped(self, word: str) -> _Segmentation:
        if self._num_cached > _MAX_CACHED:
            self._unskipped.clear()
            self._num_cached = 0
        self._num_cached += 1
        segmentation = self._unskipped[word] = _Segmentation(*self._merged(word, iter(())))
        return segmentation

    def _draw_gap(self, draw: Draw) -> int:
        """Return the number of merges that are kept before the next skipped one."""
        if self._log_keep_probability == 0:
            return sys.maxsize
        return int(math.log1p(-draw()) / self._log_keep_probability)

    def _draw_skips(self, draw: Draw) -> Iterator[int]:
        """Yield the indices of skipped merges, from 0, ascending."""
        skip = self._draw_gap(draw)
        while True:
            yield skip
            skip += 1 + self._draw_gap(draw)

    def _merged(self, word: str, skips: Iterator[int]) -> tuple[list[int], int]:
        """Return the ids of a word and the number of decisions. skips: indices of the merges to skip, ascending."""
        rank, size = self._rank, len(word)
        # ends[i]: end of the subword that begins at i, or 0. previous[i]: start of the subword that ends at i.
        ends = [*range(1, size + 1), 0]
        previous = list(range(-1, size))
        middles: dict[tuple[int, int], int] = {}  # where a subword was merged, by its start and end
        pairs = [(rank[pair], left, left + 2) for left in range(size - 1) if (pair := word[left : left + 2]) in rank]
        heapify(pairs)
        next_skip, decision = next(skips, -1), -1
        while pairs:
            _, left, end = heappop(pairs)
            middle = ends[left]
            if middle == 0 or ends[middle] != end:
                continue  # one of the two subwords was merged with another
            decision += 1
            if decision == next_skip:
                next_skip = next(skips, -1)
                continue
            ends[left], ends[middle] = end, 0
            previous[end] = left
            if self._unused:
                middles[left, end] = middle
            for first, last in ((previous[left], end), (left, ends[end])):
                if first >= 0 and last > 0 and (pair := word[first:last]) in rank:
                    heappush(pairs, (rank[pair], first, last))
        ids: list[int] = []
        begin = 0
        while begin < size:
            self._add_subword(word, begin, ends[begin], middles, ids)
            begin = ends[begin]
        return ids, decision + 1

    def _add_subword(
        self, word: str, begin: int, end: int, middles: dict[tuple[int, int], int], ids: list[int]
    ) -> None:
        """Append the id of a subword, or, if it is unused, the ids of the two that it was merged from."""
        text = word[begin:end]
        if text in self._unused and (begin, end) in middles:
            middle = middles[begin, end]
            self._add_subword(word, begin, middle, middles, ids)
            self._add_subword(word, middle, end, middles, ids)
        elif (id := self._id_of.get(text)) is not None:
            ids.append(id)
        else:
            ids += self._unknown(text)


class _Segmentation:
    """A cached segmentation of a word, a node of the tree of skipped decisions.

    Attributes:
        ids: Ids of the word.
        num_decisions: Number of merges that were kept or skipped.
        after_skip: Segmentations with one more skipped decision, by its index. It follows all decisions skipped so far.
    """

    __slots__ = ("after_skip", "ids", "num_decisions")

    def __init__(self, ids: list[int], num_decisions: int) -> None:
        self.ids = ids
        self.num_decisions = num_decisions
        self.after_skip: dict[int, _Segmentation] = {}


class UnigramSampling(SubwordSampler):
    """Sampling from a unigram model (Kudo 2018): the probability of a segmentation is proportional to p ** alpha.

    All segmentations are considered, by forward filtering and backward sampling. Alpha 1 is the model's own
    distribution; a smaller alpha makes it more uniform.
    """

    def __init__(self, model: bytes, table: PieceTable, alpha: float) -> None:
        super().__init__(model, table)
        self._log_weight = {
            text: alpha * self._pieces[id].score for text, id in self._id_of.items() if text not in self._unused
        }
        self._longest = max(map(len, self._log_weight), default=1)
        self._lattices: dict[str, _Lattice] = {}

    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        for word in words:
            lattice = self._lattices.get(word) or self._lattice(word)
            reversed_ids = []
            end = len(word)
            while end:
                cumulative, arcs = lattice[end]
                end, subword_ids = arcs[bisect_right(cumulative, draw()) if len(arcs) > 1 else 0]
                reversed_ids.append(subword_ids)
            for subword_ids in reversed(reversed_ids):
                ids += subword_ids

    def _lattice(self, word: str) -> _Lattice:
        """Return the lattice of a word, and cache it if the word is short."""
        log_weights = self._log_weight
        forward = [0.0]  # forward[i]: log of the summed weights of all segmentations of word[:i]
        lattice: _Lattice = [([], [])]
        for end in range(1, len(word) + 1):
            arcs, weights = [], []
            for begin in range(max(0, end - self._longest), end):
                weight = log_weights.get(text := word[begin:end])
                if weight is not None:
                    arcs.append((begin, [self._id_of[text]]))
                    weights.append(forward[begin] + weight)
            if (character := word[end - 1]) not in log_weights:
                arcs.append((end - 1, self._unknown(character)))
                weights.append(forward[end - 1] + _UNKNOWN_LOG_WEIGHT)
            largest = max(weights)
            sums = list(accumulate(math.exp(weight - largest) for weight in weights))
            forward.append(largest + math.log(sums[-1]))
            lattice.append(([partial_sum / sums[-1] for partial_sum in sums[:-1]], arcs))
        if len(word) <= _LONGEST_CACHED_WORD:
            if len(self._lattices) * 8 > _MAX_CACHED:  # a lattice counts as eight segmentations
                self._lattices.clear()
            self._lattices[word] = lattice
        return lattice
