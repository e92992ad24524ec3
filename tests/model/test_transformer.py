"""Alignment, positions, initialization and dropout of the Transformer, and its agreement across devices."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded
from torch import nn

from gnmt.device import choose_precision
from gnmt.errors import InputError
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

SIZE, HEADS, FEED_FORWARD, LAYERS = 8, 2, 12, 2


def transformer(norm="pre", learned_positions=None, dropout=0.0, num_layers=LAYERS, size=SIZE, **options) -> Seq2Seq:
    torch.manual_seed(3)
    shared = {"norm": norm, "learned_positions": learned_positions, "dropout": dropout}
    encoder = TransformerEncoder(size, num_layers, HEADS, FEED_FORWARD, **shared)
    decoder = TransformerDecoder(size, size, num_layers, HEADS, FEED_FORWARD, **shared, **options)
    return Seq2Seq(encoder, decoder, 9, 11, size, init_range=0.8)


def hybrid() -> Seq2Seq:
    """Return a model of a Transformer encoder and a GNMT decoder."""
    torch.manual_seed(3)
    decoder = GNMTDecoder(SIZE, 6, 3, AdditiveAttention(6, SIZE, 3))
    return Seq2Seq(TransformerEncoder(SIZE, 2, HEADS, FEED_FORWARD), decoder, 9, 11, SIZE, init_range=0.8)


def hybrid_reverse() -> Seq2Seq:
    """Return a model of a GNMT encoder, whose states are wider than the decoder, and a Transformer decoder."""
    torch.manual_seed(3)
    encoder = LSTMEncoder(SIZE, 5, 2, num_bidirectional_layers=2)
    return Seq2Seq(encoder, TransformerDecoder(SIZE, 10, 3, HEADS, FEED_FORWARD), 9, 11, SIZE, init_range=0.8)


MODELS = {
    "pre": transformer,
    "post": lambda: transformer("post"),
    "learned positions": lambda: transformer(learned_positions=10),
    "one layer": lambda: transformer(num_layers=1),
    "last layer aligns": lambda: transformer(alignment_layer=2),
    "hybrid": hybrid,
    "hybrid reverse": hybrid_reverse,
}


def test_alignment_layer_selects_the_attention_that_is_returned():
    """The default is the last but one. Another layer has other weights and the same hidden states."""
    assert transformer(num_layers=1).decoder.alignment_layer == 1
    models = {layer: transformer(num_layers=3, alignment_layer=layer).double().eval() for layer in (None, 2, 3)}
    found = {
        layer: model.decode(padded(TARGET), model.encode(padded(SOURCE)), attention=True)
        for layer, model in models.items()
    }
    assert torch.equal(found[None][1], found[2][1])
    assert (found[3][1] - found[2][1]).abs().max() > 0.01
    torch.testing.assert_close(found[3][0], found[2][0])


def test_sentences_longer_than_the_learned_positions_are_refused_but_hypotheses_are_not():
    model = transformer(learned_positions=6).eval()
    with pytest.raises(
        InputError, match=r"sentence has 7 tokens, but the model has learned_positions=6: .*max_source_"
    ):
        model.encode(padded(SOURCE))
    memory = model.encode(padded([[5, 3]]))
    with pytest.raises(InputError, match="sentence has 8 tokens"):
        model.decode(padded([[2] * 8]), memory)
    state = model.start(memory, 1)
    for _ in range(8):
        log_probs_BKV, _, state = model.step(torch.tensor([[4]]), state, memory)
    assert log_probs_BKV.isfinite().all()


def test_weights_start_xavier_uniform_and_another_decoders_stay_uniform_in_init_range():
    """With init_range for all weights, the scale of attention would be arbitrary."""
    model = hybrid()
    for name, parameter in model.encoder.named_parameters():
        if ".norm." in name or name.startswith("norm."):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < parameter.abs().max() <= bound
    for parameter in model.decoder.bottom.parameters():
        assert 0.6 < parameter.abs().max() <= 0.8


def test_each_kind_of_dropout_applies_in_training_only():
    def logits(model):
        return model.output(model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0])

    for options in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"feed_forward_dropout": 0.5}):
        torch.manual_seed(1)
        encoder = TransformerEncoder(SIZE, 2, HEADS, FEED_FORWARD, **{"dropout": 0.0, **options})
        decoder = TransformerDecoder(SIZE, SIZE, 2, HEADS, FEED_FORWARD, dropout=0.0)
        in_encoder = Seq2Seq(encoder, decoder, 9, 11, SIZE)
        encoder = TransformerEncoder(SIZE, 2, HEADS, FEED_FORWARD, dropout=0.0)
        decoder = TransformerDecoder(SIZE, SIZE, 2, HEADS, FEED_FORWARD, **{"dropout": 0.0, **options})
        for model in (in_encoder, Seq2Seq(encoder, decoder, 9, 11, SIZE)):
            assert not torch.equal(logits(model), logits(model)), options
            model.eval()
            assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TransformerEncoder(10, 1, 4, 8),
            "model.encoder.num_heads=4 does not divide model.encoder.hidden",
        ),
        (lambda: TransformerDecoder(10, 10, 1, 4, 8), "model.decoder.num_heads=4 does not divide model.decoder.hidden"),
        (lambda: transformer(alignment_layer=3), "alignment_layer=3, but model.decoder.num_layers=2: choose"),
    ],
)
def test_heads_and_alignment_layers_that_do_not_fit_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_cuda_agrees_with_the_cpu(name):
    """Forward, backward and two steps use other kernels on each device."""
    choose_precision("fp32", torch.device("cuda"))
    results = {}
    for device in ("cpu", "cuda"):
        model = MODELS[name]().to(device)
        source, target = padded(SOURCE).to(torch.device(device)), padded(TARGET).to(torch.device(device))
        for dropout in (part for part in model.modules() if isinstance(part, nn.Dropout)):
            dropout.p = 0.0
        hidden_BTH, _ = model.decode(target, model.encode(source))
        model.output(hidden_BTH[target.mask_BT]).square().sum().backward()
        model.eval()
        memory = model.encode(source)
        state, steps = model.start(memory, 2), []
        for token in (2, 5):
            tokens_BK = torch.full((4, 2), token, device=device)
            log_probs_BKV, _, state = model.step(tokens_BK, state, memory)
            steps.append(log_probs_BKV)
        gradients = [parameter.grad for parameter in model.parameters()]
        results[device] = [tensor.detach().cpu() for tensor in (hidden_BTH[target.mask_BT], *steps, *gradients)]
    for on_cuda, on_cpu in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-4, atol=1e-4)
