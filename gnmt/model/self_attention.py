"""The sublayers of a Transformer (Vaswani et al. 2017, section 3): multi-head attention, feed-forward, residuals.

Keys and values travel as [B, S, H] with the heads side by side, so that they fit into Memory and State.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.model.dropout import Dropout
from gnmt.types import InputError

Norm = Literal["pre", "post"]


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself (section 3.2.2): one product for queries, keys and values.

    dropout: of the attention weights, in training.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.projection = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, inputs_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
        """[B, T, H] over the positions where the mask is True; None: over a position's own and all before it."""
        query_BhTD, keys_BhTD, values_BhTD = (
            split_heads(tensor_BTH, self.num_heads) for tensor_BTH in self.projection(inputs_BTH).chunk(3, dim=-1)
        )
        mask = None if mask_BT is None else mask_BT[:, None, None]
        context_BhTD = attend(query_BhTD, keys_BhTD, values_BhTD, mask, self.dropout if self.training else 0.0)
        outputs_BTH: Tensor = self.output(join_heads(context_BhTD))
        return outputs_BTH

    def step(
        self, inputs_BKH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, length_BK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position further: its output [B, K, H], and keys and values with its own, [B, K, T + 1, H].

        length_BK: int64, how many of the T earlier positions are each row's.
        """
        query_BKH, key_BKH, value_BKH = self.projection(inputs_BKH).chunk(3, dim=-1)
        keys_BKTH, values_BKTH = appended(keys_BKTH, key_BKH, length_BK), appended(values_BKTH, value_BKH, length_BK)
        positions_T = torch.arange(keys_BKTH.shape[2], device=length_BK.device)
        mask_NT = positions_T <= length_BK.flatten()[:, None]
        context_NhTD = attend(
            split_heads(query_BKH.reshape(-1, 1, query_BKH.shape[2]), self.num_heads),
            split_heads(keys_BKTH.flatten(0, 1), self.num_heads),
            split_heads(values_BKTH.flatten(0, 1), self.num_heads),
            mask_NT[:, None, None],
        )
        return self.output(join_heads(context_NhTD).view(query_BKH.shape)), keys_BKTH, values_BKTH


class SourceAttention(nn.Module):
    """Multi-head attention to the encoder's states, whose keys and values are projected once (section 3.2.3).

    Every target position may look at every real source position, so the hypotheses of a sentence take the place of
    time in a step: nothing is copied for the beam.
    """

    def __init__(self, hidden_size: int, memory_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.projection = nn.Linear(memory_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def prepare(self, states_BSM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, S, H]."""
        keys_BSH, values_BSH = self.projection(states_BSM).chunk(2, dim=-1)
        return keys_BSH, values_BSH

    def forward(self, inputs_BTH: Tensor, keys_BSH: Tensor, values_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, T, H], by the fused kernel, which does not say where it looked."""
        context_BhTD = attend(
            split_heads(self.query(inputs_BTH), self.num_heads),
            split_heads(keys_BSH, self.num_heads),
            split_heads(values_BSH, self.num_heads),
            mask_BS[:, None, None],
            self.dropout if self.training else 0.0,
        )
        outputs_BTH: Tensor = self.output(join_heads(context_BhTD))
        return outputs_BTH

    def with_weights(
        self, inputs_BTH: Tensor, keys_BSH: Tensor, values_BSH: Tensor, mask_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, and the weights [B, T, S] in fp32 or better, before dropout: the mean over the heads."""
        query_BhTD = split_heads(self.query(inputs_BTH), self.num_heads)
        keys_BhSD, values_BhSD = split_heads(keys_BSH, self.num_heads), split_heads(values_BSH, self.num_heads)
        scores_BhTS = (query_BhTD / query_BhTD.shape[-1] ** 0.5) @ keys_BhSD.transpose(2, 3)
        scores_BhTS = scores_BhTS.to(torch.promote_types(scores_BhTS.dtype, torch.float32))
        weights_BhTS = scores_BhTS.masked_fill(~mask_BS[:, None, None], float("-inf")).softmax(dim=-1)
        kept_BhTS = F.dropout(weights_BhTS, self.dropout, self.training)
        outputs_BTH = self.output(join_heads(kept_BhTS.to(values_BhSD.dtype) @ values_BhSD))
        return outputs_BTH, weights_BhTS.mean(1)


class FeedForward(nn.Module):
    """Two layers with a ReLU between them, at each position by itself (section 3.3)."""

    def __init__(self, hidden_size: int, feed_forward_size: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, feed_forward_size)
        self.outer = nn.Linear(feed_forward_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.outer(self.dropout(torch.relu(self.inner(inputs))))
        return outputs


class Residual(nn.Module):
    """What stands around a sublayer: layer normalisation, dropout of its output, and the connection past it.

    post: norm(x + sublayer(x)), as in the paper. pre: x + sublayer(norm(x)), which trains without a careful warm-up
    (Xiong et al. 2020); a stack of these needs one more norm at its end.
    """

    def __init__(self, hidden_size: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.is_pre = norm == "pre"
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def before(self, inputs: Tensor) -> Tensor:
        """What the sublayer reads."""
        read: Tensor = self.norm(inputs) if self.is_pre else inputs
        return read

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Its outputs joined with what it was given."""
        joined: Tensor = inputs + self.dropout(outputs)
        return joined if self.is_pre else self.norm(joined)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention (equation 1): [B, heads, T, D] like query; keys and values [B, heads, S, D].

    mask: bool, broadcast to [B, heads, T, S], where a query may look; None: at its own position and all before it.
    Gradients in bf16 on a CPU come from plain products: the backward of torch's fused kernel is slow there (torch
    2.13, two Zen 4 cores: 35 ms against 5 for 136 sentences of 15 tokens, 105 against 70 for 4 of 500), while in fp32
    and without gradients the fused kernel is the better one.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, keys, values, mask, dropout, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    scores_BhTS = (query * query.shape[-1] ** -0.5) @ keys.transpose(2, 3)
    weights_BhTS = scores_BhTS.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return F.dropout(weights_BhTS, dropout).to(values.dtype) @ values


def final_norm(hidden_size: int, norm: Norm) -> nn.Module:
    """What ends a stack of layers."""
    return nn.LayerNorm(hidden_size) if norm == "pre" else nn.Identity()


def check_heads(hidden_size: int, num_heads: int, key: str) -> None:
    """Raises InputError where the heads cannot share the width; key: the component's in a config, for the message."""
    if hidden_size % num_heads:
        raise InputError(
            f"{key}.num_heads={num_heads} does not divide {key}.hidden_size={hidden_size}: every head takes an equal "
            "part of the width, so choose a divisor of it"
        )


def xavier(module: nn.Module) -> None:
    """Weights of every Linear uniform after Glorot and Bengio (2010), as in the paper's code; biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def split_heads(tensor_BTH: Tensor, num_heads: int) -> Tensor:
    """[B, T, H] as [B, heads, T, H / heads], a view."""
    return tensor_BTH.view(*tensor_BTH.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(tensor_BhTD: Tensor) -> Tensor:
    """Undoes split_heads."""
    return tensor_BhTD.transpose(1, 2).flatten(2)


def appended(entries_BKTH: Tensor, entry_BKH: Tensor, length_BK: Tensor) -> Tensor:
    """The entries [B, K, T + 1, H] with one more behind each row's own; what lies behind that is of no meaning."""
    grown_BKTH = torch.cat((entries_BKTH.to(entry_BKH.dtype), entry_BKH[:, :, None]), dim=2)
    flat_NTH = grown_BKTH.flatten(0, 1)
    rows_N = torch.arange(len(flat_NTH), device=length_BK.device)
    flat_NTH[rows_N, length_BK.flatten()] = entry_BKH.flatten(0, 1)
    return flat_NTH.view(grown_BKTH.shape)
