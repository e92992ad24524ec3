"""Finished sentences leave the active batch and waiting ones enter, which changes no result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stub_models import CPU, HistoryModel, MarkovModel

import gnmt.decoding.search as search_module
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.decoding.engine.search_batch import CompactBatch
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search, search_as_completed

SUPPRESSED = (PAD_ID, UNK_ID, BOS_ID)
SHORT = SearchOptions(max_length_factor=1.0, max_length_offset=4, n_best=5)
A = 4


def random_sources(count, longest=20, seed=11):
    """Return sentences of many lengths in no order, with EOS."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[*torch.randint(4, 9, (length,), generator=generator).tolist(), EOS_ID] for length in lengths]


def run(model, sources, options, **settings):
    return search(model, sources, options, device=CPU, suppressed=SUPPRESSED, **settings)


def assert_equal(found, expected):
    """Assert equal tokens and steps, and scores and attention up to fp32 rounding."""
    for one, other in zip(found, expected, strict=True):
        assert [hypothesis.tokens for hypothesis in one.hypotheses] == [found.tokens for found in other.hypotheses]
        assert (one.steps, one.best_found_at) == (other.steps, other.best_found_at)
        for hypothesis, same in zip(one.hypotheses, other.hypotheses, strict=True):
            assert hypothesis.finished == same.finished
            assert hypothesis.score == pytest.approx(same.score, abs=1e-5)
            assert (hypothesis.attention_TS is None) == (same.attention_TS is None)
            if hypothesis.attention_TS is not None:
                torch.testing.assert_close(hypothesis.attention_TS, same.attention_TS)


ALL_OPTIONS = [
    SHORT,
    replace(SHORT, beam_size=1, n_best=1),
    replace(SHORT, pruning=2.0, stop="first"),
    replace(SHORT, no_repeat_ngram=2, stop="exhausted"),
    replace(SHORT, sampling=True, n_best=3, top_k=4, seed=5),
]


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=["beam", "greedy", "pruned", "no repeats", "sampled"])
def test_a_sentence_does_not_depend_on_its_neighbors(options):
    """Batches of 1, 3 and 32, in any order, with and without prefixes (OpenNMT-py#490 lost whole BLEU points)."""
    sources = random_sources(32)
    generator = torch.Generator().manual_seed(3)
    prefixes = [[5, 6, 7][: row % 4] for row in range(32)]
    expected = run(HistoryModel.random(11), sources, options, prefixes=prefixes, with_attention=True, batch_size=64)
    for batch_size in (1, 3, 32):
        order = torch.randperm(32, generator=generator).tolist()
        found = run(
            HistoryModel.random(11),
            [sources[row] for row in order],
            options,
            prefixes=[prefixes[row] for row in order],
            keys=order,
            with_attention=True,
            batch_size=batch_size,
        )
        assert_equal(found, [expected[row] for row in order])


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=["beam", "greedy", "pruned", "no repeats", "sampled"])
def test_steps_after_a_sentence_is_finished_change_nothing(options, monkeypatch):
    """Sentences are stepped until they leave."""
    sources = random_sources(12)
    prefixes = [[5] * (row % 3 * 9) for row in range(12)]  # some reach the limit
    expected = run(HistoryModel.random(13), sources, options, prefixes=prefixes, with_attention=True, batch_size=5)
    for interval in (4, 50):
        monkeypatch.setattr(CompactBatch, "steps_between_checks", interval)
        model = HistoryModel.random(13)
        assert_equal(run(model, sources, options, prefixes=prefixes, with_attention=True, batch_size=5), expected)
        assert len(model.calls) % interval == 0


class Recorder(HistoryModel):
    """A model that records (rows, source width) of every encoding and step, and the real widths of the latter."""

    def encode(self, source):
        self.__dict__.setdefault("groups", []).append(tuple(source.ids_BT.shape))
        return super().encode(source)

    def step(self, tokens_BK, state, memory):
        assert {tensor.shape[1] for tensor in memory.extras.values()} == {memory.mask_BS.shape[1]}
        self.__dict__.setdefault("steps", []).append((*memory.mask_BS.shape, int(memory.mask_BS.sum(1).max())))
        return super().step(tokens_BK, state, memory)


