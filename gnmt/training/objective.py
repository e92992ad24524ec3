"""The training objective: a model and its label-smoothed cross-entropy.

`ObjectiveOptions` is the base class of the choices of the config group `objective`, `MaximumLikelihood` the default
one. `Objective` runs the model and selects the real target tokens. `LabelSmoothedCrossEntropy` computes the loss of
their hidden states chunk by chunk, so that the logits of the whole batch are never in memory. `chunked_cross_entropy`
holds the mathematics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnmt.batch import Batch, Tokens
from gnmt.config.validate import Probability, Range
from gnmt.data.tokenizer import AnyTokenizer
from gnmt.model.layers import affine, product_dtype
from gnmt.model.seq2seq import Seq2Seq

CHUNK_ROWS = 1024
"""Largest number of rows whose logits are in memory at a time; enough for full matrix products."""

ROW_MULTIPLE = {"cpu": 64}
"""By device type: the rows of a chunk are padded to a multiple of this number, 2 for other types. oneDNN compiles a
kernel for each number of rows, and batches differ in their numbers of real tokens."""

BLOCK_ELEMENTS = {"cpu": 2**20}
"""By device type: elements of the output weight's gradient that are computed at a time, so that they stay in the cache
until they are added. Without an entry, all of them."""


class ObjectiveOptions(ABC):
    """Options of a training objective, a choice of the config group `objective`.

    Attributes:
        needs_trained_model: Whether training must start from the weights of initialize_from.
    """

    needs_trained_model: ClassVar[bool] = False

    @abstractmethod
    def make(
        self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy, tokenizer: AnyTokenizer, bleu_tokenize: str
    ) -> Objective:
        """Return the objective.

        Args:
            model: The model to train.
            loss: The cross-entropy, on the device of the model.
            tokenizer: The target tokenizer.
            bleu_tokenize: Tokenization of BLEU for the target language.
        """


@dataclass(frozen=True)
class MaximumLikelihood(ObjectiveOptions):
    """Maximize the likelihood of the references (Wu et al. 2016, equation 7). It has no options."""

    def make(
        self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy, tokenizer: AnyTokenizer, bleu_tokenize: str
    ) -> Objective:
        return Objective(model, loss)


class Objective(nn.Module):
    """Compute the summed loss of a batch. Padding positions do not enter the output layer.

    Attributes:
        statistics_M: Sums over the sentences of the current update, fp32 on the device, for `scalars`; empty here.
    """

    statistics_M: Tensor

    def __init__(self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.statistics_M = torch.zeros(0)

    def begin_update(self, seed: int, step: int) -> None:
        """Prepare for the microbatches of an update: seed random numbers and clear the statistics.

        Args:
            seed: Seed of the run.
            step: Number of the update, counted from 0.
        """
        self.statistics_M = torch.zeros(0, device=self.model.output_layer.weight.device)

    def scalars(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return further metrics by TensorBoard tag.

        Args:
            statistics: `statistics_M`, summed over updates and ranks.
        """
        return {}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the target tokens with EOS (fp32 scalar), and their number (int64 scalar)."""
        return self.cross_entropy(batch)[:2]

    def cross_entropy(self, batch: Batch, attention: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the summed cross-entropy, the number of target tokens, and the attention of `Seq2Seq.decode`.

        Args:
            batch: The batch.
            attention: Whether to return the attention [B, T, S]. It must be False with R-Drop in training mode, which
                repeats the rows.
        """
        source, target, labels = batch.source, batch.target_input, batch.labels
        rows_N, steps_N = real_token_indices(labels.lengths_B, batch.num_labels)
        labels_N = labels.ids_BT[rows_N, steps_N]
        if self.training and self.loss.r_drop:
            # Both passes are one batch of twice as many rows; the two copies of a token become neighbors.
            rows_N = torch.stack((rows_N, rows_N + len(labels.lengths_B)), dim=1).flatten()
            steps_N, labels_N = steps_N.repeat_interleave(2), labels_N.repeat_interleave(2)
            source, target = twice(source), twice(target)
        hidden_BTH, attention_BTS = self.model.decode(target, self.model.encode(source), attention)
        hidden_NH = self.model.output_dropout(select_tokens(hidden_BTH, rows_N, steps_N))
        loss_sum = self.loss(hidden_NH, self.model.output_layer, labels_N, logit_bound=self.model.logit_bound)
        return loss_sum, labels.lengths_B.sum(), attention_BTS


