"""An inference copy computes what its model computes."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

from benchmarks.baseline import Baseline
from benchmarks.decoding import Workload
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, Tokens
from gnmt.decoding.engine.inference_copy import SequenceLSTM, StepLSTM, inference_copy
from gnmt.decoding.engine.linear import FixedRangeInt8Linear, Int8Linear, PackedLinear
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import Precision, choose_precision, int8_obstacle
from gnmt.model.attention import AdditiveAttention
from gnmt.model.clipping import Clipping
from gnmt.model.interfaces import Encoded, Memory, SearchModel
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import LSTM
from gnmt.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")
SUBWORDS = 40
needs_int8 = pytest.mark.skipif(int8_obstacle(CPU) is not None, reason="no fast int8 products here")
PRECISIONS = ["fp32", "bf16", pytest.param("int8", marks=needs_int8)]


def small_model(
    query: str = "current",
    normalize: bool = True,
    tie: str = "none",
    layers: int = 3,
    num_heads: int = 1,
    context_to_output: str = "none",
) -> Seq2Seq:
    torch.manual_seed(1)
    encoder = LSTMEncoder(12, 12, layers)
    attention = AdditiveAttention(12, encoder.output_size, 20, normalize=normalize, num_heads=num_heads)
    decoder = GNMTDecoder(12, 12, layers, attention, query=query, context_to_output=context_to_output)  # type: ignore[arg-type]
    model = Seq2Seq(encoder, decoder, SUBWORDS, SUBWORDS, 12, tie_embeddings=tie, init_range=0.6)  # type: ignore[arg-type]
    return model.eval()


def batch(*lengths: int) -> Tokens:
    torch.manual_seed(2)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, SUBWORDS, (length,))
    return Tokens(ids, torch.tensor(lengths))


def steps(model: SearchModel, source: Tokens, num_steps: int = 7, beam: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities [steps, B, K, V] and attention [steps, B, K, S] of given tokens with reordered beams."""
    generator = torch.Generator().manual_seed(3)
    memory = model.encode(source)
    state = model.start(memory, beam)
    size = (len(source.lengths_B), beam)
    tokens = torch.full(size, BOS_ID)
    log_probs, weights = [], []
    for _ in range(num_steps):
        log_probs_BKV, weights_BKS, state = model.step(tokens, state, memory)
        assert weights_BKS is not None
        log_probs.append(log_probs_BKV)
        weights.append(weights_BKS)
        state = state.reorder(torch.randint(0, beam, size, generator=generator))
        tokens = torch.randint(4, SUBWORDS, size, generator=generator)
    return torch.stack(log_probs), torch.stack(weights)


@pytest.mark.parametrize(
    "options",
    [{}, {"query": "previous"}, {"normalize": False}, {"tie": "all"}, {"layers": 4}, {"num_heads": 2}]
    + [{"context_to_output": how} for how in ("added", "concatenated", "readout")],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
@torch.inference_mode()
def test_fp32_steps_are_those_of_the_model(options: dict[str, object]) -> None:
    model = small_model(**options)  # type: ignore[arg-type]
    source = batch(5, 9, 2)
    expected, expected_weights = steps(model, source)
    log_probs, weights = steps(inference_copy(model, Precision("fp32", CPU)), source)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.15), pytest.param("int8", 0.3, marks=needs_int8)])
@torch.inference_mode()
def test_narrow_steps_are_near_those_of_the_model(precision: str, tolerance: float) -> None:
    model = small_model()
    source = batch(5, 9, 2)
    expected, expected_weights = steps(model, source)
    log_probs, weights = steps(inference_copy(model, Precision(precision, CPU)), source)
    assert log_probs.dtype == torch.float32
    difference = (log_probs - expected).abs().amax()
    assert 1e-5 < difference < tolerance
    assert (weights - expected_weights).abs().amax() < 0.05


@pytest.mark.parametrize(("options", "shares"), [({}, True), ({"layers": 2}, True), ({"num_heads": 2}, False)])
@torch.inference_mode()
def test_the_context_is_multiplied_by_source_position_where_there_is_one_head(options: dict[str, int], shares: bool):
    """No product of a step then includes the context."""
    fast = inference_copy(small_model(**options), Precision("fp32", CPU))
    memory = fast.encode(batch(5, 9))
    assert ("gates" in memory.extras) == shares
    if shares:
        num_upper = options.get("layers", 3) - 1
        assert memory.extras["gates"].shape == (2, 9, num_upper * 4 * 12)
        assert len(fast.decoder.upper) == num_upper
        with pytest.raises(NotImplementedError, match="no teacher forcing: call decode of the model"):
            fast.decoder(torch.zeros(2, 1, 12), memory)


