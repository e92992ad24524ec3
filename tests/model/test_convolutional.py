"""The convolutional model equals the paper's formulas, in decoding, initialization and weight normalization."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from check_architecture import check_padding_and_neighbors_change_nothing, check_steps_equal_decode
from tiny_gnmt import SOURCE, TARGET, padded
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gnmt.errors import InputError
from gnmt.model.convolutional import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    GatedConvolution,
    NormalizedLinear,
    scale_gradient,
)
from gnmt.model.interfaces import Encoded, Memory
from gnmt.model.seq2seq import Seq2Seq

ROOT_HALF = 0.5**0.5


def convolutional(kernels=(3, 3), learned_positions=10, dropout=0.0, **options) -> Seq2Seq:
    torch.manual_seed(3)
    encoder = ConvolutionalEncoder(5, 6, 3, kernels[0], learned_positions, dropout)
    decoder = ConvolutionalDecoder(5, 4, 2, kernels[1], learned_positions, dropout=dropout, **options)
    return Seq2Seq(encoder, decoder, 9, 11, 5, init_range=0.8)


@pytest.mark.parametrize("options", [{"kernels": (1, 1)}, {"learned_positions": None}])
def test_steps_and_padding_with_settings_that_no_config_has(options):
    """With kernel_size 1 the state holds no earlier inputs."""
    model = convolutional(**options).double().eval()
    check_padding_and_neighbors_change_nothing(model)
    check_steps_equal_decode(model, 2)


def linear(layer: NormalizedLinear, inputs: Tensor) -> Tensor:
    """Return x W^T + b with W = g v/|v|, row by row."""
    rows = [g * v / v.square().sum().sqrt() for g, v in zip(layer.scale, layer.direction, strict=True)]
    return inputs @ torch.stack(rows).T + layer.bias


def convolved(layer: GatedConvolution, inputs_TH: Tensor, before: int) -> Tensor:
    """Return the gated result of conv1d with the same weights."""
    width = inputs_TH.shape[1]
    kernel = layer.product.weight.view(2 * width, layer.kernel_size, width).transpose(1, 2)
    padded_HP = F.pad(inputs_TH.T, (before, layer.kernel_size - 1 - before))
    both_T = F.conv1d(padded_HP[None], kernel, layer.product.bias)[0].T
    return both_T[:, :width] * torch.sigmoid(both_T[:, width:])


def by_the_paper(model: Seq2Seq, source_ids: list[int], target_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Return hidden [T, E] and mean attention [T, S] of a sentence pair (Gehring et al. 2017, sections 3.1 to 3.5)."""
    encoder, decoder = model.encoder, model.decoder
    embedded_SE = model.source_embedding.weight[source_ids] + encoder.positions.table[: len(source_ids)]
    states_SH = linear(encoder.enter, embedded_SE)
    for layer in encoder.layers:
        states_SH = (convolved(layer, states_SH, layer.kernel_size // 2) + states_SH) * ROOT_HALF
    keys_SE = linear(encoder.leave, states_SH)
    values_SE = (keys_SE + embedded_SE) * ROOT_HALF
    embedded_TE = model.target_embedding.weight[target_ids] + decoder.positions.table[: len(target_ids)]
    hidden_TH = linear(decoder.enter, embedded_TE)
    all_weights = []
    for layer, attention in zip(decoder.layers, decoder.attentions, strict=True):
        outputs_TH = convolved(layer, hidden_TH, layer.kernel_size - 1)
        query_TE = (linear(attention.query, outputs_TH) + embedded_TE) * ROOT_HALF
        weights_TS = torch.softmax(query_TE @ keys_SE.T, dim=1)
        num = len(source_ids)
        context_TE = weights_TS @ values_SE * (num * math.sqrt(1 / num))
        outputs_TH = (outputs_TH + linear(attention.output, context_TE)) * ROOT_HALF
        hidden_TH = (outputs_TH + hidden_TH) * ROOT_HALF
        all_weights.append(weights_TS)
    return linear(decoder.leave, hidden_TH), torch.stack(all_weights).mean(0)


@pytest.mark.parametrize("kernels", [(3, 3), (5, 2)])
def test_hidden_states_and_attention_equal_the_papers_formulas(kernels):
    model = convolutional(kernels).double().eval()
    hidden_BTE, attention_BTS = model.decode(padded(TARGET), model.encode(padded(SOURCE)), attention=True)
    for row, (source_ids, target_ids) in enumerate(zip(SOURCE, TARGET, strict=True)):
        expected_TE, expected_TS = by_the_paper(model, source_ids, target_ids)
        torch.testing.assert_close(hidden_BTE[row, : len(target_ids)], expected_TE)
        torch.testing.assert_close(attention_BTS[row, : len(target_ids), : len(source_ids)], expected_TS)


def test_the_states_gradient_is_divided_by_the_number_of_attentions_and_the_embeddings_is_not():
    decoder = convolutional().decoder.double()
    states_BSE, embedded_BSE = (torch.randn(1, 4, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    extras = decoder.prepare(Encoded(states_BSE, {"embedded": embedded_BSE}))
    assert torch.equal(extras["keys"], states_BSE)
    extras["keys"].sum().backward(retain_graph=True)
    torch.testing.assert_close(states_BSE.grad, torch.full_like(states_BSE, 1 / 2))
    states_BSE.grad = None
    extras["values"].sum().backward()
    torch.testing.assert_close(states_BSE.grad, torch.full_like(states_BSE, ROOT_HALF / 2))
    torch.testing.assert_close(embedded_BSE.grad, torch.full_like(embedded_BSE, ROOT_HALF))
    assert torch.equal(scale_gradient(states_BSE, 0.3), states_BSE)


def test_weight_normalization_equals_torchs():
    """Outputs and the gradients of direction and scale are compared."""
    torch.manual_seed(2)
    ours = NormalizedLinear(5, 7).double()
    theirs = weight_norm(nn.Linear(5, 7).double(), dim=0)
    parts = theirs.parametrizations.weight
    with torch.no_grad():
        ours.scale.mul_(torch.rand(7, dtype=torch.float64) + 0.5)
        ours.bias.normal_()
        parts.original0.copy_(ours.scale[:, None])
        parts.original1.copy_(ours.direction)
        theirs.bias.copy_(ours.bias)
    inputs = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(inputs), theirs(inputs))
    ours(inputs).square().sum().backward()
    theirs(inputs).square().sum().backward()
    torch.testing.assert_close(ours.scale.grad, parts.original0.grad[:, 0])
    torch.testing.assert_close(ours.direction.grad, parts.original1.grad)


def test_initial_weights_keep_the_variance():
    """The gain is 1 - p behind dropout, and four times as much before a gate (section 3.5)."""
    torch.manual_seed(2)
    layer = NormalizedLinear(400, 300, gain=0.8)
    torch.testing.assert_close(layer.weight, layer.direction)
    assert layer.weight.std().item() == pytest.approx((0.8 / 400) ** 0.5, rel=0.02)
    assert not layer.bias.any()
    convolution = GatedConvolution(100, 3, 0.2).eval()
    assert convolution.product.weight.std().item() == pytest.approx((4 * 0.8 / 300) ** 0.5, rel=0.02)
    model = convolutional()
    assert model.encoder.positions.table.abs().max() < 0.6  # standard deviation 0.1, not init_range
    assert not model.decoder.leave.bias.any()


def test_alignment_layer_selects_the_attention_and_null_is_the_mean():
    found = {}
    for layer in (None, 1, 2):
        model = convolutional(alignment_layer=layer).double().eval()
        found[layer] = model.decode(padded(TARGET), model.encode(padded(SOURCE)), attention=True)[1]
    torch.testing.assert_close((found[1] + found[2]) / 2, found[None])
    assert (found[1] - found[2]).abs().max() > 0.01


def test_dropout_applies_in_training_only():
    model = convolutional(dropout=0.5)

    def hidden():
        return model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0]

    assert not torch.equal(hidden(), hidden())
    model.eval()
    assert torch.equal(hidden(), hidden())


def test_sentences_longer_than_the_learned_positions_are_refused_but_hypotheses_are_not():
    model = convolutional(learned_positions=6).eval()
    with pytest.raises(InputError, match="sentence has 7 tokens, but the model has learned_positions=6"):
        model.encode(padded(SOURCE))
    memory = model.encode(padded([[5, 3]]))
    assert isinstance(memory, Memory)
    state = model.start(memory, 1)
    for _ in range(8):
        log_probs_BKV, _, state = model.step(torch.tensor([[4]]), state, memory)
    assert log_probs_BKV.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: convolutional((4, 3)), "model.encoder.kernel_size=4 is even: .* choose 3 or 5"),
        (lambda: convolutional(alignment_layer=3), "alignment_layer=3, but model.decoder.num_layers=2: choose"),
    ],
)
def test_even_kernels_and_missing_alignment_layers_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
