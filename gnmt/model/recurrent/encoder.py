"""The recurrent encoder: bidirectional layers at the bottom, unidirectional layers above."""

from __future__ import annotations

from typing import Annotated, cast

from torch import Tensor, nn

from gnmt.config.validate import NumLayers, Probability, Range, Size
from gnmt.errors import InputError
from gnmt.model.interfaces import Encoded, Encoder
from gnmt.model.layers import Dropout
from gnmt.model.recurrent.cells import Cell, layer_class
from gnmt.model.recurrent.layers import (
    Bidirectional,
    LayerState,
    RecurrentLayer,
    is_residual,
    reverse_by_length,
    state_sizes,
    states_to_dict,
)
from gnmt.model.validate import check_residual


class LSTMEncoder(Encoder):
    """Recurrent encoder; the defaults are GNMT's (Wu et al. 2016, section 3).

    GNMT has one bidirectional layer, and residual connections from the third layer up. Other settings give the encoders
    of other models: unidirectional layers with final states (Sutskever et al. 2014), bidirectional layers only
    (Bahdanau et al. 2015), bidirectional layers with a projection (RNMT+, Chen et al. 2018).

    Args:
        input_size: Width of the embeddings.
        hidden_size: Units of each layer and direction; the output of a bidirectional layer is twice as wide.
        num_layers: Number of layers; a bidirectional layer counts once.
        num_bidirectional_layers: Number of bidirectional layers, from the bottom.
        residual_from: First layer, counted from 1, whose input is added to its output (Wu et al. 2016, eq. 6). Its
            input and output must have the same width; layers above it whose widths differ get no residual connection.
            None for no residual connections.
        dropout: Dropout probability of each layer's input.
        variational_dropout: Whether one mask is drawn for all time steps of a sentence (Gal and Ghahramani 2016).
        weight_dropout: Dropout probability of the recurrent weights (DropConnect; see LSTM).
        attend_to_embeddings: Whether a projection of the embeddings is added to the top layer's states. Attention can
            then read the word itself, so a model learns to translate it before its layers have learned to pass it on.
            This is not in the paper; Gehring et al. 2017, section 3.4, let attention read embeddings for the same
            reason.
        cell: Kind of all layers; see gnmt.model.recurrent.cells.Cell.
        layer_norm: Whether every gate is normalized (see LayerNormLSTM).
        reverse_source: Whether the layers read the source from its last token to its first, with EOS still at the end
            (Sutskever et al. 2014, section 3.3). The states stay in the order of the source.
        projection_size: Width to which a linear layer projects the top layer's states; None for no such layer.
        final_states: Whether `Encoded.by_sentence` holds each layer's state after a sentence's last token, under the
            names `final_hidden_1`, `final_cell_1` and so on, [B, H]. Those of both directions of a bidirectional layer
            are concatenated to [B, 2H].

    Raises:
        InputError: If the numbers of layers or the widths of a residual connection do not fit together, or for a cell
            that does not support layer normalization or weight dropout.
    """

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        num_bidirectional_layers: Annotated[int, Range(0)] = 1,
        residual_from: Annotated[int, Range(2)] | None = 3,
        dropout: Probability = 0.0,
        variational_dropout: bool = False,
        weight_dropout: Probability = 0.0,
        attend_to_embeddings: bool = False,
        cell: Cell = "lstm",
        layer_norm: bool = False,
        reverse_source: bool = False,
        projection_size: Size | None = None,
        final_states: bool = False,
    ) -> None:
        super().__init__()
        if num_bidirectional_layers > num_layers:
            raise InputError(
                f"model.encoder.num_bidirectional_layers={num_bidirectional_layers} is more than "
                f"model.encoder.num_layers={num_layers}: choose at most {num_layers}, or more layers"
            )
        widths = [input_size]  # of the first layer's input, then of each layer's output
        widths += [(2 if layer < num_bidirectional_layers else 1) * hidden_size for layer in range(num_layers)]
        check_residual(widths, residual_from)
        self.input_size = input_size
        self.residual_from = residual_from
        self.reverse_source = reverse_source
        self.final_states = final_states
        self.dropout = Dropout(dropout, variational_dropout)
        self.layers = nn.ModuleList()
        make_layer = layer_class(cell, layer_norm, "model.encoder", weight_dropout)
        for layer, width in enumerate(widths[:-1]):
            if layer < num_bidirectional_layers:
                self.layers.append(Bidirectional(width, hidden_size, make_layer))
            else:
                self.layers.append(make_layer(width, hidden_size))
        self.projection = None if projection_size is None else nn.Linear(widths[-1], projection_size)
        self.output_size = widths[-1] if projection_size is None else projection_size
        self.shortcut = nn.Linear(input_size, self.output_size, bias=False) if attend_to_embeddings else None
        options = {"projection_size": projection_size, "attend_to_embeddings": attend_to_embeddings}
        self.state_options = [key for key, value in options.items() if value]
        if final_states:
            layers = [cast(RecurrentLayer | Bidirectional, layer) for layer in self.layers]
            self.by_sentence_sizes = state_sizes(layers, "final_")

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """Return the states [B, S, output_size], and the final states if `final_states` is set."""
        states_SBH = embedded_BSE.transpose(0, 1)
        if self.reverse_source:
            states_SBH = reverse_by_length(states_SBH, lengths_B - 1)
        finals: list[LayerState] = []
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, Bidirectional | RecurrentLayer)
            inputs_SBH = states_SBH
            dropped_SBH = self.dropout(inputs_SBH)
            if self.final_states:
                states_SBH, final = layer.forward_with_final_state(dropped_SBH, lengths_B)
                finals.append(final)
            elif isinstance(layer, Bidirectional):
                states_SBH = layer(dropped_SBH, lengths_B)
            else:
                states_SBH = layer(dropped_SBH)
            if is_residual(number, self.residual_from) and inputs_SBH.shape == states_SBH.shape:
                states_SBH = layer.bounded(states_SBH + inputs_SBH)
        if self.projection is not None:
            states_SBH = self.projection(states_SBH)
        if self.reverse_source:
            states_SBH = reverse_by_length(states_SBH, lengths_B - 1)
        states_BSH = states_SBH.transpose(0, 1)
        if self.shortcut is not None:
            states_BSH = states_BSH + self.shortcut(embedded_BSE)
        return Encoded(states_BSH, by_sentence=states_to_dict(finals, "final_"))
