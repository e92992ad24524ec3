"""Beam search (section 7 of Wu et al. 2016), tensorised over sentences and hypotheses.

One step asks the model for the log-probabilities of the next token of every hypothesis and takes the best
2K candidates of each sentence. That is enough: a hypothesis has one EOS candidate, so at most K of the 2K end,
and the K best others are always among them. From these

- a candidate that ends with EOS and is among the best K finishes, and goes to the sentence's finished set;
- the K best candidates that do not end stay active, so finished hypotheses never narrow the beam.

Active hypotheses of a sentence all have the same length and compete by log P; finished ones compete by
equation 14 (gnmt/decoding/scoring.py). Ties go to the better parent hypothesis, then to the lower token id, so the
result is a function of the input alone. A sentence that is done leaves the batch; nothing that belongs to one
sentence (its limit, its finished set, its stopping) looks at another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gnmt.decoding.beam import Hypotheses, best_candidates, grow, merge
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import length_penalty
from gnmt.types import BOS_ID, EOS_ID, InputError, Memory, State, Tokens

__all__ = ["Hypothesis", "SearchModel", "SearchOptions", "search"]


class SearchModel(Protocol):
    """All that search sees of a model; an ensemble looks the same."""

    def encode(self, source: Tokens) -> Memory: ...

    def start(self, memory: Memory, beam: int) -> State: ...

    def step(self, tokens_BK: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor | None, State]:
        """(log-probabilities [B, K, V] fp32, attention [B, K, S] or None, the next state)."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """One result of search.

    tokens: without BOS, with EOS where finished; |Y| is their number. log_prob: log P(Y|X). score: equation 14.
    attention_TS: fp32 on the CPU, a row for each token and a column for each source token with EOS, or None.
    finished: False where the length limit cut it off.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    finished: bool
    attention_TS: Tensor | None = None


class _Sentences(NamedTuple):
    """The sentences that are still being searched, one row each in everything here.

    rows_B: place in the caller's batch. limit_B: largest |Y|.
    """

    rows_B: Tensor
    limit_B: Tensor
    memory: Memory
    decoder: State
    active: Hypotheses
    finished: Hypotheses

    def select(self, rows_N: Tensor) -> _Sentences:
        return _Sentences(
            self.rows_B[rows_N],
            self.limit_B[rows_N],
            self.memory.select(rows_N),
            self.decoder.select(rows_N),
            self.active.select(rows_N),
            self.finished.select(rows_N),
        )


@torch.inference_mode()
def search(
    model: SearchModel,
    source: Tokens,
    options: SearchOptions,
    *,
    banned: tuple[int, ...] = (),
    with_attention: bool = False,
) -> list[list[Hypothesis]]:
    """For each row of `source` (pieces and EOS), its hypotheses, the best first and at least one.

    They are the best (up to K) finished ones, or, only where none finished within the length limit, the active ones,
    flagged. banned: ids that are never produced, masked after the log-softmax. The model must be in evaluation mode.
    Raises InputError for options.coverage_beta > 0 with a model without attention, and for a model whose
    probabilities are not numbers.
    """
    assert EOS_ID not in banned, "a search without EOS never finishes"
    results: list[list[Hypothesis]] = [[] for _ in range(len(source.lengths_B))]
    if not results:
        return results
    sentences = _start(model, source, options, with_attention)
    length = 0  # |Y| of the active hypotheses, the same for all of them
    while True:
        length += 1
        sentences = _step(model, sentences, length, options, banned)
        done_B = _done(sentences, length, options)
        if not done_B.any():
            continue
        leaving = sentences.select(done_B.nonzero().squeeze(1))
        for row, hypotheses in zip(leaving.rows_B.tolist(), _collect(leaving), strict=True):
            results[row] = hypotheses
        if done_B.all():
            return results
        sentences = sentences.select((~done_B).nonzero().squeeze(1))


def _start(model: SearchModel, source: Tokens, options: SearchOptions, with_attention: bool) -> _Sentences:
    """Every sentence with one live hypothesis, BOS, and an empty finished set."""
    memory = model.encode(source)
    device = memory.mask_BS.device
    (num_sentences, width), beam = memory.mask_BS.shape, options.beam_size
    limit_B = (source.lengths_B.double() * options.max_length_factor + options.max_length_offset).long().clamp(min=1)
    empty = Hypotheses(
        tokens_BKT=torch.full((num_sentences, beam, 1), BOS_ID, device=device),
        length_BK=torch.zeros(num_sentences, beam, dtype=torch.long, device=device),
        log_prob_BK=torch.full((num_sentences, beam), -math.inf, device=device),
        score_BK=torch.full((num_sentences, beam), -math.inf, device=device),
        coverage_BKS=torch.zeros(num_sentences, beam, width, device=device),
        attention_BKTS=torch.zeros(num_sentences, beam, 0, width if with_attention else 0, device=device),
    )
    first_log_prob_BK = empty.log_prob_BK.clone()
    first_log_prob_BK[:, 0] = 0.0
    return _Sentences(
        rows_B=torch.arange(num_sentences, device=device),
        limit_B=limit_B.to(device),
        memory=memory,
        decoder=model.start(memory, beam),
        active=empty._replace(log_prob_BK=first_log_prob_BK),
        finished=empty,
    )


