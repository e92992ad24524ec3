"""Recurrent layers: LSTM, GRU, layer-normalized LSTM, bidirectional layers, and the residual stack."""

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
from gnmt.errors import InputError
from gnmt.model.interfaces import DecoderState, Memory
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.fast_lstm import gathered_lstm

LayerState = tuple[Tensor, ...]
"""What a layer carries from step to step, each [N, H]: (hidden, cell) of an LSTM, (hidden,) of a GRU."""

HOLD = 1e4
"""A gate's input that opens or shuts it fully in every precision."""


class RecurrentLayer(nn.Module):
    """One unidirectional layer, of which encoders and decoders are built; the decoding engine puts its own in place."""

    hidden_size: int

    @abstractmethod
    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        """Outputs [T, B, H] from that state or zeros. Padding behind a row's end changes only what lies behind it."""

    @abstractmethod
    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        """Outputs [T, B, H] from zeros, and the state at each row's true end, [B, H]; lengths_B: 1 or more."""

    @abstractmethod
    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        """The zero state of so many sequences, on the device and in the type of `like`."""

    @abstractmethod
    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        """One step of N sequences: the new state, [N, H] each. The first of it is the output."""


class StepwiseLayer(RecurrentLayer):
    """A layer without a kernel for whole sequences: one product for the inputs of all steps, then a loop over time.

    A subclass has `project`, `next_state` and `start`.
    """

    @abstractmethod
    def project(self, inputs: Tensor) -> Tensor:
        """What can be done for the inputs of all steps at once, [..., I] to [..., P]."""

    @abstractmethod
    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        """The state one step later."""

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:
        return torch.stack([after[0] for after in self._states(inputs_TBI, state)])

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        stacked = [torch.stack(tensors) for tensors in zip(*self._states(inputs_TBI, None), strict=True)]
        return stacked[0], tuple(at_last_tokens(tensor_TBH, lengths_B) for tensor_TBH in stacked)

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        return self.next_state(self.project(inputs_NI), state)

    def _states(self, inputs_TBI: Tensor, state: LayerState | None) -> list[LayerState]:
        """The state after each step."""
        states = []
        state = self.start(inputs_TBI.shape[1], inputs_TBI) if state is None else state
        for projected_BP in self.project(inputs_TBI).unbind(0):
            state = self.next_state(projected_BP, state)
            states.append(state)
        return states


GATHERED_FROM_WIDTH = 1536
"""Input and hidden size together from which `gathered_lstm` trains faster than oneDNN's fused bf16 kernel on a CPU.

Forward and backward on two Sapphire Rapids cores: 1.4 times as fast from 1024 to 512 and 1.7 times from 1024 to 1024,
but 0.8 times from 512 to 512 and less below (docs/results/training.md).
"""


class LSTM(nn.LSTM, RecurrentLayer):
    """One unidirectional layer over whole sequences, run by the fused kernel of the device or by `gathered_lstm`."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:  # type: ignore[override]
        if state is None and self.gathering_pays(inputs_TBI):
            return gathered_lstm(inputs_TBI, *self._weights())[0]
        first = None if state is None else (state[0][None], state[1][None])
        with weights_apart():
            outputs_TBH: Tensor = super().forward(inputs_TBI, first)[0]
        return outputs_TBH

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        if self.gathering_pays(inputs_TBI):
            outputs_TBH, cells_TBH = gathered_lstm(inputs_TBI, *self._weights())
            return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), at_last_tokens(cells_TBH, lengths_B))
        # The fused kernel gives the cell of the last step alone, and packing would wait for the lengths to come from
        # the device. So one more input, which is 1 in the padding, shuts the input gate and opens the forget gate:
        # behind a row's end its cell stays what it was.
        padding_TB = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None] >= lengths_B
        widened_TBI = torch.cat((inputs_TBI, padding_TB[..., None].to(inputs_TBI.dtype)), dim=2)
        from_inputs_GI, *others = self._weights()
        hold_4H = from_inputs_GI.detach().new_zeros(4, self.hidden_size)
        hold_4H[0], hold_4H[1] = -HOLD, HOLD
        weights = [torch.cat((from_inputs_GI, hold_4H.view(-1, 1)), dim=1), *others]
        zeros_1BH = inputs_TBI.new_zeros(1, inputs_TBI.shape[1], self.hidden_size)
        with weights_apart():
            outputs_TBH, _, cell_1BH = torch.lstm(
                widened_TBI, (zeros_1BH, zeros_1BH), weights, True, 1, 0.0, self.training, False, False
            )
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B), cell_1BH[0])

    def gathering_pays(self, inputs_TBI: Tensor) -> bool:
        """Whether a step of training is faster with `gathered_lstm`."""
        if inputs_TBI.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs_TBI.dtype
        return (
            dtype == torch.bfloat16
            and dtype in onednn_dtypes()
            and self.input_size + self.hidden_size >= GATHERED_FROM_WIDTH
        )

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        zeros_NH = like.new_zeros(num_sequences, self.hidden_size)
        return zeros_NH, zeros_NH

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        # The cell function uses the parameters as they are; the module with T=1 would re-pack them at every call.
        hidden_NH, cell_NH = torch.lstm_cell(inputs_NI, state, *self._weights())
        return hidden_NH, cell_NH

    def _weights(self) -> list[Tensor]:
        return cast(list[Tensor], [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0])


@contextmanager
def weights_apart() -> Iterator[None]:
    """Without cuDNN's warning that it copies the weights together at each call, which is nothing next to the products.

    It does so with weights that are new at each call, and with those in bf16, which torch does not lay together.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single contiguous chunk")
        yield


