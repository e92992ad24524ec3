"""Recurrent layers one above another, and their states as tensors with names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.model.recurrence import CellState, Recurrence
from gnmt.types import Memory, State

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
        kind: Callable[[int, int], Recurrence],
        residual_from: int | None,
        dropout: Dropout,
    ) -> None:
        super().__init__()
        self.residual_from = residual_from
        self.dropout = dropout
        self.widths = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(kind(width, hidden_size) for width in self.widths)

    def over_time(self, inputs_TBI: Tensor, states: Sequence[CellState | None]) -> Tensor:
        """Outputs [T, B, H]; see layers_over_time."""
        return layers_over_time(self.recurrences(), inputs_TBI, states, self.dropout, self.residual_from)

    def step(
        self, inputs_NI: Tensor, states: Sequence[CellState], masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[CellState]]:
        """One step of N sequences; see layers_step."""
        return layers_step(self.recurrences(), inputs_NI, states, self.residual_from, masks=masks)

    def dropout_masks(self, num_steps: int, like_BI: Tensor) -> Iterator[list[Tensor] | None]:
        """For each step the masks of `step`, drawn as `over_time` would draw them; None where nothing is dropped."""
        if not self.dropout.training or self.dropout.p == 0:
            return iter([None] * num_steps)
        drawn = [self.dropout(like_BI.new_ones(num_steps, len(like_BI), width)).unbind(0) for width in self.widths]
        return (list(masks) for masks in zip(*drawn, strict=True))

    def recurrences(self) -> list[Recurrence]:
        """The layers, the bottom one first."""
        return [cast(Recurrence, layer) for layer in self.layers]


def layers_over_time(
    layers: Sequence[Recurrence],
    inputs_TBI: Tensor,
    states: Sequence[CellState | None],
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
        outputs = layer.over_time(dropout(beside(inputs, context_TBC)), state)
        if is_residual(number, residual_from):
            outputs = outputs + inputs
    return outputs


def layers_step(
    layers: Sequence[Recurrence],
    inputs_NI: Tensor,
    states: Sequence[CellState],
    residual_from: int | None,
    context_NC: Tensor | None = None,
    first_number: int = 1,
    masks: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[CellState]]:
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


def first_states(layers: Sequence[Recurrence], memory: Memory, beam: int, bridged: bool) -> list[CellState]:
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


def states_over_time(layers: Sequence[Recurrence], memory: Memory, bridged: bool) -> Sequence[CellState | None]:
    """The same for `over_time`, which knows zeros by None."""
    return first_states(layers, memory, 1, bridged) if bridged else [None] * len(layers)


def state_sizes(layers: Sequence[Recurrence], prefix: str) -> dict[str, int]:
    """The widths of the layers' states by name."""
    zeros = [layer.start(1, torch.zeros(0)) for layer in layers]
    return {name: tensor.shape[1] for name, tensor in state_names(zeros, prefix).items()}


def state_names(states: Sequence[CellState], prefix: str = "") -> dict[str, Tensor]:
    """The layers' states as <prefix>hidden_1, <prefix>cell_1 and so on, from the bottom."""
    return {
        f"{prefix}{part}_{number}": tensor
        for number, state in enumerate(states, start=1)
        for part, tensor in zip(_PARTS, state, strict=False)
    }


def named_states(tensors: Mapping[str, Tensor], prefix: str, num_layers: int) -> list[CellState]:
    """The layers' states of tensors with such names."""
    return [
        tuple(tensors[f"{prefix}{part}_{number}"] for part in _PARTS if f"{prefix}{part}_{number}" in tensors)
        for number in range(1, num_layers + 1)
    ]


def pack(states: Sequence[CellState], batch: int) -> State:
    """The layers' states [B*K, H] as a State."""
    return State({name: tensor.reshape(batch, -1, tensor.shape[1]) for name, tensor in state_names(states).items()})


def unpack(state: State, num_layers: int) -> list[CellState]:
    """The layers' states, [B*K, H]."""
    return named_states({name: tensor.flatten(0, 1) for name, tensor in state.tensors.items()}, "", num_layers)


def one_step_later(outputs_TBH: Tensor, first_BH: Tensor | None = None) -> Tensor:
    """Moves every output to the next step; the first step gets `first_BH`, or zeros."""
    first_BH = torch.zeros_like(outputs_TBH[0]) if first_BH is None else first_BH.to(outputs_TBH.dtype)
    return torch.cat((first_BH[None], outputs_TBH[:-1]))
