"""GNMT's encoder: bidirectional LSTMs below, unidirectional residual LSTMs above."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.model.interfaces import Encoder
from gnmt.model.recurrence import LSTM, BidirectionalLSTM, Recurrence
from gnmt.types import Encoded, InputError, Range


class LSTMEncoder(Encoder):
    """Wu et al. 2016, section 3: the first layer bidirectional, residual connections from the third layer up.

    num_layers counts a bidirectional layer once. residual_from: the first layer, counted from 1, whose input
    is added to its output (eq. 6) where both have one width; None for no residual connections. dropout: on
    every layer's input; dropout_over_time: fresh for each step, or one mask for a sentence (gnmt.model.dropout).
    embedding_shortcut: adds a projection of the embeddings to the states of the top layer. Attention then finds the
    word itself beside its surroundings, and a translation of the word is learned before the layers have learned to
    carry it upwards. Not in the paper, whose residual connections begin above; Gehring et al. 2017, section 3.4, let
    attention read states and embeddings for the same reason.
    """

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(2)],
        num_bidirectional_layers: Annotated[int, Range(0)] = 1,
        residual_from: Annotated[int, Range(2)] | None = 3,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        dropout_over_time: Literal["fresh", "shared"] = "fresh",
        embedding_shortcut: bool = False,
    ) -> None:
        super().__init__()
        if num_bidirectional_layers > num_layers:
            raise InputError(
                f"num_bidirectional_layers={num_bidirectional_layers} is more than num_layers={num_layers}: "
                "choose at most that many"
            )
        self.input_size = input_size
        self.residual_from = residual_from
        self.dropout = Dropout(dropout, dropout_over_time)
        self.layers = nn.ModuleList()
        width = input_size
        for layer in range(num_layers):
            kind = BidirectionalLSTM if layer < num_bidirectional_layers else LSTM
            self.layers.append(kind(width, hidden_size))
            width = 2 * hidden_size if kind is BidirectionalLSTM else hidden_size
        self.output_size = width
        self.shortcut = nn.Linear(input_size, width, bias=False) if embedding_shortcut else None

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, output_size]."""
        states_SBH = embedded_BSE.transpose(0, 1)
        for number, layer in enumerate(self.layers, start=1):
            inputs_SBH = states_SBH
            if isinstance(layer, BidirectionalLSTM):
                states_SBH = layer.over_time(self.dropout(inputs_SBH), lengths_B)
            else:
                assert isinstance(layer, Recurrence)
                states_SBH = layer.over_time(self.dropout(inputs_SBH))
            if self.is_residual(number) and inputs_SBH.shape == states_SBH.shape:
                states_SBH = states_SBH + inputs_SBH
        states_BSH = states_SBH.transpose(0, 1)
        return Encoded(states_BSH if self.shortcut is None else states_BSH + self.shortcut(embedded_BSE))

    def is_residual(self, number: int) -> bool:
        """Whether the layer of that number, counted from 1, adds its input to its output."""
        return self.residual_from is not None and number >= self.residual_from
