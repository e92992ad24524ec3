"""Refinement of a trained model by the expected reward of its own translations (Wu et al. 2016, section 5).

Maximum likelihood never ranks wrong translations by how wrong they are. Here the model draws translations of each
source (`ExpectedReward.draw`), a reward compares them with the reference (gnmt.training.rewards), and the gradient
makes those with a reward above the mean of their sentence more probable (`weigh_samples`).

`ExpectedReward.forward` computes the loss of a batch, as a sum over its sentences i:

    loss = a * cross-entropy of the references - sum_i sum_k q_ik r(Y_ik, Y*_i)    (equation 9 with the sign of a loss)

where Y_i1 to Y_im are the samples. With q = 1/m, this estimates equation 8; with the renormalized probabilities of the
samples as q, it is minimum risk training (Shen et al. 2016). The cross-entropy has the dropout, label smoothing and
R-Drop of the recipe, the reward term has none of them.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gnmt.batch import BOS_ID, EOS_ID, Batch, Tokens, padded
from gnmt.config.validate import Range
from gnmt.data.tokenizer import AnyTokenizer
from gnmt.decoding.options import LARGEST_FACTOR, LARGEST_LENGTH, SearchOptions
from gnmt.decoding.search import search
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.objective import (
    LabelSmoothedCrossEntropy,
    Objective,
    ObjectiveOptions,
    real_token_indices,
    select_tokens,
)
from gnmt.training.rewards import Ids, Reward, RewardName, make_reward

SEARCHED_ELEMENTS = {"cpu": 2**22, "cuda": 2**25}
"""By device type: log-probabilities that a step of sampling computes at most, unless those of one sentence are more."""

_STATISTICS = ("sentences", "reward", "spread", "negative_log_prob", "tokens")
"""The sums in `ExpectedReward.statistics_M`; see `ExpectedReward.scalars`."""


@dataclass(frozen=True)
class ExpectedRewardOptions(ObjectiveOptions):
    """Options of `ExpectedReward`.

    Args:
        num_samples: Samples of each source (m).
        reward: Reward of a sample; see `gnmt.training.rewards.make_reward`.
        likelihood_weight: Weight of the cross-entropy (alpha of equation 9); 0 leaves it out.
        sharpness: None for the expected reward of equation 8. A number for minimum risk training, which is then the
            exponent on the probabilities of the samples (alpha of Shen et al. 2016, equation 12).
        max_length_factor: Target tokens per source token in the length limit of samples.
        max_length_offset: Target tokens added to that limit.
    """

    num_samples: Annotated[int, Range(2, 10_000)] = 15
    reward: RewardName = "subword_gleu"
    likelihood_weight: Annotated[float, Range(0)] = 0.017
    sharpness: Annotated[float, Range(0, open_low=True)] | None = None
    max_length_factor: Annotated[float, Range(0, LARGEST_FACTOR)] = 2.0
    max_length_offset: Annotated[int, Range(0, LARGEST_LENGTH)] = 10

    needs_trained_model: ClassVar[bool] = True

    def make(
        self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy, tokenizer: AnyTokenizer, bleu_tokenize: str
    ) -> ExpectedReward:
        return ExpectedReward(model, loss, self, make_reward(self.reward, tokenizer, bleu_tokenize))


class Samples(NamedTuple):
    """K samples of each of B sentences.

    Attributes:
        tokens: The target ids of each, without BOS. The last one is EOS, unless the length limit cut the sample off.
        log_prob_BK: log P(Y|X) without dropout, fp32 on the device.
    """

    tokens: Sequence[Sequence[Ids]]
    log_prob_BK: Tensor


class ExpectedReward(Objective):
    """Compute the loss of equation 9 in training mode, and the cross-entropy in evaluation mode.

    The samples of a sentence are a function of the weights, the seed of the run, the update and the pair, so they
    depend neither on the other sentences of a microbatch nor on the number of processes.

    Args:
        model: The model, on its device.
        loss: The cross-entropy.
        options: The options.
        reward: The reward.

    Attributes:
        sampling: Options of the search that draws the samples of the current update.
    """

    sampling: SearchOptions

    def __init__(
        self, model: Seq2Seq, loss: LabelSmoothedCrossEntropy, options: ExpectedRewardOptions, reward: Reward
    ) -> None:
        super().__init__(model, loss)
        self.options = options
        self.reward = reward
        self.begin_update(0, 0)

    def begin_update(self, seed: int, step: int) -> None:
        digest = hashlib.blake2b(struct.pack("<qq", seed, step), digest_size=8).digest()
        self.sampling = SearchOptions(
            sampling=True,
            n_best=self.options.num_samples,
            coverage_beta=0.0,
            max_length_factor=self.options.max_length_factor,
            max_length_offset=self.options.max_length_offset,
            seed=int.from_bytes(digest, "little") >> 1,
        )
        self.statistics_M = torch.zeros(len(_STATISTICS), device=self.model.output_layer.weight.device)

    def scalars(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the mean reward, its standard deviation, and the entropy and length of the samples.

        The standard deviation is that of the samples of a sentence, averaged over sentences. The entropy is estimated
        by the mean of -log P per token of the samples, in nats. The length is in tokens with EOS.
        """
        sums = dict(zip(_STATISTICS, statistics, strict=True))
        if not sums["sentences"]:  # all updates were skipped
            return {}
        return {
            "train/reward": sums["reward"] / sums["sentences"],
            "train/reward_spread": sums["spread"] / sums["sentences"],
            "train/sample_entropy": sums["negative_log_prob"] / sums["tokens"],
            "train/sample_length": sums["tokens"] / (sums["sentences"] * self.options.num_samples),
        }

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the sentences (fp32 scalar) and the number of target tokens (int64 scalar)."""
        if not self.training:
            return super().forward(batch)
        sources, references = ids_of_rows(batch.source), ids_of_rows(batch.labels)
        samples = self.draw(sources, batch.pairs_B.tolist())
        loss_sum = self.reward_loss(batch.source, samples, references)
        if not self.options.likelihood_weight:
            return loss_sum, batch.labels.lengths_B.sum()
        cross_entropy, num_tokens = super().forward(batch)
        return self.options.likelihood_weight * cross_entropy + loss_sum, num_tokens

    def draw(self, sources: Sequence[Ids], pairs: Sequence[int]) -> Samples:
        """Draw samples from the model, without gradients.

        No token is suppressed, because the samples must have the probabilities that the gradient is computed for.

        Args:
            sources: Source ids with EOS.
            pairs: Index of each sentence's pair in the store, the key of its random numbers.
        """
        weight_VH = self.model.output_layer.weight
        elements_of_sentence = self.options.num_samples * len(weight_VH)
        with without_dropout(self.model):
            results = search(
                self.model,
                sources,
                self.sampling,
                device=weight_VH.device,
                keys=pairs,
                batch_size=max(1, SEARCHED_ELEMENTS[weight_VH.device.type] // elements_of_sentence),
            )
        # Autocast would give its copies of the weights, which the search has made without gradients, to the next pass.
        torch.clear_autocast_cache()
        found = [result.hypotheses for result in results]
        assert all(len(hypotheses) == self.options.num_samples for hypotheses in found)
        longest = self.model.decoder.max_tokens
        tokens = [[hypothesis.tokens[:longest] for hypothesis in hypotheses] for hypotheses in found]
        log_probs = torch.tensor([[hypothesis.log_prob for hypothesis in hypotheses] for hypotheses in found])
        return Samples(tokens, log_probs.to(weight_VH.device, non_blocking=True))

    def reward_loss(self, source: Tokens, samples: Samples, references: Sequence[Ids]) -> Tensor:
        """Return the reward term of the loss, summed over the sentences, and add to the statistics.

        The value is minus the reward. The gradient is that of sum_k w_k (-log P(Y_k|X)) with the weights w of
        `weigh_samples`.

        Args:
            source: Source ids with EOS.
            samples: The samples of each source.
            references: Reference ids of each source, with EOS.
        """
        device = source.ids_BT.device
        flat = [tokens for of_sentence in samples.tokens for tokens in of_sentence]
        with without_dropout(self.model):
            hidden_NH, labels_N, lengths_M = self.sample_states(source, flat)
            # While the host computes rewards of text, a GPU is still busy with the hidden states.
            of_samples = [[without_eos(tokens) for tokens in of_sentence] for of_sentence in samples.tokens]
            rewards_BK = self.reward(of_samples, [without_eos(tokens) for tokens in references], device)
            weights_BK, expected_B = self.weigh(samples, rewards_BK)
            weights_N = weights_BK.flatten().repeat_interleave(lengths_M, output_size=len(labels_N))
            surrogate: Tensor = self.loss(
                hidden_NH, self.model.output_layer, labels_N, weights_N, self.model.logit_bound
            )
        self.statistics_M = self.statistics_M + torch.stack(
            (
                expected_B.new_tensor(len(expected_B)),
                rewards_BK.mean(1).sum(),
                rewards_BK.std(1).sum(),
                -samples.log_prob_BK.sum(),
                lengths_M.sum(),
            )
        )
        return surrogate - surrogate.detach() - expected_B.sum()

    def sample_states(self, source: Tokens, flat: Sequence[Ids]) -> tuple[Tensor, Tensor, Tensor]:
        """Run the model over the samples with teacher forcing.

        Args:
            source: Source ids with EOS.
            flat: The samples of the first source, then those of the second, and so on.

        Returns:
            Hidden states of all N tokens [N, H], the tokens [N] that they predict, and the length of each sample.
        """
        device = source.ids_BT.device
        target = padded([(BOS_ID, *tokens[:-1]) for tokens in flat], device)
        sentences_M = torch.arange(len(source.lengths_B), device=device).repeat_interleave(
            self.options.num_samples, output_size=len(flat)
        )
        # The sources are encoded once; only the result is copied for each sample.
        memory = self.model.encode(source).select(sentences_M)
        hidden_MTH, _ = self.model.decode(target, memory)
        rows_N, steps_N = real_token_indices(target.lengths_B, sum(map(len, flat)))
        labels_N = torch.tensor([token for tokens in flat for token in tokens]).to(device, non_blocking=True)
        return select_tokens(hidden_MTH, rows_N, steps_N), labels_N, target.lengths_B

    def weigh(self, samples: Samples, rewards_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the samples [B, K] and the expected reward [B]; see `weigh_samples`."""
        sharpness = self.options.sharpness
        if sharpness is None:
            return weigh_samples(torch.full_like(rewards_BK, 1 / self.options.num_samples), rewards_BK)
        distinct = [[tokens not in some[:index] for index, tokens in enumerate(some)] for some in samples.tokens]
        distinct_BK = torch.tensor(distinct).to(rewards_BK.device, non_blocking=True)
        scores_BK = (sharpness * samples.log_prob_BK).masked_fill(~distinct_BK, -math.inf)
        weights_BK, expected_B = weigh_samples(scores_BK.softmax(1), rewards_BK)
        return sharpness * weights_BK, expected_B


