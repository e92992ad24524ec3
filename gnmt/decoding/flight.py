"""The sentences in flight, and one step of all of them.

Each sentence owns its length, limit, prefix and results, so sentences enter and leave at any step. One that is done
and has not left yet is frozen: nothing that the steps meanwhile compute can change its results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gnmt.decoding.beam import (
    Candidates,
    Hypotheses,
    beam_candidates,
    drop_hopeless,
    follow,
    grow,
    keep_best,
    keep_each,
    scored,
)
from gnmt.decoding.constraints import rule_out
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.sampling import sample
from gnmt.decoding.scoring import length_penalty
from gnmt.types import BOS_ID, EOS_ID, Memory, State, Tokens, join_rows


class SearchModel(Protocol):
    """All that search sees of a model; an ensemble looks the same."""

    def encode(self, source: Tokens) -> Memory: ...

    def start(self, memory: Memory, beam: int) -> State: ...

    def step(self, tokens_BK: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor | None, State]:
        """(log-probabilities [B, K, V] fp32, attention [B, K, S] or None, the next state).

        The log-probabilities are the caller's: search writes over those of tokens that may not come.
        """
        ...


class Sentences(NamedTuple):
    """What a sentence owns beside its hypotheses.

    length_B: steps taken, |Y| of the active hypotheses. limit_B: the largest |Y|. longest_penalty_B: lp at the limit.
    done_B: bool. keys_B: what seeds sampling. prefix_BP, prefix_length_B: the target ids that come first.
    """

    length_B: Tensor
    limit_B: Tensor
    longest_penalty_B: Tensor
    done_B: Tensor
    keys_B: Tensor
    prefix_BP: Tensor
    prefix_length_B: Tensor

    @staticmethod
    def start(limit_B: Tensor, keys_B: Tensor, prefix: Tokens, options: SearchOptions) -> Sentences:
        """Nothing said yet."""
        return Sentences(
            length_B=torch.zeros_like(limit_B),
            limit_B=limit_B,
            longest_penalty_B=length_penalty(limit_B, options.length_penalty_alpha, options.length_penalty_constant),
            done_B=torch.zeros_like(limit_B, dtype=torch.bool),
            keys_B=keys_B,
            prefix_BP=prefix.ids_BT,
            prefix_length_B=prefix.lengths_B,
        )


class Flight(NamedTuple):
    """All that is in flight, one row for each sentence in everything here.

    attention_BTKS: what the decoder looked at in each step, by entry of the beam; see Hypotheses.slots_BKT.
    """

    sentences: Sentences
    memory: Memory
    decoder: State
    active: Hypotheses
    results: Hypotheses
    attention_BTKS: Tensor

    @staticmethod
    def start(
        model: SearchModel,
        source: Tokens,
        sentences: Sentences,
        target_width: int,
        options: SearchOptions,
        with_attention: bool,
    ) -> Flight:
        """Encodes the sources; each has BOS as its live hypothesis (each of its live samples) and no results.

        target_width: columns of T, one more than the longest limit.
        """
        memory = model.encode(source)
        device = memory.mask_BS.device
        (num_sentences, source_width), beam = memory.mask_BS.shape, options.num_hypotheses
        shape = (num_sentences, beam)
        empty = Hypotheses(
            tokens_BKT=torch.full((*shape, target_width), BOS_ID, device=device),
            length_BK=torch.zeros(shape, dtype=torch.long, device=device),
            log_prob_BK=torch.full(shape, -math.inf, device=device),
            score_BK=torch.full(shape, -math.inf, device=device),
            coverage_BKS=torch.zeros(*shape, source_width if options.coverage_beta else 0, device=device),
            slots_BKT=torch.zeros(*shape, target_width if with_attention else 0, dtype=torch.long, device=device),
        )
        log_prob_BK = empty.log_prob_BK.clone()
        log_prob_BK[:, : beam if options.sampling else 1] = 0.0
        attention_shape = (num_sentences, target_width, beam, source_width if with_attention else 0)
        return Flight(
            sentences=sentences,
            memory=memory,
            decoder=model.start(memory, beam),
            active=empty._replace(log_prob_BK=log_prob_BK),
            results=empty,
            attention_BTKS=torch.zeros(attention_shape, device=device),
        )

    def only(self, rows_N: Tensor) -> Flight:
        """Those sentences with their results, and without what only further steps would need."""
        return Flight(
            Sentences(*(tensor.index_select(0, rows_N) for tensor in self.sentences)),
            Memory(self.memory.states_BSH[rows_N, :, :0], self.memory.mask_BS.index_select(0, rows_N), {}),
            State({}),
            self.active.select(rows_N),
            self.results.select(rows_N),
            self.attention_BTKS.index_select(0, rows_N),
        )

    def stay(self, rows: Sequence[int], target_width: int, source_width: int, num_steps: int) -> Flight:
        """The given sentences, in an order of `in_place`; T and S cut to the widths that these still need.

        num_steps: the most steps that one of them has taken. Memory is changed in place.
        """
        device = self.memory.mask_BS.device
        rows_N = torch.tensor(rows, device=device)
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        holes_M, movers_M = torch.tensor(moved, dtype=torch.long, device=device).view(-1, 2).unbind(1)
        return Flight(
            Sentences(*(tensor.index_select(0, rows_N) for tensor in self.sentences)),
            self.memory.fill_holes(holes_M, movers_M, len(rows)).trim(source_width),
            self.decoder.trim(num_steps).select(rows_N),
            self.active.trim(target_width, source_width).select(rows_N),
            self.results.trim(target_width, source_width).select(rows_N),
            self.attention_BTKS[:, :target_width, :, :source_width].index_select(0, rows_N),
        )

    @staticmethod
    def join(some: Flight, others: Flight) -> Flight:
        """The sentences of both."""
        return Flight(
            Sentences(*(join_rows(pair) for pair in zip(some.sentences, others.sentences, strict=True))),
            Memory.join([some.memory, others.memory]),
            State.join([some.decoder, others.decoder]),
            Hypotheses.join(some.active, others.active),
            Hypotheses.join(some.results, others.results),
            join_rows([some.attention_BTKS, others.attention_BTKS]),
        )


def in_place(rows: Sequence[int]) -> list[int]:
    """The same rows, in ascending order, but that the last ones stand in the places of those that are missing."""
    kept, last = set(rows), sorted(rows)
    return [row if row in kept else last.pop() for row in range(len(kept))]


def advance(
    model: SearchModel,
    flight: Flight,
    banned_N: Tensor,
    options: SearchOptions,
    *,
    some_forced: bool,
    some_at_limit: bool,
) -> Flight:
    """All hypotheses grow by one token.

    some_forced: a sentence may still be within its prefix. some_at_limit: a sentence may reach its limit now. The
    caller counts steps and so knows without asking the device.
    """
    sentences, active, mask_BS = flight.sentences, flight.active, flight.memory.mask_BS
    last_BK = active.tokens_BKT.gather(2, sentences.length_B[:, None, None].expand(-1, active.tokens_BKT.shape[1], -1))
    log_probs_BKV, attention_BKS, decoder = model.step(last_BK.squeeze(2), flight.decoder, flight.memory)
    flight = _remember_attention(flight, attention_BKS)
    has_attention = attention_BKS is not None

    candidates = _candidates(log_probs_BKV, flight, banned_N, options, some_forced)
    beam = options.num_hypotheses
    length_B = sentences.length_B + ~sentences.done_B
    ends_BN = candidates.tokens_BN == EOS_ID
    results, keep = flight.results, keep_each if options.sampling else keep_best

    finishing_BK = ends_BN[:, :beam] & (candidates.log_prob_BN[:, :beam] > -math.inf)
    if finishing_BK.is_cuda or finishing_BK.any():  # on CUDA, asking would wait for the device
        best = Candidates(*(tensor[:, :beam] for tensor in candidates))
        grown = grow(active, best, length_B, attention_BKS)
        results = keep(results, scored(grown, finishing_BK, mask_BS, has_attention, options))

    staying_BK = ends_BN.byte().argsort(dim=1, stable=True)[:, :beam] if beam > 1 and not options.sampling else None
    chosen = candidates if staying_BK is None else candidates.take(staying_BK)
    active = grow(active, chosen, length_B, attention_BKS)
    active = active._replace(log_prob_BK=active.log_prob_BK.masked_fill(chosen.tokens_BN == EOS_ID, -math.inf))
    if staying_BK is not None:  # alone and in sampling, a hypothesis goes on in its own place
        decoder = decoder.reorder(chosen.parents_BN)
    if options.pruning is not None and not options.sampling:
        active = drop_hopeless(active, results, options, options.pruning)

    if some_at_limit:
        cut_B1 = ((length_B >= sentences.limit_B) & ~sentences.done_B)[:, None]
        if not options.sampling:  # a search returns what is unfinished only where nothing finished
            cut_B1 = cut_B1 & (results.score_BK[:, :1] == -math.inf)
        cut_BK = cut_B1 & (active.log_prob_BK > -math.inf)
        results = keep(results, scored(active, cut_BK, mask_BS, has_attention, options))
    sentences = sentences._replace(length_B=length_B)
    done_B = sentences.done_B | _done(active, results, sentences, options)
    frozen_BK = active.log_prob_BK.masked_fill(done_B[:, None], -math.inf)
    active = active._replace(log_prob_BK=frozen_BK)
    sentences = sentences._replace(done_B=done_B)
    return flight._replace(sentences=sentences, decoder=decoder, active=active, results=results)


def _candidates(
    log_probs_BKV: Tensor, flight: Flight, banned_N: Tensor, options: SearchOptions, some_forced: bool
) -> Candidates:
    """What the hypotheses may become in this step."""
    sentences, active = flight.sentences, flight.active
    if some_forced:  # looked up before anything is ruled out: a prefix may hold what search may not say
        place_B1 = sentences.length_B.clamp(max=sentences.prefix_BP.shape[1] - 1)[:, None]
        token_B1 = sentences.prefix_BP.gather(1, place_B1)
        token_BK1 = token_B1[:, :, None].expand(-1, log_probs_BKV.shape[1], -1)
        token_log_prob_BK = log_probs_BKV.gather(2, token_BK1).squeeze(2)
    rule_out(log_probs_BKV, active.tokens_BKT, sentences.length_B, banned_N, options)
    if options.sampling:
        tokens_BK = sample(log_probs_BKV, sentences.keys_B, sentences.length_B, options)
        log_prob_BK = active.log_prob_BK + log_probs_BKV.gather(2, tokens_BK[:, :, None]).squeeze(2)
        own_BK = torch.arange(tokens_BK.shape[1], device=tokens_BK.device).expand_as(tokens_BK)
        candidates = Candidates(log_prob_BK, own_BK, tokens_BK)
    else:
        candidates = beam_candidates(log_probs_BKV, active.log_prob_BK, options.pruning)
    if some_forced:
        forced_B = sentences.length_B < sentences.prefix_length_B
        candidates = follow(candidates, forced_B, active, token_B1, token_log_prob_BK)
    return candidates


def _remember_attention(flight: Flight, attention_BKS: Tensor | None) -> Flight:
    """Keeps the step's attention where somebody asked for it; a model without any leaves nothing to keep."""
    if attention_BKS is None:
        return flight._replace(attention_BTKS=flight.attention_BTKS[..., :0])
    if flight.attention_BTKS.shape[3]:
        length_B = flight.sentences.length_B
        rows_B = torch.arange(len(length_B), device=length_B.device)
        flight.attention_BTKS[rows_B, length_B] = attention_BKS.to(flight.attention_BTKS.dtype)
    return flight


def _done(active: Hypotheses, results: Hypotheses, sentences: Sentences, options: SearchOptions) -> Tensor:
    """bool [B], True for sentences whose search is over."""
    best_active_B = active.log_prob_BK.amax(1)
    done_B = (sentences.limit_B <= sentences.length_B) | (best_active_B == -math.inf)
    if options.sampling:
        return done_B
    if options.stop == "first" or options.beam_size == 1:
        return done_B | (results.score_BK > -math.inf).all(1)
    if options.stop == "bound":
        # log P only falls, lp only rises up to the limit, and cp is never positive.
        return done_B | (results.score_BK[:, options.n_best - 1] >= best_active_B / sentences.longest_penalty_B)
    return done_B
