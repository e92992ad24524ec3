"""Recurrent layers and stacks of them.

A `RecurrentLayer` is one unidirectional layer: `LSTM` and `GRU` run fused kernels over whole sequences, and
`LayerNormLSTM` runs a loop over time, in training that of fast_lstm.py. linear_recurrence.py has layers that are
parallel over time. `Bidirectional` combines two layers, and `ResidualStack` puts layers on top of each other. The
functions at the end make initial states, and convert states to the named tensors of Memory and DecoderState and back.

Sequences are time-major here, [T, B, ...]. N stands for B * K sequences that take one step.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.device import onednn_dtypes
from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.layers import Dropout, product_dtype
from gnmt.model.recurrent.fast_lstm import gathered_lstm, layer_norm_lstm

LayerState = tuple[Tensor, ...]
"""State of a layer between two steps, tensors [N, ...]: (hidden, cell) of an LSTM, (hidden,) of a GRU."""

Bridge = Literal["none", "final"]
"""Initial state of a decoder's layers.

"none": zeros. "final": the final state of the encoder layer with the same number, unchanged. Layers, cells and widths
of both sides must then be equal, and the encoder needs `final_states=True`.
"""

GATHERED_FROM_WIDTH = 1536
"""Smallest sum of input and hidden size with which `gathered_lstm` replaces oneDNN's fused bf16 kernel on a CPU.

The speedup of forward and backward on two Sapphire Rapids cores is 1.4 from 1024 to 512 units and 1.7 from 1024 to
1024, but 0.8 from 512 to 512 and less below (docs/results/training.md).
"""

SATURATED_GATE = 1e4
"""Absolute preactivation at which a gate is exactly 0 or 1 in every precision."""


class RecurrentLayer(nn.Module):
    """Base class of unidirectional recurrent layers, which the decoding engine replaces by faster ones.

    Attributes:
        hidden_size: Width of the outputs.
    """

    hidden_size: int

    @abstractmethod
    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        """Return the outputs [T, B, H] of whole sequences.

        Padding at the end of a row changes only the outputs after that row's end.

        Args:
            inputs_TBI: Inputs, float [T, B, I].
            state: State before the first step, [B, H] each; None for zeros.
        """

    @abstractmethod
    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        """Return the outputs [T, B, H] from a zero state, and each row's state [B, H] after its last real step.

        Args:
            inputs_TBI: Inputs, float [T, B, I].
            lengths_B: Number of real steps in each row, int64, 1 or more.
        """

    @abstractmethod
    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        """Return a zero state for `num_sequences` sequences, with the device and type of `like`.

        A layer may keep its cell in a more precise type.
        """

    @abstractmethod
    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        """Return the state [N, H] after one more step; its first tensor is the output."""

    def bounded(self, sums: Tensor) -> Tensor:
        """Return residual sums, clipped if the layer clips its outputs; here they are returned unchanged."""
        return sums

    def initialize(self) -> None:
        """Draw the weights that should differ from the uniform ones of `Seq2Seq.initialize`; the default draws none."""


class LSTM(nn.LSTM, RecurrentLayer):
    """An LSTM layer, run by the device's fused kernel or by `gathered_lstm`, whichever trains faster.

    Its parameters have the names and layout of a single-layer torch.nn.LSTM. Unlike torch's, its `forward` returns the
    outputs without the state.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
        weight_dropout: Dropout probability of the recurrent weights (DropConnect, Merity et al. 2018, arXiv 1708.02182,
            section 2). In training, one mask is drawn for each sequence call, so all its steps and sentences share it
            and the fused kernels stay in use. `step` drops nothing.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_dropout = Dropout(weight_dropout)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:  # type: ignore[override]
        if state is None and self.gathers_gradients(inputs_TBI):
            return gathered_lstm(inputs_TBI, *self._sequence_weights())[0]
        if state is None:
            zeros_BH = inputs_TBI.new_zeros(inputs_TBI.shape[1], self.hidden_size)
            state = zeros_BH, zeros_BH
        first = state[0][None], state[1][None]
        with _without_weight_warning():
            outputs_TBH, _, _ = torch.lstm(
                inputs_TBI, first, self._sequence_weights(), True, 1, 0.0, self.training, False, False
            )
        return outputs_TBH

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        if self.gathers_gradients(inputs_TBI):
            outputs_TBH, cells_TBH = gathered_lstm(inputs_TBI, *self._sequence_weights())
            return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B))
        # The fused kernel returns only the cell after step T, and packing would copy the lengths to the host, which
        # synchronizes with the GPU. So the inputs get one more column, which is 1 in the padding. Its weights close the
        # input gate and open the forget gate there, so the cell keeps its value from the row's end.
        padding_TB = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None] >= lengths_B
        widened_TBI = torch.cat((inputs_TBI, padding_TB[..., None].to(inputs_TBI.dtype)), dim=2)
        from_inputs_GI, *others = self._sequence_weights()
        padding_weight_4H = from_inputs_GI.detach().new_zeros(4, self.hidden_size)
        padding_weight_4H[0], padding_weight_4H[1] = -SATURATED_GATE, SATURATED_GATE
        weights = [torch.cat((from_inputs_GI, padding_weight_4H.view(-1, 1)), dim=1), *others]
        zeros_1BH = inputs_TBI.new_zeros(1, inputs_TBI.shape[1], self.hidden_size)
        with _without_weight_warning():
            outputs_TBH, _, cell_1BH = torch.lstm(
                widened_TBI, (zeros_1BH, zeros_1BH), weights, True, 1, 0.0, self.training, False, False
            )
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), cell_1BH[0])

    def gathers_gradients(self, inputs_TBI: Tensor) -> bool:
        """Return whether `gathered_lstm` makes this training step faster than the fused kernel."""
        if inputs_TBI.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        dtype = product_dtype(inputs_TBI)
        return (
            dtype == torch.bfloat16
            and dtype in onednn_dtypes()
            and self.input_size + self.hidden_size >= GATHERED_FROM_WIDTH
        )

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        zeros_NH = like.new_zeros(num_sequences, self.hidden_size)
        return zeros_NH, zeros_NH

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        # nn.LSTM with T = 1 would reorder the weights for its kernel at every call; the cell function does not.
        hidden_NH, cell_NH = torch.lstm_cell(inputs_NI, state, *_weights(self))
        return hidden_NH, cell_NH

    def _sequence_weights(self) -> list[Tensor]:
        return _weights(self, self.weight_dropout)


