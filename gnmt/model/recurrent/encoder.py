"""Recurrent encoders: bidirectional layers below, unidirectional layers above."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Encoded, Encoder
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.layers import (
    Bidirectional,
    Cell,
    LayerState,
    RecurrentLayer,
    is_residual,
    layer_class,
    reverse_by_length,
    state_names,
)
from gnmt.model.validate import check_residual


class LSTMEncoder(Encoder):
    """GNMT's (Wu et al. 2016, section 3): the first layer bidirectional, residual connections from the third up.

    Other settings make other encoders: no bidirectional layer and a bridge (Sutskever et al. 2014), all bidirectional
    and a projection (RNMT+, Chen et al. 2018).

    num_layers counts a bidirectional layer once. residual_from: the first layer, counted from 1, whose input
    is added to its output (eq. 6), which needs both of one width; None for no residual connections. A layer above the
    first such one has none where the widths differ. dropout: on every layer's input; variational_dropout: fresh for each
    step, or one mask for a sentence (gnmt.model.layers).
    attend_to_embeddings: adds a projection of the embeddings to the states of the top layer. Attention then finds the
    word itself beside its surroundings, and a translation of the word is learned before the layers have learned to
    carry it upwards. Not in the paper, whose residual connections begin above; Gehring et al. 2017, section 3.4, let
    attention read states and embeddings for the same reason.
    cell: of all layers; layer_norm: of every gate, see gnmt.model.recurrent.layers for what it costs.
    reverse_source: reads the source from its last token to its first, with EOS last all the same (Sutskever et al.
    2014, section 3.3). States stay in the order of the source.
    projection_size: width that a linear layer gives the top layer's states; None for none.
    final_states: hand every layer's state at each sentence's true end to the decoder, as by_sentence
    `final_hidden_1`, `final_cell_1` and so on, [B, H]; of a bidirectional layer both directions' concatenated, [B, 2H].
    """

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        num_bidirectional_layers: Annotated[int, Range(0)] = 1,
        residual_from: Annotated[int, Range(2)] | None = 3,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        variational_dropout: bool = False,
        attend_to_embeddings: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
        reverse_source: bool = False,
        projection_size: Annotated[int, Range(1)] | None = None,
        final_states: bool = False,
    ) -> None:
        super().__init__()
        if num_bidirectional_layers > num_layers:
            raise InputError(
                f"model.encoder.num_bidirectional_layers={num_bidirectional_layers} is more than "
                f"model.encoder.num_layers={num_layers}: "
                "choose at most that many"
            )
        widths = layer_widths(input_size, hidden_size, num_layers, num_bidirectional_layers)
        check_residual(widths, residual_from)
        self.input_size = input_size
        self.residual_from = residual_from
        self.reverse_source = reverse_source
        self.final_states = final_states
        self.dropout = Dropout(dropout, variational_dropout)
        self.layers = nn.ModuleList()
        kind = layer_class(cell, layer_norm, "model.encoder")
        for layer, width in enumerate(widths[:-1]):
            if layer < num_bidirectional_layers:
                self.layers.append(Bidirectional(width, hidden_size, kind))
            else:
                self.layers.append(kind(width, hidden_size))
        self.projection = None if projection_size is None else nn.Linear(widths[-1], projection_size)
        self.output_size = widths[-1] if projection_size is None else projection_size
        self.shortcut = nn.Linear(input_size, self.output_size, bias=False) if attend_to_embeddings else None
        given = {"projection_size": projection_size is not None, "attend_to_embeddings": attend_to_embeddings}
        self.only_for_states = [key for key, is_given in given.items() if is_given]
        if final_states:
            parts = ("hidden",) if cell == "gru" else ("hidden", "cell")
            self.by_sentence_sizes = {
                f"final_{part}_{number}": width for number, width in enumerate(widths[1:], start=1) for part in parts
            }

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, output_size]."""
        states_SBH = embedded_BSE.transpose(0, 1)
        if self.reverse_source:
            states_SBH = reverse_by_length(states_SBH, lengths_B - 1)
        finals: list[LayerState] = []
        for number, layer in enumerate(self.layers, start=1):
            inputs_SBH = states_SBH
            assert isinstance(layer, Bidirectional | RecurrentLayer)
            states_SBH, final = self.run(layer, self.dropout(inputs_SBH), lengths_B)
            finals.append(final)
            if is_residual(number, self.residual_from) and inputs_SBH.shape == states_SBH.shape:
                states_SBH = states_SBH + inputs_SBH
        if self.projection is not None:
            states_SBH = self.projection(states_SBH)
        if self.reverse_source:
            states_SBH = reverse_by_length(states_SBH, lengths_B - 1)
        states_BSH = states_SBH.transpose(0, 1)
        if self.shortcut is not None:
            states_BSH = states_BSH + self.shortcut(embedded_BSE)
        return Encoded(states_BSH, by_sentence=state_names(finals, "final_"))

    def run(
        self, layer: Bidirectional | RecurrentLayer, inputs_SBH: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, LayerState]:
        """The layer's outputs, and its state at each sentence's end where the decoder is to have it."""
        if self.final_states:
            return layer.forward_with_final_state(inputs_SBH, lengths_B)
        if isinstance(layer, Bidirectional):
            return layer(inputs_SBH, lengths_B), ()
        return layer(inputs_SBH), ()


def layer_widths(input_size: int, hidden_size: int, num_layers: int, num_bidirectional_layers: int) -> list[int]:
    """The width below the first layer, and above each."""
    above = [(2 if layer < num_bidirectional_layers else 1) * hidden_size for layer in range(num_layers)]
    return [input_size, *above]
