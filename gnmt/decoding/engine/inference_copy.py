"""A frozen copy of a model whose modules are made for search.

Search multiplies few rows by large matrices, thousands of times, and never trains. So in the copy

- every Linear keeps its weights in the order and the type that the product wants (engine/linear.py); weights that are
  normalized are so once and for all;
- a decoder's LSTM multiplies input and hidden state by one merged matrix; an encoder's multiplies the inputs of all
  times at once (engine/recurrence.py);
- what the context adds to GNMT's upper layers is multiplied once for each source position (engine/decoder.py);
- additive attention needs a sigmoid in place of a tanh (engine/attention.py).

Only modules are exchanged. The architecture, what it computes and the calls of search are those of the model, so
anything that is built of Linear and LSTM gains from it, and a module of unknown kind works as it is. Between all of
them flow fp32, bf16 or fp16 tensors as `precision` says; for int8 they are fp32, quantized inside the products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from gnmt.decoding.engine.linear import LinearMaker, linear_maker
from gnmt.device import Precision
from gnmt.model.attention import AdditiveAttention, DotAttention, GeneralAttention, attend
from gnmt.model.convolutional import NormalizedLinear
from gnmt.model.interfaces import Attention, Decoder, DecoderState, Encoded, Memory
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import (
    LSTM,
    LayerState,
    RecurrentLayer,
    StepwiseLayer,
    initial_states,
    is_residual,
    pack_states,
    unpack_states,
)
from gnmt.model.seq2seq import Seq2Seq


class FastLSTM(StepwiseLayer):
    """What both kinds share: a subclass has `project`, what the inputs add to the gates, and `gates`."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        """Input, forget, doubled cell and output gate before their sigmoid, [N, 4H], in memory of their own."""
        raise NotImplementedError

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, torch.zeros_like(hidden_NH, dtype=torch.float32)

    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        return self.opened(self.gates(projected_NP, state[0]), state)

    def opened(self, gates_NG: Tensor, state: LayerState) -> LayerState:
        """c' = f c + i tanh(g), h' = o tanh(c'), with both tanh as sigmoids; the gates' memory is written over."""
        hidden_NH, cell_NH = state
        gates_NG = gates_NG.float().sigmoid_()
        input_NH, forget_NH, doubled_NH, output_NH = gates_NG.chunk(4, dim=1)
        cell_NH = (forget_NH * cell_NH).add_(input_NH * doubled_NH, alpha=2).sub_(input_NH)
        squashed_NH = (2 * cell_NH).sigmoid_()
        new_hidden_NH = squashed_NH.mul_(output_NH).mul_(2).sub_(output_NH)
        return new_hidden_NH.to(hidden_NH.dtype), cell_NH


class StepLSTM(FastLSTM):
    """A decoder's layer, whose inputs come step by step: [input, hidden] times one merged matrix."""

    def __init__(self, lstm: LSTM, make: LinearMaker) -> None:
        super().__init__(lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.merged = make(torch.cat((from_inputs_GI, from_hidden_GH), dim=1), bias_G)

    def project(self, inputs: Tensor) -> Tensor:
        return inputs

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        gates_NG: Tensor = self.merged(torch.cat((projected_NP, hidden_NH), dim=1))
        return gates_NG


class FedLSTM(StepLSTM):
    """The same for a layer whose last inputs were multiplied elsewhere; `step_fed` adds what came of them."""

    def __init__(self, lstm: LSTM, num_own_inputs: int, make: LinearMaker) -> None:
        FastLSTM.__init__(self, lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.merged = make(torch.cat((from_inputs_GI[:, :num_own_inputs], from_hidden_GH), dim=1), bias_G)

    @staticmethod
    def from_fed(lstm: LSTM, num_own_inputs: int) -> Tensor:
        """The weights of the inputs behind the layer's own, [4H, others]."""
        return _with_doubled_cell_gate(lstm)[0][:, num_own_inputs:]

    def step_fed(self, inputs_NI: Tensor, added_NG: Tensor, state: LayerState) -> LayerState:
        """One step, with [N, 4H] more for the gates."""
        return self.opened(self.gates(inputs_NI, state[0]).add_(added_NG), state)


class SequenceLSTM(FastLSTM):
    """An encoder's layer, whose inputs are all there: one product for all of them, and one for each hidden state."""

    def __init__(self, lstm: LSTM, make: LinearMaker) -> None:
        super().__init__(lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.from_inputs = make(from_inputs_GI, bias_G)
        self.from_hidden = make(from_hidden_GH, None)

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        gates_NG: Tensor = self.from_hidden(hidden_NH)
        return gates_NG.add_(projected_NP)


def _with_doubled_cell_gate(lstm: LSTM) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [4H, I] and [4H, H] and the sum of the biases [4H], with twice the rows of the third gate (g)."""
    named = {name: parameter.detach() for name, parameter in lstm.named_parameters()}
    factor_G = torch.ones_like(named["bias_ih_l0"])
    factor_G[2 * lstm.hidden_size : 3 * lstm.hidden_size] = 2
    bias_G = (named["bias_ih_l0"] + named["bias_hh_l0"]) * factor_G
    return named["weight_ih_l0"] * factor_G[:, None], named["weight_hh_l0"] * factor_G[:, None], bias_G


class FastAdditiveAttention(Attention):
    """The weights of AdditiveAttention by a sigmoid, in fp32.

    v . tanh(z) = 2v . sigmoid(2z) - sum(v); the sum is the same for all source positions, and softmax does not see it.
    The 2 of 2z lies in both projections. On a CPU the tanh of [B, K, S, A] would be the most expensive thing in it.
    """

    vector_A: Tensor

    def __init__(self, attention: AdditiveAttention, make: LinearMaker) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query_size = attention.query_size
        self.memory_size = self.output_size = attention.memory_size
        key_projection = attention.key_projection
        self.query_projection = make(2 * attention.query_projection.weight, None)
        self.key_projection = make(2 * key_projection.weight, 2 * key_projection.bias)
        self.vector_A = (2 * attention.score_vector()).detach().float()

    def keys(self, states_BSH: Tensor) -> Tensor:
        keys_BSA: Tensor = self.key_projection(states_BSH)
        return keys_BSA.float()

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        query_BTA = self.query_projection(query_BTH).float()
        hidden_BTSA = torch.add(query_BTA[:, :, None], keys_BSA[:, None]).sigmoid_()
        heads = zip(hidden_BTSA.chunk(self.num_heads, dim=-1), self.vector_A.chunk(self.num_heads), strict=True)
        return attend([hidden @ vector for hidden, vector in heads], memory)


def with_shared_context(decoder: Decoder, fast: Decoder, make: LinearMaker) -> Decoder:
    """SharedContextDecoder where it can stand in for `fast`, a copy of `decoder` made for search; otherwise `fast`.

    It takes LSTM layers under an attention of ours, since one of somebody's own may do more than average the states,
    and of one head, since several look up different parts of a state.
    """
    if not isinstance(fast, GNMTDecoder) or type(decoder) is not GNMTDecoder or len(decoder.upper) == 0:
        return fast
    averages = type(decoder.attention) in (AdditiveAttention, DotAttention, GeneralAttention)
    one_head = getattr(decoder.attention, "num_heads", 1) == 1
    if averages and one_head and all(type(layer) is LSTM for layer in decoder.upper):
        return SharedContextDecoder(decoder, fast, make)
    return fast


class SharedContextDecoder(Decoder):
    """GNMTDecoder (Wu et al. 2016, figure 1), whose upper layers all read the context.

    The context is a mean of the encoder's states, c = sum_s a_s h_s, so W c = sum_s a_s (W h_s). On the right W meets
    the S states of a sentence once; on the left it meets K hypotheses at every step. With 4+4 layers and a beam of 5
    that spares an eighth of all products of a translation. `memory.extras` holds W h_s of all upper layers,
    [B, S, (layers - 1) * 4H].
    """

    def __init__(self, decoder: GNMTDecoder, fast: GNMTDecoder, make: LinearMaker) -> None:
        """From the model's decoder, and a copy whose other modules are made for search already."""
        super().__init__()
        self.input_size, self.memory_size, self.output_size = fast.input_size, fast.memory_size, fast.output_size
        self.by_sentence_sizes = fast.by_sentence_sizes
        width = decoder.bottom.hidden_size
        layers = [cast(LSTM, layer) for layer in decoder.upper]
        self.upper = nn.ModuleList(FedLSTM(layer, width, make) for layer in layers)
        self.from_context = make(torch.cat([FedLSTM.from_fed(layer, width) for layer in layers]), None)
        fast.upper = nn.ModuleList()
        self.fast = fast

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """The attention's projected keys, and what each position's state would add to the upper layers' gates."""
        return {**self.fast.prepare(encoded), "gates": self.from_context(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Search takes steps; teacher forcing is the model's own matter."""
        raise NotImplementedError("the decoder of the engine only steps: call the model it was made from")

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """As that of GNMTDecoder."""
        return pack_states(initial_states(self.layers(), memory, beam, self.fast.bridged), len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """As that of GNMTDecoder."""
        batch, beam = embedded_BKE.shape[:2]
        bottom_state, *upper_states = unpack_states(state, len(self.upper) + 1)
        new_states = [self.fast.bottom.step(embedded_BKE.flatten(0, 1), bottom_state)]
        outputs_NH = new_states[0][0]
        query_NH = outputs_NH if self.fast.query == "current" else bottom_state[0]
        context_BKH, weights_BKS = self.fast.attention(query_NH.view(batch, beam, -1), memory.extras["keys"], memory)
        gates_BSG = memory.extras["gates"]
        from_context_NG = (weights_BKS.to(gates_BSG.dtype) @ gates_BSG).flatten(0, 1).chunk(len(self.upper), dim=1)
        for number, (layer, layer_state) in enumerate(zip(self.upper, upper_states, strict=True), start=2):
            inputs_NH = outputs_NH
            new_states.append(cast(FedLSTM, layer).step_fed(inputs_NH, from_context_NG[number - 2], layer_state))
            outputs_NH = new_states[-1][0]
            if is_residual(number, self.fast.residual_from):
                outputs_NH = outputs_NH + inputs_NH
        hidden_BKH = self.fast.hidden(outputs_NH, context_BKH.flatten(0, 1)).view(batch, beam, -1)
        return hidden_BKH, weights_BKS, pack_states(new_states, batch)

    def layers(self) -> list[RecurrentLayer]:
        """All layers, the bottom one first."""
        return [cast(RecurrentLayer, layer) for layer in (self.fast.bottom, *self.upper)]


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Replacement = Callable[[Any], nn.Module]


@torch.no_grad()
def inference_copy(model: Seq2Seq, precision: Precision) -> Seq2Seq:
    """A copy of the model for search (it is a SearchModel), in evaluation mode, with weights of that precision.

    The model is not touched and may train on; the copy does not follow it. The copy needs no autocast. It encodes,
    starts and steps; `decode` (teacher forcing) is the model's own matter.
    Scores in fp32 are those of the model within 1e-5 of a token's log-probability. In int8, quantized are
    the products of Linear and LSTM modules (the weights by output, the activations by row), not the embeddings: a row
    does not depend on its neighbors, as in the other precisions.
    """
    dtype = _DTYPES.get(precision.name, torch.float32)
    make = linear_maker(precision.name, precision.device, dtype)
    copies: dict[int, Any] = {}  # by identity, as copy.deepcopy looks for what it has copied already
    on_cuda = precision.device.type == "cuda"
    _replace(model.encoder, _replacements(make, SequenceLSTM, keep_lstm=on_cuda), copies)
    _replace(model, _replacements(make, StepLSTM, keep_lstm=False), copies, without=model.encoder)
    fast = copy.deepcopy(model, copies)
    fast.decoder = with_shared_context(model.decoder, fast.decoder, make)
    fast.eval().requires_grad_(False).to(dtype=dtype)
    for module in fast.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return fast


def _replacements(
    make: LinearMaker, lstm: type[SequenceLSTM] | type[StepLSTM], keep_lstm: bool
) -> dict[type[nn.Module], Replacement]:
    """What becomes of a module of each class; keep_lstm: cuDNN runs whole sequences better than any loop."""
    replacements: dict[type[nn.Module], Replacement] = {
        nn.Linear: lambda module: make(module.weight, module.bias),
        NormalizedLinear: lambda module: make(module.weight, module.bias),
        AdditiveAttention: lambda module: FastAdditiveAttention(module, make),
    }
    if not keep_lstm:
        replacements[LSTM] = lambda module: lstm(module, make)
    return replacements


def _replace(
    module: nn.Module,
    replacements: dict[type[nn.Module], Replacement],
    copies: dict[int, Any],
    without: nn.Module | None = None,
) -> None:
    """Notes for each module under this one, of exactly such a class, what stands in for it; nothing under `without`."""
    for child in module.children():
        if id(child) in copies or child is without:
            continue
        if type(child) in replacements:
            copies[id(child)] = replacements[type(child)](child)
        elif not _reads_weights_itself(child):
            _replace(child, replacements, copies)


def _reads_weights_itself(module: nn.Module) -> bool:
    """torch's composite modules, such as nn.TransformerEncoderLayer, use the weights of their parts directly."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, nn.ModuleList | nn.ModuleDict | nn.Sequential
    )
