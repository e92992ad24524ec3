"""Which sentence pairs make up which batch: a pure function of lengths, budget, seed and epoch, planned block by block.

An epoch of a large corpus is cut into blocks of about a million pairs, so that the first batch and the resumption at
any place cost the planning of one block. A block is made of runs of neighbouring pairs from all over the corpus, drawn
anew in each epoch: neighbours are read together from the disk, and still any pair may meet any other.

Shapes: N pairs, B rows of one batch. Lengths are int arrays of pieces without BOS and EOS, as the store
keeps them; costs are padded tokens of both sides with EOS, which is what the model computes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from gnmt.types import InputError

# Blocks of about so many pairs; smaller corpora are one block.
BLOCK_PAIRS = 1 << 20
# So many neighbouring pairs stay in one block.
RUN_PAIRS = 1 << 12
# Sorting goes by pools of about so many pairs, drawn at random: large enough for batches without padding.
POOL_PAIRS = 1 << 17
# Target lengths are sorted in pairs of lengths: a little more padding, and more ways to meet in a batch.
_BUCKET_TOKENS = 2
# Lengths that are looked at together when all are.
_CHECK_PAIRS = 1 << 22

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Segment:
    """One corpus among those that lie in a store one after another.

    num_pairs: how many it has. weight: what share of the training pairs comes from it, relative to the others' weights.
    """

    num_pairs: int
    weight: float


@dataclass(frozen=True)
class BlockPlan:
    """The global batches of one block.

    pairs_N: its pairs. starts: where each batch begins, and the end. source_tokens, target_tokens: of each batch, with
    EOS, without BOS and padding.
    """

    pairs_N: NDArray[np.int64]
    starts: NDArray[np.int64]
    source_tokens: NDArray[np.int64]
    target_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, batch: int) -> NDArray[np.int64]:
        """int64 [B]: the pairs of a batch, those of similar lengths side by side."""
        return self.pairs_N[self.starts[batch] : self.starts[batch + 1]]


def num_blocks(num_pairs: int) -> int:
    """How many blocks an epoch of so many pairs is cut into."""
    return max(1, -(-num_pairs // BLOCK_PAIRS))


def block_pairs(segments: Sequence[Segment], seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """int64 [N], ascending: the pairs of a block; the blocks of an epoch hold every pair of a single corpus once.

    An epoch of several corpora is as many pairs as they have together. Each gives its share of every block by its
    weight, and goes through its own pairs once before it begins anew, whenever that is. So one may be in its third
    epoch while another is in its first, and where it stands is a function of how many pairs came before.
    """
    total = sum(segment.num_pairs for segment in segments)
    weights = [Fraction(segment.weight) for segment in segments]  # exact: of 49 equal ones each has its share
    blocks = num_blocks(total)
    begin, end = (epoch * total + total * place // blocks for place in (block, block + 1))
    first_pair, chosen = 0, []
    for number, (segment, weight) in enumerate(zip(segments, weights, strict=True)):
        share = weight / sum(weights)
        taken = _sequence(segment.num_pairs, int(begin * share), int(end * share), seed, number)
        chosen.append(first_pair + taken)
        first_pair += segment.num_pairs
    return np.sort(np.concatenate(chosen))


def _sequence(num_pairs: int, begin: int, end: int, seed: int, number: int) -> NDArray[np.int64]:
    """Elements begin to end of the endless sequence of one corpus' epochs, each with its runs in another order."""
    pieces = [np.zeros(0, dtype=np.int64)]
    while begin < end:
        epoch, place = divmod(begin, num_pairs)
        if place == 0 and (num_whole := (end - begin) // num_pairs):
            pieces.append(np.tile(np.arange(num_pairs), num_whole))
            begin += num_whole * num_pairs
            continue
        length = min(end - begin, num_pairs - place)
        pieces.append(_part_of_epoch(num_pairs, place, place + length, seed, epoch, number))
        begin += length
    return np.concatenate(pieces)


def _part_of_epoch(num_pairs: int, begin: int, end: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    starts = np.arange(0, num_pairs, RUN_PAIRS)
    # The last number keeps these draws apart from those of any block.
    starts = np.random.default_rng([seed, epoch, number, 1]).permutation(starts)
    ends = np.cumsum(np.minimum(starts + RUN_PAIRS, num_pairs) - starts)
    first, last = np.searchsorted(ends, (begin, end - 1), side="right")
    runs = [np.arange(start, min(start + RUN_PAIRS, num_pairs)) for start in starts[first : last + 1]]
    skipped = begin - (int(ends[first - 1]) if first else 0)
    return np.concatenate(runs)[skipped : skipped + end - begin]


def plan_block(
    pairs_N: NDArray[np.int64],
    source_lengths_N: Ints,
    target_lengths_N: Ints,
    *,
    batch_tokens: int,
    seed: int,
    epoch: int,
    block: int = 0,
    length_multiple: int = 1,
) -> BlockPlan:
    """Cuts a block into batches whose rows times (longest source + longest target) is at most batch_tokens.

    Both lengths, EOS counted, are rounded up to multiples of length_multiple.

    pairs_N and their lengths: see `block_pairs`. Every pair occurs as often as it is given, whatever is left over makes
    a smaller batch. Batches are made of pairs of similar lengths on both sides, in other company each epoch, and come
    in random order. A pair over the budget makes a batch of its own; `check_budget` refuses such pairs beforehand.
    """
    rng = np.random.default_rng([seed, epoch, block])
    shuffled = rng.permutation(len(pairs_N))
    num_pools = -(-len(shuffled) // POOL_PAIRS)
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(shuffled, num_pools):
        source, target = (rounded_up(side[pool], length_multiple) for side in (source_lengths_N, target_lengths_N))
        order = _by_length(source, target, rng)
        starts = cut(source[order], target[order], batch_tokens)
        batches += np.split(pool[order], starts[1:-1])
    batch_order = rng.permutation(len(batches))
    batches = [batches[i] for i in batch_order]
    starts = np.concatenate(([0], np.cumsum([len(batch) for batch in batches])))
    places_N = np.concatenate(batches)
    source_tokens, target_tokens = (
        np.add.reduceat(lengths[places_N].astype(np.int64) + 1, starts[:-1])
        for lengths in (source_lengths_N, target_lengths_N)
    )
    return BlockPlan(pairs_N[places_N], starts, source_tokens, target_tokens)


def rounded_up(lengths_N: Ints, multiple: int) -> NDArray[np.int64]:
    """Pieces that with EOS make up the next multiple."""
    return -(-(lengths_N.astype(np.int64) + 1) // multiple) * multiple - 1


def _by_length(source_N: Ints, target_N: Ints, rng: np.random.Generator) -> NDArray[np.int64]:
    """Order by buckets of target length, and inside by source length, up and down in turn like a ploughed field.

    So neighbours are alike on both sides even where one bucket ends and the next begins. Where the buckets begin
    and which way the first one goes is drawn, so that batches are cut at other places each epoch.
    """
    buckets_N = (target_N.astype(np.int64) + rng.integers(_BUCKET_TOKENS)) // _BUCKET_TOKENS
    upwards_N = (buckets_N + rng.integers(2)) % 2 == 0
    return np.lexsort((np.where(upwards_N, source_N, -source_N.astype(np.int64)), buckets_N))


def cut(source_N: Ints, target_N: Ints, budget: int) -> NDArray[np.int64]:
    """Where to cut a sequence of pairs into longest pieces within the budget: [0, ..., N].

    A pair that alone costs more than the budget becomes a piece of its own.
    """
    starts = [0]
    while starts[-1] < len(source_N):
        start = starts[-1]
        most = max(1, budget // (int(source_N[start]) + int(target_N[start]) + 2))
        widest_source = np.maximum.accumulate(source_N[start : start + most]).astype(np.int64) + 1
        widest_target = np.maximum.accumulate(target_N[start : start + most]).astype(np.int64) + 1
        costs = (widest_source + widest_target) * np.arange(1, len(widest_source) + 1)
        starts.append(start + max(1, int(np.searchsorted(costs, budget, side="right"))))
    return np.array(starts)


def check_budget(source_lengths: Ints, target_lengths: Ints, budget: int, key: str, length_multiple: int = 1) -> None:
    """Raises InputError, naming `key`, where a pair costs more than the budget; looks at a few million at a time."""
    cost, largest = 0, 0
    for start in range(0, len(source_lengths), _CHECK_PAIRS):
        part = slice(start, start + _CHECK_PAIRS)
        sides = (rounded_up(lengths[part], length_multiple) for lengths in (source_lengths, target_lengths))
        costs_N = np.add(*sides) + 2
        place = int(np.argmax(costs_N))
        if costs_N[place] > cost:
            cost, largest = int(costs_N[place]), start + place
    if cost > budget:
        raise InputError(
            f"{key}={budget} is too small for pair {largest} of the prepared text, which takes {cost} "
            f"tokens ({source_lengths[largest] + 1} source + {target_lengths[largest] + 1} target, EOS counted"
            f"{f', in multiples of {length_multiple}' if length_multiple > 1 else ''}): "
            f"give {key}={cost} or more, or drop long pairs with data.cleaning.max_length_tokens"
        )
