"""Batches: which pairs form a batch in which order, and the thread that makes them ahead of time."""

from __future__ import annotations

import hashlib
import queue
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch, Tokens
from gnmt.data.store import CorpusSpan, Store
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError

# Blocks of about so many pairs; smaller corpora are one block.
BLOCK_PAIRS = 1 << 20
# So many neighboring pairs stay in one block.
RUN_PAIRS = 1 << 12
# Sorting goes by pools of about so many pairs, drawn at random: large enough for batches without padding.
POOL_PAIRS = 1 << 17
# Target lengths are sorted in pairs of lengths: a little more padding, and more ways to meet in a batch.
_BUCKET_TOKENS = 2
# Lengths that are looked at together when all are.
_CHECK_PAIRS = 1 << 22

Ints = NDArray[np.integer]


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


def block_pairs(corpus_spans: Sequence[CorpusSpan], seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """int64 [N], ascending: the pairs of a block; the blocks of an epoch hold every pair of a single corpus once.

    An epoch of several corpora is as many pairs as they have together. Each gives its share of every block by its
    weight, and goes through its own pairs once before it begins anew, whenever that is. So one may be in its third
    epoch while another is in its first, and where it stands is a function of how many pairs came before.
    """
    total = sum(span.num_pairs for span in corpus_spans)
    weights = [Fraction(span.weight) for span in corpus_spans]  # exact: of 49 equal ones each has its share
    blocks = num_blocks(total)
    begin, end = (epoch * total + total * place // blocks for place in (block, block + 1))
    first_pair, chosen = 0, []
    for number, (span, weight) in enumerate(zip(corpus_spans, weights, strict=True)):
        share = weight / sum(weights)
        taken = _sequence(span.num_pairs, int(begin * share), int(end * share), seed, number)
        chosen.append(first_pair + taken)
        first_pair += span.num_pairs
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
    pad_to_multiple_of: int = 1,
) -> BlockPlan:
    """Cuts a block into batches whose rows times (longest source + longest target) is at most batch_tokens.

    Both lengths, EOS counted, are rounded up to multiples of pad_to_multiple_of.

    pairs_N and their lengths: see `block_pairs`. Every pair occurs as often as it is given, whatever is left over makes
    a smaller batch. Batches are made of pairs of similar lengths on both sides, in other company each epoch, and come
    in random order. A pair over the budget makes a batch of its own; `check_budget` refuses such pairs beforehand.
    """
    rng = np.random.default_rng([seed, epoch, block])
    shuffled = rng.permutation(len(pairs_N))
    num_pools = -(-len(shuffled) // POOL_PAIRS)
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(shuffled, num_pools):
        source, target = (rounded_up(side[pool], pad_to_multiple_of) for side in (source_lengths_N, target_lengths_N))
        order = _by_length(source, target, rng)
        starts = batch_boundaries(source[order], target[order], batch_tokens)
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

    So neighbors are alike on both sides even where one bucket ends and the next begins. Where the buckets begin
    and which way the first one goes is drawn, so that batches are cut at other places each epoch.
    """
    buckets_N = (target_N.astype(np.int64) + rng.integers(_BUCKET_TOKENS)) // _BUCKET_TOKENS
    upwards_N = (buckets_N + rng.integers(2)) % 2 == 0
    return np.lexsort((np.where(upwards_N, source_N, -source_N.astype(np.int64)), buckets_N))


def batch_boundaries(source_N: Ints, target_N: Ints, budget: int) -> NDArray[np.int64]:
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


def check_budget(
    source_lengths: Ints, target_lengths: Ints, budget: int, key: str, pad_to_multiple_of: int = 1
) -> None:
    """Raises InputError, naming `key`, where a pair costs more than the budget; looks at a few million at a time."""
    cost, largest = 0, 0
    for start in range(0, len(source_lengths), _CHECK_PAIRS):
        part = slice(start, start + _CHECK_PAIRS)
        sides = (rounded_up(lengths[part], pad_to_multiple_of) for lengths in (source_lengths, target_lengths))
        costs_N = np.add(*sides) + 2
        place = int(np.argmax(costs_N))
        if costs_N[place] > cost:
            cost, largest = int(costs_N[place]), start + place
    if cost > budget:
        raise InputError(
            f"{key}={budget} is too small for pair {largest} of the preprocessed text, which takes {cost} "
            f"tokens ({source_lengths[largest] + 1} source + {target_lengths[largest] + 1} target, EOS counted"
            f"{f', in multiples of {pad_to_multiple_of}' if pad_to_multiple_of > 1 else ''}): "
            f"give {key}={cost} or more, or drop long pairs with data.cleaning.max_length_tokens"
        )


class SubwordSampling(NamedTuple):
    """Subword regularization: the stored text is encoded again, otherwise in every epoch.

    alpha: see `Tokenizer.encode_sampled`.
    """

    tokenizers: Tokenizers
    alpha: float
    seed: int
    epoch: int

    def encode(self, store: Store, pair: int) -> tuple[list[int], list[int]]:
        """Ids of both sides: a function of (seed, epoch, pair) alone."""
        digest = hashlib.blake2b(struct.pack("<qqq", self.seed, self.epoch, pair), digest_size=8).digest()
        source_seed, target_seed = struct.unpack("<II", digest)
        return (
            self.tokenizers.source.encode_sampled(store.source_text(pair), self.alpha, source_seed),
            self.tokenizers.target.encode_sampled(store.target_text(pair), self.alpha, target_seed),
        )

    def lengths(self, store: Store, pairs_N: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """int32 [N] for source and target: pieces of each pair as `encode` cuts it."""
        lengths = np.zeros((2, len(pairs_N)), dtype=np.int32)
        for place, pair in enumerate(pairs_N):
            lengths[:, place] = [len(ids) for ids in self.encode(store, int(pair))]
        return lengths[0], lengths[1]


class LoaderState(NamedTuple):
    """How far training has come: in `epoch`, all blocks before `block` and `batches` global batches of it, from 0."""

    epoch: int = 0
    batches: int = 0
    block: int = 0


class LocalBatch(list[Batch]):
    """The microbatches that one of several processes makes of a global batch, and what is known of the whole.

    source_tokens, target_tokens: of the global batch, with EOS, without BOS and padding. dummy_batch: where there are fewer
    pairs than processes, some have no microbatch; one pair of the global batch, which counts nothing, lets them take
    part in what all must do.
    """

    def __init__(
        self, microbatches: Iterable[Batch], source_tokens: int, target_tokens: int, dummy_batch: Batch | None = None
    ) -> None:
        super().__init__(microbatches)
        assert self or dummy_batch is not None
        self.source_tokens = source_tokens
        self.target_tokens = target_tokens
        self.dummy_batch = dummy_batch

    def mapped(self, change: Callable[[Batch], Batch]) -> LocalBatch:
        """The same with every batch changed."""
        dummy_batch = None if self.dummy_batch is None else change(self.dummy_batch)
        return LocalBatch(map(change, self), self.source_tokens, self.target_tokens, dummy_batch)

    @property
    def to_compute(self) -> list[Batch]:
        """What this process runs forward and backward over: its microbatches, or the dummy_batch."""
        return list(self) if self or self.dummy_batch is None else [self.dummy_batch]


Rows = Sequence[Sequence[int] | NDArray[np.integer[Any]]]


def collate(store: Store, pairs: Sequence[int] | NDArray[np.int64], sampling: SubwordSampling | None = None) -> Batch:
    """The pairs as one batch, rows in the given order, source as pieces and EOS, target as BOS, pieces and EOS."""
    return batch_of(*_encoded(store, pairs, sampling), np.asarray(pairs))


def _encoded(
    store: Store, pairs: Sequence[int] | NDArray[np.int64], sampling: SubwordSampling | None
) -> tuple[Rows, Rows]:
    if sampling is None:
        return [store.source_ids(pair) for pair in pairs], [store.target_ids(pair) for pair in pairs]
    both = [sampling.encode(store, int(pair)) for pair in pairs]
    return [source for source, _ in both], [target for _, target in both]


def batch_of(source: Rows, target: Rows, pairs_B: NDArray[np.int64], pad_to_multiple_of: int = 1) -> Batch:
    """Rows of pieces (without BOS and EOS) as one batch; pairs_B: what the rows are called.

    Source, target inputs and labels are padded to a multiple of pad_to_multiple_of.
    """
    num_labels = sum(len(row) + 1 for row in target)
    pairs = torch.from_numpy(pairs_B.astype(np.int64))
    sides = _padded(source, (), pad_to_multiple_of), _padded(target, (BOS_ID,), pad_to_multiple_of)
    return Batch(*sides, pairs, num_labels)


def _padded(rows: Rows, prefix: tuple[int, ...], pad_to_multiple_of: int) -> Tokens:
    pieces_B = np.array([len(row) for row in rows], dtype=np.int64)
    lengths_B = pieces_B + len(prefix) + 1
    width = int(rounded_up(pieces_B, pad_to_multiple_of).max()) + len(prefix) + 1
    ids_BT = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    ids_BT[:, : len(prefix)] = prefix
    for ids_T, row, length in zip(ids_BT, rows, lengths_B, strict=True):
        ids_T[len(prefix) : length - 1] = row
        ids_T[length - 1] = EOS_ID
    return Tokens(torch.from_numpy(ids_BT), torch.from_numpy(lengths_B))


class BatchStream:
    """Iterates without end over updates: each is this process's share of one global batch, in microbatches.

    The order is that of `block_pairs` and `plan_block`; a stream made at the `loader_state` of another goes on exactly as
    that one does, wherever that is, for the price of planning one block (under a second). A global batch is split into
    microbatches of at most microbatch_tokens padded tokens each; null leaves it whole. Subword sampling makes sentences
    longer (by a third at alpha 0.1) and each by another share, so the plan is made of the sampled lengths: budgets hold
    as ever, at the price of encoding each block once more at its start (tens of microseconds a pair).
    Nothing is ever truncated; a pair that only its
    sampled pieces bring over a limit makes a batch of its own.

    Of several processes each takes every world_size-th pair, so that all have about as much to do; which pairs make up
    a global batch does not depend on how many processes there are.
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
        tokenizers: Tokenizers | None = None,
        corpus_spans: Sequence[CorpusSpan] | None = None,
        loader_state: LoaderState = LoaderState(),  # noqa: B008 (immutable)
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """pad_to_multiple_of: see `batch_of`. tokenizers are needed for subword sampling only. corpus_spans: the corpora that
        the store holds one after another, and how they are mixed; None for one. rank, world_size: of this process, and
        how many share.
        Raises InputError where a pair exceeds a limit.
        """
        if not 0 <= subword_regularization <= 1:
            raise InputError(f"trainer.subword_regularization must be 0 to 1, found {subword_regularization}")
        assert tokenizers is not None or subword_regularization == 0
        for key, limit in (("batch_tokens", batch_tokens), ("microbatch_tokens", microbatch_tokens)):
            if limit is not None:
                check_budget(store.source_lengths, store.target_lengths, limit, f"trainer.{key}", pad_to_multiple_of)
        self._store = store
        self._batch_tokens = batch_tokens
        self._microbatch_tokens = microbatch_tokens
        self._length_multiple = pad_to_multiple_of
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._alpha = subword_regularization
        self._tokenizers = tokenizers
        self._segments = [CorpusSpan(len(store), 1.0)] if corpus_spans is None else list(corpus_spans)
        assert sum(span.num_pairs for span in self._segments) == len(store)
        self._num_blocks = num_blocks(len(store))
        if loader_state.block < self._num_blocks:
            self._plan = self._plan_of(loader_state.epoch, loader_state.block)
        if loader_state.block >= self._num_blocks or loader_state.batches >= len(self._plan):
            raise InputError(
                f"the loader state is batch {loader_state.batches} in block {loader_state.block} of epoch "
                f"{loader_state.epoch}, "
                "which does not exist: the preprocessed text or trainer.batch_tokens changed since it was saved"
            )
        self.loader_state = loader_state
        """Batches that were handed out; what a checkpoint saves."""

    def __len__(self) -> int:
        """Number of global batches in the epoch at hand; where it has several blocks, judged by the present one."""
        return len(self._plan) * self._num_blocks

    @property
    def epochs(self) -> float:
        """Epochs that were handed out so far."""
        epoch, batches, block = self.loader_state
        return epoch + (block + batches / len(self._plan)) / self._num_blocks

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def __next__(self) -> LocalBatch:
        epoch, batches, block = self.loader_state
        share = self._share(batches, epoch)
        if batches + 1 < len(self._plan):
            self.loader_state = LoaderState(epoch, batches + 1, block)
        else:
            self.loader_state = (
                LoaderState(epoch, 0, block + 1) if block + 1 < self._num_blocks else LoaderState(epoch + 1, 0, 0)
            )
            self._plan = self._plan_of(self.loader_state.epoch, self.loader_state.block)
        return share

    def largest_microbatch(self) -> Batch:
        """The largest microbatch of this block's largest global batch, which decides how much memory is needed.

        The batch is chosen by the stored lengths; sampled subwords may make another one a little larger.
        """
        lengths = self._store.source_lengths, self._store.target_lengths
        costs = [
            len(pairs_B) * sum(int(rounded_up(side[pairs_B], self._length_multiple).max()) + 1 for side in lengths)
            for pairs_B in (self._plan[batch] for batch in range(len(self._plan)))
        ]
        share = self._share(int(np.argmax(costs)), self.loader_state.epoch)
        return max(share.to_compute, key=lambda batch: batch.num_padded_tokens)

    def pairs_at(self, loader_state: LoaderState) -> list[tuple[int, str, str]]:
        """Return number, source and target text of each pair of the global batch that starts at `loader_state`."""
        pairs_B = self._plan_of(loader_state.epoch, loader_state.block)[loader_state.batches].tolist()
        return [(pair, self._store.source_text(pair), self._store.target_text(pair)) for pair in pairs_B]

    def _plan_of(self, epoch: int, block: int) -> BlockPlan:
        pairs_N = block_pairs(self._segments, self._seed, epoch, block)
        if (sampling := self._sampling(epoch)) is not None:
            lengths = sampling.lengths(self._store, pairs_N)
        else:
            lengths = self._store.source_lengths[pairs_N], self._store.target_lengths[pairs_N]
        return plan_block(
            pairs_N,
            *lengths,
            batch_tokens=self._batch_tokens,
            seed=self._seed,
            epoch=epoch,
            block=block,
            pad_to_multiple_of=self._length_multiple,
        )

    def _sampling(self, epoch: int) -> SubwordSampling | None:
        if self._alpha == 0 or self._tokenizers is None:
            return None
        return SubwordSampling(self._tokenizers, self._alpha, self._seed, epoch)

    def _share(self, batch: int, epoch: int) -> LocalBatch:
        pairs_B = self._plan[batch]
        own_B = pairs_B[self._rank :: self._world_size]
        tokens = int(self._plan.source_tokens[batch]), int(self._plan.target_tokens[batch])
        if len(own_B):
            return LocalBatch(self._microbatches(own_B, epoch), *tokens)
        return LocalBatch([], *tokens, dummy_batch=collate(self._store, pairs_B[:1], self._sampling(epoch)))

    def _microbatches(self, pairs_B: NDArray[np.int64], epoch: int) -> list[Batch]:
        source, target = _encoded(self._store, pairs_B, self._sampling(epoch))
        multiple = self._length_multiple
        if self._microbatch_tokens is None:
            return [batch_of(source, target, pairs_B, multiple)]
        of_source, of_target = (rounded_up(np.array([*map(len, rows)]), multiple) for rows in (source, target))
        starts = batch_boundaries(of_source, of_target, self._microbatch_tokens)
        pieces = [slice(start, end) for start, end in pairwise(starts)]
        return [batch_of(source[piece], target[piece], pairs_B[piece], multiple) for piece in pieces]


class Made(NamedTuple):
    """This process's share of a global batch, and what its stream said right after it."""

    share: LocalBatch
    loader_state: LoaderState
    epochs: float
    length: int


class Prefetcher:
    """Iterates over a stream as the stream itself does; a thread makes up to num_batches batches ahead.

    num_batches: 0 makes each batch when it is asked for. pin: whether tensors go to page-locked memory, from which
    CUDA copies while it computes. `loader_state`, `epochs` and `len` are those of consumed batches, so a checkpoint never
    skips what was only made. The thread draws from no global random state, so training is the same with it and without.
    It begins with the first batch. An error in it is raised where the batch would have come.
    """

    def __init__(self, stream: BatchStream, num_batches: int, pin: bool) -> None:
        self.loader_state = stream.loader_state
        """Batches that were handed out; what a checkpoint saves."""
        self._stream = stream
        self._num_batches = num_batches
        self._pin = pin
        self.epochs = stream.epochs
        """The same in epochs."""
        self._length = len(stream)
        self._made: queue.SimpleQueue[Made | BaseException] = queue.SimpleQueue()
        self._free_places = threading.Semaphore(num_batches)
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of global batches in the epoch at hand."""
        return self._length

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def __next__(self) -> LocalBatch:
        made = self._take() if self._num_batches else self._make()
        self.loader_state, self.epochs, self._length = made.loader_state, made.epochs, made.length
        return made.share

    def largest_microbatch(self) -> Batch:
        """That of the stream; to be asked before the first batch."""
        return self._stream.largest_microbatch()

    def pairs_at(self, loader_state: LoaderState) -> list[tuple[int, str, str]]:
        """Return number, source and target text of each pair of the global batch that starts at `loader_state`."""
        return self._stream.pairs_at(loader_state)

    def close(self) -> None:
        """Ends the thread; batches that were made and not taken are lost, and nothing can be taken any more."""
        self._stopped = True
        self._free_places.release()
        if self._thread is not None:
            self._thread.join()

    def _take(self) -> Made:
        assert not self._stopped
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batch maker", daemon=True)
            self._thread.start()
        made = self._made.get()
        if isinstance(made, BaseException):
            self._made.put(made)  # whoever asks again hears it again
            raise made
        self._free_places.release()
        return made

    def _work(self) -> None:
        try:
            while True:
                self._free_places.acquire()
                if self._stopped:
                    return
                self._made.put(self._make())
        except BaseException as error:
            self._made.put(error)

    def _make(self) -> Made:
        share = next(self._stream)
        if self._pin:
            share = share.mapped(pinned)
        return Made(share, self._stream.loader_state, self._stream.epochs, len(self._stream))


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory."""
    source, target = (Tokens(side.ids_BT.pin_memory(), side.lengths_B.pin_memory()) for side in batch[:2])
    return batch._replace(source=source, target=target)