def twice(tokens: Tokens) -> Tokens:
    """Return the rows of the tokens followed by the same rows again."""
    return Tokens(torch.cat((tokens.ids_BT, tokens.ids_BT)), torch.cat((tokens.lengths_B, tokens.lengths_B)))


def real_token_indices(lengths_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return the row and the time step of every real token, row by row.

    Indexing with a bool mask would give the same tokens. Its output size is data-dependent, however, so reading it
    would synchronize with the GPU in every update.

    Args:
        lengths_B: Number of real tokens of each row, int64.
        num_tokens: The sum of lengths_B, known on the host.

    Returns:
        Two int64 tensors of shape [num_tokens].
    """
    rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
    rows_N = torch.repeat_interleave(rows_B, lengths_B, output_size=num_tokens)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return rows_N, torch.arange(num_tokens, device=lengths_B.device) - starts_B[rows_N]


def select_tokens(states_BTH: Tensor, rows_N: Tensor, steps_N: Tensor) -> Tensor:
    """Return states_BTH[rows_N, steps_N] for pairs of indices that are all different, with a fast backward pass."""
    states_NH: Tensor = _SelectTokens.apply(states_BTH, rows_N, steps_N)  # type: ignore[no-untyped-call]
    return states_NH


class _SelectTokens(torch.autograd.Function):
    """Compute states_BTH[rows_N, steps_N] for pairs of indices that are all different.

    The backward pass of plain indexing allows repeated indices, so it adds row by row on a CPU and sorts on CUDA. This
    one copies. Its result has the memory layout of the states, so the layer below does not transpose it.
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


class LabelSmoothedCrossEntropy(nn.Module):
    """Compute cross-entropy with label smoothing over the allowed ids, those that can occur.

    loss = -(1 - smoothing) * log p(y) - smoothing * mean of log p over the allowed ids, in nats.

    With R-Drop (Liang et al. 2021, arXiv 2106.14448), the model predicts each token twice, with two dropout masks. The
    loss of a token is then the mean of both cross-entropies plus r_drop * (KL(p, q) + KL(q, p)) / 2, where p and q are
    the two distributions. An update takes about twice the time.

    In eval mode there is neither smoothing nor R-Drop, so that the exponential of the mean loss is the perplexity.

    Args:
        vocabulary_size: Size of the target vocabulary.
        never_produced: Ids that no sentence contains (PAD, BOS, and UNK where byte fallback makes it impossible). They
            get no smoothing, which would teach the model to produce them.
        smoothing: Fraction of the probability mass that is spread over the allowed ids.
        r_drop: Weight of the divergence between two passes with different dropout; 0 for a single pass.
    """

    uniform_V: Tensor

    def __init__(
        self,
        vocabulary_size: Annotated[int, Range(4)],
        never_produced: Sequence[int],
        smoothing: Probability = 0.1,
        r_drop: Annotated[float, Range(0, 1000)] = 0.0,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.r_drop = r_drop
        allowed_V = torch.ones(vocabulary_size)
        allowed_V[list(never_produced)] = 0
        self.register_buffer("uniform_V", allowed_V / allowed_V.sum(), persistent=False)

    def forward(
        self,
        hidden_NH: Tensor,
        output_layer: nn.Linear,
        labels_N: Tensor,
        weights_N: Tensor | None = None,
        logit_bound: float | None = None,
    ) -> Tensor:
        """Return the loss summed over the tokens, a scalar in fp32 (fp64 for fp64 hidden states).

        Under autocast the logits have autocast's dtype.

        Args:
            hidden_NH: Hidden states of the real tokens. With R-Drop in training mode, there are two rows for each
                token, next to each other.
            output_layer: Projects them to the vocabulary.
            labels_N: The label of each row, int64.
            weights_N: The weight of each row's cross-entropy in the sum, fp32 or fp64, constant for autograd; it may be
                negative. There is then neither smoothing nor R-Drop. None for equal weights of 1.
            logit_bound: Bound to which logits are clipped (Wu et al. 2016, eq. 13); None for no bound.
        """
        plain = weights_N is not None or not self.training
        loss_sum: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            output_layer.weight,
            output_layer.bias,
            labels_N,
            self.uniform_V,
            weights_N,
            0.0 if plain else self.smoothing,
            0.0 if plain else self.r_drop,
            logit_bound,
            torch.is_grad_enabled(),  # inside an autograd function gradients are always disabled
        )
        return loss_sum


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Compute the loss and its gradient in one pass over the chunks.

    The gradient of the summed loss depends on later operations only by a scalar factor. The forward pass therefore
    computes it while the logits of a chunk are in memory, and the backward pass multiplies it in place by that factor.
    A second backward pass through the same graph (retain_graph) computes it again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        labels_N: Tensor,
        uniform_V: Tensor,
        weights_N: Tensor | None,
        smoothing: float,
        r_drop: float,
        logit_bound: float | None,
        with_gradient: bool,
    ) -> Tensor:
        inputs = hidden_NH, weight_VH, bias_V, labels_N, uniform_V, weights_N
        ctx.save_for_backward(*inputs)
        options = smoothing, r_drop, logit_bound, product_dtype(hidden_NH)
        ctx.options = options
        with_gradient = with_gradient and any(ctx.needs_input_grad)
        loss_sum, ctx.gradients = chunked_cross_entropy(*inputs, *options, with_gradient)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            hidden_NH, weight_VH, bias_V, labels_N, uniform_V, weights_N = ctx.saved_tensors
            inputs = hidden_NH, weight_VH, bias_V, labels_N, uniform_V, weights_N
            smoothing, r_drop, logit_bound, dtype = ctx.options
            _, gradients = chunked_cross_entropy(*inputs, smoothing, r_drop, logit_bound, dtype, True)
        assert gradients is not None
        return (*(scale(gradient, grads[0]) for gradient in gradients), None, None, None, None, None, None, None)


