"""Batches that do not fit into memory: the rest is done in smaller ones, and nothing twice."""

from __future__ import annotations

import logging

import pytest
import torch
from stub_models import CopyModel

import gnmt.decoding.translator as out_of_memory
import gnmt.decoding.translator as translator_module
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translator import RUNS_UNTIL_LARGER, FittingBatches, Translator, with_smaller_batches
from gnmt.device import choose_precision
from gnmt.errors import InputError

TEXT = "the small dog sees a red house and then it runs to the old man who reads in the garden today"
WORDS = TEXT.split()
LINES = [" ".join(WORDS[start : start + 6]) + "." for start in range(len(WORDS) - 5)]
FP32 = choose_precision("fp32", torch.device("cpu"))
OPTIONS = SearchOptions(beam_size=4)


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return train_tokenizers(LINES, LINES, TokenizerOptions(vocab_size=330))


@pytest.fixture(autouse=True)
def searched_itself(monkeypatch):
    """The tests' models are no Seq2Seq to be copied."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())


class Cramped(CopyModel):
    """Has room for so many sentences at once, and none for a sentence of more than so many tokens."""

    def __init__(self, vocabulary_size, rows, tokens=1000, error=torch.OutOfMemoryError("CUDA out of memory")):  # noqa: B008
        super().__init__(vocabulary_size)
        self.room = (rows, tokens)
        self.error = error

    def step(self, tokens_BK, state, memory):
        if tokens_BK.shape[0] > self.room[0] or memory.mask_BS.sum(1).max() > self.room[1]:
            raise self.error
        return super().step(tokens_BK, state, memory)


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried")


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory"),
    CPU_ERROR,
    MemoryError(),
    *map(
        RuntimeError,
        [
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
            "could not create a memory object",
        ],
    ),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
def test_out_of_memory_halves_the_batch_and_goes_on(tokenizers, caplog, error):
    cramped = Cramped(tokenizers.source.vocabulary_size, rows=2, error=error)
    with caplog.at_level(logging.WARNING):
        translations = Translator(cramped, tokenizers, OPTIONS, FP32, batch_size=8).translate(LINES)
    assert [one.text for one in translations] == LINES
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: going on with batch_size=4",
        "out of memory: going on with batch_size=2",
    ]


class Fragmented(CopyModel):
    """Runs out of memory once, in the step of that number, and counts how many sentences it has encoded."""

    def __init__(self, vocabulary_size, failing_step):
        super().__init__(vocabulary_size)
        self.num_encoded, self.num_steps, self.failing_step = 0, 0, failing_step

    def encode(self, source):
        self.num_encoded += len(source.lengths_B)
        return super().encode(source)

    def step(self, tokens_BK, state, memory):
        self.num_steps += 1
        if self.num_steps == self.failing_step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().step(tokens_BK, state, memory)


def test_out_of_memory_goes_on_with_what_is_not_done(tokenizers, monkeypatch, caplog):
    """It searched the whole window again, and the next window began with the batch that had not fitted."""
    peaceful = Fragmented(tokenizers.source.vocabulary_size, failing_step=None)
    lines = LINES * 3
    expected = Translator(peaceful, tokenizers, OPTIONS, FP32, batch_size=4).translate(lines)
    model, counts, sizes = Fragmented(tokenizers.source.vocabulary_size, peaceful.num_steps - 3), [], []
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4)
    assert translator.translate(lines, progress=counts.append) == expected
    assert len(lines) < model.num_encoded <= len(lines) + 4, "only those in flight are searched again"
    assert sum(counts) == len(lines)
    translator.within_memory(sizes.append, lambda: "")
    assert sizes == [2]
    assert len(caplog.records) == 1


def test_scoring_goes_on_with_what_is_not_scored(tokenizers):
    pairs = [(line, line) for line in LINES * 3]
    peaceful = Fragmented(tokenizers.source.vocabulary_size, failing_step=None)
    expected = Translator(peaceful, tokenizers, OPTIONS, FP32, batch_size=4).score(pairs)
    model = Fragmented(tokenizers.source.vocabulary_size, peaceful.num_steps)
    found = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4).score(pairs)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert model.num_encoded <= len(pairs) + 4


def test_a_line_that_never_fits_is_named(tokenizers):
    cramped = Cramped(tokenizers.source.vocabulary_size, rows=4, tokens=20)
    lines = ["the dog.", "a house.", "the dog sees a red house " * 4, "a dog."]
    translator = Translator(cramped, tokenizers, OPTIONS, FP32, batch_size=4)
    with pytest.raises(InputError, match=r"line 12 \(\d+ tokens\) does not fit into memory.*max_source_tokens"):
        translator.translate(lines, first_line=10)
    with pytest.raises(InputError, match="line 7 does not fit"):
        translator.score([(line, line) for line in lines], line_numbers=[5, 6, 7, 8])


def test_batches_grow_again_when_there_is_room(caplog):
    """One moment without memory, of which another process had taken much, slowed down all that came after it."""
    sizes, room = [], [2]

    def run(batch_size):
        sizes.append(batch_size)
        if batch_size > room[0]:
            raise torch.OutOfMemoryError

    batches = FittingBatches()
    batches.run(run, 8, lambda: "line 1")
    assert sizes == [8, 4, 2]
    sizes.clear()
    for _ in range(RUNS_UNTIL_LARGER + 2):
        batches.run(run, 8, lambda: "line 1")
    assert sizes == [2] * RUNS_UNTIL_LARGER + [4, 2, 2], "tried once, and then not again at once"
    room[0] = 100
    sizes.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3 * RUNS_UNTIL_LARGER):
            batches.run(run, 6, lambda: "line 1")
    assert sorted(set(sizes)) == [2, 4, 6], "never more than is asked for"
    assert sizes[-RUNS_UNTIL_LARGER:] == [6] * RUNS_UNTIL_LARGER
    assert caplog.records[-1].getMessage() == "no shortage of memory since: going on with batch_size=6"


def test_what_is_translated_does_not_depend_on_batches_that_grow_again(tokenizers, monkeypatch):
    monkeypatch.setattr(out_of_memory, "RUNS_UNTIL_LARGER", 1)
    peaceful = Translator(CopyModel(tokenizers.source.vocabulary_size), tokenizers, OPTIONS, FP32, batch_size=8)
    model = Fragmented(tokenizers.source.vocabulary_size, failing_step=3)
    translator, calls = Translator(model, tokenizers, OPTIONS, FP32, batch_size=8), []
    run = translator.within_memory
    monkeypatch.setattr(
        translator, "within_memory", lambda once, left: run(lambda size: calls.append(size) or once(size), left)
    )
    for _ in range(3):
        assert translator.translate(LINES) == peaceful.translate(LINES)
    assert calls == [8, 4, 4, 8]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fail(batch_size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_batches(fail, 8, lambda: "line 1")