def _weights(layer: nn.RNNBase, weight_dropout: Dropout | None = None) -> list[Tensor]:
    """Return a layer's weights and biases in torch's order, with dropout of the recurrent weight if given."""
    recurrent: Tensor = cast(Tensor, layer.weight_hh_l0)
    recurrent = recurrent if weight_dropout is None else weight_dropout(recurrent)
    return cast(list[Tensor], [layer.weight_ih_l0, recurrent, layer.bias_ih_l0, layer.bias_hh_l0])


@contextmanager
def _without_weight_warning() -> Iterator[None]:
    """Suppress cuDNN's warning that the weights are not one chunk of memory and are copied at each call.

    It is raised for weights in bf16 and for weights that are computed at each call. The time of the copy is negligible.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single contiguous chunk")
        yield


class GRU(nn.GRU, RecurrentLayer):
    """A layer of gated recurrent units (Cho et al. 2014), run by torch's kernel over whole sequences.

    As in torch and cuDNN, the reset gate multiplies U h + b and not h itself. The arguments are those of `LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_dropout = Dropout(weight_dropout)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:  # type: ignore[override]
        first_BH = inputs_TBI.new_zeros(inputs_TBI.shape[1], self.hidden_size) if state is None else state[0]
        weights = _weights(self, self.weight_dropout)
        with _without_weight_warning():
            outputs_TBH, _ = torch.gru(inputs_TBI, first_BH[None], weights, True, 1, 0.0, self.training, False, False)
        return outputs_TBH

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        outputs_TBH = self(inputs_TBI)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B),)

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        return (like.new_zeros(num_sequences, self.hidden_size),)

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        return (torch.gru_cell(inputs_NI, state[0], *_weights(self)),)


class StepwiseLayer(RecurrentLayer):
    """Base class of layers that no fused kernel computes: one product for the inputs of all steps, then a loop.

    A subclass implements `project`, `next_state` and `start`.
    """

    @abstractmethod
    def project(self, inputs: Tensor) -> Tensor:
        """Return what can be computed from the inputs of all steps at once, [..., P] from [..., I]."""

    @abstractmethod
    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        """Return the state after one more step, from that step's result of `project`."""

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        return torch.stack([after[0] for after in self._states(inputs_TBI, state)])

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        stacked = [torch.stack(tensors) for tensors in zip(*self._states(inputs_TBI, None), strict=True)]
        return stacked[0], tuple(at_last_tokens(tensor_TBH, lengths_B) for tensor_TBH in stacked)

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        return self.next_state(self.project(inputs_NI), state)

    def _states(self, inputs_TBI: Tensor, state: LayerState | None) -> list[LayerState]:
        """Return the state after each step."""
        states = []
        state = self.start(inputs_TBI.shape[1], inputs_TBI) if state is None else state
        for projected_BP in self.project(inputs_TBI).unbind(0):
            state = self.next_state(projected_BP, state)
            states.append(state)
        return states


class HandDerivedLSTM(StepwiseLayer):
    """Base class of LSTM layers without biases in the products, that train by an autograd function over all steps.

    A subclass implements `train_steps`, which training runs, and `next_state`. Inference runs the loop of
    StepwiseLayer, because an inference copy replaces the Linear modules. The cell is fp32 or fp64.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
        weight_dropout: Dropout probability of U; see LSTM.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_dropout = Dropout(weight_dropout)
        self.from_inputs = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(inputs_TBI, state)
        return self._train(inputs_TBI, state)[0]

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        if not torch.is_grad_enabled():
            return super().forward_with_final_state(inputs_TBI, lengths_B)
        outputs_TBH, cells_TBH = self._train(inputs_TBI, None)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B))

    def _train(self, inputs_TBI: Tensor, state: LayerState | None) -> tuple[Tensor, Tensor]:
        weights = self.from_inputs.weight, self.weight_dropout(self.from_hidden.weight)
        return self.train_steps(inputs_TBI, *weights, cast(tuple[Tensor, Tensor] | None, state))

    @abstractmethod
    def train_steps(
        self, inputs_TBI: Tensor, weight_ih_GI: Tensor, weight_hh_GH: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and cells of all steps, [T, B, H] each, with gradients.

        Args:
            inputs_TBI: Inputs of all steps.
            weight_ih_GI: Weight of the inputs.
            weight_hh_GH: Weight of the hidden state, after dropout.
            state: Hidden state and cell before the first step; None for zeros.
        """

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, hidden_NH.to(torch.promote_types(like.dtype, torch.float32))


class LayerNormLSTM(HandDerivedLSTM):
    """An LSTM layer with layer normalization of each gate before its nonlinearity (Ba et al. 2016).

    As in Chen et al. 2018, section 4.1, each of the four gates has its own mean, variance, gain and bias, and the cell
    is not normalized: gate = gain * norm(W x + U h) + bias. W and U have no biases of their own.

    The normalization needs the previous hidden state, so no fused kernel computes the layer. Training runs
    `layer_norm_lstm`, which takes 1.1 to 1.5 times as long as `LSTM` from 256 units up and 2 to 4 times in smaller
    layers (docs/results/training.md). Inference runs the loop of StepwiseLayer, because an inference copy replaces the
    Linear modules.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
        weight_dropout: Dropout probability of U; see LSTM.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size, weight_dropout)
        self.gain = nn.Parameter(torch.ones(4, hidden_size))
        self.bias = nn.Parameter(torch.zeros(4, hidden_size))

    def train_steps(
        self, inputs_TBI: Tensor, weight_ih_GI: Tensor, weight_hh_GH: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        return layer_norm_lstm(inputs_TBI, weight_ih_GI, weight_hh_GH, self.gain, self.bias, state)

    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        """Return the next state: the hidden state in its own type, the cell in fp32 or fp64, like the gates."""
        hidden_NH, cell_NH = state
        summed_N4H = (projected_NP + self.from_hidden(hidden_NH)).unflatten(1, (4, self.hidden_size))
        normalized_N4H = F.layer_norm(summed_N4H.to(cell_NH.dtype), (self.hidden_size,))
        input_NH, forget_NH, candidate_NH, output_NH = (normalized_N4H * self.gain + self.bias).unbind(1)
        cell_NH = forget_NH.sigmoid() * cell_NH + input_NH.sigmoid() * candidate_NH.tanh()
        return (output_NH.sigmoid() * cell_NH.tanh()).to(hidden_NH.dtype), cell_NH


LayerMaker = Callable[[int, int], RecurrentLayer]
"""A function or class that makes a layer from its input and hidden size."""


class Bidirectional(nn.Module):
    """Two layers, one for each direction, whose outputs are concatenated to width 2H (Wu et al. 2016, section 3.2).

    The backward layer reads each sentence reversed within its own length. Unlike packing, this keeps the fused kernels,
    and the backward layer starts at the last real token and not in the padding.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width H of each direction's outputs.
        make_layer: Class of the two layers.
    """

    def __init__(self, input_size: int, hidden_size: int, make_layer: LayerMaker = LSTM) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.ahead = make_layer(input_size, hidden_size)
        self.back = make_layer(input_size, hidden_size)

    def forward(self, inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the outputs [T, B, 2H] of sequences with `lengths_B` real steps."""
        ahead_TBH = self.ahead(inputs_TBI)
        back_TBH = self.back(reverse_by_length(inputs_TBI, lengths_B))
        return torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        """Return the outputs [T, B, 2H] and both layers' last states, concatenated to [B, 2H].

        The last state of the forward layer is at a sentence's last token, that of the backward layer at its first.
        """
        ahead_TBH, ahead_state = self.ahead.forward_with_final_state(inputs_TBI, lengths_B)
        back_TBH, back_state = self.back.forward_with_final_state(reverse_by_length(inputs_TBI, lengths_B), lengths_B)
        outputs_TBH = torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)
        return outputs_TBH, _concatenated(ahead_state, back_state)

    def bounded(self, sums: Tensor) -> Tensor:
        """Return residual sums; see RecurrentLayer."""
        bounded: Tensor = self.ahead.bounded(sums)
        return bounded

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        """Return a zero state with the shapes of the final state; see RecurrentLayer."""
        return _concatenated(self.ahead.start(num_sequences, like), self.back.start(num_sequences, like))


def _concatenated(ahead_state: LayerState, back_state: LayerState) -> LayerState:
    """Return the states of both directions as one."""
    return tuple(torch.cat(both, dim=-1) for both in zip(ahead_state, back_state, strict=True))


def reverse_by_length(inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
    """Reverse each sequence within its own length; padding stays in place. The function is its own inverse."""
    positions_T1 = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None]
    mirrored_TB = lengths_B - 1 - positions_T1
    order_TB = torch.where(mirrored_TB >= 0, mirrored_TB, positions_T1)
    reversed_TBI: Tensor = _Reverse.apply(inputs_TBI, order_TB)  # type: ignore[no-untyped-call]
    return reversed_TBI


class _Reverse(torch.autograd.Function):
    """Index by an order that is its own inverse, and therefore its own gradient.

    The gradient of plain indexing allows for repeated indices and adds element by element on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, inputs_TBI: Tensor, order_TB: Tensor) -> Tensor:
        ctx.save_for_backward(order_TB)
        columns_B = torch.arange(inputs_TBI.shape[1], device=inputs_TBI.device)
        return inputs_TBI[order_TB, columns_B]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Reverse.apply(grads[0], *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


def at_last_tokens(states_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Return each row's entry at its last real step, [B, H]."""
    return states_TBH[lengths_B - 1, torch.arange(len(lengths_B), device=lengths_B.device)]


class ResidualStack(nn.Module):
    """Unidirectional layers with dropout on each layer's input and residual connections.

    Args:
        input_size: Width of the bottom layer's input.
        hidden_size: Width of all outputs.
        num_layers: Number of layers.
        make_layer: Class of the layers.
        residual_from: First layer, counted from 1, whose input is added to its output; None for no residual
            connections.
        dropout: Dropout of the layers' inputs.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        make_layer: LayerMaker,
        residual_from: int | None,
        dropout: Dropout,
    ) -> None:
        super().__init__()
        self.residual_from = residual_from
        self.dropout = dropout
        self.widths = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(make_layer(width, hidden_size) for width in self.widths)

    def forward(self, inputs_TBI: Tensor, states: Sequence[LayerState | None]) -> Tensor:
        """Return the outputs [T, B, H]; see `forward_layers`."""
        return forward_layers(self.recurrent_layers(), inputs_TBI, states, self.dropout, self.residual_from)

    def step(
        self, inputs_NI: Tensor, states: Sequence[LayerState], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """Return the outputs [N, H] of one more step and the new states; see `step_layers`."""
        return step_layers(self.recurrent_layers(), inputs_NI, states, self.residual_from, masks=masks)

    def dropout_masks(self, num_steps: int, like_BI: Tensor) -> Iterator[list[Tensor] | None]:
        """Return an iterator over the dropout masks of all steps, for training with a loop over `step`.

        Each item is a list with one mask [B, I] for each layer, drawn as in `forward`, or None without dropout.

        Args:
            num_steps: Number of steps T.
            like_BI: Tensor with the batch size, device and type of the inputs.
        """
        if not self.dropout.training or self.dropout.p == 0:
            return iter([None] * num_steps)
        drawn = [self.dropout(like_BI.new_ones(num_steps, len(like_BI), width)).unbind(0) for width in self.widths]
        return (list(masks) for masks in zip(*drawn, strict=True))

    def recurrent_layers(self) -> list[RecurrentLayer]:
        """Return the layers from the bottom up."""
        return [cast(RecurrentLayer, layer) for layer in self.layers]


def forward_layers(
    layers: Sequence[RecurrentLayer],
    inputs_TBI: Tensor,
    states: Sequence[LayerState | None],
    dropout: Dropout,
    residual_from: int | None,
    context_TBC: Tensor | None = None,
    first_number: int = 1,
) -> Tensor:
    """Run layers on top of each other over whole sequences and return the top layer's outputs [T, B, H].

    Args:
        layers: Layers from the bottom up.
        inputs_TBI: Input of the first of them.
        states: State [B, H] of each layer before the first step; None for zeros.
        dropout: Dropout of each layer's input, context included.
        residual_from: First layer, counted from 1, whose input (without the context) is added to its output.
        context_TBC: Further input of every layer, concatenated to its own.
        first_number: Number of the first of these layers in the decoder.
    """
    outputs = inputs_TBI
    for number, (layer, state) in enumerate(zip(layers, states, strict=True), start=first_number):
        inputs = outputs
        outputs = layer(dropout(_with_context(inputs, context_TBC)), state)
        if is_residual(number, residual_from):
            outputs = layer.bounded(outputs + inputs)
    return outputs


def step_layers(
    layers: Sequence[RecurrentLayer],
    inputs_NI: Tensor,
    states: Sequence[LayerState],
    residual_from: int | None,
    context_NC: Tensor | None = None,
    first_number: int = 1,
    masks: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[LayerState]]:
    """Run one step of N sequences and return the top layer's outputs [N, H] and the layers' new states.

    Args:
        layers: Layers from the bottom up.
        inputs_NI: Input of the first of them.
        states: State [N, H] of each layer before this step.
        residual_from: See `forward_layers`.
        context_NC: Further input of every layer, concatenated to its own.
        first_number: See `forward_layers`.
        masks: Dropout mask of each layer's input, context included; None for no dropout.
    """
    outputs, new_states = inputs_NI, []
    for index, (layer, state) in enumerate(zip(layers, states, strict=True)):
        inputs = outputs
        with_context = _with_context(inputs, context_NC)
        new_states.append(layer.step(with_context if masks is None else with_context * masks[index], state))
        outputs = new_states[-1][0]
        if is_residual(first_number + index, residual_from):
            outputs = layer.bounded(outputs + inputs)
    return outputs, new_states


def _with_context(inputs: Tensor, context: Tensor | None) -> Tensor:
    return inputs if context is None else torch.cat((inputs, context), dim=-1)


def is_residual(number: int, residual_from: int | None) -> bool:
    """Return whether the layer `number`, counted from 1, has a residual connection (Wu et al. 2016, eq. 6)."""
    return residual_from is not None and number >= residual_from


_STATE_NAMES = ("hidden", "cell", "window")
"""Names of the tensors of a LayerState, in order; a GRU has only the first, an LSTM the first two."""


def initial_states(layers: Sequence[RecurrentLayer], memory: Memory, beam: int, bridged: bool) -> list[LayerState]:
    """Return the layers' states before the first token, [B * beam, H] each.

    Args:
        layers: Layers of the decoder from the bottom up.
        memory: Memory of the B source sentences.
        beam: Number of hypotheses for each sentence.
        bridged: Whether the states are the encoder's final states; otherwise they are zeros.
    """
    batch = len(memory.mask_BS)
    zeros = [layer.start(batch * beam, memory.states_BSH) for layer in layers]
    if not bridged:
        return zeros
    finals = states_from_dict(memory.by_sentence, "final_", len(layers))
    return [
        tuple(end.to(zero.dtype).repeat_interleave(beam, 0) for end, zero in zip(final, zero_state, strict=True))
        for final, zero_state in zip(finals, zeros, strict=True)
    ]


def initial_states_or_none(
    layers: Sequence[RecurrentLayer], memory: Memory, bridged: bool
) -> Sequence[LayerState | None]:
    """Return `initial_states` for one hypothesis, with None for zeros, for which `forward` has faster kernels."""
    return initial_states(layers, memory, 1, bridged) if bridged else [None] * len(layers)


def state_sizes(layers: Sequence[RecurrentLayer | Bidirectional], prefix: str) -> dict[str, int]:
    """Return the widths of the layers' states, under the names of `states_to_dict`."""
    zeros = [layer.start(1, torch.zeros(0)) for layer in layers]
    return {name: tensor.shape[1] for name, tensor in states_to_dict(zeros, prefix).items()}


def states_to_dict(states: Sequence[LayerState], prefix: str = "") -> dict[str, Tensor]:
    """Return layers' states under the names <prefix>hidden_1, <prefix>cell_1 and so on, from the bottom layer up."""
    return {
        f"{prefix}{name}_{number}": tensor
        for number, state in enumerate(states, start=1)
        for name, tensor in zip(_STATE_NAMES, state, strict=False)
    }


def states_from_dict(tensors: Mapping[str, Tensor], prefix: str, num_layers: int) -> list[LayerState]:
    """Return layers' states from tensors with the names of `states_to_dict`."""
    return [
        tuple(tensors[f"{prefix}{name}_{number}"] for name in _STATE_NAMES if f"{prefix}{name}_{number}" in tensors)
        for number in range(1, num_layers + 1)
    ]


def pack_states(states: Sequence[LayerState], batch: int) -> DecoderState:
    """Return layers' states [B * K, H] as a DecoderState with tensors [B, K, H]."""
    return DecoderState(
        {name: tensor.reshape(batch, -1, tensor.shape[1]) for name, tensor in states_to_dict(states).items()}
    )


def unpack_states(state: DecoderState, num_layers: int) -> list[LayerState]:
    """Return layers' states [B * K, H] from a DecoderState."""
    return states_from_dict({name: tensor.flatten(0, 1) for name, tensor in state.tensors.items()}, "", num_layers)


def shift_one_step(outputs_TBH: Tensor, first_BH: Tensor | None = None) -> Tensor:
    """Move every output to the next step and drop the last; the first step gets `first_BH`, or zeros."""
    first_BH = torch.zeros_like(outputs_TBH[0]) if first_BH is None else first_BH.to(outputs_TBH.dtype)
    return torch.cat((first_BH[None], outputs_TBH[:-1]))
