"""Initialization, tied embeddings, dropout and steps of Seq2Seq, and its agreement across devices."""

from __future__ import annotations

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded, tiny_gnmt
from torch import nn

from gnmt.batch import PAD_ID
from gnmt.device import choose_precision
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model_of(source_size: int = 11, target_size: int = 11, hidden_size: int = 6, **options) -> Seq2Seq:
    decoder = GNMTDecoder(6, hidden_size, 2, AdditiveAttention(hidden_size, 6, 5))
    return Seq2Seq(LSTMEncoder(6, 6, 2), decoder, source_size, target_size, 6, **options)


@pytest.mark.parametrize("tie", ["none", "source_target", "target_output", "all"])
def test_weights_start_uniform_and_padding_rows_zero(tie):
    """With a tied output layer, the table is initialized more than once."""
    torch.manual_seed(1)
    model = model_of(tie_embeddings=tie, init_range=0.25)
    for table in (model.source_embedding, model.target_embedding):
        assert table.weight[PAD_ID].abs().max() == 0
        assert (table.weight[PAD_ID + 1 :].abs().amax(1) > 0).all()
    values = torch.cat(
        [weight.detach().flatten() for name, weight in model.named_parameters() if "attention.direction" not in name]
    )
    values = values[(values != 0) & (values != 1)]  # padding rows, and the attention's scale
    assert values.abs().max() <= 0.25
    assert values.abs().max() > 0.24
    assert abs(values.mean()) < 0.02
    assert values.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("tie", ["none", "all"])
def test_embeddings_may_start_larger_than_the_weights(tie):
    """With one small range for all weights, a model of 256 units aligned after ten times as many updates."""
    torch.manual_seed(1)
    model = model_of(tie_embeddings=tie, init_range=0.1, embedding_init_range=2.0)
    for table in (model.source_embedding, model.target_embedding):
        assert 1.8 < table.weight.abs().max() <= 2.0
        assert table.weight[PAD_ID].abs().max() == 0
    assert model.decoder.bottom.weight_ih_l0.abs().max() <= 0.1
    assert (model.output_layer.weight.abs().max() > 1.8) == (tie == "all")


def test_memory_dropout_drops_the_states_that_attention_reads_in_training_only():
    torch.manual_seed(1)
    model = model_of(memory_dropout=0.5)
    model.encoder.eval()
    source = padded(SOURCE)
    expected_BSH = model.encoder(model.source_embedding(source.ids_BT), source.lengths_B).states_BSH
    memory = model.encode(source)
    dropped_BSH = memory.states_BSH == 0
    assert 0.3 < dropped_BSH.float().mean() < 0.7
    torch.testing.assert_close(memory.states_BSH, torch.where(dropped_BSH, 0, 2 * expected_BSH))
    torch.testing.assert_close(memory.extras["keys"], model.decoder.attention.keys(memory.states_BSH))
    assert torch.equal(model.eval().encode(source).states_BSH, expected_BSH)


def test_the_attention_keeps_its_own_initial_values():
    model = model_of(init_range=1e-3)
    assert model.decoder.attention.direction.abs().max() > 0.1
    assert model.decoder.attention.scale == 1
    assert model.decoder.attention.query_projection.weight.abs().max() <= 1e-3


def test_tying_shares_storage_and_counts_once():
    kinds = ("none", "source_target", "target_output", "all")
    none, source_target, target_output, everything = (model_of(tie_embeddings=tie) for tie in kinds)
    assert none.source_embedding.weight is not none.target_embedding.weight
    assert source_target.source_embedding.weight is source_target.target_embedding.weight
    assert source_target.output_layer.weight is not source_target.target_embedding.weight
    assert target_output.output_layer.weight is target_output.target_embedding.weight
    assert target_output.source_embedding.weight is not target_output.target_embedding.weight
    assert everything.output_layer.weight is everything.source_embedding.weight is everything.target_embedding.weight
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (none, source_target, everything)]
    assert sum(parameter.numel() for parameter in target_output.parameters()) == sizes[1]
    assert model_of(source_size=9, tie_embeddings="target_output").source_embedding.num_embeddings == 9
    assert sizes[0] - sizes[1] == sizes[1] - sizes[2] == 11 * 6


