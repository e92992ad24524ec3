"""Prefetched batches are the same batches, and the loader state counts consumed ones only."""

from __future__ import annotations

import threading

import pytest
import torch

from gnmt.data.batching import BatchStream, LoaderState, Prefetcher


@pytest.fixture
def make_stream(store, tokenizers):
    def make(loader_state: LoaderState = LoaderState(), **options) -> BatchStream:  # noqa: B008 (immutable)
        options = {"batch_tokens": 900, "seed": 1, "tokenizers": tokenizers, **options}
        return BatchStream(store, loader_state=loader_state, **options)

    return make


def take(stream, number):
    """Return (pairs, ids, loader state, length) after each of `number` batches."""
    rows = []
    for _ in range(number):
        microbatches = next(stream)
        pairs = [batch.pairs_B.tolist() for batch in microbatches]
        ids = [batch.target.ids_BT.tolist() for batch in microbatches]
        rows.append((pairs, ids, stream.loader_state, len(stream)))
    return rows


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_loader_states_and_lengths_are_the_same_over_the_end_of_an_epoch(make_stream, ahead):
    options = {"batch_tokens": 800, "microbatch_tokens": 300}
    stream = Prefetcher(make_stream(**options), ahead, pin=False)
    expected = take(make_stream(**options), 60)
    assert take(stream, 60) == expected
    stream.close()
    assert expected[-1][2].epoch >= 2
    assert len({row[3] for row in expected}) > 1, "epochs must have different lengths"


def test_the_loader_state_is_that_of_consumed_batches(make_stream):
    """A resumed run skipped the batches that the thread had made and training had not consumed."""
    stream = Prefetcher(make_stream(), 3, pin=False)
    first = take(stream, 2)
    while stream._prefetched.qsize() < 3:
        threading.Event().wait(0.001)
    assert stream.loader_state == first[-1][2] == LoaderState(0, 2)
    stream.close()
    again = Prefetcher(make_stream(stream.loader_state), 3, pin=False)
    assert first + take(again, 4) == take(make_stream(), 6)
    again.close()


def test_the_thread_makes_num_batches_ahead(make_stream):
    stream = make_stream()
    prefetcher = Prefetcher(stream, 2, pin=False)
    next(prefetcher)
    while prefetcher._prefetched.qsize() < 2:
        threading.Event().wait(0.001)
    threading.Event().wait(0.05)
    assert stream.loader_state == LoaderState(0, 3)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_an_error_in_the_thread_is_raised_in_place_of_the_batch(make_stream, monkeypatch):
    stream = make_stream()
    prefetcher = Prefetcher(stream, 2, pin=False)
    microbatches, calls = stream._microbatches, []

    def fail_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return microbatches(*arguments)

    monkeypatch.setattr(stream, "_microbatches", fail_at_the_third)
    assert len(take(prefetcher, 2)) == 2
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(prefetcher)
    assert prefetcher.loader_state == LoaderState(0, 2)
    prefetcher.close()


def test_the_thread_uses_no_global_random_state(make_stream):
    """Resuming would not be exact otherwise, because the thread is ahead of training."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prefetcher = Prefetcher(make_stream(subword_regularization=0.2), 2, pin=False)
    take(prefetcher, 9)
    prefetcher.close()
    assert torch.equal(torch.get_rng_state(), before)
