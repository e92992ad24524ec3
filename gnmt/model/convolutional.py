"""Convolutional encoder and decoder (Gehring et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.config.validate import Range
from gnmt.errors import InputError
from gnmt.model.interfaces import Decoder, DecoderState, Encoded, Encoder, Memory
from gnmt.model.layers import Dropout, Positions

SUM_SCALE = math.sqrt(0.5)
"""What a sum of two terms of equal variance is multiplied by to keep that variance (section 3.5)."""


class NormalizedLinear(nn.Module):
    """x W^T + b with W = g v/|v| for each output (Salimans and Kingma 2016).

    Weights start normal with variance gain / input_size, after section 3.5 and appendix A: a layer behind dropout with
    probability p has the gain 1 - p, one before a gated linear unit four times as much. Biases start at zero.
    """

    def __init__(self, input_size: int, output_size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(output_size, input_size).normal_(std=math.sqrt(gain / input_size)))
        self.scale = nn.Parameter(torch.linalg.vector_norm(self.direction.detach(), dim=1))
        self.bias = nn.Parameter(torch.zeros(output_size))

    @property
    def weight(self) -> Tensor:
        """[O, I]."""
        lengths_O1 = torch.linalg.vector_norm(self.direction, dim=1, keepdim=True)
        weight_OI: Tensor = self.direction * (self.scale[:, None] / lengths_O1)
        return weight_OI

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., O] of [..., I]."""
        return F.linear(inputs, self.weight, self.bias)


class GatedConvolution(nn.Module):
    """Dropout, a convolution over kernel_size positions, a gated linear unit, and the connection past them.

    The convolution is a product with the positions of its window side by side, so the same weights serve a whole
    sentence and one step of search. dropout: of what it reads; the connection past it is not touched.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dropout = Dropout(dropout)
        self.product = NormalizedLinear(kernel_size * hidden_size, 2 * hidden_size, gain=4 * (1 - dropout))

    def forward(self, inputs_BTH: Tensor, num_before: int) -> Tensor:
        """GLU of the convolution, [B, T, H]; a window has num_before earlier positions, the others are later ones."""
        num_after = self.kernel_size - 1 - num_before
        padded_BPH = F.pad(self.dropout(inputs_BTH), (0, 0, num_before, num_after))
        num_steps = inputs_BTH.shape[1]
        windows_BTW = torch.cat([padded_BPH[:, place : place + num_steps] for place in range(self.kernel_size)], dim=2)
        return self.gated(windows_BTW)

    def step(self, inputs_BKH: Tensor, earlier_BKPH: Tensor) -> tuple[Tensor, Tensor]:
        """GLU [B, K, H] of the window that ends here, and the kernel_size - 1 inputs [B, K, P, H] for the next step."""
        window_BKPH = torch.cat((earlier_BKPH.to(inputs_BKH.dtype), inputs_BKH[:, :, None]), dim=2)
        return self.gated(window_BKPH.flatten(2)), window_BKPH[:, :, 1:]

    def gated(self, windows: Tensor) -> Tensor:
        """a * sigmoid(b), where a and b are the halves of the product."""
        outputs: Tensor = F.glu(self.product(windows), dim=-1)
        return outputs


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself, to the last bit; its gradient is multiplied by the factor."""
    fixed = tensor.detach()
    return fixed + (tensor - fixed) * factor


