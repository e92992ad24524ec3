"""Batches and their stream: framing, padding, microbatches, exact resume, subword regularization, ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Batch
from gnmt.data import batching
from gnmt.data.batching import BatchStream, LoaderState, SubwordSampling, collate
from gnmt.data.store import CorpusSpan, Store, StoreWriter, encoded_side
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError

Pairs = Callable[..., list[tuple[str, str]]]


def small_store(folder: Path, source: list[list[int]], target: list[list[int]]) -> Store:
    with StoreWriter(folder, 400, 400) as writer:
        writer.append(encoded_side(source, [""] * len(source)), encoded_side(target, [""] * len(target)))
    return Store(folder)


def padded_tokens(batch: Batch) -> int:
    return batch.source.ids_BT.numel() + batch.labels.ids_BT.numel()


def equal(left: list[Batch], right: list[Batch]) -> bool:
    def tensors(batches: list[Batch]) -> list[torch.Tensor]:
        return [tensor for batch in batches for tensor in (*batch.source, *batch.target, batch.pairs_B)]

    return all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


def test_framing_and_padding(tmp_path: Path) -> None:
    store = small_store(tmp_path, [[7, 8], [], [9]], [[10], [11, 12, 13], []])
    batch = collate(store, [2, 0, 1])
    assert batch.source.ids_BT.tolist() == [[9, EOS_ID, PAD_ID], [7, 8, EOS_ID], [EOS_ID, PAD_ID, PAD_ID]]
    assert batch.source.lengths_B.tolist() == [2, 3, 1]
    assert batch.target.ids_BT.tolist() == [
        [BOS_ID, EOS_ID, PAD_ID, PAD_ID, PAD_ID],
        [BOS_ID, 10, EOS_ID, PAD_ID, PAD_ID],
        [BOS_ID, 11, 12, 13, EOS_ID],
    ]
    assert batch.labels.lengths_B.tolist() == [1, 2, 4]  # |Y|: with EOS, without BOS
    assert batch.pairs_B.tolist() == [2, 0, 1]
    assert {tensor.dtype for tensor in (*batch.source, *batch.target, batch.pairs_B)} == {torch.int64}


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("microbatch_tokens", [None, 130])
def test_an_epoch_has_every_pair_once_within_the_budgets(
    store: Store, tokenizers: Tokenizers, alpha: float, microbatch_tokens: int | None
) -> None:
    stream = BatchStream(
        store,
        batch_tokens=600,
        microbatch_tokens=microbatch_tokens,
        seed=1,
        subword_regularization=alpha,
        tokenizers=tokenizers,
    )
    num_batches = len(stream)
    updates = [next(stream) for _ in range(num_batches)]
    assert stream.loader_state == LoaderState(1, 0)
    rows = torch.cat([batch.pairs_B for update in updates for batch in update])
    assert sorted(rows.tolist()) == list(range(len(store)))
    for update in updates:
        limit = 600 if microbatch_tokens is None else microbatch_tokens
        assert all(padded_tokens(batch) <= limit or len(batch.pairs_B) == 1 for batch in update)
        assert sum(padded_tokens(batch) for batch in update) <= 600 or len(update) == 1
        assert len(update) == 1 or microbatch_tokens is not None
        for batch in update:
            for row, pair in enumerate(batch.pairs_B.tolist()):
                ids = batch.target.ids_BT[row, 1 : batch.target.lengths_B[row] - 1].tolist()
                assert tokenizers.target.decode(ids) == store.target_text(pair)
                assert alpha > 0 or ids == store.target_ids([pair])[0].tolist()
    batches = [batch for update in updates for batch in update]
    assert sum(batch.num_real_tokens for batch in batches) == sum(
        int((batch.source.lengths_B + batch.labels.lengths_B).sum()) for batch in batches
    )
    assert sum(batch.num_padded_tokens for batch in batches) == sum(padded_tokens(batch) for batch in batches)
    assert any(len(update) > 1 for update in updates) is (microbatch_tokens is not None)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_a_stream_resumes_from_the_state_of_another(store: Store, tokenizers: Tokenizers, alpha: float) -> None:
    def stream(loader_state: LoaderState) -> BatchStream:
        return BatchStream(
            store,
            batch_tokens=700,
            microbatch_tokens=300,
            seed=5,
            subword_regularization=alpha,
            tokenizers=tokenizers,
            loader_state=loader_state,
        )

    whole = stream(LoaderState())
    per_epoch = len(whole)
    states, updates = [], []
    for _ in range(2 * per_epoch + 3):
        states.append(whole.loader_state)
        updates.append(next(whole))
    assert {state.epoch for state in states} == {0, 1, 2}
    for start in (0, 1, per_epoch - 1, per_epoch, per_epoch + 1):
        resumed = stream(LoaderState(*states[start]))
        for update in updates[start : start + 4]:
            assert equal(next(resumed), update)
        assert resumed.loader_state == states[start + 4]


def test_microbatches_do_not_change_the_global_batches(store: Store) -> None:
    whole = BatchStream(store, batch_tokens=500, seed=1)
    split = BatchStream(store, batch_tokens=500, microbatch_tokens=120, seed=1)
    for _ in range(2 * len(whole)):
        (one,), several = next(whole), next(split)
        assert len(several) > 1 or len(one.pairs_B) < 10
        assert torch.cat([batch.pairs_B for batch in several]).tolist() == one.pairs_B.tolist()


def test_sampled_subwords_are_a_function_of_seed_epoch_and_pair(store: Store, tokenizers: Tokenizers) -> None:
    def rows(seed: int, epoch: int, pairs: list[int]) -> dict[int, list[int]]:
        batch = collate(store, pairs, SubwordSampling(tokenizers, 0.3, 1.0, seed, epoch))
        return dict(zip(pairs, batch.target.ids_BT.tolist(), strict=True))

    def stripped(rows: dict[int, list[int]]) -> dict[int, list[int]]:
        return {pair: [id for id in row if id != PAD_ID] for pair, row in rows.items()}

    first = stripped(rows(1, 0, list(range(40))))
    assert stripped(rows(1, 0, list(range(39, -1, -1)))) == first
    assert stripped(rows(1, 0, [17])) == {17: first[17]}
    for other in (stripped(rows(1, 1, list(range(40)))), stripped(rows(2, 0, list(range(40))))):
        assert sum(other[pair] != first[pair] for pair in first) > 20
    plain = stripped(dict(zip(range(40), collate(store, range(40)).target.ids_BT.tolist(), strict=True)))
    assert sum(plain[pair] != first[pair] for pair in first) > 20


def test_the_share_of_sampled_pairs_falls_linearly_and_the_stream_resumes(store: Store, tokenizers: Tokenizers) -> None:
    def stream(loader_state: LoaderState = LoaderState()) -> BatchStream:  # noqa: B008
        return BatchStream(
            store,
            batch_tokens=700,
            seed=5,
            subword_regularization=1.0,  # characters, so that a sampled pair differs from its stored ids
            subword_regularization_epochs=4,
            tokenizers=tokenizers,
            loader_state=loader_state,
        )

    whole = stream()
    num_sampled = [0] * 6
    while (epoch := whole.loader_state.epoch) < 6:
        resumed = stream(whole.loader_state)
        (batch,) = next(whole)
        assert equal(next(resumed), [batch])
        for pair, length in zip(batch.pairs_B.tolist(), batch.source.lengths_B.tolist(), strict=True):
            num_sampled[epoch] += length != len(store.source_ids([pair])[0]) + 1
    shares = [number / num_sampled[0] for number in num_sampled]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0], abs=0.1)
    assert shares[4:] == [0, 0]


def test_pairs_over_the_budget_by_sampling_are_batches_of_their_own(store: Store, tokenizers: Tokenizers) -> None:
    longest = int((store.source_lengths + store.target_lengths).max()) + 2
    stream = BatchStream(store, batch_tokens=longest, seed=1, subword_regularization=1.0, tokenizers=tokenizers)
    updates = [next(stream) for _ in range(len(stream))]
    over = [batch for (batch,) in updates if padded_tokens(batch) > longest]
    assert over
    assert all(len(batch.pairs_B) == 1 for batch in over)
    assert sum(len(batch.pairs_B) for (batch,) in updates) == len(store)


def test_a_corpus_of_one_pair(tmp_path: Path) -> None:
    stream = BatchStream(small_store(tmp_path, [[5]], [[6, 7]]), batch_tokens=4096, seed=0)
    assert len(stream) == 1
    for epoch in range(3):
        assert stream.loader_state == LoaderState(epoch, 0)
        (batch,) = next(stream)
        assert batch.pairs_B.tolist() == [0]


def test_wrong_limits_and_loader_states(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.batch_tokens=10 is too small for pair \d+"):
        BatchStream(store, batch_tokens=10, seed=1)
    with pytest.raises(InputError, match=r"trainer\.microbatch_tokens=10 is too small"):
        BatchStream(store, batch_tokens=1000, microbatch_tokens=10, seed=1)
    with pytest.raises(AssertionError):
        BatchStream(store, batch_tokens=1000, seed=1, subword_regularization=1.5)
    with pytest.raises(InputError, match="batch 9999 in block 0 of epoch 3, which does not exist"):
        BatchStream(store, batch_tokens=1000, seed=1, loader_state=LoaderState(3, 9999))


def test_global_random_state_is_unchanged(store: Store) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    next(BatchStream(store, batch_tokens=500, seed=1))
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_a_stream_of_several_blocks(
    store: Store, tokenizers: Tokenizers, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BLOCK_PAIRS", 90)
    monkeypatch.setattr(batching, "RUN_PAIRS", 5)

    def stream(loader_state: LoaderState = LoaderState()) -> BatchStream:  # noqa: B008
        return BatchStream(
            store,
            batch_tokens=700,
            seed=5,
            subword_regularization=alpha,
            tokenizers=tokenizers,
            loader_state=loader_state,
        )

    whole = stream()
    states, updates, epochs = [], [], []
    while whole.loader_state.epoch < 2:
        states.append(whole.loader_state)
        epochs.append(whole.epochs)
        updates.append(next(whole))
    assert epochs == sorted(set(epochs))
    assert epochs[0] == 0
    assert whole.epochs == 2
    assert {state.block for state in states} == set(range(5))
    for epoch in (0, 1):
        of_epoch = [update for update, state in zip(updates, states, strict=True) if state.epoch == epoch]
        rows = torch.cat([batch.pairs_B for update in of_epoch for batch in update])
        assert sorted(rows.tolist()) == list(range(len(store)))
        assert 0.7 < len(of_epoch) / len(stream(LoaderState(epoch))) < 1.4  # judged by one block
    firsts = [index for index, state in enumerate(states) if state.batches == 0]
    for start in {*firsts, *(index - 1 for index in firsts if index), 3}:
        resumed = stream(LoaderState(*states[start]))
        assert resumed.loader_state == states[start]
        for update in updates[start : start + 3]:
            assert equal(next(resumed), update)
    with pytest.raises(InputError, match="batch 0 in block 5 of epoch 1, which does not exist"):
        stream(LoaderState(1, 0, 5))


def test_a_stream_of_two_corpora(store: Store) -> None:
    corpus_spans = [CorpusSpan(300, 1.0), CorpusSpan(100, 3.0)]
    stream = BatchStream(store, batch_tokens=600, seed=1, corpus_spans=corpus_spans)
    counts = np.zeros(len(store), dtype=int)
    while stream.loader_state.epoch == 0:
        counts += np.bincount(next(stream)[0].pairs_B.numpy(), minlength=len(store))
    assert counts[:300].sum() == 100
    assert set(counts[300:]) == {3}


@pytest.mark.parametrize("microbatch_tokens", [None, 120])
def test_local_batches_of_all_ranks_are_the_global_batches_of_one(tmp_path, microbatch_tokens):
    """All ranks have the same number of updates and the same totals, for any number of ranks."""
    rng = np.random.default_rng(4)
    rows = [[list(range(4, 4 + size)) for size in rng.integers(1, 9, 60)] for _ in range(2)]
    store = small_store(tmp_path, *rows)

    def stream(rank, world_size):
        options = {"batch_tokens": 150, "microbatch_tokens": microbatch_tokens, "seed": 1}
        return BatchStream(store, **options, rank=rank, world_size=world_size)

    whole, num_updates = stream(0, 1), len(stream(0, 1))
    streams = [stream(rank, 11) for rank in range(11)]
    num_dummies = 0
    for _ in range(num_updates):
        expected, local_batches = next(whole), [next(each) for each in streams]
        pairs = sorted(pair for batch in expected for pair in batch.pairs_B.tolist())
        assert (
            sorted(pair for local_batch in local_batches for batch in local_batch for pair in batch.pairs_B.tolist())
            == pairs
        )
        assert {(local_batch.source_tokens, local_batch.target_tokens) for local_batch in local_batches} == {
            (
                sum(int(batch.source.lengths_B.sum()) for batch in expected),
                sum(int(batch.labels.lengths_B.sum()) for batch in expected),
            )
        }
        for local_batch in local_batches:
            assert (local_batch.dummy_batch is None) is (len(local_batch) > 0)
            num_dummies += not local_batch
            if not local_batch:
                assert local_batch.to_compute == [local_batch.dummy_batch]
                assert local_batch.dummy_batch.pairs_B.tolist()[0] in pairs
    assert num_dummies > 0
    assert {each.loader_state for each in streams} == {whole.loader_state}


@pytest.mark.parametrize("microbatch_tokens", [None, 120])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_padding_to_multiples_gives_fewer_shapes(store, tokenizers, alpha, microbatch_tokens) -> None:
    """oneDNN caches kernels by shape, and with all widths a corpus has more shapes than the cache holds."""
    options = {"batch_tokens": 500, "microbatch_tokens": microbatch_tokens, "seed": 1, "subword_regularization": alpha}
    shapes = {}
    for multiple in (1, 4):
        stream = BatchStream(store, tokenizers=tokenizers, pad_to_multiple_of=multiple, **options)
        batches = [batch for local_batch in (next(stream) for _ in range(len(stream))) for batch in local_batch]
        assert sorted(pair for batch in batches for pair in batch.pairs_B.tolist()) == list(range(400))
        assert max(map(padded_tokens, batches)) <= (microbatch_tokens or 500) or alpha  # see `BatchStream`
        widths = {width for batch in batches for width in (batch.source.ids_BT.shape[1], batch.labels.ids_BT.shape[1])}
        assert all(width % multiple == 0 for width in widths)
        shapes[multiple] = {(*batch.source.ids_BT.shape, batch.labels.ids_BT.shape[1]) for batch in batches}
        assert stream.largest_microbatch().num_padded_tokens == max(map(padded_tokens, batches)) or alpha
    assert len(shapes[4]) < len(shapes[1])


def test_a_pair_must_fit_the_budget_with_its_padding(tmp_path: Path) -> None:
    store = small_store(tmp_path, [[5] * 4], [[6] * 4])
    BatchStream(store, batch_tokens=10, seed=1)
    with pytest.raises(InputError, match=r"takes 16 tokens \(5 source \+ 5 target, EOS counted, in multiples of 4\)"):
        BatchStream(store, batch_tokens=10, seed=1, pad_to_multiple_of=4)
