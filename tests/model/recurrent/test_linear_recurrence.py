"""Layers with linear recurrences equal the papers' formulas, step by step and in parallel, at every length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent import linear_recurrence
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import Bidirectional, RecurrentLayer, reverse_by_length
from gnmt.model.recurrent.linear_recurrence import RGLRU, MinLSTM, linear_scan
from gnmt.model.seq2seq import Seq2Seq

CLASSES = [MinLSTM, RGLRU]
SCANS = [linear_recurrence._scan_by_steps, linear_recurrence._scan_by_doubling]


@pytest.fixture(params=SCANS, ids=["steps", "doubling"])
def either_scan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with the CPU's scan and with the GPU's."""
    monkeypatch.setattr(linear_recurrence, "_scan", request.param)


def layer_of(cls: type[RecurrentLayer], bound: float = 0.9) -> RecurrentLayer:
    """Return a layer in fp64 with large weights. RG-LRU keeps its decays."""
    torch.manual_seed(1)
    layer = cls(5, 7).double()  # type: ignore[call-arg]
    for name, parameter in layer.named_parameters():
        if name != "decay":
            nn.init.uniform_(parameter, -bound, bound)
    return layer


def inputs_of(num_steps: int, batch: int = 4) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(num_steps, batch, 5, dtype=torch.float64)


def min_lstm_oracle(layer: MinLSTM, inputs_TBI: torch.Tensor, first_BH: torch.Tensor | None = None) -> torch.Tensor:
    """Feng et al. 2024, listing 10: everything in logarithms, the sum over time by cumsum and logcumsumexp."""
    forget, add, candidate = (inputs_TBI @ layer.projection.weight.T + layer.projection.bias).split(7, dim=-1)
    diff = torch.log1p(torch.exp(-forget)) - torch.log1p(torch.exp(-add))
    log_forget, log_add = -torch.log1p(torch.exp(diff)), -torch.log1p(torch.exp(-diff))
    log_candidate = torch.where(candidate >= 0, (candidate.clamp(min=0) + 0.5).log(), candidate.sigmoid().log())
    log_values, log_decays = log_add + log_candidate, log_forget.cumsum(0)
    if first_BH is not None:
        log_values = torch.cat((first_BH.log()[None], log_values))
        log_decays = torch.cat((torch.zeros_like(log_decays[:1]), log_decays))
    states = (log_decays + torch.logcumsumexp(log_values - log_decays, 0)).exp()
    return states[-len(inputs_TBI) :]


def rg_lru_oracle(layer: RGLRU, inputs_TBI: torch.Tensor) -> torch.Tensor:
    """De et al. 2024, eq. 1 to 4 and section 2.3, step by step."""
    normalized_TBI = inputs_TBI / ((inputs_TBI**2).sum(-1, keepdim=True) / 5 + 1e-6).sqrt() * layer.gain
    branch_TBH, gate_TBH = (normalized_TBI @ layer.branches.weight.T + layer.branches.bias).split(7, dim=-1)
    outputs, h = [], torch.zeros(inputs_TBI.shape[1], 7, dtype=torch.float64)
    for t in range(len(inputs_TBI)):
        u = layer.convolution_bias.repeat(inputs_TBI.shape[1], 1)
        for back in range(min(t, 3) + 1):
            u = u + layer.convolution[:, 3 - back] * branch_TBH[t - back]
        r, i = (1 / (1 + torch.exp(-(u @ layer.gates.weight.T + layer.gates.bias)))).split(7, dim=-1)
        a = (1 / (1 + torch.exp(-layer.decay))) ** (8 * r)
        h = a * h + (1 - a**2).sqrt() * (i * u)
        gelu = gate_TBH[t] * (1 + torch.erf(gate_TBH[t] / math.sqrt(2))) / 2
        outputs.append((h * gelu) @ layer.output.weight.T + layer.output.bias)
    return torch.stack(outputs)


@pytest.mark.usefixtures("either_scan")
@pytest.mark.parametrize(("cls", "oracle"), [(MinLSTM, min_lstm_oracle), (RGLRU, rg_lru_oracle)])
def test_outputs_and_gradients_equal_the_papers_formulas(cls, oracle):
    layer, inputs_TBI = layer_of(cls), inputs_of(9).requires_grad_()
    found_TBH, expected_TBH = layer(inputs_TBI), oracle(layer, inputs_TBI)
    torch.testing.assert_close(found_TBH, expected_TBH)
    direction_TBH = torch.randn_like(found_TBH)
    parts = [inputs_TBI, *layer.parameters()]
    found = torch.autograd.grad((found_TBH * direction_TBH).sum(), parts)
    expected = torch.autograd.grad((expected_TBH * direction_TBH).sum(), parts)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("either_scan")
