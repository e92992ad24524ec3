"""Copies of models for search, with faster modules.

Search multiplies few rows by large matrices, thousands of times, and never trains. `inference_copy` returns a copy of a
model in which

- every Linear has its weights in the memory layout and data type that make its product fast (engine/linear.py), and
  weight normalization is applied once;
- a decoder's LSTM layer multiplies input and hidden state by one merged matrix (StepLSTM), and an encoder's layer
  multiplies the inputs of all time steps at once (SequenceLSTM);
- additive attention uses a sigmoid in place of the tanh (InferenceAttention);
- the product of the attention context with the weights of GNMT's upper layers is computed once for each source
  position (SharedContextDecoder);
- in int8, quantizable LSTM layers and the output layer after them have one scale for their inputs, whose range is known
  from training (FixedRangeInt8Linear).

Only modules are replaced: architecture, results and the methods encode, start and step are those of the model. Every
model built of Linear and LSTM modules becomes faster, and modules of other classes are copied unchanged.
Tensors between modules have the data type of the precision; with int8 they are fp32 and quantized inside the products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from gnmt.decoding.beam import search_kernels_run
from gnmt.decoding.engine.linear import FixedRangeInt8Linear, LinearMaker, linear_maker
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
from gnmt.model.recurrent.quantizable_lstm import QuantizableLSTM
from gnmt.model.seq2seq import Seq2Seq

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Replacement = Callable[[Any], nn.Module]
"""A function that makes the module to use in place of a given one."""


@torch.no_grad()
def inference_copy(model: Seq2Seq, precision: Precision, fixed_ranges: bool = True) -> Seq2Seq:
    """Return a copy of the model for search, in evaluation mode, which needs no autocast.

    The copy implements SearchModel (encode, start, step) but not teacher forcing (decode). The model itself is not
    changed and may be trained further without effect on the copy.

    In fp32, log-probabilities of tokens are within 1e-5 of the model's. In int8, the products of Linear and LSTM
    modules are quantized, weights by output and activations by row; embeddings are not. In no precision does the result
    of a row depend on the values of other rows.

    Args:
        model: The model, on the device of `precision`.
        precision: Data type of weights and products.
        fixed_ranges: Whether int8 products of clipped activations use their known range. False is for comparison: each
            row is then scaled by its largest value, as in models without clipping.
    """
    dtype = _DTYPES.get(precision.name, torch.float32)
    make = linear_maker(precision.name, precision.device, dtype)
    copies: dict[int, Any] = {}  # by id, the memo in which copy.deepcopy looks up objects that are copied already
    if precision.name == "int8" and fixed_ranges and model.clip is not None:
        _add_fixed_ranges(model, float(model.clip.delta), copies)
    on_cuda = precision.device.type == "cuda"
    _add_replacements(model.encoder, _replacements(make, SequenceLSTM, keep_lstm=on_cuda), copies)
    _add_replacements(model, _replacements(make, StepLSTM, keep_lstm=False), copies, without=model.encoder)
    copied = copy.deepcopy(model, copies)
    copied.decoder = with_shared_context(model.decoder, copied.decoder, make)
    copied.eval().requires_grad_(False).to(dtype=dtype)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return copied


def _replacements(
    make: LinearMaker, lstm: type[SequenceLSTM] | type[StepLSTM], keep_lstm: bool
) -> dict[type[nn.Module], Replacement]:
    """Return the replacement of each module class.

    Args:
        make: Makes linear layers; see linear_maker.
        lstm: Replaces LSTM.
        keep_lstm: Copy LSTM layers unchanged; on CUDA, cuDNN runs whole sequences faster than a loop over steps.
    """
    replacements: dict[type[nn.Module], Replacement] = {
        nn.Linear: lambda module: make(module.weight, module.bias),
        NormalizedLinear: lambda module: make(module.weight, module.bias),
        AdditiveAttention: lambda module: InferenceAttention(module, make),
    }
    if not keep_lstm:
        replacements[LSTM] = lambda module: lstm(module, make)
    return replacements


def _add_replacements(
    module: nn.Module,
    replacements: dict[type[nn.Module], Replacement],
    copies: dict[int, Any],
    without: nn.Module | None = None,
) -> None:
    """Add the replacements of all submodules to `copies`, except those of `without`. Subclasses are not replaced."""
    for child in module.children():
        if id(child) in copies or child is without:
            continue
        if type(child) in replacements:
            copies[id(child)] = replacements[type(child)](child)
        elif not _reads_weights_of_submodules(child):
            _add_replacements(child, replacements, copies)


def _add_fixed_ranges(model: Seq2Seq, bound: float, copies: dict[int, Any]) -> None:
    """Add int8 layers for inputs in [-bound, bound] to `copies`: those of quantizable LSTM layers and the output layer.

    The layers' inputs are embeddings, outputs and residual sums of layers, and means of encoder states, all of which
    the model clips. Attention is quantized as in other models; Wu et al. 2016 leave it in floating point.
    """
    layers = [model.output_layer]
    for module in model.modules():
        if isinstance(module, QuantizableLSTM):
            layers += [module.from_inputs, module.from_hidden]
    copies.update({id(layer): FixedRangeInt8Linear(layer.weight, layer.bias, bound) for layer in layers})


def _reads_weights_of_submodules(module: nn.Module) -> bool:
    """Return True for composite modules of torch, such as nn.TransformerEncoderLayer, which read weights directly."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, nn.ModuleList | nn.ModuleDict | nn.Sequential
    )


