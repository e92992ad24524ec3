"""Subword regularization: text cut otherwise than usual, by chance.

SentencePiece draws too, but differently in each process, whatever seed it is given. Here a cut is a function of the
text and a seed. Both kinds of model are cut word by word, which gives what cutting the whole text would wherever no
piece reaches over the beginning of a word, and lets what is known of a word be kept for the next time it comes.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import accumulate, groupby
from random import Random
from typing import Any, NamedTuple

import sentencepiece

from gnmt.batch import UNK_ID
from gnmt.errors import InputError

# SentencePiece.Type and TrainerSpec.ModelType of sentencepiece_model.proto.
_NORMAL, UNKNOWN, _CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    """One entry of the vocabulary; type as in sentencepiece_model.proto."""

    text: str
    score: float
    type: int = _NORMAL


class PieceTable(NamedTuple):
    """kind: unigram, bpe, word or char. pieces: by their ids."""

    kind: str
    pieces: list[Piece]

    @classmethod
    def read(cls, model: bytes) -> PieceTable:
        """Of a serialized ModelProto that SentencePiece has accepted."""
        kind, pieces = _KINDS[1], []
        for number, value in _fields(model):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                kind = _KINDS[dict(_fields(value)).get(3, 1)]
        return cls(kind, pieces)

    def ids(self, *types: int) -> dict[str, int]:
        """The ids of all pieces of these types, by their text."""
        return {piece.text: id for id, piece in enumerate(self.pieces) if piece.type in types}

    @property
    def mergeable(self) -> dict[str, int]:
        """What text is cut into: ids of normal, unused and user-defined pieces."""
        return self.ids(_NORMAL, UNUSED, USER_DEFINED)


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, _NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[wire_type]
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    number = shift = 0
    while message[place] & 0x80:
        number |= (message[place] & 0x7F) << shift
        shift += 7
        place += 1
    return number | message[place] << shift, place + 1


_SPACE = "▁"
_WORD = re.compile(f"{_SPACE}[^{_SPACE}]*|[^{_SPACE}]+")
_ANY = re.compile("(?s:.+)")
# What is known of longer words is not kept: they are rare and have many ways to be cut.
_LONGEST_KEPT_WORD = 32
# Some 50 MB at most.
_MAX_KEPT = 100_000
# Log-weight of a character without a piece: it is unknown (or bytes) only where no piece covers it.
_UNKNOWN_LOG_WEIGHT = -200.0

Draw = Callable[[], float]


def subword_sampler(model: bytes, alpha: float) -> SubwordSampler:
    """What samples cuts with that serialized SentencePiece model: BPE dropout or unigram sampling, by its kind.

    Raises InputError for a model of another kind.
    """
    table = PieceTable.read(model)
    if table.kind == "bpe":
        return BPEDropout(model, table, alpha)
    if table.kind == "unigram":
        return UnigramSampling(model, table, alpha)
    raise InputError(
        f"trainer.subword_regularization needs a tokenizer of kind bpe or unigram, and this one is of kind {table.kind}, "
        "which cuts text in one way only: set trainer.subword_regularization=0"
    )


class SubwordSampler(ABC):
    """Samples ways to cut text.

    The text is normalized as SentencePiece does; user-defined symbols stay whole, and characters without a piece become
    their bytes, or UNK where the model has none. Safe to share among threads.
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
        # With pieces that hold a space behind their beginning, merges reach over words: then all is one word.
        self._word = _ANY if any(_SPACE in piece[1:] for piece in self._id_of) else _WORD

    def encode(self, text: str, seed: int) -> list[int]:
        """Ids of one way to cut the text, without BOS and EOS: a function of text and seed (0 or more) alone."""
        ids: list[int] = []
        draw = Random(seed).random
        normalized: str = self._processor.normalize(text)
        if self._symbol is None:
            self.add_sampled(self._word.findall(normalized), draw, ids)
        else:
            self._add_between_symbols(normalized, self._symbol, draw, ids)
        return ids if self._byte_ids or UNK_ID not in ids else _with_unknown_runs_as_one(ids)

    def _add_between_symbols(self, normalized: str, symbol: re.Pattern[str], draw: Draw, ids: list[int]) -> None:
        end = 0
        for found in symbol.finditer(normalized):
            self.add_sampled(self._word.findall(normalized[end : found.start()]), draw, ids)
            ids.append(self._symbols[found[0]])
            end = found.end()
        self.add_sampled(self._word.findall(normalized[end:]), draw, ids)

    @abstractmethod
    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        """Appends the ids of one way to cut these words. draw: numbers from 0 to below 1."""

    def _unknown(self, text: str) -> list[int]:
        """What stands for text that no piece covers."""
        return [self._byte_ids[byte] for byte in text.encode("utf-8")] if self._byte_ids else [UNK_ID]


def _with_unknown_runs_as_one(ids: list[int]) -> list[int]:
    """SentencePiece makes one UNK of neighboring unknown characters."""
    return [id for key, run in groupby(ids) for id in ([key] if key == UNK_ID else run)]