def reverse_by_length(inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
    """Turns each sequence round within its own length; padding stays behind it, where it is. Its own inverse."""
    positions_T1 = torch.arange(inputs_TBI.shape[0], device=inputs_TBI.device)[:, None]
    mirrored_TB = lengths_B - 1 - positions_T1
    order_TB = torch.where(mirrored_TB >= 0, mirrored_TB, positions_T1)
    reversed_TBI: Tensor = _Reversed.apply(inputs_TBI, order_TB)  # type: ignore[no-untyped-call]
    return reversed_TBI


class _Reversed(torch.autograd.Function):
    """inputs_TBI[order_TB, column], for an order that is its own inverse, and so its own gradient.

    That of plain indexing must reckon with places that repeat, and adds one by one on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, inputs_TBI: Tensor, order_TB: Tensor) -> Tensor:
        ctx.save_for_backward(order_TB)
        columns_B = torch.arange(inputs_TBI.shape[1], device=inputs_TBI.device)
        return inputs_TBI[order_TB, columns_B]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Reversed.apply(grads[0], *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


def at_last_tokens(states_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's state at its last real step, [B, H]."""
    return states_TBH[lengths_B - 1, torch.arange(len(lengths_B), device=lengths_B.device)]


class Bidirectional(nn.Module):
    """Two layers, one of which reads each sentence from its true end; outputs concatenated, [T, B, 2H].

    Wu et al. 2016, section 3.2. Reversal by length, not packing, keeps the fused kernels and
    keeps padding out of the backward direction. kind: what makes a layer from the widths of input and hidden state.
    """

    def __init__(self, input_size: int, hidden_size: int, kind: Callable[[int, int], RecurrentLayer] = LSTM) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.ahead = kind(input_size, hidden_size)
        self.back = kind(input_size, hidden_size)

    def forward(self, inputs_TBI: Tensor, lengths_B: Tensor) -> Tensor:
        """Outputs [T, B, 2H]."""
        ahead_TBH = self.ahead(inputs_TBI)
        back_TBH = self.back(reverse_by_length(inputs_TBI, lengths_B))
        return torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        """Outputs, and both directions' last states concatenated, [B, 2H]: at the true end, and at the beginning."""
        ahead_TBH, ahead_state = self.ahead.forward_with_final_state(inputs_TBI, lengths_B)
        back_TBH, back_state = self.back.forward_with_final_state(reverse_by_length(inputs_TBI, lengths_B), lengths_B)
        outputs_TBH = torch.cat((ahead_TBH, reverse_by_length(back_TBH, lengths_B)), dim=-1)
        return outputs_TBH, tuple(torch.cat(both, dim=-1) for both in zip(ahead_state, back_state, strict=True))


Cell = Literal["lstm", "gru"]


def layer_class(cell: Cell, layer_norm: bool, key: str) -> Callable[[int, int], RecurrentLayer]:
    """What makes a layer of that cell from the widths of its input and of its hidden state.

    key: the component's in a config, for the message where there is no such layer.
    """
    if cell == "gru" and layer_norm:
        raise InputError(
            f"{key}.layer_norm=true goes with {key}.cell=lstm only, not with cell=gru: set one of them otherwise"
        )
    if layer_norm:
        return LayerNormLSTM
    return GRU if cell == "gru" else LSTM


class GRU(nn.GRU, RecurrentLayer):
    """Gated recurrent units (Cho et al. 2014), run by torch's kernel over whole sequences.

    As in torch and cuDNN, the reset gate stands behind the product with the hidden state, not before it.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)

    def forward(self, inputs_TBI: Tensor, state: LayerState | None = None) -> Tensor:  # type: ignore[override]
        outputs_TBH: Tensor = super().forward(inputs_TBI, None if state is None else state[0][None])[0]
        return outputs_TBH

    def forward_with_final_state(self, inputs_TBI: Tensor, lengths_B: Tensor) -> tuple[Tensor, LayerState]:
        outputs_TBH = self(inputs_TBI)
        return outputs_TBH, (at_last_tokens(outputs_TBH, lengths_B),)

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        return (like.new_zeros(num_sequences, self.hidden_size),)

    def step(self, inputs_NI: Tensor, state: LayerState) -> LayerState:
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        return (torch.gru_cell(inputs_NI, state[0], *cast(list[Tensor], weights)),)


class LayerNormLSTM(StepwiseLayer):
    """An LSTM whose gates are each normalized over their units before the nonlinearity (Ba et al. 2016).

    Per gate, as in Chen et al. 2018, section 4.1: each of the four has a mean, a variance, a gain and a bias of its
    own; the cell is not normalized. gate = gain * norm(W x + U h) + bias, so W and U need no biases.
    Normalizing needs the previous hidden state, so no fused kernel serves: a loop over time in Python, some ten small
    operations a step, several times slower than `LSTM`. The inputs of all steps are multiplied in one product.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_inputs = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.gain = nn.Parameter(torch.ones(4, hidden_size))
        self.bias = nn.Parameter(torch.zeros(4, hidden_size))

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.from_inputs(inputs)
        return projected

    def start(self, num_sequences: int, like: Tensor) -> LayerState:
        hidden_NH = like.new_zeros(num_sequences, self.hidden_size)
        return hidden_NH, hidden_NH.to(torch.promote_types(like.dtype, torch.float32))

    def next_state(self, projected_NP: Tensor, state: LayerState) -> LayerState:
        """Gates and cell in fp32 or better, the hidden state in the type that it came in."""
        hidden_NH, cell_NH = state
        summed_N4H = (projected_NP + self.from_hidden(hidden_NH)).unflatten(1, (4, self.hidden_size))
        normalized_N4H = F.layer_norm(summed_N4H.to(cell_NH.dtype), (self.hidden_size,))
        write_NH, remember_NH, new_NH, show_NH = (normalized_N4H * self.gain + self.bias).unbind(1)
        cell_NH = remember_NH.sigmoid() * cell_NH + write_NH.sigmoid() * new_NH.tanh()
        return (show_NH.sigmoid() * cell_NH.tanh()).to(hidden_NH.dtype), cell_NH


_PARTS = ("hidden", "cell")
"""Of a layer's state, in its order; a GRU has the first alone."""


class ResidualStack(nn.Module):
    """Unidirectional layers with dropout on every layer's input.

    residual_from: the first layer, counted from 1, whose input is added to its output; None for no such layer. kind:
    what makes a layer from the widths of input and hidden state.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        kind: Callable[[int, int], RecurrentLayer],
        residual_from: int | None,
        dropout: Dropout,
    ) -> None:
        super().__init__()
        self.residual_from = residual_from
        self.dropout = dropout
        self.widths = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(kind(width, hidden_size) for width in self.widths)

    def forward(self, inputs_TBI: Tensor, states: Sequence[LayerState | None]) -> Tensor:
        """Outputs [T, B, H]; see forward_layers."""
        return forward_layers(self.recurrent_layers(), inputs_TBI, states, self.dropout, self.residual_from)

    def step(
        self, inputs_NI: Tensor, states: Sequence[LayerState], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """One step of N sequences; see step_layers."""
        return step_layers(self.recurrent_layers(), inputs_NI, states, self.residual_from, masks=masks)

    def dropout_masks(self, num_steps: int, like_BI: Tensor) -> Iterator[list[Tensor] | None]:
        """For each step the masks of `step`, drawn as `forward` would draw them; None where nothing is dropped."""
        if not self.dropout.training or self.dropout.p == 0:
            return iter([None] * num_steps)
        drawn = [self.dropout(like_BI.new_ones(num_steps, len(like_BI), width)).unbind(0) for width in self.widths]
        return (list(masks) for masks in zip(*drawn, strict=True))

    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The layers, the bottom one first."""
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
    """The top layer's outputs [T, B, H].

    states: the layers', [B, H], before the first step; None is zeros. residual_from: as in ResidualStack. context_TBC:
    what every layer reads beside its input. first_number: that of the first of these layers.
    """
    outputs = inputs_TBI
    for number, (layer, state) in enumerate(zip(layers, states, strict=True), start=first_number):
        inputs = outputs
        outputs = layer(dropout(beside(inputs, context_TBC)), state)
        if is_residual(number, residual_from):
            outputs = outputs + inputs
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
    """The same for one step of N sequences: outputs [N, H] and the new states. masks: factors of the layers' inputs."""
    outputs, new_states = inputs_NI, []
    for index, (layer, state) in enumerate(zip(layers, states, strict=True)):
        inputs = outputs
        read = beside(inputs, context_NC)
        new_states.append(layer.step(read if masks is None else read * masks[index], state))
        outputs = new_states[-1][0]
        if is_residual(first_number + index, residual_from):
            outputs = outputs + inputs
    return outputs, new_states


def beside(inputs: Tensor, context: Tensor | None) -> Tensor:
    """Inputs and context concatenated, [..., I + C]; the inputs alone where there is no context."""
    return inputs if context is None else torch.cat((inputs, context), dim=-1)


def is_residual(number: int, residual_from: int | None) -> bool:
    """Whether the layer of that number, counted from 1, adds its input to its output (Wu et al. 2016, eq. 6)."""
    return residual_from is not None and number >= residual_from


def initial_states(layers: Sequence[RecurrentLayer], memory: Memory, beam: int, bridged: bool) -> list[LayerState]:
    """The layers' states before the first token, [B*beam, H]: zeros, or what the encoder's layers ended with."""
    batch = len(memory.mask_BS)
    zeros = [layer.start(batch * beam, memory.states_BSH) for layer in layers]
    if not bridged:
        return zeros
    finals = named_states(memory.by_sentence, "final_", len(layers))
    return [
        tuple(end.to(zero.dtype).repeat_interleave(beam, 0) for end, zero in zip(final, zero_state, strict=True))
        for final, zero_state in zip(finals, zeros, strict=True)
    ]


def states_over_time(layers: Sequence[RecurrentLayer], memory: Memory, bridged: bool) -> Sequence[LayerState | None]:
    """The same for `forward`, which knows zeros by None."""
    return initial_states(layers, memory, 1, bridged) if bridged else [None] * len(layers)


def state_sizes(layers: Sequence[RecurrentLayer], prefix: str) -> dict[str, int]:
    """The widths of the layers' states by name."""
    zeros = [layer.start(1, torch.zeros(0)) for layer in layers]
    return {name: tensor.shape[1] for name, tensor in state_names(zeros, prefix).items()}


def state_names(states: Sequence[LayerState], prefix: str = "") -> dict[str, Tensor]:
    """The layers' states as <prefix>hidden_1, <prefix>cell_1 and so on, from the bottom."""
    return {
        f"{prefix}{part}_{number}": tensor
        for number, state in enumerate(states, start=1)
        for part, tensor in zip(_PARTS, state, strict=False)
    }


def named_states(tensors: Mapping[str, Tensor], prefix: str, num_layers: int) -> list[LayerState]:
    """The layers' states of tensors with such names."""
    return [
        tuple(tensors[f"{prefix}{part}_{number}"] for part in _PARTS if f"{prefix}{part}_{number}" in tensors)
        for number in range(1, num_layers + 1)
    ]


def pack_states(states: Sequence[LayerState], batch: int) -> DecoderState:
    """The layers' states [B*K, H] as a DecoderState."""
    return DecoderState(
        {name: tensor.reshape(batch, -1, tensor.shape[1]) for name, tensor in state_names(states).items()}
    )


def unpack_states(state: DecoderState, num_layers: int) -> list[LayerState]:
    """The layers' states, [B*K, H]."""
    return named_states({name: tensor.flatten(0, 1) for name, tensor in state.tensors.items()}, "", num_layers)


def shift_one_step(outputs_TBH: Tensor, first_BH: Tensor | None = None) -> Tensor:
    """Moves every output to the next step; the first step gets `first_BH`, or zeros."""
    first_BH = torch.zeros_like(outputs_TBH[0]) if first_BH is None else first_BH.to(outputs_TBH.dtype)
    return torch.cat((first_BH[None], outputs_TBH[:-1]))
