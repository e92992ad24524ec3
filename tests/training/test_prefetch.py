"""Batches made ahead are the same batches, and what was not consumed does not count."""

from __future__ import annotations

import threading

import pytest
import torch

from gnmt.data.batching import BatchStream, LoaderState, Prefetcher


@pytest.fixture
def make_stream(preprocessed):
    def make(loader_state: LoaderState = LoaderState(), **options) -> BatchStream:  # noqa: B008 (immutable)
        options = {"batch_tokens": 250, "seed": 1, "tokenizers": preprocessed.tokenizers, **options}
        return BatchStream(preprocessed.store, loader_state=loader_state, **options)

    return make


def taken(stream, number):
    """(pairs, ids, position, length) after each of so many batches."""
    rows = []
    for _ in range(number):
        microbatches = next(stream)
        pairs = [batch.pairs_B.tolist() for batch in microbatches]
        ids = [batch.target.ids_BT.tolist() for batch in microbatches]
        rows.append((pairs, ids, stream.loader_state, len(stream)))
    return rows


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_same_batches_positions_and_lengths_over_the_end_of_an_epoch(make_stream, ahead):
    options = {"batch_tokens": 120, "microbatch_tokens": 80}
    stream = Prefetcher(make_stream(**options), ahead, pin=False)
    expected = taken(make_stream(**options), 60)
    assert taken(stream, 60) == expected
    stream.close()
    assert expected[-1][2].epoch >= 2
    assert len({row[3] for row in expected}) > 1, "epochs of different lengths, or the test sees nothing"


def test_the_position_is_that_of_consumed_batches(make_stream):
    """A run that was stopped skipped what the thread had made and nobody had used."""
    stream = Prefetcher(make_stream(), 3, pin=False)
    first = taken(stream, 2)
    while stream._prefetched.qsize() < 3:
        threading.Event().wait(0.001)
    assert stream.loader_state == first[-1][2] == LoaderState(0, 2)
    stream.close()
    again = Prefetcher(make_stream(stream.loader_state), 3, pin=False)
    assert first + taken(again, 4) == taken(make_stream(), 6)
    again.close()


def test_it_makes_so_many_and_no_more(make_stream):
    stream = make_stream()
    prefetcher = Prefetcher(stream, 2, pin=False)
    next(prefetcher)
    while prefetcher._prefetched.qsize() < 2:
        threading.Event().wait(0.001)
    threading.Event().wait(0.05)
    assert stream.loader_state == LoaderState(0, 3)
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_an_error_of_the_thread_is_raised_where_the_batch_would_have_come(make_stream, preprocessed, monkeypatch):
    stream = make_stream()
    prefetcher = Prefetcher(stream, 2, pin=False)
    microbatches, calls = stream._microbatches, []

    def fail_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the disk went away")
        return microbatches(*arguments)

    monkeypatch.setattr(stream, "_microbatches", fail_at_the_third)
    assert len(taken(prefetcher, 2)) == 2
    for _ in range(2):
        with pytest.raises(OSError, match="the disk went away"):
            next(prefetcher)
    assert prefetcher.loader_state == LoaderState(0, 2)
    prefetcher.close()


def test_it_draws_nothing_from_the_global_random_state(make_stream):
    """Or resume would not be exact: the thread is further than training."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prefetcher = Prefetcher(make_stream(subword_regularization=0.2), 2, pin=False)
    taken(prefetcher, 9)
    prefetcher.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_the_same_with_it_and_without_and_ends_its_thread(make_trainer):
    weights = []
    for ahead in (0, 2):
        trainer = make_trainer("trainer.max_steps=7", f"trainer.prefetch_batches={ahead}")
        trainer.fit()
        weights.append(torch.cat([weight.detach().flatten() for weight in trainer.objective.parameters()]))
    assert torch.equal(*weights)
    assert [
        thread for thread in threading.enumerate() if thread.name in ("batch prefetcher", "checkpoint writer")
    ] == []