class BPEDropout(SubwordSampler):
    """BPE dropout (Provilkov et al. 2020): merges as in byte-pair encoding, each left out with a probability.

    Characters are merged pair by pair, that of the best score first and of equal ones the leftmost. A pair that was
    left out once is so for good, unless one of its pieces grows; this is how SentencePiece reads algorithm 1 of the
    paper, where a pair gets another chance after every merge. Probability 0 gives the cut of SentencePiece; 1, letters.
    """

    def __init__(self, model: bytes, table: PieceTable, probability: float) -> None:
        super().__init__(model, table)
        self._rank = {text: -self._pieces[id].score for text, id in self._id_of.items()}
        # log(1 - p): how far it is to the next merge that is left out follows from one draw instead of one for each.
        self._log_kept = math.log1p(-probability) if probability < 1 else -math.inf
        self._first_cuts: dict[str, _Cut] = {}
        self._num_kept = 0

    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        """See SubwordSampler."""
        gap = self._gap(draw)
        for word in words:
            if len(word) > _LONGEST_KEPT_WORD:
                # Gaps have no memory, so that another may be begun at any time.
                ids += self._merged(word, self._skips(draw))[0]
                continue
            cut = self._first_cuts.get(word) or self._keep_first(word)
            if gap >= cut.num_decisions:
                gap -= cut.num_decisions
            else:
                cut, gap = self._with_skips(word, cut, gap, draw)
            ids += cut.ids

    def _with_skips(self, word: str, cut: _Cut, skip: int, draw: Draw) -> tuple[_Cut, int]:
        """The word's cut with that merge left out and others as they are drawn, and how many are kept after it."""
        skips: list[int] = []
        while skip < cut.num_decisions:
            skips.append(skip)
            following = cut.after_skip.get(skip)
            if following is None:
                following = cut.after_skip[skip] = _Cut(*self._merged(word, iter(skips)))
                self._num_kept += 1
            cut = following
            skip += 1 + self._gap(draw)
        return cut, skip - cut.num_decisions

    def _keep_first(self, word: str) -> _Cut:
        if self._num_kept > _MAX_KEPT:
            self._first_cuts.clear()
            self._num_kept = 0
        self._num_kept += 1
        cut = self._first_cuts[word] = _Cut(*self._merged(word, iter(())))
        return cut

    def _gap(self, draw: Draw) -> int:
        """How many merges are kept before the next that is left out."""
        if self._log_kept == 0:
            return sys.maxsize
        return int(math.log1p(-draw()) / self._log_kept)

    def _skips(self, draw: Draw) -> Iterator[int]:
        """Which merges are left out, counted from 0."""
        skip = self._gap(draw)
        while True:
            yield skip
            skip += 1 + self._gap(draw)

    def _merged(self, word: str, skips: Iterator[int]) -> tuple[list[int], int]:
        """Ids of the word's pieces, and how many merges were kept or left out. skips: which to leave out, ascending."""
        rank, size = self._rank, len(word)
        # A piece is where it begins; ends: where it ends, 0 where none begins any more.
        ends = [*range(1, size + 1), 0]
        previous = list(range(-1, size))
        middles: dict[tuple[int, int], int] = {}
        pairs = [(rank[pair], left, left + 2) for left in range(size - 1) if (pair := word[left : left + 2]) in rank]
        heapify(pairs)
        next_skip, decision = next(skips, -1), -1
        while pairs:
            _, left, end = heappop(pairs)
            middle = ends[left]
            if middle == 0 or ends[middle] != end:
                continue  # one of the two was merged with another
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
            self._add_piece(word, begin, ends[begin], middles, ids)
            begin = ends[begin]
        return ids, decision + 1

    def _add_piece(self, word: str, begin: int, end: int, middles: dict[tuple[int, int], int], ids: list[int]) -> None:
        """The id of a piece; of an unused one those of what it was merged from."""
        text = word[begin:end]
        if text in self._unused and (begin, end) in middles:
            middle = middles[begin, end]
            self._add_piece(word, begin, middle, middles, ids)
            self._add_piece(word, middle, end, middles, ids)
        elif (id := self._id_of.get(text)) is not None:
            ids.append(id)
        else:
            ids += self._unknown(text)


class _Cut:
    """One way to cut a word: its ids, the merges that were kept or left out, and the cuts with one more left out.

    after_skip: by the number of the merge, which comes after all that this one leaves out.
    """

    __slots__ = ("after_skip", "ids", "num_decisions")

    def __init__(self, ids: list[int], num_decisions: int) -> None:
        self.ids = ids
        self.num_decisions = num_decisions
        self.after_skip: dict[int, _Cut] = {}


class UnigramSampling(SubwordSampler):
    """Sampling from a unigram model (Kudo 2018): each way to cut in proportion to its probability to the power alpha.

    Of all ways, by forward filtering and backward sampling. Alpha 1 is the model's own distribution, less is nearer to
    all ways being equally probable.
    """

    def __init__(self, model: bytes, table: PieceTable, alpha: float) -> None:
        super().__init__(model, table)
        self._log_weight = {
            text: alpha * self._pieces[id].score for text, id in self._id_of.items() if text not in self._unused
        }
        self._longest = max(map(len, self._log_weight), default=1)
        self._lattices: dict[str, _Lattice] = {}

    def add_sampled(self, words: list[str], draw: Draw, ids: list[int]) -> None:
        """See SubwordSampler."""
        for word in words:
            lattice = self._lattices.get(word) or self._lattice(word)
            backwards = []
            end = len(word)
            while end:
                cumulative, arcs = lattice[end]
                end, piece_ids = arcs[bisect_right(cumulative, draw()) if len(arcs) > 1 else 0]
                backwards.append(piece_ids)
            for piece_ids in reversed(backwards):
                ids += piece_ids

    def _lattice(self, word: str) -> _Lattice:
        """For each place the pieces that may end there: cumulative probabilities, where each begins, and its ids."""
        log_weights = self._log_weight
        forward = [0.0]  # log of the summed weights of all ways to cut what comes before each place
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
            lattice.append(([part / sums[-1] for part in sums[:-1]], arcs))
        if len(word) <= _LONGEST_KEPT_WORD:
            if len(self._lattices) * 8 > _MAX_KEPT:
                self._lattices.clear()
            self._lattices[word] = lattice
        return lattice


_Lattice = list[tuple[list[float], list[tuple[int, list[int]]]]]