@pytest.mark.parametrize("tie", ["source_target", "target_output", "all"])
def test_tied_weights_stay_tied_when_loaded(tie):
    saved, model = model_of(tie_embeddings=tie), model_of(tie_embeddings=tie)
    model.load_state_dict(saved.state_dict())
    assert torch.equal(model.source_embedding.weight, saved.source_embedding.weight)
    other = model.output_layer if tie == "target_output" else model.source_embedding
    assert model.target_embedding.weight.data_ptr() == other.weight.data_ptr()


def test_dropout_applies_to_every_layers_input_and_to_the_output_in_training_only():
    model = tiny_gnmt(dropout=0.5, layers=(3, 4))
    widths: dict[str, list[int]] = {"encoder": [], "decoder": [], "output": []}
    for name, dropout in (
        ("encoder", model.encoder.dropout),
        ("decoder", model.decoder.dropout),
        ("output", model.output_dropout),
    ):
        assert isinstance(dropout, nn.Dropout)
        dropout.register_forward_hook(lambda _, inputs, __, name=name: widths[name].append(inputs[0].shape[-1]))

    def logits() -> torch.Tensor:
        return model.output(model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0])

    assert torch.equal(logits(), logits())
    assert widths == {"encoder": [5, 8, 4] * 2, "decoder": [5, 10, 10, 10] * 2, "output": [6] * 2}
    model.train()
    assert not torch.equal(logits(), logits())


def test_attention_is_returned_on_request_only():
    model = tiny_gnmt()
    memory = model.encode(padded(SOURCE))
    assert model.decode(padded(TARGET), memory)[1] is None
    assert model.decode(padded(TARGET), memory, attention=True)[1].shape == (4, 6, 7)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])],
)
@pytest.mark.parametrize("vocabulary_size", [5, 1000, 1027, 32_000])
@pytest.mark.parametrize("sentences", [1, 7])
def test_a_step_overwrites_its_logits_with_their_log_softmax(device, vocabulary_size, sentences):
    """torch does not document that log_softmax may overwrite its input; narrow and wide rows are bitwise equal."""
    torch.manual_seed(1)
    model = model_of(target_size=vocabulary_size, init_range=3.0).to(device).eval()
    with torch.inference_mode():
        memory = model.encode(padded(SOURCE[:1] * sentences).to(torch.device(device)))
        logits = []
        output = model.output
        model.output = lambda hidden: logits.append(output(hidden)) or logits[-1]
        tokens_BK = torch.full((sentences, 3), 2, device=device)
        expected = output(model.decoder.step(model.target_embedding(tokens_BK), model.start(memory, 3), memory)[0])
        log_probs_BKV, _, _ = model.step(tokens_BK, model.start(memory, 3), memory)
    assert log_probs_BKV.data_ptr() == logits[0].data_ptr()
    assert torch.equal(log_probs_BKV, torch.log_softmax(expected, -1))


def test_a_step_can_be_differentiated():
    model = tiny_gnmt()
    memory = model.encode(padded(SOURCE))
    log_probs_BKV, _, _ = model.step(torch.full((4, 2), 2), model.start(memory, 2), memory)
    log_probs_BKV.exp().square().sum().backward()
    assert model.output_layer.weight.grad.abs().max() > 0


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.parametrize("query", ["current", "previous"])
def test_cuda_agrees_with_the_cpu(query):
    """Forward, backward and step agree within rounding, because cuDNN sums in another order."""
    choose_precision("fp32", torch.device("cuda"))
    results = {}
    for device in ("cpu", "cuda"):
        model = tiny_gnmt(query=query).float().to(device)
        source, target = padded(SOURCE).to(torch.device(device)), padded(TARGET).to(torch.device(device))
        model.train()  # cuDNN supports backward in training mode only; dropout is 0
        memory = model.encode(source)
        hidden_BTH, attention_BTS = model.decode(target, memory, attention=True)
        real = hidden_BTH[target.mask_BT], attention_BTS[target.mask_BT]
        model.output(real[0]).square().sum().backward()
        model.eval()
        memory = model.encode(source)
        log_probs_BKV, _, _ = model.step(torch.full((4, 2), 2, device=device), model.start(memory, 2), memory)
        gradients = [parameter.grad for parameter in model.parameters()]
        results[device] = [tensor.detach().cpu() for tensor in (*real, log_probs_BKV, *gradients)]
    for on_cuda, on_cpu in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-4, atol=1e-5)