def test_a_first_state_enters_min_lstm_as_its_own_logarithm():
    """Published code takes log g(h0), which is wrong."""
    layer, inputs_TBI = layer_of(MinLSTM), inputs_of(6)
    first_BH = torch.rand(4, 7, dtype=torch.float64) + 0.1
    found_TBH = layer(inputs_TBI, (first_BH, first_BH))
    torch.testing.assert_close(found_TBH, min_lstm_oracle(layer, inputs_TBI, first_BH))


@pytest.mark.usefixtures("either_scan")
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("has_first", [False, True])
def test_the_scan_equals_a_loop_in_values_and_gradients(num_steps, has_first):
    torch.manual_seed(5)
    decays_TBH = torch.rand(num_steps, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs_TBH = torch.randn(num_steps, 2, 3, dtype=torch.float64, requires_grad=True)
    first_BH = torch.randn(2, 3, dtype=torch.float64, requires_grad=True) if has_first else None
    state = torch.zeros(2, 3, dtype=torch.float64) if first_BH is None else first_BH
    expected = []
    for decay_BH, input_BH in zip(decays_TBH, inputs_TBH, strict=True):
        state = decay_BH * state + input_BH
        expected.append(state)
    torch.testing.assert_close(linear_scan(decays_TBH, inputs_TBH, first_BH), torch.stack(expected))
    given = (decays_TBH, inputs_TBH) if first_BH is None else (decays_TBH, inputs_TBH, first_BH)
    assert torch.autograd.gradcheck(linear_scan, given)


@pytest.mark.usefixtures("either_scan")
@pytest.mark.parametrize("cls", CLASSES)
def test_gradcheck_of_a_layer_from_zeros_and_from_a_state(cls):
    layer, inputs_TBI = layer_of(cls), inputs_of(5, batch=2).requires_grad_()
    state = tuple(torch.rand_like(tensor).requires_grad_() for tensor in layer.start(2, inputs_TBI))
    assert torch.autograd.gradcheck(layer, inputs_TBI)
    assert torch.autograd.gradcheck(lambda inputs, *parts: layer(inputs, parts), (inputs_TBI, *state))


@pytest.mark.parametrize("cls", CLASSES)
def test_both_directions_equal_one_layer_on_each_sentence_and_its_reversal(cls):
    torch.manual_seed(2)
    layer, inputs_TBI, lengths_B = Bidirectional(5, 7, cls).double(), inputs_of(6), torch.tensor([3, 6, 1, 4])
    outputs_TBH, final = layer.forward_with_final_state(inputs_TBI, lengths_B)
    zeros = layer.start(4, inputs_TBI)
    assert [tensor.shape for tensor in final] == [tensor.shape for tensor in zeros]
    for row, length in enumerate(lengths_B.tolist()):
        alone_TBI = inputs_TBI[:length, row : row + 1]
        back_TBI = reverse_by_length(alone_TBI, torch.tensor([length]))
        expected_TBH = torch.cat((layer.ahead(alone_TBI), layer.back(back_TBI).flip(0)), dim=-1)
        torch.testing.assert_close(outputs_TBH[:length, row : row + 1], expected_TBH)
        states = layer.ahead.start(1, alone_TBI), layer.back.start(1, alone_TBI)
        for ahead_BI, back_BI in zip(alone_TBI, back_TBI, strict=True):
            states = layer.ahead.step(ahead_BI, states[0]), layer.back.step(back_BI, states[1])
        for found_BH, ahead_BH, back_BH in zip(final, *states, strict=True):
            torch.testing.assert_close(found_BH[row : row + 1], torch.cat((ahead_BH, back_BH), dim=-1))


def trained_long(layer: RecurrentLayer, inputs_TBI: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the outputs, and the gradients of inputs and weights for a fixed direction, in fp64."""
    inputs_TBI = inputs_TBI.clone().requires_grad_()
    outputs_TBH = layer(inputs_TBI)
    generator = torch.Generator().manual_seed(4)
    direction_TBH = torch.randn(outputs_TBH.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad((outputs_TBH.double() * direction_TBH).sum(), [inputs_TBI, *layer.parameters()])
    return outputs_TBH.double(), [gradient.double() for gradient in gradients]


@pytest.mark.usefixtures("either_scan")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bound", [0.1, 0.9, 6.0])
def test_outputs_and_gradients_of_1000_steps_in_fp32_equal_those_in_fp64(cls, bound):
    """With the largest weights, gates are closed to 1e-12 and decays of 1000 steps multiply to far below 1e-45."""
    layer, inputs_TBI = layer_of(cls, bound), inputs_of(1000, batch=2)
    expected_TBH, expected = trained_long(layer, inputs_TBI)
    found_TBH, found = trained_long(layer.float(), inputs_TBI.float())
    assert (found_TBH - expected_TBH).abs().max() <= 2e-5 * expected_TBH.abs().max()
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert (one - other).norm() <= 2e-4 * other.norm()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("num_steps", [1, 37, 1000])
def test_cuda_agrees_with_the_cpu(cls, num_steps):
    """A GPU computes the scan by doubling."""
    layer, inputs_TBI = layer_of(cls), inputs_of(num_steps)
    expected_TBH = layer(inputs_TBI)
    expected = torch.autograd.grad(expected_TBH.square().sum(), list(layer.parameters()))
    layer, inputs_TBI = layer.to("cuda"), inputs_TBI.to("cuda")
    found_TBH = layer(inputs_TBI)
    found = torch.autograd.grad(found_TBH.square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found_TBH.cpu(), expected_TBH)
    torch.testing.assert_close([gradient.cpu() for gradient in found], list(expected), rtol=1e-6, atol=1e-9)


def test_the_sum_over_time_in_logarithms_would_lose_digits():
    """The reason for `linear_scan`: the logarithms' error grows with the length."""
    layer, inputs_TBI = layer_of(MinLSTM).float(), inputs_of(1000, batch=2)
    with torch.no_grad():
        found_TBH, in_logarithms_TBH = layer(inputs_TBI.float()), min_lstm_oracle(layer, inputs_TBI.float())
        expected_TBH = layer.double()(inputs_TBI)
    errors = [float(((one - expected_TBH) / expected_TBH).abs().max()) for one in (found_TBH, in_logarithms_TBH)]
    assert errors[0] < 1e-5
    assert errors[1] > 10 * errors[0]


@pytest.mark.parametrize("cls", CLASSES)
def test_1000_steps_under_bf16_autocast_stay_close_to_fp64(cls):
    """Only products are in bf16: the recurrence and the state of `step` are in fp32, so errors do not add up."""
    layer, inputs_TBI = layer_of(cls, 0.5), inputs_of(1000, batch=2)
    expected_TBH, expected = trained_long(layer, inputs_TBI)
    layer = layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_TBH, found = trained_long(layer, inputs_TBI.bfloat16())
        assert layer(inputs_TBI.bfloat16()).dtype == torch.bfloat16
        state = layer.start(2, inputs_TBI.bfloat16())
        for inputs_BI in inputs_TBI.bfloat16():
            state = layer.step(inputs_BI, state)
    assert state[0].dtype == torch.bfloat16
    assert state[1].dtype == torch.float32
    size = expected_TBH.abs().max()
    assert (found_TBH - expected_TBH).abs().max() < 0.03 * size
    assert (found_TBH[-100:] - expected_TBH[-100:]).abs().max() < 0.03 * size
    assert (state[0] - found_TBH[-1]).abs().max() < 0.01 * size
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("size", [1e2, 1e6])
def test_gradients_are_finite_for_saturated_gates(cls, size):
    layer, inputs_TBI = layer_of(cls).float(), (size * inputs_of(20)).float().requires_grad_()
    outputs_TBH = layer(inputs_TBI)
    assert outputs_TBH.isfinite().all()
    for gradient in torch.autograd.grad(outputs_TBH.sum(), [inputs_TBI, *layer.parameters()]):
        assert gradient.isfinite().all()


def test_decays_of_rg_lru_start_between_0_3_and_0_999():
    torch.manual_seed(1)
    decays = RGLRU(4, 1000).decay.detach().sigmoid() ** 8
    assert 0.299 < decays.min() < 0.31
    assert 0.99 < decays.max() < 1
    assert decays.mean() == pytest.approx(0.65, abs=0.02)


@pytest.mark.parametrize("cell", ["min_lstm", "rg_lru"])
def test_the_range_of_a_model_s_weights_does_not_change_those_of_these_layers(cell):
    """With the range 0.4 of gnmt_tiny, an RG-LRU model had 1 BLEU on the demo where it has 75 in half the updates."""

    def model_of(init_range: float) -> Seq2Seq:
        torch.manual_seed(1)
        encoder = LSTMEncoder(64, 64, 2, cell=cell)
        decoder = GNMTDecoder(64, 64, 2, AdditiveAttention(64, 64, 64), cell=cell)
        return Seq2Seq(encoder, decoder, 10, 10, 64, init_range=init_range)

    small, large = model_of(1e-3), model_of(10.0)
    assert large.decoder.attention.query_projection.weight.abs().max() > 9
    layers = [layer for layer in large.modules() if isinstance(layer, MinLSTM | RGLRU)]
    assert len(layers) == 5
    for layer in layers:
        for linear in (part for part in layer.modules() if isinstance(part, nn.Linear)):
            assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.05)
    for model in (small, large):
        for layer in (part for part in model.modules() if isinstance(part, MinLSTM)):
            forget, add, candidate = layer.projection.bias.chunk(3)
            assert (forget == linear_recurrence.FIRST_FORGET_BIAS).all()
            assert not add.any()
            assert not candidate.any()
