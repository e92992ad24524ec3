"""The hypotheses of a beam, and what happens to them in a step: chosen, grown, kept when finished."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import length_penalty, score
from gnmt.decoding.topk import best_candidates
from gnmt.types import join_rows, take_entries


class Hypotheses(NamedTuple):
    """Everything that hypotheses own but the decoder's state; every tensor is [B, K, ...].

    tokens_BKT: BOS and the tokens, behind which lies anything; T is one more than the longest limit in flight.
    length_BK: |Y|. log_prob_BK is -inf for an empty, ended or dropped entry, which can never come back.
    score_BK: equation 14 for results, -inf for active hypotheses. coverage_BKS: attention so far, summed over the
    tokens; no columns where the coverage penalty is off. slots_BKT: for each token, the entry of the beam that
    was asked for it (attention is kept by entry, not moved with hypotheses); no columns where nobody asked for it.
    """

    tokens_BKT: Tensor
    length_BK: Tensor
    log_prob_BK: Tensor
    score_BK: Tensor
    coverage_BKS: Tensor
    slots_BKT: Tensor

    def take(self, entries_BN: Tensor) -> Hypotheses:
        """The given entries of each sentence's beam: the only place where hypotheses change their places."""
        return Hypotheses(*take_entries(self, entries_BN))

    def select(self, rows_N: Tensor) -> Hypotheses:
        """The given sentences."""
        return Hypotheses(*(tensor.index_select(0, rows_N) for tensor in self))

    def trim(self, target_width: int, source_width: int) -> Hypotheses:
        """Views of so many columns of T and of S; what is cut off was padding."""
        return self._replace(
            tokens_BKT=self.tokens_BKT[:, :, :target_width],
            coverage_BKS=self.coverage_BKS[:, :, :source_width],
            slots_BKT=self.slots_BKT[:, :, :target_width],
        )

    @staticmethod
    def join(some: Hypotheses, others: Hypotheses) -> Hypotheses:
        """The sentences of both; T and S become the wider one's."""
        return Hypotheses(*(join_rows(pair) for pair in zip(some, others, strict=True)))


class Candidates(NamedTuple):
    """What hypotheses may become, the best first: a hypothesis, its next token, and the sum that they make."""

    log_prob_BN: Tensor
    parents_BN: Tensor
    tokens_BN: Tensor

    def take(self, columns_BM: Tensor) -> Candidates:
        return Candidates(*(tensor.gather(1, columns_BM) for tensor in self))