def test_the_active_batch_is_bounded_and_refilled():
    model = Recorder.random(17)
    run(model, sorted(random_sources(40), key=len), replace(SHORT, stop="exhausted"), batch_size=8)
    assert sum(rows for rows, _ in model.groups) == 40
    rows = [step[0] for step in model.steps]
    assert max(rows) == 8
    # Groups that enter make up a quarter of the batch or more, so it is more than 3/4 full while sentences wait.
    assert all(group >= 2 for group, _ in model.groups[:-1])
    last_arrival = max(step for step in range(1, len(rows)) if rows[step] > rows[step - 1])
    assert min(rows[: last_arrival + 1]) > 6


def test_the_memory_is_as_wide_as_the_longest_active_source():
    """The memory grows when a longer source enters and shrinks when the longest leaves."""
    model = Recorder.random(19)
    sources = [[A] * 30 + [EOS_ID], *random_sources(20, longest=6)]
    options = replace(SHORT, max_length_factor=0.0, max_length_offset=9, stop="exhausted")
    run(model, sources, options, batch_size=4)
    assert all(width == longest for _, width, longest in model.steps)
    assert model.steps[0][1] == 31
    assert max(width for _, width, _ in model.steps[9:]) <= 6


def test_padded_source_tokens_of_the_active_batch_are_bounded(monkeypatch):
    monkeypatch.setattr(search_module, "LONG_SOURCE_TOKENS", 5)
    model = Recorder.random(23)
    sources = sorted(random_sources(30), key=len)
    run(model, [*sources, [A] * 40 + [EOS_ID]], SHORT, batch_size=6)
    assert all(rows * width <= 30 or rows == 1 for rows, width, _ in model.steps)
    assert max(rows for rows, _, _ in model.steps) == 6
    assert model.groups[-1] == (1, 41)  # longer than the bound alone: it goes by itself


def test_every_result_is_yielded_once_when_its_search_is_over():
    endless = MarkovModel({BOS_ID: {A: 1.0}, A: {A: 1.0}})
    options = SearchOptions(max_length_factor=1.0, max_length_offset=0)
    sources = [[A] * 6 + [EOS_ID], [A, EOS_ID], [A, A, EOS_ID]]
    done = list(search_as_completed(endless, sources, options, device=CPU, suppressed=SUPPRESSED))
    assert [index for index, _ in done] == [1, 2, 0]
    assert [result.steps for _, result in done] == [2, 3, 7]


def test_steps_and_best_found_at_give_the_cost_of_the_bound():
    """A EOS finishes in step 2; search stops when no active hypothesis can beat it."""
    model = MarkovModel({BOS_ID: {A: 0.9, 5: 0.1}, A: {EOS_ID: 0.9, 5: 0.1}, 5: {5: 1.0}})
    options = SearchOptions(beam_size=2, length_penalty_alpha=1.0, coverage_beta=0.0, max_length_offset=0)
    source = [[A] * 5 + [EOS_ID]]
    [by_bound] = run(model, source, options)
    [exhausted] = run(model, source, replace(options, stop="exhausted"))
    assert by_bound.best_found_at == exhausted.best_found_at == 2
    assert exhausted.steps == 12
    # log 0.09 / (17 / 6) = -0.85 stays below log 0.81 / (7 / 6) = -0.18 from the start: no step more than needed.
    assert by_bound.steps == 2
    hopeful = MarkovModel({BOS_ID: {A: 0.5, 5: 0.5}, A: {EOS_ID: 0.9, 5: 0.1}, 5: {5: 0.7, EOS_ID: 0.3}})
    [waiting] = run(hopeful, source, options)
    assert waiting.steps > waiting.best_found_at == 2