def weigh_samples(probabilities_BK: Tensor, rewards_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return q (r - q.r) for each sample, and the expected reward q.r of each sentence.

    With q = 1/m, the sum of the weights times the gradients of log P(Y_k) estimates the gradient of equation 8 with the
    mean reward of the samples as baseline. Because a sample is part of the mean, the expectation of the estimate is
    1 - 1/m times the gradient.

    In minimum risk training, q_k = P(Y_k)^a / sum of P(Y_j)^a over the distinct samples. The gradient of q.r is then
    the sum of a times the weights times the gradients of log P(Y_k).

    Args:
        probabilities_BK: q, which adds up to 1 for each sentence.
        rewards_BK: r.
    """
    expected_B = (probabilities_BK * rewards_BK).sum(1)
    return probabilities_BK * (rewards_BK - expected_B[:, None]), expected_B


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch off dropout inside this context; the model must be in training mode and is so again afterwards.

    Recurrent modules stay in training mode, because cuDNN computes no gradients otherwise. They have no dropout of
    their own.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.training = True
    try:
        yield
    finally:
        model.train()


def ids_of_rows(tokens: Tokens) -> list[list[int]]:
    """Return the real ids of each row."""
    return [ids[:length] for ids, length in zip(tokens.ids_BT.tolist(), tokens.lengths_B.tolist(), strict=True)]


def without_eos(tokens: Ids) -> Ids:
    """Return the ids without EOS at their end, if it is there."""
    return tokens[:-1] if tokens and tokens[-1] == EOS_ID else tokens