def beam_candidates(log_probs_BKV: Tensor, log_prob_BK: Tensor, pruning: float | None) -> Candidates:
    """The best 2K of each sentence, ties to the better parent and then to the lower token; for K = 1 the best alone.

    No hypothesis can give more than 2K of them, so each one's best 2K tokens are found first, in log_probs_BKV as it
    lies, and only those are added up.
    """
    beam, vocabulary_size = log_probs_BKV.shape[1:]
    num_candidates = 2 * beam if beam > 1 else 1  # one beam entry ends with its first EOS, so no second is needed
    of_each = min(num_candidates, vocabulary_size)
    best_MC, tokens_MC = best_candidates(log_probs_BKV.flatten(0, 1), of_each)
    best_BKC, tokens_BKC = best_MC.view(-1, beam, of_each), tokens_MC.view(-1, beam, of_each)
    if pruning is not None:
        best_BKC = best_BKC.masked_fill(best_BKC < best_BKC[:, :, :1] - pruning, -math.inf)
    total_BM = (log_prob_BK[:, :, None] + best_BKC).flatten(1)
    log_prob_BN, columns_BN = best_candidates(total_BM, num_candidates)
    return Candidates(log_prob_BN, columns_BN // of_each, tokens_BKC.flatten(1).gather(1, columns_BN))


def follow(
    candidates: Candidates, forced_B: Tensor, active: Hypotheses, token_B1: Tensor, token_log_prob_BK: Tensor
) -> Candidates:
    """The candidates, but where forced_B every hypothesis goes on with the one token that its prefix says."""
    beam, num_candidates = active.log_prob_BK.shape[1], candidates.tokens_BN.shape[1]
    followed_BN = torch.full_like(candidates.log_prob_BN, -math.inf)
    followed_BN[:, :beam] = active.log_prob_BK + token_log_prob_BK
    entries_N = torch.arange(num_candidates, device=token_B1.device).clamp(max=beam - 1)
    forced_B1 = forced_B[:, None]
    return Candidates(
        torch.where(forced_B1, followed_BN, candidates.log_prob_BN),
        torch.where(forced_B1, entries_N, candidates.parents_BN),
        torch.where(forced_B1, token_B1, candidates.tokens_BN),
    )


def grow(active: Hypotheses, chosen: Candidates, length_B: Tensor, attention_BKS: Tensor | None) -> Hypotheses:
    """The chosen candidates as hypotheses: each its parent's with one more token and that step's attention.

    length_B: their |Y|, token included. They are not scored.
    """
    parents_BN = chosen.parents_BN
    grown = active.take(parents_BN)
    length_BN = length_B[:, None].expand_as(parents_BN)
    grown.tokens_BKT.scatter_(2, length_BN[:, :, None], chosen.tokens_BN[:, :, None])
    if grown.slots_BKT.shape[2]:
        grown.slots_BKT.scatter_(2, length_BN[:, :, None], parents_BN[:, :, None])
    coverage_BNS = grown.coverage_BKS
    if attention_BKS is not None and coverage_BNS.shape[2]:
        [step_BNS] = take_entries([attention_BKS], parents_BN)
        coverage_BNS = coverage_BNS + step_BNS.float()
    return grown._replace(length_BK=length_BN, log_prob_BK=chosen.log_prob_BN, coverage_BKS=coverage_BNS)


def scored(
    hypotheses: Hypotheses, counts_BK: Tensor, mask_BS: Tensor, has_attention: bool, options: SearchOptions
) -> Hypotheses:
    """The hypotheses with their scores where counts_BK, emptied elsewhere."""
    coverage_BKS = hypotheses.coverage_BKS if has_attention else None
    score_BK = score(hypotheses.log_prob_BK, hypotheses.length_BK, coverage_BKS, mask_BS[:, None], options)
    return hypotheses._replace(
        log_prob_BK=hypotheses.log_prob_BK.masked_fill(~counts_BK, -math.inf),
        score_BK=score_BK.masked_fill(~counts_BK, -math.inf),
    )


def keep_best(results: Hypotheses, new: Hypotheses) -> Hypotheses:
    """The best K of both, best first; ties to those that came earlier. Emptied entries count for nothing."""
    both = Hypotheses(*(torch.cat(pair, 1) for pair in zip(results, new, strict=True)))
    order = both.score_BK.sort(dim=1, descending=True, stable=True).indices
    return both.take(order[:, : results.score_BK.shape[1]])


def keep_each(results: Hypotheses, new: Hypotheses) -> Hypotheses:
    """Each of the new ones in its own place: samples do not compete."""
    arrived_BK = new.log_prob_BK > -math.inf
    return Hypotheses(
        *(
            torch.where(arrived_BK.view(*arrived_BK.shape, *[1] * (old.dim() - 2)), now, old)
            for old, now in zip(results, new, strict=True)
        )
    )


def drop_hopeless(active: Hypotheses, finished: Hypotheses, options: SearchOptions, pruning: float) -> Hypotheses:
    """Active hypotheses far below the best finished one get log P = -inf; both sides without coverage."""
    alpha, constant = options.length_penalty_alpha, options.length_penalty_constant
    best_B1 = finished.log_prob_BK[:, :1] / length_penalty(finished.length_BK[:, :1], alpha, constant)
    normalised_BK = active.log_prob_BK / length_penalty(active.length_BK, alpha, constant)
    hopeless_BK = normalised_BK < best_B1 - pruning
    return active._replace(log_prob_BK=active.log_prob_BK.masked_fill(hopeless_BK, -math.inf))
