"""The Transformer equals torch.nn's layers in outputs and gradients, with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.model.interfaces import Encoded, Memory
from gnmt.model.transformer import SourceAttention, TransformerDecoder, TransformerEncoder, dot_product_attention

SIZE, HEADS, FEED_FORWARD, LAYERS = 8, 2, 12, 2


def copy_weights(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter, slice]]:
    """Copy our weights to torch's layers and return the pairs of parameters, with the rows of torch's that are ours."""
    whole = slice(None)
    pairs: list[tuple[nn.Parameter, nn.Parameter, slice]] = []

    def same(one: nn.Module, other: nn.Module) -> None:
        pairs.extend((one.get_parameter(name), other.get_parameter(name), whole) for name in ("weight", "bias"))

    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        attention = getattr(layer, "attention", None) or layer.self_attention
        pairs.append((attention.projection.weight, other.self_attn.in_proj_weight, whole))
        pairs.append((attention.projection.bias, other.self_attn.in_proj_bias, whole))
        same(attention.output, other.self_attn.out_proj)
        same(layer.feed_forward.inner, other.linear1)
        same(layer.feed_forward.outer, other.linear2)
        if attention is getattr(layer, "attention", None):
            norms = [layer.around_attention.norm, layer.around_feed_forward.norm]
        else:
            norms = [layer.around_self_attention.norm, layer.around_source_attention.norm]
            norms.append(layer.around_feed_forward.norm)
            source = layer.source_attention
            for part, rows in ((source.query, slice(SIZE)), (source.projection, slice(SIZE, 3 * SIZE))):
                pairs.append((part.weight, other.multihead_attn.in_proj_weight, rows))
                pairs.append((part.bias, other.multihead_attn.in_proj_bias, rows))
            same(source.output, other.multihead_attn.out_proj)
        for number, norm in enumerate(norms, start=1):
            same(norm, getattr(other, f"norm{number}"))
    if theirs.norm is not None:
        same(ours.norm, theirs.norm)
    with torch.no_grad():
        for one, other, rows in pairs:
            one += 0.1 * torch.randn_like(one)  # so that biases and norms matter too
            other[rows] = one
    return pairs


def assert_same_gradients(pairs: list[tuple[nn.Parameter, nn.Parameter, slice]]) -> None:
    assert len(pairs) >= 12 * LAYERS
    for one, other, rows in pairs:
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad[rows])


def scaled_with_positions(embedded_BTE: Tensor) -> Tensor:
    """Return scaled embeddings plus sinusoids, number by number (Vaswani et al. 2017, sections 3.4 and 3.5)."""
    added = torch.zeros(embedded_BTE.shape[1:], dtype=torch.float64)
    for position in range(added.shape[0]):
        for i in range(SIZE // 2):
            angle = position / 10000 ** (2 * i / SIZE)
            added[position, 2 * i], added[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return embedded_BTE * SIZE**0.5 + added


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_encoder_equals_torchs(norm):
    """Outputs and gradients of the input and every weight are compared, with padding."""
    torch.manual_seed(4)
    ours = TransformerEncoder(SIZE, LAYERS, HEADS, FEED_FORWARD, norm=norm, dropout=0.0).double()
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, FEED_FORWARD, 0.0, batch_first=True, norm_first=norm == "pre")
    last = nn.LayerNorm(SIZE) if norm == "pre" else None
    theirs = nn.TransformerEncoder(layer, LAYERS, last, enable_nested_tensor=False).double()
    pairs = copy_weights(ours, theirs)
    lengths_B = torch.tensor([5, 3])
    real_BS = torch.arange(5) < lengths_B[:, None]
    embedded_BSE = torch.randn(2, 5, SIZE, dtype=torch.float64)
    inputs = [embedded_BSE.clone().requires_grad_() for _ in range(2)]
    found = ours(inputs[0], lengths_B).states_BSH[real_BS]
    expected = theirs(scaled_with_positions(inputs[1]), src_key_padding_mask=~real_BS)[real_BS]
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert_same_gradients(pairs)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_decoder_equals_torchs(norm):
    """Outputs and gradients are compared, with causal self-attention and a padded source."""
    torch.manual_seed(4)
    ours = TransformerDecoder(SIZE, SIZE, LAYERS, HEADS, FEED_FORWARD, norm=norm, dropout=0.0).double()
    layer = nn.TransformerDecoderLayer(SIZE, HEADS, FEED_FORWARD, 0.0, batch_first=True, norm_first=norm == "pre")
    theirs = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(SIZE) if norm == "pre" else None).double()
    pairs = copy_weights(ours, theirs)
    real_BS = torch.arange(6) < torch.tensor([4, 6])[:, None]
    embedded_BTE, states_BSH = (torch.randn(2, width, SIZE, dtype=torch.float64) for width in (5, 6))
    ins = [[tensor.clone().requires_grad_() for tensor in (embedded_BTE, states_BSH)] for _ in range(2)]
    memory = Memory(ins[0][1], real_BS, ours.prepare(Encoded(ins[0][1])))
    found, _ = ours(ins[0][0], memory)
    causal_TT = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected = theirs(scaled_with_positions(ins[1][0]), ins[1][1], tgt_mask=causal_TT, memory_key_padding_mask=~real_BS)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(*ins, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert_same_gradients(pairs)


def test_source_attention_equals_torchs_with_and_without_weights():
    """nn.MultiheadAttention returns the mean of its heads' weights too."""
    torch.manual_seed(5)
    ours = SourceAttention(SIZE, SIZE, HEADS, 0.0).double()
    theirs = nn.MultiheadAttention(SIZE, HEADS, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.projection.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.projection.bias)))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query_BTH, states_BSH = (torch.randn(2, width, SIZE, dtype=torch.float64) for width in (3, 6))
    mask_BS = torch.arange(6) < torch.tensor([4, 6])[:, None]
    outputs_BTH, weights_BTS = ours.forward_with_weights(query_BTH, *ours.prepare(states_BSH), mask_BS)
    expected_BTH, expected_BTS = theirs(query_BTH, states_BSH, states_BSH, key_padding_mask=~mask_BS)
    torch.testing.assert_close(outputs_BTH, expected_BTH)
    torch.testing.assert_close(weights_BTS, expected_BTS)
    torch.testing.assert_close(ours(query_BTH, *ours.prepare(states_BSH), mask_BS), expected_BTH)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_in_bf16_on_a_cpu_come_from_plain_products(causal, monkeypatch):
    """The fused kernel's backward took half of a training step (torch 2.13). Both agree, and with fp32."""
    torch.manual_seed(6)
    mask = None if causal else (torch.arange(5) < torch.tensor([4, 5])[:, None])[:, None, None]
    tensors = [torch.randn(2, HEADS, 5, SIZE) for _ in range(3)]
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
        with monkeypatch.context() as patch:
            if dtype == torch.bfloat16:
                patch.delattr(F, "scaled_dot_product_attention")
            found = dot_product_attention(*inputs, mask)
        found.square().sum().backward()
        results[dtype] = [found.detach(), *(tensor.grad for tensor in inputs)]
        with torch.no_grad():
            torch.testing.assert_close(dot_product_attention(*inputs, mask), found, rtol=2e-2, atol=2e-2)
    for exact, rounded in zip(*results.values(), strict=True):
        assert (exact - rounded.float()).norm() < 2e-2 * exact.norm()
