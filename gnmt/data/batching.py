"""Batching: plan the global batches of an epoch, collate pairs into padded tensors, and iterate over the result.

The sections follow the path of the data:

- Planning: pairs are grouped into global batches, in a random order. The plan is a pure function of the lengths, the
  token budget, the seed and the epoch. An epoch is planned in blocks of about a million pairs.
- Collating: the token ids of pairs become one padded `Batch`, optionally with subword regularization.
- `BatchStream`: the endless sequence of global batches, each as the `LocalBatch` of this rank.
- `Prefetcher`: the same sequence, computed ahead of time by a thread.
"""

from __future__ import annotations

import hashlib
import queue
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, Tokens
from gnmt.data.store import CorpusSpan, Pairs, Store
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError

BLOCK_PAIRS = 1 << 20
"""Approximate number of pairs in a block; a smaller corpus is one block."""

RUN_PAIRS = 1 << 12
"""Number of neighboring pairs that stay together in one block, so that long stretches of the disk are read at once."""

POOL_PAIRS = 1 << 17
"""Approximate number of pairs that are sorted by length together, enough for batches with little padding."""

_BUCKET_TOKENS = 2  # target lengths per bucket; two cost little padding and leave more ways to combine pairs
_CHECKED_PAIRS = 1 << 22  # pairs whose lengths `longest_pair` reads at once

Ints = NDArray[np.integer]
Rows = Sequence[Sequence[int] | NDArray[np.integer[Any]]]


# Planning


@dataclass(frozen=True)
class BlockPlan:
    """The global batches of one block.

    Args:
        pairs_N: Indices of the block's pairs in the store, batch after batch.
        starts: Index in pairs_N of the first pair of each batch, and N at the end.
        source_tokens, target_tokens: Number of tokens of each batch, with EOS, without BOS and padding.
    """

    pairs_N: NDArray[np.int64]
    starts: NDArray[np.int64]
    source_tokens: NDArray[np.int64]
    target_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, batch: int) -> NDArray[np.int64]:
        """Return the indices of a batch's pairs, int64 [B]; pairs of similar lengths are neighbors."""
        return self.pairs_N[self.starts[batch] : self.starts[batch + 1]]


