"""Batches of tensors in planned order, without end, resumable at every batch."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gnmt.data.planning import BlockPlan, Segment, block_pairs, check_budget, cut, num_blocks, plan_block, rounded_up
from gnmt.data.store import Store
from gnmt.data.tokenizer import Tokenizers
from gnmt.types import BOS_ID, EOS_ID, PAD_ID, Batch, InputError, Tokens


class Sampling(NamedTuple):
    """Subword regularisation: the stored text is encoded again, otherwise in every epoch.

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


class Position(NamedTuple):
    """How far training has come: in `epoch`, all blocks before `block` and `batches` global batches of it, from 0."""

    epoch: int = 0
    batches: int = 0
    block: int = 0


class Share(list[Batch]):
    """The microbatches that one of several processes makes of a global batch, and what is known of the whole.

    source_tokens, target_tokens: of the global batch, with EOS, without BOS and padding. filler: where there are fewer
    pairs than processes, some have no microbatch; one pair of the global batch, which counts nothing, lets them take
    part in what all must do.
    """

    def __init__(
        self, microbatches: Iterable[Batch], source_tokens: int, target_tokens: int, filler: Batch | None = None
    ) -> None:
        super().__init__(microbatches)
        assert self or filler is not None
        self.source_tokens = source_tokens
        self.target_tokens = target_tokens
        self.filler = filler

    def mapped(self, change: Callable[[Batch], Batch]) -> Share:
        """The same with every batch changed."""
        filler = None if self.filler is None else change(self.filler)
        return Share(map(change, self), self.source_tokens, self.target_tokens, filler)

    @property
    def to_compute(self) -> list[Batch]:
        """What this process runs forward and backward over: its microbatches, or the filler."""
        return list(self) if self or self.filler is None else [self.filler]


Rows = Sequence[Sequence[int] | NDArray[np.integer[Any]]]


def collate(store: Store, pairs: Sequence[int] | NDArray[np.int64], sampling: Sampling | None = None) -> Batch:
    """The pairs as one batch, rows in the given order, source as pieces and EOS, target as BOS, pieces and EOS."""
    return batch_of(*_encoded(store, pairs, sampling), np.asarray(pairs))


def _encoded(store: Store, pairs: Sequence[int] | NDArray[np.int64], sampling: Sampling | None) -> tuple[Rows, Rows]:
    if sampling is None:
        return [store.source_ids(pair) for pair in pairs], [store.target_ids(pair) for pair in pairs]
    both = [sampling.encode(store, int(pair)) for pair in pairs]
    return [source for source, _ in both], [target for _, target in both]


def batch_of(source: Rows, target: Rows, pairs_B: NDArray[np.int64], length_multiple: int = 1) -> Batch:
    """Rows of pieces (without BOS and EOS) as one batch; pairs_B: what the rows are called.

    Source, target inputs and labels are padded to a multiple of length_multiple.
    """
    num_labels = sum(len(row) + 1 for row in target)
    pairs = torch.from_numpy(pairs_B.astype(np.int64))
    sides = _padded(source, (), length_multiple), _padded(target, (BOS_ID,), length_multiple)
    return Batch(*sides, pairs, num_labels)


def _padded(rows: Rows, prefix: tuple[int, ...], length_multiple: int) -> Tokens:
    pieces_B = np.array([len(row) for row in rows], dtype=np.int64)
    lengths_B = pieces_B + len(prefix) + 1
    width = int(rounded_up(pieces_B, length_multiple).max()) + len(prefix) + 1
    ids_BT = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    ids_BT[:, : len(prefix)] = prefix
    for ids_T, row, length in zip(ids_BT, rows, lengths_B, strict=True):
        ids_T[len(prefix) : length - 1] = row
        ids_T[length - 1] = EOS_ID
    return Tokens(torch.from_numpy(ids_BT), torch.from_numpy(lengths_B))


