"""Convolutional encoder and decoder (Gehring et al. 2017).

The encoder and decoder come first, then their layers. Section and equation numbers are those of the paper. A
convolution is one product of its weight with the concatenated inputs of each window of positions, so that whole
sequences and single steps use the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.config.validate import NumLayers, Probability, Range, Size
from gnmt.errors import InputError
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Encoder, Memory
from gnmt.model.layers import Dropout, Positions
from gnmt.model.validate import check_alignment_layer

SUM_SCALE = math.sqrt(0.5)
"""Factor that keeps the variance of a sum of two terms with equal variance (section 3.5)."""


class ConvolutionalEncoder(Encoder):
    """Convolutional encoder (section 3.2).

    `Encoded.by_token` holds `embedded`, the embeddings with their positions [B, S, input_size], which
    ConvolutionalDecoder adds to the states.

    Args:
        input_size: Width of the embeddings and of the states.
        hidden_size: Units of each layer.
        num_layers: Number of layers.
        kernel_size: Number of positions that a convolution reads, odd; the current one is in the middle.
        learned_positions: Number of learned position vectors, which limits the length of sentences; None for sinusoids.
        dropout: Dropout probability of the embeddings and of every convolution's input.

    Raises:
        InputError: If `kernel_size` is even.
    """

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        kernel_size: Annotated[int, Range(1, 1024)] = 3,
        learned_positions: Size | None = 1024,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(
                f"model.encoder.kernel_size={kernel_size} is even: a window must reach equally far in both directions, "
                f"so choose {kernel_size - 1} or {kernel_size + 1}"
            )
        self.input_size = self.output_size = input_size
        self.max_tokens = learned_positions
        self.positions = Positions(input_size, learned_positions, std=0.1)
        self.dropout = Dropout(dropout)
        self.enter = NormalizedLinear(input_size, hidden_size, gain=1 - dropout)
        self.layers = nn.ModuleList(GatedConvolution(hidden_size, kernel_size, dropout) for _ in range(num_layers))
        self.leave = NormalizedLinear(hidden_size, input_size)

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """Return the states [B, S, input_size] and `embedded`.

        Padding is zeroed before every convolution, so it equals the zeros beyond the ends of the batch.
        """
        padding_BS1 = (torch.arange(embedded_BSE.shape[1], device=lengths_B.device) >= lengths_B[:, None])[..., None]
        positioned_BSE = self.dropout(embedded_BSE + self.positions(embedded_BSE))
        states_BSH = self.enter(positioned_BSE)
        for layer in self.layers:
            assert isinstance(layer, GatedConvolution)
            inputs_BSH = states_BSH.masked_fill(padding_BS1, 0.0)
            states_BSH = (layer(inputs_BSH, layer.kernel_size // 2) + inputs_BSH) * SUM_SCALE
        return Encoded(self.leave(states_BSH), {"embedded": positioned_BSE})


class ConvolutionalDecoder(Decoder):
    """Convolutional decoder with an attention in every layer (sections 3.2 and 3.3).

    The keys of attention are the encoder's states. The values are the sums of states and `embedded` (eq. 2), or the
    states alone if the encoder returns no `embedded` in `Encoded.by_token`.

    Args:
        input_size: Width of the embeddings, of the encoder's states and of the hidden states for the output layer.
        hidden_size: Units of each layer.
        num_layers: Number of layers.
        kernel_size: Number of positions that a convolution reads; the current one is the last.
        learned_positions: Number of learned position vectors, which limits the length of training sentences; None for
            sinusoids.
        alignment_layer: Layer, counted from 1, whose attention is the alignment. None for the mean of all layers,
            because it is not known beforehand which layers align words.
        dropout: Dropout probability of the embeddings and of every convolution's input.

    Raises:
        InputError: If `alignment_layer` exceeds `num_layers`.
    """

    memory_size_key = "input_size"

    def __init__(
        self,
        input_size: Size,
        hidden_size: Size,
        num_layers: NumLayers,
        kernel_size: Annotated[int, Range(1, 1024)] = 3,
        learned_positions: Size | None = 1024,
        alignment_layer: Annotated[int, Range(1)] | None = None,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__()
        check_alignment_layer(alignment_layer, num_layers, "the mean of all layers")
        self.input_size = self.memory_size = self.output_size = input_size
        self.hidden_size = hidden_size
        self.alignment_layer = alignment_layer
        self.max_tokens = learned_positions
        self.positions = Positions(input_size, learned_positions, std=0.1)
        self.dropout = Dropout(dropout)
        self.enter = NormalizedLinear(input_size, hidden_size, gain=1 - dropout)
        self.layers = nn.ModuleList(GatedConvolution(hidden_size, kernel_size, dropout) for _ in range(num_layers))
        self.attentions = nn.ModuleList(StepAttention(hidden_size, input_size) for _ in range(num_layers))
        self.leave = NormalizedLinear(hidden_size, input_size)

    def prepare(self, encoded: Encoded) -> Mapping[str, Tensor]:
        """Return "keys" and "values" [B, S, E], which all layers share.

        The gradient of the states is divided by the number of attentions, the gradient of the embeddings is not
        (section 3.5).
        """
        keys_BSE = scale_gradient(encoded.states_BSH, 1 / len(self.layers))
        embedded_BSE = encoded.by_token.get("embedded")
        return {"keys": keys_BSE, "values": keys_BSE if embedded_BSE is None else (keys_BSE + embedded_BSE) * SUM_SCALE}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return hidden states [B, T, E] and the alignment [B, T, S] for a whole target."""
        positioned_BTE = self.dropout(embedded_BTE + self.positions(embedded_BTE))
        hidden_BTH = self.enter(positioned_BTE)
        weights = []
        for convolution, attention in self._layer_pairs():
            outputs_BTH = convolution(hidden_BTH, convolution.kernel_size - 1)
            outputs_BTH, weights_BTS = attention(outputs_BTH, positioned_BTE, memory)
            hidden_BTH = (outputs_BTH + hidden_BTH) * SUM_SCALE
            weights.append(weights_BTS)
        return self.leave(hidden_BTH), self._alignment(weights)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """Return the initial state.

        It holds the number of tokens so far as `length`, int64 [B, K], and the last inputs of each layer's convolution
        as inputs_1 (the bottom layer) and so on, [B, K, kernel_size - 1, H], all zero.
        """
        batch, states_BSH = memory.mask_BS.shape[0], memory.states_BSH
        tensors = {"length": torch.zeros(batch, beam, dtype=torch.long, device=states_BSH.device)}
        for number, (convolution, _) in enumerate(self._layer_pairs(), start=1):
            shape = batch, beam, convolution.kernel_size - 1, self.hidden_size
            tensors[f"inputs_{number}"] = states_BSH.new_zeros(shape)
        return DecoderState(tensors)

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """Return hidden states [B, K, E], the alignment [B, K, S] and the new state."""
        length_BK = state.tensors["length"]
        positioned_BKE = embedded_BKE + self.positions.at(length_BK, embedded_BKE)
        hidden_BKH = self.enter(positioned_BKE)
        tensors, weights = {"length": length_BK + 1}, []
        for number, (convolution, attention) in enumerate(self._layer_pairs(), start=1):
            name = f"inputs_{number}"
            outputs_BKH, tensors[name] = convolution.step(hidden_BKH, state.tensors[name])
            outputs_BKH, weights_BKS = attention(outputs_BKH, positioned_BKE, memory)
            hidden_BKH = (outputs_BKH + hidden_BKH) * SUM_SCALE
            weights.append(weights_BKS)
        return self.leave(hidden_BKH), self._alignment(weights), DecoderState(tensors)

    def _layer_pairs(self) -> list[tuple[GatedConvolution, StepAttention]]:
        """Return each layer's convolution and attention, from the bottom up."""
        pairs = zip(self.layers, self.attentions, strict=True)
        return [(cast(GatedConvolution, layer), cast(StepAttention, attention)) for layer, attention in pairs]

    def _alignment(self, weights: list[Tensor]) -> Tensor:
        """Return the alignment from the attention weights of all layers."""
        if self.alignment_layer is not None:
            return weights[self.alignment_layer - 1]
        return torch.stack(weights).mean(0)


