"""The Transformer: parity with torch.nn's layers, cached decoding, positions, initialisation, wrong settings."""

from __future__ import annotations

import math

import pytest
import torch
from check_architecture import (
    check_a_batch_of_one_equals_its_row,
    check_bf16_is_near,
    check_padding_changes_nothing,
    check_steps_equal_decode,
    share_of_copies_learned,
)
from tiny_gnmt import SOURCE, TARGET, padded
from torch import Tensor, nn

from gnmt.model.attention import AdditiveAttention
from gnmt.model.decoders.lstm import LSTMDecoder
from gnmt.model.decoders.transformer import TransformerDecoder
from gnmt.model.encoders.lstm import LSTMEncoder
from gnmt.model.encoders.transformer import TransformerEncoder
from gnmt.model.positions import Positions, sinusoids
from gnmt.model.self_attention import SourceAttention
from gnmt.model.seq2seq import Seq2Seq
from gnmt.runtime import choose_precision
from gnmt.types import Encoded, InputError, Memory

SIZE, HEADS, FEED_FORWARD, LAYERS = 8, 2, 12, 2


def transformer(norm="pre", learned_positions=None, dropout=0.0, num_layers=LAYERS, size=SIZE, **options) -> Seq2Seq:
    torch.manual_seed(3)
    shared = {"norm": norm, "learned_positions": learned_positions, "dropout": dropout}
    encoder = TransformerEncoder(size, num_layers, HEADS, FEED_FORWARD, **shared)
    decoder = TransformerDecoder(size, size, num_layers, HEADS, FEED_FORWARD, **shared, **options)
    return Seq2Seq(encoder, decoder, 9, 11, size, init_range=0.8)


def hybrid() -> Seq2Seq:
    """A Transformer's encoder under GNMT's decoder."""
    torch.manual_seed(3)
    decoder = LSTMDecoder(SIZE, 6, 3, AdditiveAttention(6, SIZE, 3))
    return Seq2Seq(TransformerEncoder(SIZE, 2, HEADS, FEED_FORWARD), decoder, 9, 11, SIZE, init_range=0.8)


def hybrid_reverse() -> Seq2Seq:
    """GNMT's encoder, with states wider than the decoder, under a Transformer's decoder."""
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
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_padding_changes_nothing(name):
    check_padding_changes_nothing(MODELS[name]().double().eval())


@every_model
def test_a_batch_of_one_equals_its_row(name):
    check_a_batch_of_one_equals_its_row(MODELS[name]().double().eval())


@every_model
@pytest.mark.parametrize("beam", [1, 3])
def test_steps_equal_decode_for_sentences_of_different_ages(name, beam):
    check_steps_equal_decode(MODELS[name]().double().eval(), beam)


@pytest.mark.parametrize("name", ["pre", "post", "hybrid reverse"])
def test_bf16_is_near(name):
    check_bf16_is_near(MODELS[name]().eval(), 0.1)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_it_learns_to_copy(norm):
    torch.manual_seed(1)
    encoder = TransformerEncoder(32, 2, 4, 64, norm, dropout=0.0)
    decoder = TransformerDecoder(32, 32, 2, 4, 64, norm, dropout=0.0)
    model = Seq2Seq(encoder, decoder, 12, 12, 32, tie_embeddings="all", init_range=0.3)
    assert share_of_copies_learned(model, 180, 0.008) > 0.9


def copy_weights(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter, slice]]:
    """Gives their layers our weights; the pairs of parameters, with the rows of theirs that belong to ours."""
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
            one += 0.1 * torch.randn_like(one)  # biases and norms too are to count
            other[rows] = one
    return pairs


def assert_same_gradients(pairs: list[tuple[nn.Parameter, nn.Parameter, slice]]) -> None:
    assert len(pairs) >= 12 * LAYERS
    for one, other, rows in pairs:
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad[rows])


