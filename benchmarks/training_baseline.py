"""The plain GNMT training that training speed is measured against.

It is written in the straightforward way with PyTorch's modules in fp32: nn.LSTM over packed sequences in the encoder
and over the padded target in the decoder, additive attention by tanh over the whole [B, T, S, A], logits of the whole
padded target, log_softmax with smoothing as a mean over it, Adam without fused kernels, and clip_grad_norm_. It uses
the weights of the model under test, so loss and gradients can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gnmt.batch import Batch
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.recurrent.layers import Bidirectional, is_residual
from gnmt.model.seq2seq import Seq2Seq


class PlainTranslator(nn.Module):
    """A plain copy of a Seq2Seq with LSTM encoder, GNMT decoder and normalized additive attention."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        encoder, decoder = model.encoder, model.decoder
        assert isinstance(encoder, LSTMEncoder)
        assert isinstance(decoder, GNMTDecoder)
        attention = decoder.attention
        assert isinstance(attention, AdditiveAttention)
        assert attention.scale is not None
        self.residual_from = {"encoder": encoder.residual_from, "decoder": decoder.residual_from}
        self.query = decoder.query
        self.dropout = {"encoder": nn.Dropout(encoder.dropout.p), "decoder": nn.Dropout(decoder.dropout.p)}
        self.source_embedding = nn.Embedding(*model.source_embedding.weight.shape, padding_idx=0)
        self.target_embedding = nn.Embedding(*model.target_embedding.weight.shape, padding_idx=0)
        self.encoder = nn.ModuleList(map(plain_lstm, encoder.layers))
        self.decoder = nn.ModuleList(map(plain_lstm, decoder.layers()))
        self.query_projection = nn.Linear(attention.query_size, len(attention.direction), bias=False)
        self.key_projection = nn.Linear(attention.memory_size, len(attention.direction))
        self.direction = nn.Parameter(torch.empty_like(attention.direction))
        self.scale = nn.Parameter(torch.empty_like(attention.scale))
        self.output_layer = nn.Linear(model.output_layer.in_features, model.output_layer.out_features)
        self.load_state_dict({plain_name(name): tensor for name, tensor in model.state_dict().items()})

    def forward(self, batch: Batch, uniform_V: Tensor, smoothing: float) -> Tensor:
        """Return the loss summed over real target tokens."""
        states_BSH = self.encode(batch)
        inputs, labels = batch.target_input, batch.labels
        hidden_BTH = self.decode(inputs.ids_BT, states_BSH, batch.source.mask_BT)
        log_probs_BTV = torch.log_softmax(self.output_layer(hidden_BTH), dim=-1)
        label_BT = log_probs_BTV.gather(2, labels.ids_BT[..., None]).squeeze(2)
        mean_BT = (log_probs_BTV * uniform_V).sum(-1)
        loss_BT = -(1 - smoothing) * label_BT - smoothing * mean_BT
        return loss_BT.masked_fill(~labels.mask_BT, 0).sum()

    def encode(self, batch: Batch) -> Tensor:
        """Return encoder states [B, S, H]."""
        embedded_BSE = self.source_embedding(batch.source.ids_BT)
        packed = pack_padded_sequence(
            embedded_BSE, batch.source.lengths_B.cpu(), batch_first=True, enforce_sorted=False
        )
        for number, layer in enumerate(self.encoder, start=1):
            inputs_NI = packed.data
            outputs = layer(with_data(packed, self.dropout["encoder"](inputs_NI)))[0]
            if is_residual(number, self.residual_from["encoder"]) and outputs.data.shape == inputs_NI.shape:
                outputs = with_data(outputs, outputs.data + inputs_NI)
            packed = outputs
        states_BSH: Tensor = pad_packed_sequence(packed, batch_first=True)[0]
        return states_BSH

    def decode(self, target_BT: Tensor, states_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Return hidden states [B, T, H]."""
        dropout = self.dropout["decoder"]
        bottom, *upper = self.decoder
        outputs_BTH = bottom(dropout(self.target_embedding(target_BT)))[0]
        query_BTH = outputs_BTH
        if self.query == "previous":
            query_BTH = torch.cat((torch.zeros_like(outputs_BTH[:, :1]), outputs_BTH[:, :-1]), dim=1)
        context_BTH = self.attend(query_BTH, states_BSH, mask_BS)
        for number, layer in enumerate(upper, start=2):
            inputs_BTH = outputs_BTH
            outputs_BTH = layer(dropout(torch.cat((inputs_BTH, context_BTH), dim=-1)))[0]
            if is_residual(number, self.residual_from["decoder"]):
                outputs_BTH = outputs_BTH + inputs_BTH
        return outputs_BTH

    def attend(self, query_BTH: Tensor, states_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Return the context [B, T, H]."""
        query_BTA, keys_BSA = self.query_projection(query_BTH), self.key_projection(states_BSH)
        hidden_BTSA = torch.tanh(query_BTA[:, :, None] + keys_BSA[:, None])
        scores_BTS = hidden_BTSA @ (self.scale * self.direction / self.direction.norm())
        weights_BTS = torch.softmax(scores_BTS.masked_fill(~mask_BS[:, None], float("-inf")), dim=-1)
        return weights_BTS @ states_BSH

    def train(self, mode: bool = True) -> PlainTranslator:
        for dropout in self.dropout.values():  # in a dictionary, so not registered as submodules
            dropout.train(mode)
        super().train(mode)
        return self


def plain_lstm(layer: nn.Module) -> nn.LSTM:
    """Return torch's LSTM of the same sizes."""
    one = layer.ahead if isinstance(layer, Bidirectional) else layer
    return nn.LSTM(one.input_size, one.hidden_size, batch_first=True, bidirectional=one is not layer)


def plain_name(name: str) -> str:
    """Return the baseline's name of a Seq2Seq parameter."""
    name = re.sub(r"^encoder\.layers\.(\d+)\.back\.(.*)", r"encoder.\1.\2_reverse", name)
    name = re.sub(r"^encoder\.layers\.(\d+)\.(?:ahead\.)?", r"encoder.\1.", name)
    name = re.sub(r"^decoder\.bottom\.", "decoder.0.", name)
    name = re.sub(r"^decoder\.upper\.(\d+)\.", lambda found: f"decoder.{int(found[1]) + 1}.", name)
    return name.removeprefix("decoder.attention.")


def with_data(packed: PackedSequence, data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def baseline_step(
    model: Seq2Seq, uniform_V: Tensor, smoothing: float, learning_rate: float, clip_norm: float
) -> Callable[[Batch], object]:
    """Return a call that makes one update of a plain copy of the model."""
    plain = PlainTranslator(model).to(uniform_V.device).train()
    optimizer = torch.optim.Adam(plain.parameters(), learning_rate, foreach=False, fused=False)

    def step(batch: Batch) -> Tensor:
        batch = batch.to(uniform_V.device)
        optimizer.zero_grad()
        loss = plain(batch, uniform_V, smoothing) / batch.num_labels
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
        optimizer.step()
        return loss.detach()

    return step