@torch.inference_mode()
def test_an_attention_of_another_class_may_compute_more_than_a_mean_of_states() -> None:
    """Its context was once taken for a mean of the states, whatever it computed."""

    class Squashed(AdditiveAttention):
        def forward(self, query_BTH: torch.Tensor, keys_BSA: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, ...]:
            context_BTH, weights_BTS = super().forward(query_BTH, keys_BSA, memory)
            return torch.tanh(3 * context_BTH), weights_BTS

    model = small_model()
    model.decoder.attention.__class__ = Squashed
    expected, _ = steps(model, batch(5, 9))
    found, _ = steps(inference_copy(model, Precision("fp32", CPU)), batch(5, 9))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_backward_encoder_starts_at_each_sentences_own_end() -> None:
    model = small_model()
    fast = inference_copy(model, Precision("fp32", CPU))
    together = fast.encode(batch(5, 9, 2))
    expected = model.encode(batch(5, 9, 2))
    mask = expected.mask_BS
    torch.testing.assert_close(together.states_BSH[mask], expected.states_BSH[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_a_sentence_does_not_depend_on_its_neighbors(precision: str) -> None:
    """torch's dynamic quantization scales activations by the whole tensor, so each row changes the others."""
    fast = inference_copy(small_model(), Precision(precision, CPU))
    source = batch(9, 9, 9)
    louder = Tokens(source.ids_BT.clone(), source.lengths_B)
    louder.ids_BT[1:] = 4
    first, _ = steps(fast, source)
    second, _ = steps(fast, louder)
    torch.testing.assert_close(first[:, 0], second[:, 0], atol=1e-5, rtol=0)


@needs_int8
@torch.inference_mode()
def test_int8_products_scale_each_row_by_itself() -> None:
    torch.manual_seed(4)
    linear = Int8Linear(torch.randn(33, 70), torch.randn(33))
    rows = torch.randn(6, 70) * torch.tensor([1e-3, 1.0, 1e3, 0.1, 0.0, 5.0])[:, None]
    together = linear(rows)
    alone = torch.cat([linear(row[None]) for row in rows])
    assert torch.equal(together, alone)
    exact = nn.functional.linear(rows, torch.zeros(33, 70), linear.bias)
    torch.testing.assert_close(together[4], exact[4])  # a row of zeros gives the bias


@needs_int8
@torch.inference_mode()
def test_int8_products_are_exact_to_half_a_step_of_both_scales() -> None:
    torch.manual_seed(5)
    weight, rows = torch.randn(50, 300), torch.randn(8, 300) * 3
    exact = rows @ weight.T
    found = Int8Linear(weight, None)(rows)
    weight_step = weight.abs().amax(1) / 127
    row_step = rows.abs().amax(1, keepdim=True) / 127
    rows_size, weight_size = rows.abs().sum(1, keepdim=True), weight.abs().sum(1)
    bound = rows_size * weight_step / 2 + weight_size * row_step / 2 + 300 * weight_step * row_step / 4
    assert bool(((found - exact).abs() <= bound * 1.001).all())
    assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()


@needs_int8
def test_large_int8_sums_do_not_overflow() -> None:
    """Without VNNI, pairs of products are summed in 16 bits and saturate when all values are at their largest."""
    found = Int8Linear(torch.full((16, 1024), 2.0), None)(torch.full((3, 1024), 5.0))
    torch.testing.assert_close(found, torch.full((3, 16), 10240.0), rtol=1e-4, atol=0)


@needs_int8
@torch.inference_mode()
def test_int8_products_of_a_fixed_range_are_exact_to_half_a_step_and_saturate() -> None:
    torch.manual_seed(5)
    weight, bias, rows = torch.randn(50, 300), torch.randn(50), torch.rand(8, 300) * 4 - 2
    linear = FixedRangeInt8Linear(weight, bias, 2.0)
    weight_step, step = weight.abs().amax(1) / 127, 2 / 127
    difference = (linear(rows) - nn.functional.linear(rows, weight, bias)).abs()
    rows_size, weight_size = rows.abs().sum(1, keepdim=True), weight.abs().sum(1)
    bound = rows_size * weight_step / 2 + weight_size * step / 2 + 300 * weight_step * step / 4
    assert bool((difference <= bound * 1.001).all())
    assert torch.equal(linear(rows[:1]), linear(rows)[:1])
    torch.testing.assert_close(linear(rows.sign() * 7), linear(rows.sign() * 2))


def quantizable(decoder: type[GNMTDecoder | AttentionDecoder] = GNMTDecoder, delta: float = 1.0) -> Seq2Seq:
    torch.manual_seed(3)
    encoder = LSTMEncoder(8, 8, 3, cell="quantizable_lstm")
    layers = decoder(8, 8, 3, AdditiveAttention(8, 8, 8), cell="quantizable_lstm")
    clipping = Clipping(end=delta, steps=10)
    model = Seq2Seq(encoder, layers, SUBWORDS, SUBWORDS, 8, init_range=0.5, clipping=clipping).eval()
    model.begin_update(10)
    return model


def test_quantizable_layers_and_the_output_layer_use_the_range_of_training() -> None:
    model = quantizable()
    for fixed_ranges, number in ((True, 2 * (2 + 2 + 3) + 1), (False, 0)):
        copied = inference_copy(model, Precision("int8", CPU), fixed_ranges)
        fixed = [module for module in copied.modules() if isinstance(module, FixedRangeInt8Linear)]
        assert [float(module.levels_per_unit) for module in fixed] == [127.0] * number
        assert isinstance(copied.decoder.attention.query_projection, Int8Linear)
    assert isinstance(copied.output_layer, Int8Linear)


@needs_int8
@pytest.mark.parametrize(("decoder", "delta"), [(GNMTDecoder, 1.0), (AttentionDecoder, 0.25)])
@torch.inference_mode()
def test_a_quantizable_model_in_int8_is_close_to_fp32(decoder: type[GNMTDecoder], delta: float) -> None:
    model = quantizable(decoder, delta)
    for fixed_ranges in (True, False):
        fast = inference_copy(model, Precision("int8", CPU), fixed_ranges)
        found, expected = (steps(one, batch(3, 7, 5))[0] for one in (fast, model))
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


@needs_int8
def test_int8_keeps_nan() -> None:
    """Search reports diverged weights; rounding NaN to an integer would hide them."""
    linear = Int8Linear(torch.randn(4, 8), torch.zeros(4))
    rows = torch.ones(2, 8)
    rows[0, 3] = float("nan")
    assert linear(rows).isnan().any(1).tolist() == [True, False]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_model_and_copy_do_not_change_each_other(precision: str) -> None:
    model = small_model(tie="all").train()
    before = copy.deepcopy(model.state_dict())
    fast = inference_copy(model, Precision(precision, CPU))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in fast.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        expected, _ = steps(fast, batch(4, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    with torch.inference_mode():
        found, _ = steps(fast, batch(4, 6))
    assert torch.equal(found, expected)


def test_every_lstm_and_linear_is_replaced_where_it_pays() -> None:
    fast = inference_copy(small_model(), Precision("fp32", CPU))
    assert not [module for module in fast.modules() if type(module) in (nn.Linear, LSTM, AdditiveAttention)]
    assert all(isinstance(layer, StepLSTM) for layer in fast.decoder.layers())  # type: ignore[operator, union-attr]
    assert sum(isinstance(module, SequenceLSTM) for module in fast.encoder.modules()) == 4
    assert isinstance(fast.output_layer, PackedLinear)


def test_modules_of_other_classes_are_copied_unchanged() -> None:
    """torch's composite modules read the weights of their submodules; a subclass of Linear may compute anything."""

    class Scaled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(inputs)

    class Encoder(LSTMEncoder):
        def __init__(self) -> None:
            super().__init__(12, 12, 2)
            self.mix = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
            self.scaled = Scaled(12, 12)

        def forward(self, embedded_BSE: torch.Tensor, lengths_B: torch.Tensor) -> Encoded:
            return Encoded(self.scaled(self.mix(super().forward(embedded_BSE, lengths_B).states_BSH)))

    model = small_model()
    model.encoder = Encoder().eval()
    fast = inference_copy(model, Precision("fp32", CPU))
    with torch.inference_mode():
        expected, found = model.encode(batch(5, 5)), fast.encode(batch(5, 5))
    torch.testing.assert_close(found.states_BSH, expected.states_BSH, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("beam", "context_to_output"), [(1, "none"), *((4, how) for how in ("none", "added", "concatenated", "readout"))]
)
def test_search_with_an_inference_copy_gives_tokens_and_scores_of_the_model_and_tokens_of_the_baseline(
    beam: int, context_to_output: str
) -> None:
    """The baseline once left out the context's part of the output layer's input."""
    model = small_model(context_to_output=context_to_output)
    with torch.no_grad():
        model.output_layer.bias[EOS_ID] += 2.5
    options = SearchOptions(beam_size=beam, max_length_offset=2)
    source = batch(5, 9, 2, 7, 1)
    sources = [row[:length] for row, length in zip(source.ids_BT.tolist(), source.lengths_B.tolist(), strict=True)]
    fast = inference_copy(model, Precision("fp32", CPU))
    suppressed = (PAD_ID, BOS_ID)
    plain = search(model, sources, options, device=CPU, suppressed=suppressed)
    found = search(fast, sources, options, device=CPU, suppressed=suppressed, batch_size=2)
    tokens = [result.hypotheses[0].tokens for result in found]
    assert tokens == [result.hypotheses[0].tokens for result in plain]
    assert tokens == [tuple(ids) for ids in Baseline(model, CPU).search(sources, options, suppressed, 3)]
    ended = [ids[-1] == EOS_ID for ids in tokens]
    assert any(ended)
    for result, expected in zip(found, plain, strict=True):
        best = result.hypotheses[0]
        assert abs(best.log_prob - expected.hypotheses[0].log_prob) < 1e-5 * len(best.tokens)


def test_int8_without_the_hardware_is_fp32_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with caplog.at_level(logging.WARNING):
        assert choose_precision("int8", CPU).name == "fp32"
    assert [record.getMessage() for record in caplog.records] == [
        "precision=int8 runs as fp32 here: the processor has no VNNI instructions"
    ]


def test_int8_is_for_cpus() -> None:
    assert "use precision=bf16 there" in str(int8_obstacle(torch.device("cuda")))


def test_the_benchmark_models_translate_to_the_length_that_was_set() -> None:
    workload = Workload("tiny", "mixed", 2, 3, 2, 6, 1, "cpu")
    model = workload.model()
    sources = workload.sources(model.source_embedding.num_embeddings)
    assert len({len(ids) for ids in sources}) > 1
    for ids, result in zip(sources, workload.system("fp32", model)(sources), strict=True):  # type: ignore[call-overload]
        assert len(result.hypotheses[0].tokens) == len(ids)
    for ids, tokens in zip(sources, workload.system("baseline", model)(sources), strict=True):  # type: ignore[call-overload]
        assert len(tokens) == len(ids)


def test_on_cuda_the_encoder_keeps_the_fused_lstm_and_the_decoder_does_not() -> None:
    """A second pass over the whole model once replaced the encoder's layers, so cuDNN was never used."""
    fast = inference_copy(small_model(), Precision("fp32", torch.device("cuda")))
    assert sum(type(module) is LSTM for module in fast.encoder.modules()) == 4
    assert not any(isinstance(module, LSTM) for module in fast.decoder.modules())
    assert any(isinstance(module, StepLSTM) for module in fast.decoder.modules())


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_cells_are_fp32_in_every_precision(precision: str) -> None:
    fast = inference_copy(small_model(), choose_precision(precision, CPU))
    memory = fast.encode(batch(5, 3))
    _, _, state = fast.step(torch.full((2, 1), BOS_ID), fast.start(memory, 1), memory)
    assert {tensor.dtype for name, tensor in state.tensors.items() if name.startswith("cell")} == {torch.float32}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_search_on_cuda_gives_the_scores_of_the_cpu() -> None:
    model, sources = small_model(), [[5, 6, 7, 8, EOS_ID], [9, EOS_ID]]
    found = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        fast = inference_copy(model.to(device), choose_precision("fp32", device))
        results = search(fast, sources, SearchOptions(), device=device, suppressed=(PAD_ID, BOS_ID))
        found.append([result.hypotheses[0].score for result in results])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


# Copies of copies


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_or_a_pickle_of_an_inference_copy_computes_the_same_bits(precision, duplicate):
    """oneDNN's own memory layout cannot be copied: a Translator could not be sent to another process."""
    model, source = inference_copy(small_model(), choose_precision(precision, CPU)), batch(5, 3)
    for expected, found in zip(steps(model, source), steps(duplicate(model), source), strict=True):
        assert torch.equal(expected, found)