class StepAttention(nn.Module):
    """Dot-product attention of one decoder layer (eq. 1 and 2), which the paper calls multi-step attention.

    The query is the sum of the layer's projected state and the target embedding.

    Args:
        hidden_size: Width H of the layer.
        memory_size: Width E of keys, values and target embeddings.
    """

    def __init__(self, hidden_size: int, memory_size: int) -> None:
        super().__init__()
        self.query = NormalizedLinear(hidden_size, memory_size)
        self.output = NormalizedLinear(memory_size, hidden_size)

    def forward(self, inputs_BTH: Tensor, positioned_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Add the context to a layer's state.

        A context is a weighted mean of the m real positions of a source sentence. It is multiplied by
        m sqrt(1/m) = sqrt(m) to keep the variance (section 3.5).

        Args:
            inputs_BTH: Output of the layer's convolution; T may be time or the beam.
            positioned_BTE: Target embeddings with positions.
            memory: Memory of the B source sentences.

        Returns:
            State with context [B, T, H], and weights [B, T, S] in fp32 or fp64, which are 0 on padding.
        """
        query_BTE = (self.query(inputs_BTH) + positioned_BTE) * SUM_SCALE
        scores_BTS = query_BTE @ memory.extras["keys"].transpose(1, 2).to(query_BTE.dtype)
        scores_BTS = scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))
        weights_BTS = scores_BTS.masked_fill(~memory.mask_BS[:, None], float("-inf")).softmax(dim=-1)
        values_BSE = memory.extras["values"]
        lengths_B11 = memory.mask_BS.sum(1)[:, None, None].to(values_BSE.dtype)
        context_BTE = (weights_BTS.to(values_BSE.dtype) @ values_BSE) * lengths_B11.sqrt()
        return (inputs_BTH + self.output(context_BTE)) * SUM_SCALE, weights_BTS


class GatedConvolution(nn.Module):
    """Dropout, a convolution, and a gated linear unit; the residual connection is added by the caller.

    Args:
        hidden_size: Width H of inputs and outputs.
        kernel_size: Number of positions in a window.
        dropout: Dropout probability of the inputs.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dropout = Dropout(dropout)
        self.product = NormalizedLinear(kernel_size * hidden_size, 2 * hidden_size, gain=4 * (1 - dropout))

    def forward(self, inputs_BTH: Tensor, num_before: int) -> Tensor:
        """Return the outputs [B, T, H] of whole sequences.

        Args:
            inputs_BTH: Inputs.
            num_before: Number of earlier positions that each output reads. It also reads its own position and
                kernel_size - 1 - num_before later ones.
        """
        num_after = self.kernel_size - 1 - num_before
        padded_BPH = F.pad(self.dropout(inputs_BTH), (0, 0, num_before, num_after))
        num_steps = inputs_BTH.shape[1]
        shifted = [padded_BPH[:, offset : offset + num_steps] for offset in range(self.kernel_size)]
        return self._gate(torch.cat(shifted, dim=2))

    def step(self, inputs_BKH: Tensor, earlier_BKPH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs [B, K, H] at one more position, and `earlier_BKPH` for the next step.

        Args:
            inputs_BKH: Inputs at this position.
            earlier_BKPH: Inputs at the kernel_size - 1 positions before it.
        """
        window_BKPH = torch.cat((earlier_BKPH.to(inputs_BKH.dtype), inputs_BKH[:, :, None]), dim=2)
        return self._gate(window_BKPH.flatten(2)), window_BKPH[:, :, 1:]

    def _gate(self, windows: Tensor) -> Tensor:
        """Return a * sigmoid(b), where a and b are the halves of the convolution's outputs at the given windows."""
        outputs: Tensor = F.glu(self.product(windows), dim=-1)
        return outputs


class NormalizedLinear(nn.Module):
    """Linear map with weight normalization: W = g v/|v| for each output (Salimans and Kingma 2016).

    Weights are drawn from a normal distribution with variance gain / input_size, and biases are zero at first (section
    3.5 and appendix A).

    Args:
        input_size: Width I of the inputs.
        output_size: Width O of the outputs.
        gain: 1 - p for inputs after dropout with probability p; 4 (1 - p) if a gated linear unit follows.
    """

    def __init__(self, input_size: int, output_size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(output_size, input_size).normal_(std=math.sqrt(gain / input_size)))
        self.scale = nn.Parameter(torch.linalg.vector_norm(self.direction.detach(), dim=1))
        self.bias = nn.Parameter(torch.zeros(output_size))

    @property
    def weight(self) -> Tensor:
        """The normalized weight [O, I]."""
        lengths_O1 = torch.linalg.vector_norm(self.direction, dim=1, keepdim=True)
        weight_OI: Tensor = self.direction * (self.scale[:, None] / lengths_O1)
        return weight_OI

    def forward(self, inputs: Tensor) -> Tensor:
        """Return x W^T + b, [..., O], of inputs [..., I]."""
        return F.linear(inputs, self.weight, self.bias)


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """Return the tensor with the same values, but multiply its gradient by the factor."""
    fixed = tensor.detach()
    return fixed + (tensor - fixed) * factor
