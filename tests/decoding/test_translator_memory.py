"""When a batch does not fit into memory, the translator continues with smaller ones and repeats no finished line."""

from __future__ import annotations

import logging

import pytest
import torch
from stub_models import CopyModel

import gnmt.decoding.translator as translator_module
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translator import SUCCESSES_UNTIL_LARGER, FittingBatchSize, Translator
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
def without_inference_copy(monkeypatch):
    """Search the tests' models themselves: they are no Seq2Seq that could be copied."""
    monkeypatch.setattr(translator_module, "inference_copy", lambda model, precision: model.eval())


class LimitedMemoryModel(CopyModel):
    """Raise `error` for a batch of more than `rows` sentences and for a sentence of more than `tokens` tokens."""

    def __init__(self, vocabulary_size, rows, tokens=1000, error=torch.OutOfMemoryError("CUDA out of memory")):  # noqa: B008
        super().__init__(vocabulary_size)
        self.limits = (rows, tokens)
        self.error = error

    def step(self, tokens_BK, state, memory):
        if tokens_BK.shape[0] > self.limits[0] or memory.mask_BS.sum(1).max() > self.limits[1]:
            raise self.error
        return super().step(tokens_BK, state, memory)


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried")


MEMORY_ERRORS = [
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


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=str)
def test_out_of_memory_halves_the_batch_and_continues(tokenizers, caplog, error):
    model = LimitedMemoryModel(tokenizers.source.vocabulary_size, rows=2, error=error)
    with caplog.at_level(logging.WARNING):
        translations = Translator(model, tokenizers, OPTIONS, FP32, batch_size=8).translate(LINES)
    assert [one.text for one in translations] == LINES
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: continuing with batch_size=4",
        "out of memory: continuing with batch_size=2",
    ]


class FailingOnceModel(CopyModel):
    """Run out of memory once, in step `failing_step`, and count the encoded sentences."""

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


def test_only_unfinished_lines_are_searched_again_after_out_of_memory(tokenizers, caplog):
    """All lines of the chunk were searched again, and the next chunk began with the batch size that had not fitted."""
    reference = FailingOnceModel(tokenizers.source.vocabulary_size, failing_step=None)
    lines = LINES * 3
    expected = Translator(reference, tokenizers, OPTIONS, FP32, batch_size=4).translate(lines)
    model, counts = FailingOnceModel(tokenizers.source.vocabulary_size, reference.num_steps - 3), []
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4)
    assert translator.translate(lines, progress=counts.append) == expected
    assert len(lines) < model.num_encoded <= len(lines) + 4, "only the active batch is searched again"
    assert sum(counts) == len(lines)
    with translator.fitting_batch_size.attempt(4, "line 1") as batch_size:
        assert batch_size == 2
    assert len(caplog.records) == 1


def test_only_unscored_pairs_are_scored_again_after_out_of_memory(tokenizers):
    pairs = [(line, line) for line in LINES * 3]
    reference = FailingOnceModel(tokenizers.source.vocabulary_size, failing_step=None)
    expected = Translator(reference, tokenizers, OPTIONS, FP32, batch_size=4).score(pairs)
    model = FailingOnceModel(tokenizers.source.vocabulary_size, reference.num_steps)
    found = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4).score(pairs)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert model.num_encoded <= len(pairs) + 4


def test_a_line_that_never_fits_is_named(tokenizers):
    model = LimitedMemoryModel(tokenizers.source.vocabulary_size, rows=4, tokens=20)
    lines = ["the dog.", "a house.", "the dog sees a red house " * 4, "a dog."]
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=4)
    with pytest.raises(InputError, match=r"line 12 \(\d+ tokens\) does not fit into memory.*max_source_tokens"):
        translator.translate(lines, first_line=10)
    with pytest.raises(InputError, match="line 7 does not fit"):
        translator.score([(line, line) for line in lines], line_numbers=[5, 6, 7, 8])


def test_batches_grow_again_when_memory_suffices(caplog):
    """One moment without memory, when another process had taken much, slowed down all later chunks."""
    sizes, memory = [], [2]

    def work(fitting, largest):
        """Repeat attempts until one succeeds, as the translator does."""
        done = False
        while not done:
            with fitting.attempt(largest, "line 1") as batch_size:
                sizes.append(batch_size)
                if batch_size > memory[0]:
                    raise torch.OutOfMemoryError
                done = True

    freed = []
    fitting = FittingBatchSize(lambda: freed.append(True))
    work(fitting, 8)
    assert sizes == [8, 4, 2]
    assert len(freed) == 2
    sizes.clear()
    for _ in range(SUCCESSES_UNTIL_LARGER + 2):
        work(fitting, 8)
    assert sizes == [2] * SUCCESSES_UNTIL_LARGER + [4, 2, 2], "a failed attempt is not repeated at once"
    memory[0] = 100
    sizes.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3 * SUCCESSES_UNTIL_LARGER):
            work(fitting, 6)
    assert sorted(set(sizes)) == [2, 4, 6], "never more than requested"
    assert sizes[-SUCCESSES_UNTIL_LARGER:] == [6] * SUCCESSES_UNTIL_LARGER
    assert caplog.records[-1].getMessage() == "there is enough memory again: continuing with batch_size=6"


def test_translations_do_not_depend_on_batches_that_grow_again(tokenizers, monkeypatch):
    monkeypatch.setattr(translator_module, "SUCCESSES_UNTIL_LARGER", 1)
    reference = Translator(CopyModel(tokenizers.source.vocabulary_size), tokenizers, OPTIONS, FP32, batch_size=8)
    expected = reference.translate(LINES)
    sizes, search_as_completed = [], translator_module.search_as_completed

    def recording_search(*args, batch_size, **options):
        sizes.append(batch_size)
        return search_as_completed(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(translator_module, "search_as_completed", recording_search)
    model = FailingOnceModel(tokenizers.source.vocabulary_size, failing_step=3)
    translator = Translator(model, tokenizers, OPTIONS, FP32, batch_size=8)
    for _ in range(3):
        assert translator.translate(LINES) == expected
    assert sizes == [8, 4, 4, 8]


def test_other_errors_are_not_taken_for_out_of_memory():
    fitting = FittingBatchSize(lambda: None)
    with pytest.raises(RuntimeError, match="shapes"), fitting.attempt(8, "line 1"):
        raise RuntimeError("shapes do not match")
    with fitting.attempt(8, "line 1") as batch_size:
        assert batch_size == 8