class ConvolutionalEncoder(Encoder):
    """Gehring et al. 2017, section 3.2. States have the embeddings' width, whatever the layers have.

    Beside the states it gives, by token, `embedded` [B, S, input_size]: the embeddings with their positions, which the
    convolutional decoder adds to the states.
    input_size: of embeddings and states. hidden_size: of every layer. kernel_size: positions that a convolution sees,
    odd, so that it is the same in both directions. learned_positions: so many learned positions, or None for
    sinusoids. dropout: of the embeddings, and of every convolution's input.
    Raises InputError for an even kernel_size.
    """

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        kernel_size: Annotated[int, Range(1)] = 3,
        learned_positions: Annotated[int, Range(1)] | None = 1024,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(
                f"model.encoder.kernel_size={kernel_size} is even: a window must reach as far back as ahead, so "
                f"choose {kernel_size - 1} or {kernel_size + 1}"
            )
        self.input_size = self.output_size = input_size
        self.max_tokens = learned_positions
        self.positions = Positions(input_size, learned_positions, std=0.1)
        self.dropout = Dropout(dropout)
        self.enter = NormalizedLinear(input_size, hidden_size, gain=1 - dropout)
        self.layers = nn.ModuleList(GatedConvolution(hidden_size, kernel_size, dropout) for _ in range(num_layers))
        self.leave = NormalizedLinear(hidden_size, input_size)

    def forward(self, embedded_BSE: Tensor, lengths_B: Tensor) -> Encoded:
        """States [B, S, input_size] and `embedded`. Padding is zero before every convolution, as what is outside."""
        padding_BS1 = (torch.arange(embedded_BSE.shape[1], device=lengths_B.device) >= lengths_B[:, None])[..., None]
        positioned_BSE = self.dropout(embedded_BSE + self.positions(embedded_BSE))
        states_BSH = self.enter(positioned_BSE)
        for layer in self.layers:
            assert isinstance(layer, GatedConvolution)
            inputs_BSH = states_BSH.masked_fill(padding_BS1, 0.0)
            states_BSH = (layer(inputs_BSH, layer.kernel_size // 2) + inputs_BSH) * SUM_SCALE
        return Encoded(self.leave(states_BSH), {"embedded": positioned_BSE})


class ConvolutionalDecoder(Decoder):
    """Gehring et al. 2017, sections 3.2 and 3.3: multi-step attention, whose steps are the layers.

    Of what an encoder says it reads the states, which have the embeddings' width, and, where it is there, `embedded` by
    token: the attention's keys are the states, its values the sums of both (eq. 2). Of an encoder without `embedded`
    the values are the states.
    Its hidden states have the embeddings' width, whatever the layers have. kernel_size: a convolution sees so many
    positions, its own the last. learned_positions and dropout: as in the encoder.
    alignment_layer: the layer, counted from 1, whose attention the decoder gives as its own; None for the mean of all,
    since it is not known beforehand which layers look at words and which at where to look next.
    Raises InputError where alignment_layer is above num_layers.
    """

    memory_size_key = "input_size"

    def __init__(
        self,
        input_size: Annotated[int, Range(1)],
        hidden_size: Annotated[int, Range(1)],
        num_layers: Annotated[int, Range(1)],
        kernel_size: Annotated[int, Range(1)] = 3,
        learned_positions: Annotated[int, Range(1)] | None = 1024,
        alignment_layer: Annotated[int, Range(1)] | None = None,
        dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
    ) -> None:
        super().__init__()
        if alignment_layer is not None and alignment_layer > num_layers:
            raise InputError(
                f"model.decoder.alignment_layer={alignment_layer}, but model.decoder.num_layers={num_layers}: choose "
                "one of them, or null for the mean of all"
            )
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
        """Keys and values [B, S, E], the same for all layers.

        The gradient of the states is divided by the number of attentions (section 3.5); the embeddings' is not.
        """
        keys_BSE = scale_gradient(encoded.states_BSH, 1 / len(self.layers))
        embedded_BSE = encoded.by_token.get("embedded")
        return {"keys": keys_BSE, "values": keys_BSE if embedded_BSE is None else (keys_BSE + embedded_BSE) * SUM_SCALE}

    def forward(self, embedded_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Hidden [B, T, E] and attention [B, T, S] for the whole target at once."""
        positioned_BTE = self.dropout(embedded_BTE + self.positions(embedded_BTE))
        hidden_BTH = self.enter(positioned_BTE)
        weights = []
        for convolution, attention in self.numbered_layers():
            outputs_BTH = convolution(hidden_BTH, convolution.kernel_size - 1)
            outputs_BTH, weights_BTS = attention(outputs_BTH, positioned_BTE, memory)
            hidden_BTH = (outputs_BTH + hidden_BTH) * SUM_SCALE
            weights.append(weights_BTS)
        return self.leave(hidden_BTH), self.alignment(weights)

    def start(self, memory: Memory, beam: int) -> DecoderState:
        """No step taken: `length` [B, K], and each layer's earlier inputs, all zero, [B, K, kernel_size - 1, H]."""
        batch, states_BSH = memory.mask_BS.shape[0], memory.states_BSH
        tensors = {"length": torch.zeros(batch, beam, dtype=torch.long, device=states_BSH.device)}
        for number, (convolution, _) in enumerate(self.numbered_layers(), start=1):
            shape = batch, beam, convolution.kernel_size - 1, self.hidden_size
            tensors[f"inputs_{number}"] = states_BSH.new_zeros(shape)
        return DecoderState(tensors)

    def step(self, embedded_BKE: Tensor, state: DecoderState, memory: Memory) -> tuple[Tensor, Tensor, DecoderState]:
        """One token for B sentences of K hypotheses, each at its own position."""
        length_BK = state.tensors["length"]
        positioned_BKE = embedded_BKE + self.positions.at(length_BK, embedded_BKE)
        hidden_BKH = self.enter(positioned_BKE)
        tensors, weights = {"length": length_BK + 1}, []
        for number, (convolution, attention) in enumerate(self.numbered_layers(), start=1):
            earlier = f"inputs_{number}"
            outputs_BKH, tensors[earlier] = convolution.step(hidden_BKH, state.tensors[earlier])
            outputs_BKH, weights_BKS = attention(outputs_BKH, positioned_BKE, memory)
            hidden_BKH = (outputs_BKH + hidden_BKH) * SUM_SCALE
            weights.append(weights_BKS)
        return self.leave(hidden_BKH), self.alignment(weights), DecoderState(tensors)

    def numbered_layers(self) -> list[tuple[GatedConvolution, StepAttention]]:
        """Each layer's convolution and attention, the lowest first."""
        pairs = zip(self.layers, self.attentions, strict=True)
        return [(cast(GatedConvolution, one), cast(StepAttention, other)) for one, other in pairs]

    def alignment(self, weights: list[Tensor]) -> Tensor:
        """The attention that stands for that of all layers."""
        if self.alignment_layer is not None:
            return weights[self.alignment_layer - 1]
        return torch.stack(weights).mean(0)


class StepAttention(nn.Module):
    """A layer's attention (eq. 1 and 2): asked by its state and the embedding of the target token, by dot product."""

    def __init__(self, hidden_size: int, memory_size: int) -> None:
        super().__init__()
        self.query = NormalizedLinear(hidden_size, memory_size)
        self.output = NormalizedLinear(memory_size, hidden_size)

    def forward(self, inputs_BTH: Tensor, positioned_BTE: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Inputs with the context [B, T, H], and weights [B, T, S] in fp32 or better, 0 on padding.

        A context is a mean of m source positions, so it is multiplied by m sqrt(1/m) (section 3.5): each row's m is its
        own length.
        """
        query_BTE = (self.query(inputs_BTH) + positioned_BTE) * SUM_SCALE
        scores_BTS = query_BTE @ memory.extras["keys"].transpose(1, 2).to(query_BTE.dtype)
        scores_BTS = scores_BTS.to(torch.promote_types(scores_BTS.dtype, torch.float32))
        weights_BTS = scores_BTS.masked_fill(~memory.mask_BS[:, None], float("-inf")).softmax(dim=-1)
        values_BSE = memory.extras["values"]
        lengths_B11 = memory.mask_BS.sum(1)[:, None, None].to(values_BSE.dtype)
        context_BTE = (weights_BTS.to(values_BSE.dtype) @ values_BSE) * lengths_B11.sqrt()
        return (inputs_BTH + self.output(context_BTE)) * SUM_SCALE, weights_BTS