def plan_block(
    pairs_N: NDArray[np.int64],
    source_lengths_N: Ints,
    target_lengths_N: Ints,
    *,
    batch_tokens: int,
    seed: int,
    epoch: int,
    block: int = 0,
    pad_to_multiple_of: int = 1,
) -> BlockPlan:
    """Split a block into batches of at most `batch_tokens` padded tokens.

    A batch has rows * (longest source + longest target) padded tokens, with EOS, where both lengths are rounded up to
    multiples of `pad_to_multiple_of`. Its pairs have similar lengths on both sides. The composition and the order of
    the batches are random and differ between epochs. Every pair occurs as often as in `pairs_N`; the last pairs of a
    pool form a smaller batch. A pair that exceeds the budget forms a batch of its own (`check_budget` refuses such
    pairs beforehand).

    Args:
        pairs_N: Indices of the block's pairs in the store, from `block_pairs`.
        source_lengths_N, target_lengths_N: Subwords of each pair, without EOS.
        batch_tokens: Largest number of padded tokens of a batch.
        seed, epoch, block: Seed of the random order, together.
        pad_to_multiple_of: See above.
    """
    rng = np.random.default_rng([seed, epoch, block])
    shuffled = rng.permutation(len(pairs_N))
    num_pools = -(-len(shuffled) // POOL_PAIRS)
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(shuffled, num_pools):
        source = round_up_lengths(source_lengths_N[pool], pad_to_multiple_of)
        target = round_up_lengths(target_lengths_N[pool], pad_to_multiple_of)
        order = _length_order(source, target, rng)
        starts = batch_boundaries(source[order], target[order], batch_tokens)
        batches += np.split(pool[order], starts[1:-1])
    batch_order = rng.permutation(len(batches))
    batches = [batches[i] for i in batch_order]
    starts = np.concatenate(([0], np.cumsum([len(batch) for batch in batches])))
    order_N = np.concatenate(batches)
    source_tokens, target_tokens = (
        np.add.reduceat(lengths[order_N].astype(np.int64) + 1, starts[:-1])
        for lengths in (source_lengths_N, target_lengths_N)
    )
    return BlockPlan(pairs_N[order_N], starts, source_tokens, target_tokens)


def round_up_lengths(lengths_N: Ints, multiple: int) -> NDArray[np.int64]:
    """Round lengths up so that each is a multiple of `multiple` after EOS is added."""
    return -(-(lengths_N.astype(np.int64) + 1) // multiple) * multiple - 1


def _length_order(source_N: Ints, target_N: Ints, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return indices that sort pairs by buckets of target length, and by source length inside a bucket.

    Source lengths ascend in one bucket and descend in the next, so pairs next to a bucket's edge are similar too. The
    edges and the first direction are random, so that batches differ between epochs.
    """
    buckets_N = (target_N.astype(np.int64) + rng.integers(_BUCKET_TOKENS)) // _BUCKET_TOKENS
    ascending_N = (buckets_N + rng.integers(2)) % 2 == 0
    return np.lexsort((np.where(ascending_N, source_N, -source_N.astype(np.int64)), buckets_N))


def batch_boundaries(source_N: Ints, target_N: Ints, budget: int) -> NDArray[np.int64]:
    """Split a sequence of pairs greedily into the longest batches within the budget of padded tokens.

    A pair that exceeds the budget forms a batch of its own.

    Args:
        source_N, target_N: Lengths of the pairs, without EOS.
        budget: Largest number of padded tokens of a batch, with EOS.

    Returns:
        The index of the first pair of each batch, and N at the end.
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


def num_blocks(num_pairs: int) -> int:
    """Return the number of blocks in an epoch of `num_pairs` pairs."""
    return max(1, -(-num_pairs // BLOCK_PAIRS))


def block_pairs(corpus_spans: Sequence[CorpusSpan], seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """Return the indices of a block's pairs in the store, int64 [N], ascending.

    With one corpus, the blocks of an epoch contain every pair once. With several, an epoch has as many pairs as all
    corpora together, and each corpus fills a share of every block in proportion to its weight. A corpus uses each of
    its pairs once before it repeats one, so one corpus may be in its third epoch while another is in its first. No
    earlier block needs to be computed first.
    """
    total = sum(span.num_pairs for span in corpus_spans)
    weights = [Fraction(span.weight) for span in corpus_spans]  # exact, so that equal weights give equal shares
    blocks = num_blocks(total)
    begin = epoch * total + total * block // blocks
    end = epoch * total + total * (block + 1) // blocks
    first_pair, chosen = 0, []
    for number, (span, weight) in enumerate(zip(corpus_spans, weights, strict=True)):
        share = weight / sum(weights)
        pairs = _corpus_pairs(span.num_pairs, int(begin * share), int(end * share), seed, number)
        chosen.append(first_pair + pairs)
        first_pair += span.num_pairs
    return np.sort(np.concatenate(chosen))


def _corpus_pairs(num_pairs: int, begin: int, end: int, seed: int, number: int) -> NDArray[np.int64]:
    """Return elements `begin` to `end` of the endless sequence of a corpus's epochs; see `_epoch_slice`."""
    chosen = [np.zeros(0, dtype=np.int64)]
    while begin < end:
        epoch, offset = divmod(begin, num_pairs)
        if offset == 0 and (num_full_epochs := (end - begin) // num_pairs):
            chosen.append(np.tile(np.arange(num_pairs), num_full_epochs))
            begin += num_full_epochs * num_pairs
            continue
        length = min(end - begin, num_pairs - offset)
        chosen.append(_epoch_slice(num_pairs, offset, offset + length, seed, epoch, number))
        begin += length
    return np.concatenate(chosen)


def _epoch_slice(num_pairs: int, begin: int, end: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Return elements `begin` to `end` of one epoch of a corpus: runs of RUN_PAIRS neighboring pairs, shuffled."""
    starts = np.arange(0, num_pairs, RUN_PAIRS)
    # The last number of the seed keeps these draws apart from those of `plan_block`.
    starts = np.random.default_rng([seed, epoch, number, 1]).permutation(starts)
    ends = np.cumsum(np.minimum(starts + RUN_PAIRS, num_pairs) - starts)
    first, last = np.searchsorted(ends, (begin, end - 1), side="right")
    runs = [np.arange(start, min(start + RUN_PAIRS, num_pairs)) for start in starts[first : last + 1]]
    skipped = begin - (int(ends[first - 1]) if first else 0)
    return np.concatenate(runs)[skipped : skipped + end - begin]


def check_budget(
    source_lengths: Ints, target_lengths: Ints, budget: int, key: str, pad_to_multiple_of: int = 1
) -> None:
    """Raise InputError if a pair alone has more padded tokens than the budget; `key` is the budget's config key."""
    cost, largest = longest_pair(source_lengths, target_lengths, pad_to_multiple_of)
    if cost > budget:
        raise InputError(
            f"{key}={budget} is too small for pair {largest} of the preprocessed text, which takes {cost} "
            f"tokens ({source_lengths[largest] + 1} source + {target_lengths[largest] + 1} target, EOS counted"
            f"{f', in multiples of {pad_to_multiple_of}' if pad_to_multiple_of > 1 else ''}): "
            f"set {key}={cost} or more, or drop long pairs with data.cleaning.max_length_tokens"
        )


def longest_pair(source_lengths: Ints, target_lengths: Ints, pad_to_multiple_of: int = 1) -> tuple[int, int]:
    """Return the padded tokens of the longest pair, with EOS on both sides, and its index."""
    cost, longest = 0, 0
    for start in range(0, len(source_lengths), _CHECKED_PAIRS):
        chunk = slice(start, start + _CHECKED_PAIRS)
        sides = (round_up_lengths(lengths[chunk], pad_to_multiple_of) for lengths in (source_lengths, target_lengths))
        costs_N = np.add(*sides) + 2
        index = int(np.argmax(costs_N))
        if costs_N[index] > cost:
            cost, longest = int(costs_N[index]), start + index
    return cost, longest


# Collating


class SubwordSampling(NamedTuple):
    """Encode the stored text with sampled subwords, other ones in every epoch (subword regularization).

    alpha: see `Tokenizer.encode_sampled`.
    share: the probability that a pair is sampled, in (0, 1]; the other pairs have their stored ids.
    """

    tokenizers: Tokenizers
    alpha: float
    share: float
    seed: int
    epoch: int

    def encode(self, store: Store, pair: int) -> tuple[list[int], list[int]]:
        """Return ids of both sides, without BOS and EOS: a function of (seed, epoch, pair) alone."""
        key = struct.pack("<qqq", self.seed, self.epoch, pair)
        if int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >= self.share * 2**32:
            source, target = store.source_ids([pair])[0], store.target_ids([pair])[0]
            return source.tolist(), target.tolist()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        source_seed, target_seed = struct.unpack("<II", digest)
        tag = [int(store.source_ids([pair])[0][0])] if self.tokenizers.tags else []
        return (
            [*tag, *self.tokenizers.source.encode_sampled(store.source_text(pair), self.alpha, source_seed)],
            self.tokenizers.target.encode_sampled(store.target_text(pair), self.alpha, target_seed),
        )

    def lengths(self, store: Store, pairs_N: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the number of sampled subwords of each pair, int32 [N] for source and for target."""
        lengths = np.zeros((2, len(pairs_N)), dtype=np.int32)
        for index, pair in enumerate(pairs_N):
            lengths[:, index] = [len(ids) for ids in self.encode(store, int(pair))]
        return lengths[0], lengths[1]


def collate(store: Store, pairs: Pairs, sampling: SubwordSampling | None = None) -> Batch:
    """Return the pairs as one batch, rows in the given order."""
    return batch_of(*_ids_of(store, pairs, sampling), np.asarray(pairs))


def _ids_of(store: Store, pairs: Pairs, sampling: SubwordSampling | None) -> tuple[Rows, Rows]:
    """Return source and target ids of the pairs, without BOS and EOS."""
    if sampling is None:
        return store.source_ids(pairs), store.target_ids(pairs)
    both = [sampling.encode(store, int(pair)) for pair in pairs]
    return [source for source, _ in both], [target for _, target in both]


def batch_of(source: Rows, target: Rows, pairs_B: NDArray[np.int64], pad_to_multiple_of: int = 1) -> Batch:
    """Return rows of ids (without BOS and EOS) as one batch: source with EOS, target with BOS and EOS.

    Source, target inputs and labels are padded to a multiple of `pad_to_multiple_of`.

    Args:
        pairs_B: The index of each row's pair in the store.
    """
    num_labels = sum(len(row) + 1 for row in target)
    return Batch(
        source=_padded(source, (), pad_to_multiple_of),
        target=_padded(target, (BOS_ID,), pad_to_multiple_of),
        pairs_B=torch.from_numpy(pairs_B.astype(np.int64)),
        num_labels=num_labels,
    )


def _padded(rows: Rows, prefix: tuple[int, ...], pad_to_multiple_of: int) -> Tokens:
    """Return rows of ids as padded tokens; each row becomes `prefix`, its ids and EOS."""
    subwords_B = np.array([len(row) for row in rows], dtype=np.int64)
    lengths_B = subwords_B + len(prefix) + 1
    width = int(round_up_lengths(subwords_B, pad_to_multiple_of).max()) + len(prefix) + 1
    ids_BT = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    ids_BT[:, : len(prefix)] = prefix
    for ids_T, row, length in zip(ids_BT, rows, lengths_B, strict=True):
        ids_T[len(prefix) : length - 1] = row
        ids_T[length - 1] = EOS_ID
    return Tokens(torch.from_numpy(ids_BT), torch.from_numpy(lengths_B))


# The stream of batches


class LoaderState(NamedTuple):
    """The point in the data up to which training has consumed batches, and from which a stream resumes.

    Args:
        epoch: The current epoch, from 0.
        batches: Number of consumed global batches of the current block.
        block: The current block of the epoch, from 0.
    """

    epoch: int = 0
    batches: int = 0
    block: int = 0


class LocalBatch(list[Batch]):
    """The microbatches that one rank computes of a global batch.

    Args:
        microbatches: The microbatches; empty for some ranks if the global batch has fewer pairs than there are ranks.
        source_tokens, target_tokens: Tokens of the global batch, with EOS, without BOS and padding.
        dummy_batch: One pair of the global batch for a rank without microbatches. The rank computes it with weight 0,
            so that it takes part in the collective operations.
    """

    def __init__(
        self, microbatches: Iterable[Batch], source_tokens: int, target_tokens: int, dummy_batch: Batch | None = None
    ) -> None:
        super().__init__(microbatches)
        assert self or dummy_batch is not None
        self.source_tokens = source_tokens
        self.target_tokens = target_tokens
        self.dummy_batch = dummy_batch

    @property
    def to_compute(self) -> list[Batch]:
        """The batches that this rank runs forward and backward: its microbatches, or the dummy batch."""
        return list(self) if self or self.dummy_batch is None else [self.dummy_batch]

    def pin_memory(self) -> LocalBatch:
        """Return the same batches in page-locked memory."""
        dummy_batch = None if self.dummy_batch is None else _pin_memory(self.dummy_batch)
        return LocalBatch(map(_pin_memory, self), self.source_tokens, self.target_tokens, dummy_batch)


def _pin_memory(batch: Batch) -> Batch:
    source = Tokens(batch.source.ids_BT.pin_memory(), batch.source.lengths_B.pin_memory())
    target = Tokens(batch.target.ids_BT.pin_memory(), batch.target.lengths_B.pin_memory())
    return batch._replace(source=source, target=target)


class BatchStream:
    """Iterate endlessly over global batches, each as the `LocalBatch` of this rank.

    A stream that is built with the `loader_state` of another one yields exactly what that one would yield next.
    Building it plans one block, which takes less than a second without subword regularization. Rank r of n takes every
    n-th pair of a global batch from pair r on, so all ranks have about the same amount of work, and global batches do
    not depend on the number of ranks.

    Subword regularization makes sentences longer, by about a third at alpha 0.1. The plan uses the sampled lengths, so
    that the budgets hold. Each block is therefore encoded once more when it is planned, which takes tens of
    microseconds per pair. Nothing is truncated: a pair that exceeds a budget only with its sampled subwords forms a
    batch of its own.

    Args:
        store: The preprocessed pairs.
        batch_tokens: Largest number of padded source and target tokens in a global batch.
        seed: Seed of the order and of the sampled subwords.
        microbatch_tokens: Largest number of padded tokens in a microbatch; None makes the local batch one microbatch.
        pad_to_multiple_of: See `batch_of`.
        subword_regularization: Alpha of `Tokenizer.encode_sampled`, 0 to 1; 0 uses the stored ids.
        subword_regularization_epochs: Epochs in which the share of sampled pairs falls linearly from 1 to 0; None
            samples all pairs in every epoch.
        tokenizers: Needed only for subword regularization.
        corpus_spans: The corpora of the store and their weights; None for a single corpus.
        loader_state: The state to resume from.
        rank, world_size: The index of this process, and the number of processes.

    Raises:
        InputError: A pair exceeds a budget, or `loader_state` is beyond the end of the data.
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_tokens: int,
        seed: int,
        microbatch_tokens: int | None = None,
        pad_to_multiple_of: int = 1,
        subword_regularization: float = 0.0,
        subword_regularization_epochs: int | None = None,
        tokenizers: Tokenizers | None = None,
        corpus_spans: Sequence[CorpusSpan] | None = None,
        loader_state: LoaderState = LoaderState(),  # noqa: B008 (immutable)
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= subword_regularization <= 1
        assert tokenizers is not None or subword_regularization == 0
        for key, limit in (("batch_tokens", batch_tokens), ("microbatch_tokens", microbatch_tokens)):
            if limit is not None:
                check_budget(store.source_lengths, store.target_lengths, limit, f"trainer.{key}", pad_to_multiple_of)
        self._store = store
        self._batch_tokens = batch_tokens
        self.microbatch_tokens = microbatch_tokens
        self._pad_to_multiple_of = pad_to_multiple_of
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._alpha = subword_regularization
        self._sampled_epochs = subword_regularization_epochs
        self._tokenizers = tokenizers
        self._corpus_spans = [CorpusSpan(len(store), 1.0)] if corpus_spans is None else list(corpus_spans)
        assert sum(span.num_pairs for span in self._corpus_spans) == len(store)
        self._num_blocks = num_blocks(len(store))
        if loader_state.block < self._num_blocks:
            self._plan = self._plan_of(loader_state.epoch, loader_state.block)
        if loader_state.block >= self._num_blocks or loader_state.batches >= len(self._plan):
            raise InputError(
                f"the loader state is batch {loader_state.batches} in block {loader_state.block} of epoch "
                f"{loader_state.epoch}, which does not exist: the preprocessed text or trainer.batch_tokens changed "
                "since it was saved; restore them, or train under another name=..."
            )
        self.loader_state = loader_state
        """The batches that were yielded; a checkpoint saves it."""

    def __len__(self) -> int:
        """Return the number of global batches in the current epoch, estimated from the current block."""
        return len(self._plan) * self._num_blocks

    @property
    def epochs(self) -> float:
        """The number of epochs yielded so far."""
        epoch, batches, block = self.loader_state
        return epoch + (block + batches / len(self._plan)) / self._num_blocks

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def __next__(self) -> LocalBatch:
        epoch, batches, block = self.loader_state
        local_batch = self._local_batch(batches, epoch)
        if batches + 1 < len(self._plan):
            self.loader_state = LoaderState(epoch, batches + 1, block)
        else:
            is_last_block = block + 1 == self._num_blocks
            self.loader_state = LoaderState(epoch + 1, 0, 0) if is_last_block else LoaderState(epoch, 0, block + 1)
            self._plan = self._plan_of(self.loader_state.epoch, self.loader_state.block)
        return local_batch

    def largest_microbatch(self) -> Batch:
        """Return the largest microbatch of the current block's largest global batch, which needs the most memory.

        The batch is chosen by stored lengths. With subword regularization another one may be a little larger.
        """
        lengths = self._store.source_lengths, self._store.target_lengths
        costs = []
        for batch in range(len(self._plan)):
            pairs_B = self._plan[batch]
            widths = [int(round_up_lengths(side[pairs_B], self._pad_to_multiple_of).max()) + 1 for side in lengths]
            costs.append(len(pairs_B) * sum(widths))
        local_batch = self._local_batch(int(np.argmax(costs)), self.loader_state.epoch)
        return max(local_batch.to_compute, key=lambda batch: batch.num_padded_tokens)

    def longest_pair_tokens(self) -> int:
        """Return the padded tokens of the longest pair by its stored length, the least that a microbatch may have."""
        return longest_pair(self._store.source_lengths, self._store.target_lengths, self._pad_to_multiple_of)[0]

    def pairs_at(self, loader_state: LoaderState) -> list[tuple[int, str, str]]:
        """Return index, source text and target text of each pair of the global batch after `loader_state`."""
        pairs_B = self._plan_of(loader_state.epoch, loader_state.block)[loader_state.batches].tolist()
        return [(pair, self._store.source_text(pair), self._store.target_text(pair)) for pair in pairs_B]

    def _plan_of(self, epoch: int, block: int) -> BlockPlan:
        pairs_N = block_pairs(self._corpus_spans, self._seed, epoch, block)
        sampling = self._sampling(epoch)
        if sampling is None:
            lengths = self._store.source_lengths[pairs_N], self._store.target_lengths[pairs_N]
        else:
            lengths = sampling.lengths(self._store, pairs_N)
        return plan_block(
            pairs_N,
            *lengths,
            batch_tokens=self._batch_tokens,
            seed=self._seed,
            epoch=epoch,
            block=block,
            pad_to_multiple_of=self._pad_to_multiple_of,
        )

    def _sampling(self, epoch: int) -> SubwordSampling | None:
        share = 1.0 if self._sampled_epochs is None else 1.0 - epoch / self._sampled_epochs
        if self._alpha == 0 or share <= 0 or self._tokenizers is None:
            return None
        return SubwordSampling(self._tokenizers, self._alpha, share, self._seed, epoch)

    def _local_batch(self, batch: int, epoch: int) -> LocalBatch:
        """Return this rank's microbatches of a global batch of the current block."""
        pairs_B = self._plan[batch]
        local_pairs_B = pairs_B[self._rank :: self._world_size]
        source_tokens, target_tokens = int(self._plan.source_tokens[batch]), int(self._plan.target_tokens[batch])
        if len(local_pairs_B):
            return LocalBatch(self._microbatches(local_pairs_B, epoch), source_tokens, target_tokens)
        dummy_batch = collate(self._store, pairs_B[:1], self._sampling(epoch))
        return LocalBatch([], source_tokens, target_tokens, dummy_batch)

    def _microbatches(self, pairs_B: NDArray[np.int64], epoch: int) -> list[Batch]:
        source, target = _ids_of(self._store, pairs_B, self._sampling(epoch))
        multiple = self._pad_to_multiple_of
        if self.microbatch_tokens is None:
            return [batch_of(source, target, pairs_B, multiple)]
        source_lengths = round_up_lengths(np.array([len(row) for row in source]), multiple)
        target_lengths = round_up_lengths(np.array([len(row) for row in target]), multiple)
        boundaries = batch_boundaries(source_lengths, target_lengths, self.microbatch_tokens)
        return [
            batch_of(source[start:end], target[start:end], pairs_B[start:end], multiple)
            for start, end in pairwise(boundaries)
        ]


# Prefetching


class _Prefetched(NamedTuple):
    """A local batch with the loader state, the epochs and the length of the stream after it."""

    local_batch: LocalBatch
    loader_state: LoaderState
    epochs: float
    length: int


class Prefetcher:
    """Iterate over a stream while a thread computes up to `num_batches` batches ahead.

    `loader_state`, `epochs` and `len` count consumed batches, not prefetched ones, so that a checkpoint skips nothing.
    The thread uses no global random state, so training computes the same with and without it. It starts with the first
    batch. An error in the thread is raised in place of the batch that failed.

    Args:
        stream: The stream to iterate over; nothing else may consume it.
        num_batches: The number of batches to compute ahead; 0 computes each batch on demand, without a thread.
        pin: Whether to copy tensors to page-locked memory, from which CUDA copies asynchronously.
    """

    def __init__(self, stream: BatchStream, num_batches: int, pin: bool) -> None:
        self.loader_state = stream.loader_state
        """The batches that were yielded; a checkpoint saves it."""
        self.epochs = stream.epochs
        """The number of epochs yielded so far."""
        self._length = len(stream)
        self._stream = stream
        self._num_batches = num_batches
        self._pin = pin
        self._prefetched: queue.SimpleQueue[_Prefetched | BaseException] = queue.SimpleQueue()
        self._num_free = threading.Semaphore(num_batches)
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return the number of global batches in the current epoch, estimated as by `BatchStream`."""
        return self._length

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def __next__(self) -> LocalBatch:
        prefetched = self._take() if self._num_batches else self._make()
        self.loader_state, self.epochs, self._length = prefetched.loader_state, prefetched.epochs, prefetched.length
        return prefetched.local_batch

    def largest_microbatch(self) -> Batch:
        """Return `BatchStream.largest_microbatch`; call this before the first batch is taken."""
        return self._stream.largest_microbatch()

    def longest_pair_tokens(self) -> int:
        """Return `BatchStream.longest_pair_tokens`."""
        return self._stream.longest_pair_tokens()

    def limit_microbatches(self, num_tokens: int) -> None:
        """Set the largest number of padded tokens in a microbatch; call this before the first batch is taken."""
        assert self._thread is None
        self._stream.microbatch_tokens = num_tokens

    def pairs_at(self, loader_state: LoaderState) -> list[tuple[int, str, str]]:
        """Return `BatchStream.pairs_at`."""
        return self._stream.pairs_at(loader_state)

    def close(self) -> None:
        """Stop the thread and discard prefetched batches; no batch can be taken afterwards."""
        self._stopped = True
        self._num_free.release()
        if self._thread is not None:
            self._thread.join()

    def _take(self) -> _Prefetched:
        assert not self._stopped
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batch prefetcher", daemon=True)
            self._thread.start()
        prefetched = self._prefetched.get()
        if isinstance(prefetched, BaseException):
            self._prefetched.put(prefetched)  # so that the next call raises it too
            raise prefetched
        self._num_free.release()
        return prefetched

    def _work(self) -> None:
        try:
            while True:
                self._num_free.acquire()
                if self._stopped:
                    return
                self._prefetched.put(self._make())
        except BaseException as error:
            self._prefetched.put(error)

    def _make(self) -> _Prefetched:
        local_batch = next(self._stream)
        if self._pin:
            local_batch = local_batch.pin_memory()
        return _Prefetched(local_batch, self._stream.loader_state, self._stream.epochs, len(self._stream))
