"""Which sentence pairs make up which batch: a pure function of lengths, budget, seed and epoch.

Shapes: N pairs, B rows of one batch. Lengths are int arrays of pieces without BOS and EOS, as the store
keeps them; costs are padded tokens of both sides with EOS, which is what the model computes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gnmt.types import InputError

# Sorting goes by pools of about so many pairs, drawn at random: large enough for batches without padding.
POOL_PAIRS = 1 << 17
# Target lengths are sorted in pairs of lengths: a little more padding, and more ways to meet in a batch.
_BUCKET_TOKENS = 2

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class EpochPlan:
    """The global batches of one epoch. pairs_N: every pair once. starts: where each batch begins, and the end."""

    pairs_N: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, batch: int) -> NDArray[np.int64]:
        """int64 [B]: the pairs of a batch, those of similar lengths side by side."""
        return self.pairs_N[self.starts[batch] : self.starts[batch + 1]]


def plan_epoch(
    source_lengths: Ints,
    target_lengths: Ints,
    *,
    batch_tokens: int,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Cuts the corpus into batches whose rows times (longest source + longest target) is at most batch_tokens.

    Every pair occurs exactly once, whatever is left over makes a smaller batch. Batches are made of pairs
    of similar lengths on both sides, in other company each epoch, and come in random order. A pair over the
    budget makes a batch of its own; `check_budget` refuses such pairs beforehand.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(source_lengths))
    num_pools = -(-len(shuffled) // POOL_PAIRS)
    batches: list[NDArray[np.int64]] = []
    for pool in np.array_split(shuffled, num_pools):
        source, target = source_lengths[pool], target_lengths[pool]
        order = _by_length(source, target, rng)
        starts = cut(source[order], target[order], batch_tokens)
        batches += np.split(pool[order], starts[1:-1])
    batch_order = rng.permutation(len(batches))
    batches = [batches[i] for i in batch_order]
    starts = np.concatenate(([0], np.cumsum([len(batch) for batch in batches])))
    return EpochPlan(np.concatenate(batches), starts)


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


def check_budget(source_lengths: Ints, target_lengths: Ints, budget: int, key: str) -> None:
    """Raises InputError, naming `key`, where a pair costs more than the budget."""
    costs_N = source_lengths.astype(np.int64) + target_lengths + 2
    largest = int(np.argmax(costs_N))
    if costs_N[largest] > budget:
        raise InputError(
            f"{key}={budget} is too small for pair {largest} of the prepared text, which takes {costs_N[largest]} "
            f"tokens ({source_lengths[largest] + 1} source + {target_lengths[largest] + 1} target, EOS counted): "
            f"give {key}={costs_N[largest]} or more, or drop long pairs with data.cleaning.max_length_tokens"
        )
