"""A search in resident memory, as on CUDA, gives the results of one in a compact batch.

On a CPU the step is repeated where a GPU would replay its graph.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from stub_models import CPU, HistoryModel
from test_engine_inference_copy import small_model
from test_search_continuous_batching import ALL_OPTIONS, SUPPRESSED, assert_equal, random_sources

from gnmt.batch import EOS_ID
from gnmt.decoding.engine import search_batch
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.engine.search_batch import ResidentMemory, Shape, rounded, rounded_size
from gnmt.decoding.ensemble import Ensemble
from gnmt.decoding.search import search, search_as_completed
from gnmt.device import Precision, onednn_dtypes
from gnmt.model.convolutional import ConvolutionalDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_bf16 = pytest.mark.skipif(torch.bfloat16 not in onednn_dtypes(), reason="no bf16 products in oneDNN here")
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


def run(model, options, device=CPU, resident=None, count=24, batch_size=9):
    """Search sentences of many lengths, of which some have a prefix that ends at the limit."""
    sources = random_sources(count)
    prefixes = [[5] * (row % 3 * 9) for row in range(len(sources))]
    settings = {"prefixes": prefixes, "with_attention": True, "batch_size": batch_size, "resident": resident}
    return search(model, sources, options, device=device, suppressed=SUPPRESSED, **settings)


def transformer() -> Seq2Seq:
    """Return a model whose state grows with each step."""
    torch.manual_seed(1)
    encoder, decoder = TransformerEncoder(8, 1, 2, 16), TransformerDecoder(8, 8, 1, 2, 16)
    return Seq2Seq(encoder, decoder, 40, 40, 8, init_range=0.6).eval()


def convolutional_model() -> Seq2Seq:
    torch.manual_seed(1)
    decoder = ConvolutionalDecoder(8, 8, 2, 3)
    return Seq2Seq(TransformerEncoder(8, 1, 2, 16), decoder, 40, 40, 8, init_range=0.6).eval()


def ensemble() -> Ensemble:
    return Ensemble([inference_copy(make(), Precision("fp32", CPU)) for make in (small_model, transformer)])


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=OPTION_NAMES)
def test_every_kind_of_search_gives_the_same_results(options) -> None:
    """Also in later searches, which find the memory and the recordings of earlier ones."""
    expected, resident = run(HistoryModel.random(13), options), ResidentMemory(StubRecorder())
    model = HistoryModel.random(13)
    for _ in range(2):  # a step that runs only once in a search is recorded in the next one
        assert_equal(run(model, options, resident=resident), expected)
    made = resident.record.made
    assert resident.record.repeated > made > 1
    assert_equal(run(model, options, resident=resident), expected)
    assert resident.record.made == made
    assert_equal(run(model, options, resident=resident, count=3, batch_size=2), run(model, options, count=3))


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (small_model, "fp32"),
        pytest.param(small_model, "bf16", marks=needs_bf16),
        (transformer, "fp32"),  # in bf16, its attention rounds differently in wider memory
        (convolutional_model, "fp32"),
    ],
)
def test_every_kind_of_model_gives_the_same_results(make, precision) -> None:
    fast, recorder = inference_copy(make(), Precision(precision, CPU)), StubRecorder()
    options = replace(ALL_OPTIONS[0], coverage_beta=0.2)
    assert_equal(run(fast, options, resident=ResidentMemory(recorder)), run(fast, options))
    assert recorder.repeated


def test_an_ensemble_gives_the_same_results() -> None:
    model = ensemble()
    assert_equal(run(model, ALL_OPTIONS[0], resident=ResidentMemory(StubRecorder())), run(model, ALL_OPTIONS[0]))


@pytest.mark.parametrize("rows", [1, 100])
def test_checks_for_finished_sentences_may_be_frequent_or_rare(rows, monkeypatch) -> None:
    """Finished sentences are stepped until they leave. Their positions would run out of the memory if they went on."""
    monkeypatch.setattr(search_batch, "FEW_ROWS", rows)
    monkeypatch.setattr(search_batch, "STEPS_BETWEEN_CHECKS", 50)
    model, options = transformer(), replace(ALL_OPTIONS[0], stop="exhausted")
    assert_equal(run(model, options, resident=ResidentMemory(StubRecorder())), run(model, options))


def test_memory_has_few_shapes() -> None:
    assert [rounded_size(size) for size in (1, 16, 17, 24, 25, 33, 49, 65, 97)] == [16, 16, 24, 24, 32, 48, 64, 96, 128]
    shape = rounded(Shape(rows=5, source=17, target=20, prefix=0), lambda size: 2 * size)
    assert shape == Shape(rows=8, source=24, target=64, prefix=0)
    assert rounded(Shape(rows=1, source=3, target=70, prefix=40), lambda size: 2 * size) == Shape(1, 16, 96, 48)


def test_a_batch_moves_when_sentences_are_longer_or_much_shorter_or_few() -> None:
    """The shapes that a search has used are kept, and the next one uses them again."""
    resident = ResidentMemory(StubRecorder())
    model = HistoryModel.random(13)
    sources = [[4] * length + [EOS_ID] for length in (60, 50, 40, 5, 5, 5, 5, 5, 5, 5, 5, 5)]
    options = replace(ALL_OPTIONS[0], stop="exhausted")
    settings = {"device": CPU, "suppressed": SUPPRESSED, "batch_size": 4}
    expected = search(model, sources, options, **settings)
    assert_equal(search(model, sources, options, resident=resident, **settings), expected)
    shapes = {shape[:2] for _, shape in resident.unused}
    assert (4, 64) in shapes
    assert any(source == 16 for _, source in shapes)
    kept = dict(resident.unused)
    assert_equal(search(model, sources, options, resident=resident, **settings), expected)
    assert dict(resident.unused) == kept


def test_the_number_of_kept_shapes_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(search_batch, "LARGEST_NUMBER_OF_SHAPES", 2)
    resident = ResidentMemory(StubRecorder())
    model = HistoryModel.random(13)
    assert_equal(run(model, ALL_OPTIONS[0], resident=resident), run(model, ALL_OPTIONS[0]))
    assert len(resident.unused) == 2
    resident.free()
    assert not resident.unused


def test_two_searches_at_the_same_time_share_no_memory() -> None:
    """Two streams of one translator may be read in turns, and one of them abandoned."""
    resident = ResidentMemory(StubRecorder())
    model = HistoryModel.random(13)
    sources = random_sources(12)
    settings = {"device": CPU, "suppressed": SUPPRESSED, "batch_size": 4}
    expected = search(model, sources, ALL_OPTIONS[0], **settings)
    next(search_as_completed(model, sources, ALL_OPTIONS[0], resident=resident, **settings))  # abandoned
    searches = [search_as_completed(model, sources, ALL_OPTIONS[0], resident=resident, **settings) for _ in range(2)]
    found = [dict(pairs) for pairs in zip(*zip(*searches, strict=True), strict=True)]
    for results in found:
        assert_equal([results[index] for index in range(12)], expected)


def test_a_copy_and_a_pickle_start_without_memory() -> None:
    resident = ResidentMemory(StubRecorder())
    run(HistoryModel.random(13), ALL_OPTIONS[0], resident=resident)
    assert resident.unused
    if torch.cuda.is_available():
        assert not pickle.loads(pickle.dumps(resident)).unused
        assert not copy.copy(resident).unused


def test_steps_that_cannot_be_recorded_run_one_by_one(caplog) -> None:
    """A decoder of another package may read a number from the device, which a graph cannot. Once, nothing was said."""
    tries = []

    def refuse(work):
        tries.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    model, resident = HistoryModel.random(13), ResidentMemory(refuse)
    assert_equal(run(model, ALL_OPTIONS[0], resident=resident), run(model, ALL_OPTIONS[0]))
    run(model, ALL_OPTIONS[0], resident=resident)
    num_tries = len(tries)
    run(model, ALL_OPTIONS[0], resident=resident)
    assert len(tries) == num_tries, "each step is tried once"
    assert [message for message in caplog.messages if "CUDA graphs" in message] == [
        "search runs more slowly, because its steps cannot be recorded as CUDA graphs: operation not permitted when "
        "stream is capturing"
    ]


def test_out_of_memory_while_recording_is_raised() -> None:
    def no_room(work):
        raise torch.OutOfMemoryError("no room for a graph")

    with pytest.raises(torch.OutOfMemoryError):
        run(HistoryModel.random(13), ALL_OPTIONS[0], resident=ResidentMemory(no_room))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", [*ALL_OPTIONS, replace(ALL_OPTIONS[0], coverage_beta=0.2)])
@pytest.mark.parametrize("make", [small_model, transformer, convolutional_model])
def test_graphs_give_the_results_of_single_steps(make, options) -> None:
    device = torch.device("cuda")
    fast = inference_copy(make().to(device), Precision("fp32", device))
    resident = ResidentMemory()
    found = run(fast, options, device, resident)
    one_by_one = run(fast, options, device, ResidentMemory(lambda work: work))
    assert_equal(found, one_by_one)
    assert_equal(run(fast, options, device, resident), one_by_one)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=OPTION_NAMES)
@pytest.mark.parametrize("make", [small_model, transformer, convolutional_model])
def test_every_kind_of_search_can_be_recorded(make, options, caplog) -> None:
    device = torch.device("cuda")
    with caplog.at_level("DEBUG", "gnmt.decoding.engine.cuda_graphs"):
        run(inference_copy(make().to(device), Precision("bf16", device)), options, device)
    assert not caplog.records
