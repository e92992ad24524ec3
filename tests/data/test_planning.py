"""Every pair once an epoch, the budget held, little padding, the same plan for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnmt.data import planning
from gnmt.data.planning import check_budget, cut, plan_epoch
from gnmt.types import InputError


def cost(source: np.ndarray, target: np.ndarray) -> int:
    """Padded tokens of both sides with EOS: the definition, plainly."""
    return len(source) * ((max(source) + 1) + (max(target) + 1))


def corpus(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths like those of captions: 16 pieces on average, the two sides alike."""
    rng = np.random.default_rng(seed)
    source = 3 + rng.poisson(rng.gamma(8, 1.6, size))
    target = np.maximum(0, source + np.rint(rng.normal(0.5, 2.5, size))).astype(np.int32)
    return source.astype(np.int32), target


lengths = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=120)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(pairs=lengths, spare=st.integers(0, 200), seed=st.integers(0, 3), pool=st.sampled_from([1, 7, 1000]))
def test_every_pair_once_within_the_budget(pairs: list[tuple[int, int]], spare: int, seed: int, pool: int) -> None:
    source, target = (np.array(side, dtype=np.int32) for side in zip(*pairs, strict=True))
    budget = int((source + target).max()) + 2 + spare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "POOL_PAIRS", pool)
        plan = plan_epoch(source, target, batch_tokens=budget, seed=seed, epoch=2)
    batches = [plan[batch] for batch in range(len(plan))]
    # Buckets that drop their tails, or are smaller than a batch, lose pairs in other toolkits.
    assert sorted(np.concatenate(batches)) == list(range(len(pairs)))
    assert all(len(batch) > 0 and cost(source[batch], target[batch]) <= budget for batch in batches)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(pairs=lengths, budget=st.integers(2, 200))
def test_cut_makes_the_longest_pieces(pairs: list[tuple[int, int]], budget: int) -> None:
    source, target = (np.array(side, dtype=np.int32) for side in zip(*pairs, strict=True))
    expected = [0]
    for end in range(1, len(pairs)):
        piece = slice(expected[-1], end + 1)
        if cost(source[piece], target[piece]) > budget:
            expected.append(end)
    assert cut(source, target, budget).tolist() == [*expected, len(pairs)]


def test_little_padding() -> None:
    source, target = corpus(20_000)
    for budget, most in ((1024, 0.04), (2048, 0.05), (4096, 0.06), (16_384, 0.10)):
        plan = plan_epoch(source, target, batch_tokens=budget, seed=1, epoch=0)
        padded = sum(cost(source[plan[batch]], target[plan[batch]]) for batch in range(len(plan)))
        assert 1 - (source + target + 2).sum() / padded < most


def test_no_small_batches_but_the_last_of_a_pool() -> None:
    source, target = corpus(20_000)
    plan = plan_epoch(source, target, batch_tokens=2048, seed=1, epoch=0)
    costs = np.array([cost(source[plan[batch]], target[plan[batch]]) for batch in range(len(plan))])
    assert (costs < 1500).sum() <= 20


def test_a_function_of_seed_and_epoch() -> None:
    source, target = corpus(3000)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        plan = plan_epoch(source, target, batch_tokens=1024, seed=seed, epoch=epoch)
        return [plan[batch].tolist() for batch in range(len(plan))]

    first = plan(1, 0)
    np.random.seed(99)
    assert plan(1, 0) == first
    for other in (plan(1, 1), plan(2, 0)):
        # Neither the order of the batches nor who is in a batch with whom comes back.
        assert other != first
        company = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in other}
        assert len(company) < 0.05 * len(first)
    sizes = [int(source[batch].max()) for batch in first]
    assert np.corrcoef(sizes[:-1], sizes[1:])[0, 1] < 0.3  # short and long batches are mixed


def test_company_changes_where_no_two_pairs_are_alike() -> None:
    # Shuffling equals does nothing here: only where buckets begin and which way they go makes batches differ.
    lengths = np.random.default_rng(0).permutation(300)
    partitions = set()
    for epoch in range(20):
        plan = plan_epoch(lengths, lengths[::-1], batch_tokens=4096, seed=1, epoch=epoch)
        partitions.add(frozenset(frozenset(plan[batch]) for batch in range(len(plan))))
    assert len(partitions) == 4


def test_a_corpus_smaller_than_a_batch_is_one_batch() -> None:
    plan = plan_epoch(np.array([3, 4]), np.array([5, 1]), batch_tokens=100_000, seed=0, epoch=0)
    assert len(plan) == 1
    assert sorted(plan[0]) == [0, 1]


def test_a_pair_over_the_budget() -> None:
    source, target = np.array([3, 50, 4]), np.array([3, 60, 4])
    check_budget(source, target, 112, "trainer.batch_tokens")
    with pytest.raises(InputError) as caught:
        check_budget(source, target, 111, "trainer.batch_tokens")
    message = str(caught.value)
    assert "trainer.batch_tokens=111 is too small for pair 1" in message
    assert "112 tokens (51 source + 61 target" in message
    assert "trainer.batch_tokens=112 or more" in message
    plan = plan_epoch(source, target, batch_tokens=30, seed=0, epoch=0)
    assert sorted(sorted(plan[batch]) for batch in range(len(plan))) == [[0, 2], [1]]