class Gradients(NamedTuple):
    """Gradients of the summed loss; each has the dtype and shape of its tensor."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor


def chunked_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor,
    labels_N: Tensor,
    uniform_V: Tensor,
    weights_N: Tensor | None,
    smoothing: float,
    r_drop: float,
    logit_bound: float | None,
    dtype: torch.dtype,
    with_gradient: bool,
) -> tuple[Tensor, Gradients | None]:
    """Compute the summed loss, and its gradients if wanted, chunk by chunk.

    With z the logits of a token, y its label, u the uniform distribution over the allowed ids, and s the smoothing,
    loss = log sum exp z - (1 - s) z_y - s u.z. The term with u is linear in the hidden states: over all tokens, its
    value and its gradients are products with the single row u W, which need no pass over the logits. Where logits are
    clipped it is not linear, so it is computed from the clipped logits, whose gradient is 0.

    Args:
        hidden_NH: Hidden states of the N tokens; with R-Drop those of N / 2 tokens, two neighboring rows for each.
        weight_VH: Weight of the output layer.
        bias_V: Its bias.
        labels_N: Label of each row, int64.
        uniform_V: Uniform distribution over the allowed ids, 0 for the others.
        weights_N: Weight of each row in the sum; None for 1. Smoothing and r_drop must be 0 with weights.
        smoothing: The smoothing s.
        r_drop: Weight of the divergence between the two rows of a token; 0 if each row is a token of its own.
        logit_bound: Bound to which logits are clipped; None for no bound.
        dtype: Dtype of the matrix products.
        with_gradient: Whether to compute the gradients.

    Returns:
        The summed loss, a scalar in fp32 or the wider dtype of the hidden states, and the gradients or None.
    """
    assert weights_N is None or smoothing == r_drop == 0
    sum_dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    loss_sum = hidden_NH.new_zeros((), dtype=sum_dtype)
    # One cast for all chunks. Autocast would cast the weight again in each.
    weight, bias, hidden_states = weight_VH.to(dtype), bias_V.to(dtype), hidden_NH.to(dtype)
    num_rows = hidden_NH.shape[0]
    row_weight = 0.5 if r_drop else 1.0  # of a row's cross-entropy
    multiple = ROW_MULTIPLE.get(hidden_NH.device.type, 2)  # even, so that a chunk holds both rows of a token
    if num_missing := -num_rows % multiple:
        hidden_states = F.pad(hidden_states, (0, 0, 0, num_missing))
    gradients = Gradients(*map(torch.empty_like, (hidden_NH, weight_VH, bias_V))) if with_gradient else None
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for chunk in chunks(num_rows, multiple):
            hidden, labels = hidden_states[chunk], labels_N[chunk]
            real = slice(len(labels))
            logits = affine(hidden, weight, bias)
            clipped = None
            if logit_bound is not None:
                clipped = logits.abs() > logit_bound
                logits.clamp_(-logit_bound, logit_bound)
                loss_sum -= row_weight * smoothing * (logits[real].to(sum_dtype) @ uniform_V.to(sum_dtype)).sum()
            label_indices = torch.arange(len(labels), device=labels.device), labels  # torch's scatter is slower
            label_logits, largest = logits[label_indices].to(sum_dtype), logits[real].amax(1).to(sum_dtype)
            differences = (logits[real][0::2] - logits[real][1::2]).to(sum_dtype) if r_drop else None
            if gradients is None:
                probabilities = torch.softmax(logits.to(sum_dtype), dim=-1)
            else:
                # The gradient needs no wider dtype than that of the products, so the memory of the logits is reused.
                probabilities = torch.softmax(logits, dim=-1, out=logits)
            # The largest probability is exp(largest logit - normalizer) and at least 1/V, so its logarithm is finite.
            normalizer = largest - probabilities[real].amax(1).to(sum_dtype).log()
            losses = normalizer - (1 - smoothing) * label_logits
            if weights_N is None:
                loss_sum += row_weight * losses.sum()
            else:
                loss_sum += losses @ weights_N[chunk].to(sum_dtype)
            divergence_grad = None
            if differences is not None:
                log_ratios = differences.sub_((normalizer[0::2] - normalizer[1::2])[:, None])
                divergence_sum, divergence_grad = symmetric_divergence(log_ratios, probabilities[real])
                loss_sum += r_drop * divergence_sum
            if gradients is None:
                continue
            grad = probabilities
            grad[label_indices] += smoothing - 1
            if divergence_grad is not None:
                grad[real].mul_(row_weight).add_(divergence_grad, alpha=r_drop)
            if clipped is not None:
                grad.sub_(uniform_V.to(grad.dtype), alpha=row_weight * smoothing).masked_fill_(clipped, 0)
            if weights_N is not None:
                grad[real].mul_(weights_N[chunk, None])
            grad[len(labels) :] = 0
            gradients.hidden_NH[chunk] = (grad @ weight)[real]
            first = chunk.start == 0
            accumulate(gradients.bias_V, grad.sum(0), first)  # torch sums bf16 in fp32
            accumulate_product(gradients.weight_VH, grad, hidden, first)
        if smoothing and logit_bound is None:
            uniform_V = uniform_V.to(weight_VH.dtype)
            mean_row_H, mean_bias = uniform_V @ weight_VH, uniform_V @ bias_V
            hidden_sum_H = hidden_NH.sum(0, dtype=weight_VH.dtype)
            uniform_weight = row_weight * smoothing
            loss_sum -= uniform_weight * (hidden_sum_H @ mean_row_H + num_rows * mean_bias)
            if gradients is not None:
                gradients.hidden_NH.sub_(uniform_weight * mean_row_H.to(hidden_NH.dtype))
                gradients.weight_VH.addr_(uniform_V, hidden_sum_H, alpha=-uniform_weight)
                gradients.bias_V.sub_(uniform_weight * num_rows * uniform_V)
    return loss_sum, gradients


def symmetric_divergence(log_ratios_MV: Tensor, probabilities_2MV: Tensor) -> tuple[Tensor, Tensor]:
    """Return (KL(p, q) + KL(q, p)) / 2, summed over M tokens, and its gradient with respect to the logits.

    With d = log p - log q, KL(p, q) = p.d and KL(q, p) = -q.d. The gradient with respect to the logits of p is
    p (d - KL(p, q)) for the first and p - q for the second divergence.

    Args:
        log_ratios_MV: The differences d.
        probabilities_2MV: p and q of each token, in neighboring rows.

    Returns:
        A scalar and a tensor [2M, V], both in the type of `log_ratios_MV`.
    """
    first_MV, second_MV = probabilities_2MV.to(log_ratios_MV.dtype).view(-1, 2, log_ratios_MV.shape[1]).unbind(1)
    forward_M1 = (first_MV * log_ratios_MV).sum(1, keepdim=True)
    backward_M1 = -(second_MV * log_ratios_MV).sum(1, keepdim=True)
    grad_M2V = log_ratios_MV.new_empty(len(log_ratios_MV), 2, log_ratios_MV.shape[1])
    torch.mul(first_MV, log_ratios_MV + (1 - forward_M1), out=grad_M2V[:, 0]).sub_(second_MV)
    torch.mul(second_MV, (1 - backward_M1) - log_ratios_MV, out=grad_M2V[:, 1]).sub_(first_MV)
    return 0.5 * (forward_M1 + backward_M1).sum(), grad_M2V.flatten(0, 1).mul_(0.5)


def chunks(num_rows: int, multiple: int) -> Iterator[slice]:
    """Yield the fewest chunks of at most CHUNK_ROWS rows, about equal in size.

    Few chunks are fast, because each one costs a pass over the gradient of the output weight. The size is a multiple of
    `multiple`, so the last chunk may reach beyond the rows. Without rows there is one chunk, which selects none.
    """
    size = max(1, math.ceil(num_rows / max(1, math.ceil(num_rows / CHUNK_ROWS))))
    size = -(-size // multiple) * multiple
    for start in range(0, max(1, num_rows), size):
        yield slice(start, start + size)


def accumulate_product(sum_VH: Tensor, grad_NV: Tensor, hidden_NH: Tensor, first: bool) -> None:
    """Add grad_NV.T @ hidden_NH to the sum, or overwrite the sum with it for the first chunk.

    If the sum has a wider dtype than the product, the product is computed in blocks of rows that stay in the cache
    until they are added.
    """
    if sum_VH.dtype == grad_NV.dtype:
        torch.addmm(sum_VH, grad_NV.T, hidden_NH, beta=0 if first else 1, out=sum_VH)
        return
    num_rows = max(1, BLOCK_ELEMENTS.get(sum_VH.device.type, sum_VH.numel()) // max(1, sum_VH.shape[1]))
    for start in range(0, sum_VH.shape[0], num_rows):
        rows = slice(start, start + num_rows)
        accumulate(sum_VH[rows], grad_NV[:, rows].T @ hidden_NH, first)


def accumulate(total: Tensor, summand: Tensor, first: bool) -> None:
    """Add the summand to the total, or overwrite the total with it for the first chunk."""
    if first:
        total.copy_(summand)
    else:
        total += summand


def scale(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient by a factor, in place if their dtypes agree.

    Otherwise the product is computed in the dtype of the factor, because rounding the factor to bf16 would change the
    whole gradient by up to 0.4%.
    """
    if gradient.dtype == factor.dtype:
        return gradient.mul_(factor)
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)