class InferenceLSTM(StepwiseLayer):
    """Base class of LSTM layers for search, with an fp32 cell in every precision.

    The rows of the cell gate are doubled in the weights, so that tanh(g) = 2 sigmoid(2 g) - 1 and one sigmoid serves
    all four gates. A subclass implements `project` (the inputs' part of the gates) and `gates`.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        """Return input, forget, doubled cell and output gate before the sigmoid, [N, 4H], in new memory."""
        raise NotImplementedError

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, torch.zeros_like(hidden_NH, dtype=torch.float32)

    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        return self.apply_gates(self.gates(projected_NP, state[0]), state)

    def apply_gates(self, gates_NG: Tensor, state: LayerState, added_NG: Tensor | None = None) -> LayerState:
        """Return c' = f c + i tanh(g) and h' = o tanh(c'), each tanh as a sigmoid. Overwrites the gates.

        Args:
            gates_NG: The gates before the sigmoid; see `gates`.
            state: h and c.
            added_NG: A second summand of the gates.
        """
        hidden_NH, cell_NH = state
        if search_kernels_run(gates_NG.device):
            from gnmt.decoding.engine.kernels import lstm_cell

            return lstm_cell(gates_NG, added_NG, cell_NH, hidden_NH.dtype)
        if added_NG is not None:
            gates_NG = gates_NG.add_(added_NG)
        gates_NG = gates_NG.float().sigmoid_()
        input_NH, forget_NH, doubled_NH, output_NH = gates_NG.chunk(4, dim=1)
        cell_NH = (forget_NH * cell_NH).add_(input_NH * doubled_NH, alpha=2).sub_(input_NH)
        squashed_NH = (2 * cell_NH).sigmoid_()
        new_hidden_NH = squashed_NH.mul_(output_NH).mul_(2).sub_(output_NH)
        return new_hidden_NH.to(hidden_NH.dtype), cell_NH


class SequenceLSTM(InferenceLSTM):
    """An encoder's layer: one product for the inputs of all time steps, and one for each step's hidden state."""

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


class StepLSTM(InferenceLSTM):
    """A decoder's layer: one product of [inputs, hidden state] with a merged matrix in each step.

    Args:
        lstm: The layer to replace.
        make: Makes linear layers; see linear_maker.
        num_inputs: Number of inputs whose weights are kept, from the first; None for all.
    """

    def __init__(self, lstm: LSTM, make: LinearMaker, num_inputs: int | None = None) -> None:
        super().__init__(lstm.hidden_size)
        from_inputs_GI, from_hidden_GH, bias_G = _with_doubled_cell_gate(lstm)
        self.merged = make(torch.cat((from_inputs_GI[:, :num_inputs], from_hidden_GH), dim=1), bias_G)

    def project(self, inputs: Tensor) -> Tensor:
        return inputs

    def gates(self, projected_NP: Tensor, hidden_NH: Tensor) -> Tensor:
        gates_NG: Tensor = self.merged(torch.cat((projected_NP, hidden_NH), dim=1))
        return gates_NG


class ContextLSTM(StepLSTM):
    """A StepLSTM for a layer with the inputs [own inputs, attention context], without the weights of the context.

    The product of context and weights is computed by SharedContextDecoder and added in each step.
    """

    @staticmethod
    def context_weights(lstm: LSTM, num_inputs: int) -> Tensor:
        """Return the weights of the context, which follows `num_inputs` own inputs, [4H, context size]."""
        return _with_doubled_cell_gate(lstm)[0][:, num_inputs:]

    def step_with_context(self, inputs_NI: Tensor, from_context_NG: Tensor, state: LayerState) -> LayerState:
        """Run one step. from_context_NG: the context times `context_weights`, [N, 4H]."""
        return self.apply_gates(self.gates(inputs_NI, state[0]), state, from_context_NG)


def _with_doubled_cell_gate(lstm: LSTM) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights [4H, I] and [4H, H] and the sum of the biases [4H], with the rows of the cell gate doubled."""
    named = {name: parameter.detach() for name, parameter in lstm.named_parameters()}
    factor_G = torch.ones_like(named["bias_ih_l0"])
    factor_G[2 * lstm.hidden_size : 3 * lstm.hidden_size] = 2
    bias_G = (named["bias_ih_l0"] + named["bias_hh_l0"]) * factor_G
    return named["weight_ih_l0"] * factor_G[:, None], named["weight_hh_l0"] * factor_G[:, None], bias_G


class InferenceAttention(Attention):
    """AdditiveAttention with a sigmoid in place of the tanh, in fp32.

    v . tanh(z) = 2v . sigmoid(2z) - sum(v). The sum is equal for all source positions, so softmax cancels it. The
    factor of 2z is part of both projections. On a CPU the tanh of [B, K, S, A] would take longer than anything else.
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
        return keys_BSA if search_kernels_run(keys_BSA.device) else keys_BSA.float()

    def forward(self, query_BTH: Tensor, keys_BSA: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        if self.num_heads == 1 and search_kernels_run(query_BTH.device):
            from gnmt.decoding.engine.kernels import LARGEST_SOURCE, attend_additively

            if keys_BSA.shape[1] <= LARGEST_SOURCE:
                query_BTA = self.query_projection(query_BTH)
                return attend_additively(query_BTA, keys_BSA, self.vector_A, memory.states_BSH, memory.mask_BS)
        query_BTA = self.query_projection(query_BTH).float()
        hidden_BTSA = torch.add(query_BTA[:, :, None], keys_BSA[:, None]).sigmoid_()
        heads = zip(hidden_BTSA.chunk(self.num_heads, dim=-1), self.vector_A.chunk(self.num_heads), strict=True)
        return attend([hidden @ vector for hidden, vector in heads], memory)


def with_shared_context(decoder: Decoder, copied: Decoder, make: LinearMaker) -> Decoder:
    """Return a SharedContextDecoder if it computes the same as the decoder, otherwise `copied`.

    This is so for a GNMTDecoder with LSTM layers and one of gnmt's own attentions with a single head. Other attentions
    may compute more than a mean of the encoder's states, and several heads attend to different parts of a state.

    Args:
        decoder: The model's decoder.
        copied: Its copy, in which other modules have been replaced.
        make: Makes linear layers; see linear_maker.
    """
    if type(decoder) is not GNMTDecoder or len(decoder.upper) == 0:
        return copied
    averages = type(decoder.attention) in (AdditiveAttention, DotAttention, GeneralAttention)
    one_head = getattr(decoder.attention, "num_heads", 1) == 1
    if averages and one_head and all(type(layer) is LSTM for layer in decoder.upper):
        return SharedContextDecoder(decoder, cast(GNMTDecoder, copied), make)
    return copied


class SharedContextDecoder(Decoder):
    """GNMTDecoder (Wu et al. 2016, figure 1) whose upper layers share the products with encoder states.

    The context is a weighted mean of encoder states, c = sum_s a_s h_s, so W c = sum_s a_s (W h_s). The right side
    multiplies W by the S states of a sentence once; the left side multiplies W by K contexts in every step. With 4+4
    layers and a beam of 5 this saves an eighth of all products of a translation. `memory.extras["gates"]` holds W h_s
    of all upper layers, [B, S, (layers - 1) * 4H].

    Args:
        decoder: The model's decoder.
        copied: Its copy, in which other modules have been replaced. Its upper layers are removed.
        make: Makes linear layers; see linear_maker.
    """

    def __init__(self, decoder: GNMTDecoder, copied: GNMTDecoder, make: LinearMaker) -> None:
        super().__init__()
        self.input_size, self.memory_size, self.output_size = copied.input_size, copied.memory_size, copied.output_size
        self.by_sentence_sizes = dict(copied.by_sentence_sizes)
        width = decoder.bottom.hidden_size
        layers = [cast(LSTM, layer) for layer in decoder.upper]
        self.upper = nn.ModuleList(ContextLSTM(layer, make, width) for layer in layers)
        self.from_context = make(torch.cat([ContextLSTM.context_weights(layer, width) for layer in layers]), None)
        copied.upper = nn.ModuleList()
        self.copied = copied

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return the attention's projected keys and each source position's part of the upper layers' gates."""
        return {**self.copied.prepare(encoded), "gates": self.from_context(encoded.states_BSH)}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Raise NotImplementedError: an inference copy has no teacher forcing."""
        raise NotImplementedError(
            "an inference copy has no teacher forcing: call decode of the model that it was copied from"
        )

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the state before the first token; see GNMTDecoder."""
        return pack_states(initial_states(self.layers(), memory, beam, self.copied.bridged), len(memory.mask_BS))

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """Run one step; see GNMTDecoder."""
        batch, beam = embedded_BKE.shape[:2]
        bottom_state, *upper_states = unpack_states(state, len(self.upper) + 1)
        new_states = [self.copied.bottom.step(embedded_BKE.flatten(0, 1), bottom_state)]
        outputs_NH = new_states[0][0]
        query_NH = outputs_NH if self.copied.query == "current" else bottom_state[0]
        context_BKH, weights_BKS = self.copied.attention(query_NH.view(batch, beam, -1), memory.extras["keys"], memory)
        gates_BSG = memory.extras["gates"]
        from_contexts = (weights_BKS.to(gates_BSG.dtype) @ gates_BSG).flatten(0, 1).chunk(len(self.upper), dim=1)
        upper_layers = zip(self.upper, from_contexts, upper_states, strict=True)
        for number, (layer, from_context_NG, layer_state) in enumerate(upper_layers, start=2):
            inputs_NH = outputs_NH
            new_states.append(cast(ContextLSTM, layer).step_with_context(inputs_NH, from_context_NG, layer_state))
            outputs_NH = new_states[-1][0]
            if is_residual(number, self.copied.residual_from):
                outputs_NH = outputs_NH + inputs_NH
        hidden_NH = self.copied.hidden(outputs_NH, context_BKH.flatten(0, 1), embedded_BKE.flatten(0, 1))
        hidden_BKH = hidden_NH.view(batch, beam, -1)
        return hidden_BKH, weights_BKS, pack_states(new_states, batch)

    def layers(self) -> list[RecurrentLayer]:
        """Return all layers, the bottom one first."""
        return [cast(RecurrentLayer, layer) for layer in (self.copied.bottom, *self.upper)]
