"""Label-smoothed cross-entropy, computed in chunks, and the objective that joins it with a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.batch import Batch
from gnmt.config.validate import Range
from gnmt.model.layers import affine
from gnmt.model.seq2seq import Seq2Seq

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at a time: enough for full matrix products."""

ROW_MULTIPLE = {"cpu": 64}
"""Of tokens in a chunk, the last ones of which may be nobody's: a CPU's products have a kernel for each number of rows,
and batches differ in how many real tokens they hold."""

BLOCK_ELEMENTS = {"cpu": 2**20}
"""Of the output weight's gradient, held in the type of the products at a time; all of it where no cache is shared."""


class LabelSmoothedCrossEntropy(nn.Module):
    """Cross-entropy against a target that gives `smoothing` of its mass to all ids that can occur.

    loss = (1 - smoothing) * -log p(y) + smoothing * mean over the allowed ids of -log p; natural logs.
    The logits are of the type of the products (bf16 under autocast), sums over tokens fp32.
    never_produced: ids that no sentence ever holds (PAD, BOS, and UNK where byte fallback makes it impossible);
    they get no mass, or they would sometimes be produced. Smoothed in training mode only: in eval mode this is
    the plain cross-entropy, whose exponential is the perplexity.
    """

    uniform_V: Tensor

    def __init__(
        self,
        vocabulary_size: Annotated[int, Range(4)],
        never_produced: Sequence[int],
        smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.1,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        allowed_V = torch.ones(vocabulary_size)
        allowed_V[list(never_produced)] = 0
        self.register_buffer("uniform_V", allowed_V / allowed_V.sum(), persistent=False)

    def forward(self, hidden_NH: Tensor, output_layer: nn.Linear, labels_N: Tensor) -> Tensor:
        """The sum over N tokens of their losses, fp32 scalar. labels_N: int64."""
        smoothing = self.smoothing if self.training else 0.0
        loss_sum: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            output_layer.weight,
            output_layer.bias,
            labels_N,
            self.uniform_V,
            smoothing,
            torch.is_grad_enabled(),  # inside, it is always off
        )
        return loss_sum