class BatchStream:
    """Iterates without end over updates: each is this process's share of one global batch, in microbatches.

    The order is that of `block_pairs` and `plan_block`; a stream made at the `position` of another goes on exactly as
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
        length_multiple: int = 1,
        subword_sampling: float = 0.0,
        tokenizers: Tokenizers | None = None,
        segments: Sequence[Segment] | None = None,
        position: Position = Position(),  # noqa: B008 (immutable)
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """length_multiple: see `batch_of`. tokenizers are needed for subword sampling only. segments: the corpora that
        the store holds one after another, and how they are mixed; None for one. rank, world_size: of this process, and
        how many share.
        Raises InputError where a pair exceeds a limit.
        """
        if not 0 <= subword_sampling <= 1:
            raise InputError(f"trainer.subword_sampling must be 0 to 1, found {subword_sampling}")
        assert tokenizers is not None or subword_sampling == 0
        for key, limit in (("batch_tokens", batch_tokens), ("microbatch_tokens", microbatch_tokens)):
            if limit is not None:
                check_budget(store.source_lengths, store.target_lengths, limit, f"trainer.{key}", length_multiple)
        self._store = store
        self._batch_tokens = batch_tokens
        self._microbatch_tokens = microbatch_tokens
        self._length_multiple = length_multiple
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._alpha = subword_sampling
        self._tokenizers = tokenizers
        self._segments = [Segment(len(store), 1.0)] if segments is None else list(segments)
        assert sum(segment.num_pairs for segment in self._segments) == len(store)
        self._num_blocks = num_blocks(len(store))
        if position.block < self._num_blocks:
            self._plan = self._plan_of(position.epoch, position.block)
        if position.block >= self._num_blocks or position.batches >= len(self._plan):
            raise InputError(
                f"the data position is batch {position.batches} in block {position.block} of epoch {position.epoch}, "
                "which does not exist: the prepared text or trainer.batch_tokens changed since it was saved"
            )
        self.position = position
        """Batches that were handed out; what a checkpoint saves."""

    def __len__(self) -> int:
        """Number of global batches in the epoch at hand; where it has several blocks, judged by the present one."""
        return len(self._plan) * self._num_blocks

    @property
    def epochs(self) -> float:
        """Epochs that were handed out so far."""
        epoch, batches, block = self.position
        return epoch + (block + batches / len(self._plan)) / self._num_blocks

    def __iter__(self) -> Iterator[Share]:
        return self

    def __next__(self) -> Share:
        epoch, batches, block = self.position
        share = self._share(batches, epoch)
        if batches + 1 < len(self._plan):
            self.position = Position(epoch, batches + 1, block)
        else:
            self.position = Position(epoch, 0, block + 1) if block + 1 < self._num_blocks else Position(epoch + 1, 0, 0)
            self._plan = self._plan_of(self.position.epoch, self.position.block)
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
        share = self._share(int(np.argmax(costs)), self.position.epoch)
        return max(share.to_compute, key=lambda batch: batch.num_padded_tokens)

    def pairs_at(self, position: Position) -> list[tuple[int, str, str]]:
        """Number, source and target text of each pair of the global batch that begins at that position."""
        pairs_B = self._plan_of(position.epoch, position.block)[position.batches].tolist()
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
            length_multiple=self._length_multiple,
        )

    def _sampling(self, epoch: int) -> Sampling | None:
        if self._alpha == 0 or self._tokenizers is None:
            return None
        return Sampling(self._tokenizers, self._alpha, self._seed, epoch)

    def _share(self, batch: int, epoch: int) -> Share:
        pairs_B = self._plan[batch]
        own_B = pairs_B[self._rank :: self._world_size]
        tokens = int(self._plan.source_tokens[batch]), int(self._plan.target_tokens[batch])
        if len(own_B):
            return Share(self._microbatches(own_B, epoch), *tokens)
        return Share([], *tokens, filler=collate(self._store, pairs_B[:1], self._sampling(epoch)))

    def _microbatches(self, pairs_B: NDArray[np.int64], epoch: int) -> list[Batch]:
        source, target = _encoded(self._store, pairs_B, self._sampling(epoch))
        multiple = self._length_multiple
        if self._microbatch_tokens is None:
            return [batch_of(source, target, pairs_B, multiple)]
        of_source, of_target = (rounded_up(np.array([*map(len, rows)]), multiple) for rows in (source, target))
        starts = cut(of_source, of_target, self._microbatch_tokens)
        pieces = [slice(start, end) for start, end in pairwise(starts)]
        return [batch_of(source[piece], target[piece], pairs_B[piece], multiple) for piece in pieces]
