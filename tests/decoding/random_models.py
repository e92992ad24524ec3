"""A Hypothesis strategy for small random models of every architecture, with every keyword that affects search.

Dropout, which evaluation switches off, and keywords of initialization are left out.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from gnmt.model.attention import AdditiveAttention, DotAttention, GeneralAttention
from gnmt.model.convolutional import ConvolutionalDecoder, ConvolutionalEncoder
from gnmt.model.recurrent.attention_decoder import AttentionDecoder
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.plain_decoder import PlainDecoder
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.transformer import TransformerDecoder, TransformerEncoder

VOCABULARY_SIZE = 9
WIDTH = 6
ENCODERS = ("lstm", "transformer", "convolutional")
DECODERS = ("lstm", "lstm", "lstm", "top", "plain", "transformer", "convolutional")  # GNMT's decoder most often

booleans = st.booleans()
positions = st.sampled_from([None, 64])
cells = st.sampled_from([{"cell": "lstm"}, {"cell": "lstm"}, {"cell": "gru"}, {"cell": "lstm", "layer_norm": True}])


def has_attention(model: Seq2Seq) -> bool:
    return not isinstance(model.decoder, PlainDecoder)


@st.composite
def models(draw):
    """Draw a Seq2Seq in fp64, so that no result depends on the last digit of a sum."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    decoder_kind = draw(st.sampled_from(DECODERS))
    num_layers, cell = draw(st.sampled_from([2, 3, 1])), draw(cells)
    bridged = decoder_kind == "plain" or (decoder_kind in ("lstm", "top") and draw(booleans))
    if bridged:  # layer by layer, the decoder begins with what the encoder's has ended with
        read = decoder_kind != "plain"  # a plain decoder sees nothing but the final states
        options = lstm_options(draw, [None, 4] if read else [None], booleans if read else st.just(False))
        encoder = LSTMEncoder(WIDTH, WIDTH, num_layers, 0, **options, **cell, final_states=True)
    else:
        encoder = draw_encoder(draw, [WIDTH] if decoder_kind == "convolutional" else [None, 4, WIDTH])
    decoder = draw_decoder(draw, decoder_kind, num_layers, encoder.output_size, cell, bridged)
    ties = ["none", "source_target", *(["all"] if decoder.output_size == WIDTH else [])]
    init_range = draw(st.sampled_from([0.5, 1.0, 2.0]))
    tie = draw(st.sampled_from(ties))
    return Seq2Seq(encoder, decoder, VOCABULARY_SIZE, VOCABULARY_SIZE, WIDTH, tie, init_range).double().eval()


def lstm_options(draw, projection_sizes, shortcuts=booleans, residuals=(None, 2, 3)):
    return {
        "residual_from": draw(st.sampled_from(residuals)),
        "attend_to_embeddings": draw(shortcuts),
        "reverse_source": draw(booleans),
        "projection_size": draw(st.sampled_from(projection_sizes)),
    }


def draw_encoder(draw, projection_sizes):
    kind, num_layers = draw(st.sampled_from(ENCODERS)), draw(st.integers(1, 3))
    if kind == "transformer":
        norm = draw(st.sampled_from(["pre", "post"]))
        return TransformerEncoder(WIDTH, num_layers, 2, 8, norm, draw(positions))
    if kind == "convolutional":
        return ConvolutionalEncoder(WIDTH, 4, num_layers, draw(st.sampled_from([1, 3])), draw(positions))
    num_bidirectional = draw(st.integers(0, num_layers))
    widths = [WIDTH, *((2 if layer < num_bidirectional else 1) * 4 for layer in range(num_layers))]
    residuals = [None, *(at for at in (2, 3) if at > num_layers or widths[at - 1] == widths[at])]
    options = lstm_options(draw, projection_sizes, residuals=residuals)
    return LSTMEncoder(WIDTH, 4, num_layers, num_bidirectional, **options, **draw(cells))


def draw_attention(draw, memory_size):
    kinds = ["additive", "general", *(["dot"] if memory_size == WIDTH else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "general":
        return GeneralAttention(WIDTH, memory_size)
    if kind == "dot":
        return DotAttention(WIDTH, memory_size, scaled=draw(booleans))
    heads = draw(st.sampled_from([1, 1, 2]))
    return AdditiveAttention(WIDTH, memory_size, 4, normalize=draw(booleans), initial_scale=2.0, num_heads=heads)


def draw_decoder(draw, kind, num_layers, memory_size, cell, bridged):
    alignment_layer = draw(st.sampled_from([None, num_layers]))
    if kind == "transformer":
        norm = draw(st.sampled_from(["pre", "post"]))
        return TransformerDecoder(WIDTH, memory_size, num_layers, 2, 8, norm, draw(positions), alignment_layer)
    if kind == "convolutional":
        return ConvolutionalDecoder(
            WIDTH, 4, num_layers, draw(st.sampled_from([1, 2, 3])), draw(positions), alignment_layer
        )
    residual_from = draw(st.sampled_from([None, 2, 3]))
    if kind == "plain":
        return PlainDecoder(WIDTH, WIDTH, num_layers, residual_from, **cell)
    common = {
        "query": draw(st.sampled_from(["current", "previous"])),
        "residual_from": residual_from,
        "bridge": "final" if bridged else "none",
        **cell,
    }
    attention = draw_attention(draw, memory_size)
    if kind == "top":
        return AttentionDecoder(WIDTH, WIDTH, num_layers, attention, input_feeding=draw(booleans), **common)
    outputs = ["concatenated", "added", "readout", *(["none"] if num_layers > 1 else [])]
    return GNMTDecoder(WIDTH, WIDTH, num_layers, attention, context_to_output=draw(st.sampled_from(outputs)), **common)