class Gradients(NamedTuple):
    """Of the summed loss, each of the type and shape of its tensor."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of a sum of losses does not depend on what follows but for a factor, so it is computed together
    with the loss, while a chunk's logits are at hand. Backward multiplies it where it lies and hands it over; another
    backward through the same graph (retain_graph) computes it again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_N: Tensor,
        uniform_V: Tensor,
        smoothing: float,
        with_gradient: bool,
    ) -> Tensor:
        inputs = hidden_NH, weight_VH, bias_V, labels_N, uniform_V
        ctx.save_for_backward(*inputs)
        ctx.smoothing, ctx.product_dtype = smoothing, product_dtype(hidden_NH)
        wanted = with_gradient and any(ctx.needs_input_grad)
        loss_sum, ctx.gradients = chunked_cross_entropy(*inputs, smoothing, ctx.product_dtype, wanted)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            hidden_NH, weight_VH, bias_V, labels_N, uniform_V = ctx.saved_tensors
            _, gradients = chunked_cross_entropy(
                hidden_NH, weight_VH, bias_V, labels_N, uniform_V, ctx.smoothing, ctx.product_dtype, True
            )
        assert gradients is not None
        return (*(scaled(gradient, grads[0]) for gradient in gradients), None, None, None, None)


def chunked_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_N: Tensor,
    uniform_V: Tensor,
    smoothing: float,
    dtype: torch.dtype,
    with_gradient: bool,
) -> tuple[Tensor, Gradients | None]:
    """The summed loss (fp32 or better) and, where wanted, its gradients, by products of that dtype, chunk by chunk.

    With z the logits of a token, u the distribution of the smoothed mass and s its share,
    loss = log sum exp z - (1 - s) z_y - s u.z. The part with u is linear in the hidden states: over all tokens
    its value and its gradients are products with one row, W'u, and need no pass over the logits.
    """
    sum_dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    loss_sum = hidden_NH.new_zeros((), dtype=sum_dtype)
    # One cast for all chunks, where autocast would cast the weight again in each.
    weight, bias, hidden_states = weight_VH.to(dtype), bias_V.to(dtype), hidden_NH.to(dtype)
    num_tokens = hidden_NH.shape[0]
    multiple = ROW_MULTIPLE.get(hidden_NH.device.type, 1)
    if num_missing := -num_tokens % multiple:
        hidden_states = F.pad(hidden_states, (0, 0, 0, num_missing))
    gradients = Gradients(*map(torch.empty_like, (hidden_NH, weight_VH, bias_V))) if with_gradient else None
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for chunk in chunks(num_tokens, multiple):
            hidden, labels = hidden_states[chunk], labels_N[chunk]
            real = slice(len(labels))
            logits = affine(hidden, weight, bias)
            places = torch.arange(len(labels), device=labels.device), labels  # plain indices: torch's scatter is slow
            label_logits, largest = logits[places].to(sum_dtype), logits[real].amax(1).to(sum_dtype)
            if gradients is None:
                probabilities = torch.softmax(logits.to(sum_dtype), dim=-1)
            else:
                # In the type of the products, which is what the gradient needs, and in the logits' place.
                probabilities = torch.softmax(logits, dim=-1, out=logits)
            # The largest probability is exp(largest logit - normalizer), and never too small for its logarithm.
            normalizer = largest - probabilities[real].amax(1).to(sum_dtype).log()
            loss_sum += (normalizer - (1 - smoothing) * label_logits).sum()
            if gradients is None:
                continue
            grad = probabilities
            grad[places] += smoothing - 1
            grad[len(labels) :] = 0
            gradients.hidden_NH[chunk] = (grad @ weight)[real]
            first = chunk.start == 0
            accumulate(gradients.bias_V, grad.sum(0), first)  # added up in fp32, whatever the type
            accumulate_product(gradients.weight_VH, grad, hidden, first)
        if smoothing:
            uniform_V = uniform_V.to(weight_VH.dtype)
            mean_row_H, mean_bias = uniform_V @ weight_VH, uniform_V @ bias_V
            hidden_sum_H = hidden_NH.sum(0, dtype=weight_VH.dtype)
            loss_sum -= smoothing * (hidden_sum_H @ mean_row_H + num_tokens * mean_bias)
            if gradients is not None:
                gradients.hidden_NH.sub_(smoothing * mean_row_H.to(hidden_NH.dtype))
                gradients.weight_VH.addr_(uniform_V, hidden_sum_H, alpha=-smoothing)
                gradients.bias_V.sub_(smoothing * num_tokens * uniform_V)
    return loss_sum, gradients


def chunks(num_tokens: int, multiple: int) -> Iterator[slice]:
    """As few pieces of at most CHUNK_TOKENS as possible, about equal: each costs a pass over the weight's gradient.

    The size of all is a multiple of that, and the last may reach beyond the tokens; it is empty where there are none.
    """
    size = max(1, math.ceil(num_tokens / max(1, math.ceil(num_tokens / CHUNK_TOKENS))))
    size = -(-size // multiple) * multiple
    for start in range(0, max(1, num_tokens), size):
        yield slice(start, start + size)


def accumulate_product(sum_VH: Tensor, grad_NV: Tensor, hidden_NH: Tensor, first: bool) -> None:
    """Adds grad' hidden to the sum, or for the first chunk puts it there.

    Where the sum has a wider type than the product, the product is made in blocks of rows that stay in cache until
    they are added.
    """
    if sum_VH.dtype == grad_NV.dtype:
        torch.addmm(sum_VH, grad_NV.T, hidden_NH, beta=0 if first else 1, out=sum_VH)
        return
    num_rows = max(1, BLOCK_ELEMENTS.get(sum_VH.device.type, sum_VH.numel()) // max(1, sum_VH.shape[1]))
    for start in range(0, sum_VH.shape[0], num_rows):
        rows = slice(start, start + num_rows)
        accumulate(sum_VH[rows], grad_NV[:, rows].T @ hidden_NH, first)


def accumulate(total: Tensor, part: Tensor, first: bool) -> None:
    if first:
        total.copy_(part)
    else:
        total += part


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The product, in the gradient's memory where their types agree.

    Otherwise in the factor's type: rounded to bf16, it would scale the whole gradient by up to 0.4% too much or too
    little.
    """
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a matrix product of these hidden states runs: autocast's where that is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class Objective(nn.Module):
    """The summed loss of a batch. Padding positions never enter the output layer."""

    def __init__(self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the target tokens with EOS (fp32 scalar), and their number (int64 scalar)."""
        memory = self.model.encode(batch.source)
        hidden_BTH, _ = self.model.decode(batch.target_input, memory)
        labels = batch.labels
        rows_N, steps_N = real_token_indices(labels.lengths_B, batch.num_labels)
        hidden_NH: Tensor = _SelectTokens.apply(hidden_BTH, rows_N, steps_N)  # type: ignore[no-untyped-call]
        hidden_NH = self.model.output_dropout(hidden_NH)
        loss_sum = self.loss(hidden_NH, self.model.output_layer, labels.ids_BT[rows_N, steps_N])
        return loss_sum, labels.lengths_B.sum()


def real_token_indices(lengths_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Row and step of every real token, row by row, int64 [num_tokens], which is the sum of lengths_B.

    A bool mask as index says the same, but its result's size is then the device's secret, and on CUDA the host stops
    in every step to ask for it.
    """
    rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
    rows_N = torch.repeat_interleave(rows_B, lengths_B, output_size=num_tokens)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return rows_N, torch.arange(num_tokens, device=lengths_B.device) - starts_B[rows_N]


class _SelectTokens(torch.autograd.Function):
    """states_BTH[rows_N, steps_N] for places that all differ.

    The gradient of plain indexing must reckon with places that repeat: it adds, one by one on a CPU and after a sort
    on CUDA. This one copies. It lies in memory as the states do, so the layer below need not turn it round.
    """

    @staticmethod
    def forward(ctx: Any, states_BTH: Tensor, rows_N: Tensor, steps_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_N, steps_N)
        ctx.layout = states_BTH.shape, states_BTH.stride()
        return states_BTH[rows_N, steps_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [grad_NH] = grads
        grad_BTH = grad_NH.new_empty_strided(*ctx.layout).zero_()
        grad_BTH[ctx.saved_tensors] = grad_NH
        return grad_BTH, None, None
