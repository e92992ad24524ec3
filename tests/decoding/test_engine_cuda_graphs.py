"""Recorded steps that are replayed in place give the results of single steps."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from stub_models import CPU, HistoryModel
from test_engine_inference_copy import small_model
from test_search_continuous_batching import ALL_OPTIONS, SUPPRESSED, assert_equal, random_sources

import gnmt.decoding.search as search_module
from gnmt.decoding.engine.cuda_graphs import ReplayedStep
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.search import search
from gnmt.device import Precision, onednn_dtypes
from gnmt.model.convolutional import ConvolutionalDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTION_NAMES = ["beam", "greedy", "pruned", "no repeats", "sampled"]


class StubRecorder:
    """A stand-in for CudaRecorder: repeat the work in the same memory, and count recordings and repetitions."""

    def __init__(self) -> None:
        self.made = self.repeated = 0

    def __call__(self, work):
        self.made += 1

        def repeat() -> None:
            self.repeated += 1
            work()

        return repeat


def use(monkeypatch, recorder, kind="cpu") -> None:
    """Let search step as on CUDA, with the given recorder."""

    @contextmanager
    def replayed(step, device):
        yield ReplayedStep(step, recorder)

    monkeypatch.setattr(search_module, "replayed", replayed)
    monkeypatch.setattr(search_module, "STEPS_BETWEEN_CHECKS", {kind: 4})
    monkeypatch.setattr(search_module, "SMALLEST_DEPARTURE", {kind: 1 / 4})


def run(model, options, device=CPU):
    sources = random_sources(24)
    prefixes = [[5] * (row % 3 * 9) for row in range(len(sources))]  # some end between two checks, some at the limit
    settings = {"prefixes": prefixes, "with_attention": True, "batch_size": 9}
    return search(model, sources, options, device=device, suppressed=SUPPRESSED, **settings)


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=OPTION_NAMES)
def test_repeated_steps_give_the_same_results(options, monkeypatch) -> None:
    expected, recorder = run(HistoryModel.random(13), options), StubRecorder()
    use(monkeypatch, recorder)
    assert_equal(run(HistoryModel.random(13), options), expected)
    assert recorder.repeated > recorder.made > 1


needs_bf16 = pytest.mark.skipif(torch.bfloat16 not in onednn_dtypes(), reason="no bf16 products in oneDNN here")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_repeated_steps_of_inference_copies_give_the_same_results(precision, monkeypatch) -> None:
    fast, recorder = inference_copy(small_model(), Precision(precision, CPU)), StubRecorder()
    expected = run(fast, ALL_OPTIONS[0])
    use(monkeypatch, recorder)
    assert_equal(run(fast, ALL_OPTIONS[0]), expected)
    assert recorder.repeated


def growing_model() -> Seq2Seq:
    """Return a Transformer, whose state grows with each step."""
    torch.manual_seed(1)
    encoder, decoder = TransformerEncoder(8, 1, 2, 16), TransformerDecoder(8, 8, 1, 2, 16)
    return Seq2Seq(encoder, decoder, 60, 60, 8, init_range=0.6).eval()


def test_states_that_grow_are_not_recorded(monkeypatch) -> None:
    model, recorder = growing_model(), StubRecorder()
    expected = run(model, ALL_OPTIONS[0])
    use(monkeypatch, recorder)
    assert_equal(run(model, ALL_OPTIONS[0]), expected)
    assert recorder.made == 0


def test_steps_that_cannot_be_recorded_run_one_by_one(monkeypatch) -> None:
    """A decoder of another package may read a number from the device, which a graph cannot."""
    tries = []

    def refuse(work):
        tries.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = run(HistoryModel.random(13), ALL_OPTIONS[0])
    use(monkeypatch, refuse)
    assert_equal(run(HistoryModel.random(13), ALL_OPTIONS[0]), expected)
    assert len(tries) == 1


def test_out_of_memory_while_recording_is_raised(monkeypatch) -> None:
    def no_room(work):
        raise torch.OutOfMemoryError("no room for a graph")

    use(monkeypatch, no_room)
    with pytest.raises(torch.OutOfMemoryError):
        run(HistoryModel.random(13), ALL_OPTIONS[0])


def convolutional_model() -> Seq2Seq:
    torch.manual_seed(1)
    decoder = ConvolutionalDecoder(8, 8, 2, 3)
    return Seq2Seq(TransformerEncoder(8, 1, 2, 16), decoder, 60, 60, 8, init_range=0.6).eval()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", [*ALL_OPTIONS, replace(ALL_OPTIONS[0], coverage_beta=0.2)])
@pytest.mark.parametrize("make", [small_model, growing_model, convolutional_model])
def test_graphs_give_the_results_of_single_steps(make, options, monkeypatch) -> None:
    device = torch.device("cuda")
    fast = inference_copy(make().to(device), Precision("fp32", device))
    found = run(fast, options, device)

    @contextmanager
    def one_by_one(step, device):
        yield step

    monkeypatch.setattr(search_module, "replayed", one_by_one)
    assert_equal(found, run(fast, options, device))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=OPTION_NAMES)
def test_every_kind_of_search_can_be_recorded(options, caplog) -> None:
    device = torch.device("cuda")
    with caplog.at_level("DEBUG", "gnmt.decoding.engine.cuda_graphs"):
        run(inference_copy(small_model().to(device), Precision("bf16", device)), options, device)
    assert not caplog.records