def scaled_with_positions(embedded_BTE: Tensor) -> Tensor:
    """Section 3.4 and 3.5 of Vaswani et al. 2017, number by number."""
    added = torch.zeros(embedded_BTE.shape[1:], dtype=torch.float64)
    for position in range(added.shape[0]):
        for i in range(SIZE // 2):
            angle = position / 10000 ** (2 * i / SIZE)
            added[position, 2 * i], added[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return embedded_BTE * SIZE**0.5 + added


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_encoder_is_that_of_torch(norm):
    """Outputs, gradients of the input and of every weight, with padding; nn.TransformerEncoder."""
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
def test_the_decoder_is_that_of_torch(norm):
    """Outputs and gradients, with causal self-attention and a padded source; nn.TransformerDecoder."""
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


def test_the_alignment_is_the_mean_over_heads_and_the_fused_kernel_agrees():
    """nn.MultiheadAttention gives the mean of its heads' weights; both ways to the context are one."""
    torch.manual_seed(5)
    ours = SourceAttention(SIZE, SIZE, HEADS, 0.0).double()
    theirs = nn.MultiheadAttention(SIZE, HEADS, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.projection.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.projection.bias)))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query_BTH, states_BSH = (torch.randn(2, width, SIZE, dtype=torch.float64) for width in (3, 6))
    mask_BS = torch.arange(6) < torch.tensor([4, 6])[:, None]
    outputs_BTH, weights_BTS = ours.with_weights(query_BTH, *ours.prepare(states_BSH), mask_BS)
    expected_BTH, expected_BTS = theirs(query_BTH, states_BSH, states_BSH, key_padding_mask=~mask_BS)
    torch.testing.assert_close(outputs_BTH, expected_BTH)
    torch.testing.assert_close(weights_BTS, expected_BTS)
    torch.testing.assert_close(ours(query_BTH, *ours.prepare(states_BSH), mask_BS), expected_BTH)


def test_which_layer_aligns():
    """The last but one by default; another gives other weights and the same hidden states."""
    assert transformer(num_layers=1).decoder.alignment_layer == 1
    models = {layer: transformer(num_layers=3, alignment_layer=layer).double().eval() for layer in (None, 2, 3)}
    found = {
        layer: model.decode(padded(TARGET), model.encode(padded(SOURCE)), attention=True)
        for layer, model in models.items()
    }
    assert torch.equal(found[None][1], found[2][1])
    assert (found[3][1] - found[2][1]).abs().max() > 0.01
    torch.testing.assert_close(found[3][0], found[2][0])


def test_positions_far_away_stay_apart_in_bf16():
    """Angles in bf16 would be the same for hundreds of neighbouring positions."""
    far = torch.arange(1000, 1010)
    vectors = sinusoids(far, 64, torch.bfloat16)
    assert vectors.dtype == torch.bfloat16
    torch.testing.assert_close(vectors.double(), sinusoids(far, 64, torch.float64), atol=0.005, rtol=0)


def test_a_step_takes_the_vectors_that_the_whole_sequence_has():
    torch.manual_seed(1)
    like = torch.zeros(2, 7, 5)  # an odd width too
    for learned in (None, 7):
        positions = Positions(5, learned)
        places_BK = torch.tensor([[6, 0], [3, 3]])
        assert torch.equal(positions.at(places_BK, like), positions.over_time(like)[places_BK])


def test_more_tokens_than_learned_positions_are_refused_but_do_not_end_a_search():
    model = transformer(learned_positions=6).eval()
    with pytest.raises(InputError, match=r"sentence of 7 tokens meets a model with learned_positions=6: .*max_source_"):
        model.encode(padded(SOURCE))
    memory = model.encode(padded([[5, 3]]))
    with pytest.raises(InputError, match="sentence of 8 tokens"):
        model.decode(padded([[2] * 8]), memory)
    state = model.start(memory, 1)
    for _ in range(8):
        log_probs_BKV, _, state = model.step(torch.tensor([[4]]), state, memory)
    assert log_probs_BKV.isfinite().all()


def test_it_starts_with_xavier_weights_and_leaves_others_their_uniform_start():
    """One range for all would leave the scale of attention to chance."""
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


def test_dropout_falls_on_embeddings_sublayers_attention_and_feed_forward_in_training_only():
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
        (lambda: TransformerEncoder(10, 1, 4, 8), "num_heads=4 does not divide hidden_size=10"),
        (lambda: TransformerDecoder(10, 10, 1, 4, 8), "num_heads=4 does not divide hidden_size=10"),
        (lambda: transformer(alignment_layer=3), "alignment_layer=3, but the decoder has num_layers=2: choose one"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_cuda_agrees_with_the_cpu(name):
    """Forward, backward and two steps, whose kernels are others."""
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