def _step(
    model: SearchModel,
    sentences: _Sentences,
    length: int,
    options: SearchOptions,
    banned: tuple[int, ...],
) -> _Sentences:
    """All hypotheses grow by one token, to `length`."""
    beam = options.beam_size
    active = sentences.active
    log_probs_BKV, attention_BKS, decoder = model.step(active.tokens_BKT[:, :, -1], sentences.decoder, sentences.memory)
    log_probs_BKV = _allowed(log_probs_BKV.float(), length, options, banned)
    vocabulary_size = log_probs_BKV.shape[2]
    total_BN = (active.log_prob_BK[:, :, None] + log_probs_BKV).flatten(1)
    log_prob_BN, entries_BN = best_candidates(total_BN, 2 * beam)
    parents_BN, tokens_BN = entries_BN // vocabulary_size, entries_BN % vocabulary_size

    mask_BS = sentences.memory.mask_BS
    candidates = grow(active, parents_BN, tokens_BN, log_prob_BN, attention_BKS, mask_BS, options)
    ends_BN = tokens_BN == EOS_ID
    finished = sentences.finished
    finishing_BK = ends_BN[:, :beam] & (log_prob_BN[:, :beam] > -math.inf)
    if finishing_BK.any():
        finished = merge(finished, Hypotheses(*(tensor[:, :beam] for tensor in candidates)), finishing_BK)

    staying_BK = ends_BN.byte().argsort(dim=1, stable=True)[:, :beam]  # candidates that do not end come first
    active = candidates.take(staying_BK)
    decoder = decoder.reorder(parents_BN.gather(1, staying_BK))
    if options.pruning is not None:
        active = _drop_hopeless(active, finished, options, options.pruning)
    return sentences._replace(decoder=decoder, active=active, finished=finished)


def _allowed(log_probs_BKV: Tensor, length: int, options: SearchOptions, banned: tuple[int, ...]) -> Tensor:
    """-inf for the tokens that may not be tried: banned ones, an early EOS, and those that pruning rules out."""
    forbidden = list(banned) + ([EOS_ID] if length < options.min_length else [])
    if forbidden:
        ids = torch.tensor(forbidden, device=log_probs_BKV.device)
        log_probs_BKV = log_probs_BKV.index_fill(2, ids, -math.inf)
    if options.pruning is not None:
        threshold_BK1 = log_probs_BKV.amax(2, keepdim=True) - options.pruning
        log_probs_BKV = log_probs_BKV.masked_fill(log_probs_BKV < threshold_BK1, -math.inf)
    return log_probs_BKV


def _drop_hopeless(active: Hypotheses, finished: Hypotheses, options: SearchOptions, pruning: float) -> Hypotheses:
    """Active hypotheses far below the best finished one get log P = -inf; both sides without coverage."""
    alpha, constant = options.length_penalty_alpha, options.length_penalty_constant
    best_B1 = finished.log_prob_BK[:, :1] / length_penalty(finished.length_BK[:, :1], alpha, constant)
    normalised_BK = active.log_prob_BK / length_penalty(active.length_BK, alpha, constant)
    hopeless_BK = normalised_BK < best_B1 - pruning
    return active._replace(log_prob_BK=active.log_prob_BK.masked_fill(hopeless_BK, -math.inf))


def _done(sentences: _Sentences, length: int, options: SearchOptions) -> Tensor:
    """bool [B], True for sentences whose search is over."""
    active, finished = sentences.active, sentences.finished
    best_active_B = active.log_prob_BK.amax(1)
    done_B = (sentences.limit_B <= length) | (best_active_B == -math.inf)
    if options.stop == "first" or options.beam_size == 1:
        done_B = done_B | (finished.score_BK > -math.inf).all(1)
    elif options.stop == "bound":
        # log P only falls, lp only rises up to the limit, and cp is never positive.
        longest_B = length_penalty(sentences.limit_B, options.length_penalty_alpha, options.length_penalty_constant)
        done_B = done_B | (finished.score_BK[:, 0] >= best_active_B / longest_B)
    return done_B


def _collect(sentences: _Sentences) -> list[list[Hypothesis]]:
    """The results of sentences whose search is over."""
    results = []
    for row in range(len(sentences.rows_B)):
        num_source_tokens = int(sentences.memory.mask_BS[row].sum())
        hypotheses = _row(sentences.finished, row, num_source_tokens, finished=True)
        if not hypotheses:
            hypotheses = _row(sentences.active, row, num_source_tokens, finished=False)
        if not hypotheses:
            raise InputError(
                "the model gives no continuation of a sentence a probability that is a number above 0; "
                "its weights may have diverged in training: use an earlier checkpoint"
            )
        results.append(hypotheses)
    return results


def _row(hypotheses: Hypotheses, row: int, num_source_tokens: int, finished: bool) -> list[Hypothesis]:
    """The live hypotheses of one sentence, best first."""
    tokens_KT, lengths_K = hypotheses.tokens_BKT[row].tolist(), hypotheses.length_BK[row].tolist()
    log_probs_K, scores_K = hypotheses.log_prob_BK[row].tolist(), hypotheses.score_BK[row].tolist()
    attention_KTS = hypotheses.attention_BKTS[row, :, :, :num_source_tokens].cpu()
    entries = [entry for entry, log_prob in enumerate(log_probs_K) if log_prob > -math.inf]
    return [
        Hypothesis(
            tokens=tuple(tokens_KT[entry][1 : lengths_K[entry] + 1]),
            log_prob=log_probs_K[entry],
            score=scores_K[entry],
            finished=finished,
            attention_TS=attention_KTS[entry, : lengths_K[entry]].clone() if attention_KTS.numel() else None,
        )
        for entry in sorted(entries, key=lambda entry: -scores_K[entry])
    ]
