"""GNMT as in the paper (Wu et al. 2016, section 3), for one sentence, step by step.

It is slow and obvious. It takes only the weights from the model and shares no code with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnmt.model.seq2seq import Seq2Seq


class OracleGNMT:
    """Oracle with a model's weights. `query` and `residual_from` are given again and not read from the model."""

    def __init__(self, model: Seq2Seq, query: str, residual_from: int = 3) -> None:
        self.weights = dict(model.named_parameters(remove_duplicate=False))
        self.num_encoder_layers = len(model.encoder.layers)
        self.num_decoder_layers = 1 + len(model.decoder.upper)
        self.query = query
        self.residual_from = residual_from

    def encode(self, source: list[int]) -> list[Tensor]:
        """Return the top layer's states, one vector for each source token."""
        embeddings = states = [self.weights["source_embedding.weight"][token] for token in source]
        ahead = self.run_lstm("encoder.layers.0.ahead", states)
        back = self.run_lstm("encoder.layers.0.back", states[::-1])[::-1]
        states = [torch.cat(both) for both in zip(ahead, back, strict=True)]
        for layer in range(2, self.num_encoder_layers + 1):
            outputs = self.run_lstm(f"encoder.layers.{layer - 1}", states)
            if layer >= self.residual_from:
                outputs = [output + state for output, state in zip(outputs, states, strict=True)]
            states = outputs
        if "encoder.shortcut.weight" in self.weights:
            shortcut = self.weights["encoder.shortcut.weight"]
            states = [state + shortcut @ embedding for state, embedding in zip(states, embeddings, strict=True)]
        return states

    def decode(self, target: list[int], states: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return hidden [T, H] and attention [T, S] for a target input."""
        width = self.weights["decoder.bottom.weight_hh_l0"].shape[1]
        zero = torch.zeros(width, dtype=states[0].dtype)
        hidden = [zero] * self.num_decoder_layers
        cell = [zero] * self.num_decoder_layers
        tops, alignments = [], []
        for token in target:
            before = hidden[0]
            embedded = self.weights["target_embedding.weight"][token]
            hidden[0], cell[0] = self.lstm_step("decoder.bottom", embedded, hidden[0], cell[0])
            weights = self.attend(before if self.query == "previous" else hidden[0], states)
            context = sum(weight * state for weight, state in zip(weights, states, strict=True))
            output = hidden[0]
            for layer in range(2, self.num_decoder_layers + 1):
                below = output
                index = layer - 1
                hidden[index], cell[index] = self.lstm_step(
                    f"decoder.upper.{layer - 2}", torch.cat((below, context)), hidden[index], cell[index]
                )
                output = hidden[index] + below if layer >= self.residual_from else hidden[index]
            tops.append(output)
            alignments.append(torch.stack(weights))
        return torch.stack(tops), torch.stack(alignments)

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Return logits [T, V]."""
        weight, bias = self.weights["output_layer.weight"], self.weights["output_layer.bias"]
        return torch.stack([weight @ hidden + bias for hidden in hidden_TH])

    def attend(self, query: Tensor, states: list[Tensor]) -> list[Tensor]:
        """Return one weight for each source token: the softmax of g v/|v| . tanh(W_q q + W_k k + b)."""
        w_query = self.weights["decoder.attention.query_projection.weight"]
        w_key = self.weights["decoder.attention.key_projection.weight"]
        bias = self.weights["decoder.attention.key_projection.bias"]
        vector = self.weights["decoder.attention.direction"]
        if "decoder.attention.scale" in self.weights:
            vector = self.weights["decoder.attention.scale"] * vector / (vector * vector).sum().sqrt()
        scores = [(vector * torch.tanh(w_query @ query + w_key @ state + bias)).sum() for state in states]
        exponentials = [torch.exp(score) for score in scores]
        return [exponential / sum(exponentials) for exponential in exponentials]

    def run_lstm(self, name: str, inputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs of one layer over a sequence, from a zero state."""
        hidden = cell = torch.zeros(self.weights[f"{name}.weight_hh_l0"].shape[1], dtype=inputs[0].dtype)
        outputs = []
        for vector in inputs:
            hidden, cell = self.lstm_step(name, vector, hidden, cell)
            outputs.append(hidden)
        return outputs

    def lstm_step(self, name: str, vector: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden state and cell of an LSTM with forget gate; rows of the weights are i, f, g, o."""
        w_input, w_hidden = self.weights[f"{name}.weight_ih_l0"], self.weights[f"{name}.weight_hh_l0"]
        b_input, b_hidden = self.weights[f"{name}.bias_ih_l0"], self.weights[f"{name}.bias_hh_l0"]
        gates = w_input @ vector + b_input + w_hidden @ hidden + b_hidden
        size = len(hidden)
        forget_gate = torch.sigmoid(gates[size : 2 * size])
        input_gate = torch.sigmoid(gates[:size])
        output_gate = torch.sigmoid(gates[3 * size :])
        cell = forget_gate * cell + input_gate * torch.tanh(gates[2 * size : 3 * size])
        return output_gate * torch.tanh(cell), cell


def gradients(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter, zeros where it does not influence the value."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for name, parameter, grad in zip(names, parameters, found, strict=True)
    }
