"""Hypotheses and candidates of beam search and sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, Tokens
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import length_penalty, score
from gnmt.model.interfaces import DecoderState, Memory, SearchModel, join_rows, select_beams

# Columns whose largest value stands for all of them in a first round.
_BLOCK = 128


def best_candidates(total_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row, fp32, and their columns, int64, the largest first, ties by column.

    total_BN: fp32 or narrower, at least `count` wide. The result is a function of the row alone; no value is read by
    the host.

    `topk` visits a row of vocabulary size times beam element by element, and keeps and orders equal values as it
    likes. Here a row is first cut into blocks: an element that is one of the best `count` lies in one of the `count`
    blocks with the largest maxima (ties by place), since otherwise each of these holds an element that goes before it.
    """
    assert total_BN.dtype != torch.float64, "the keys below hold 32 bits of a value"
    total_BN = total_BN.float()
    width = total_BN.shape[1]
    num_blocks = width // _BLOCK
    if num_blocks <= 2 * count:
        columns_BC = _best_columns(total_BN, torch.arange(width, device=total_BN.device), count)
        return total_BN.gather(1, columns_BC), columns_BC
    blocked_BN = total_BN
    if width % _BLOCK:
        num_blocks += 1
        blocked_BN = F.pad(total_BN, (0, num_blocks * _BLOCK - width), value=float("-inf"))
    blocks_BGW = blocked_BN.view(-1, num_blocks, _BLOCK)
    numbers_G = torch.arange(num_blocks, device=total_BN.device)
    chosen_BC = _best_columns(blocks_BGW.amax(2), numbers_G, count)
    inside_W = torch.arange(_BLOCK, device=total_BN.device)
    columns_BM = (chosen_BC[:, :, None] * _BLOCK + inside_W).flatten(1)
    values_BM = blocked_BN.gather(1, columns_BM)
    best_BC = _best_columns(values_BM, columns_BM, count)
    return blocked_BN.gather(1, best_BC), best_BC


def _best_columns(values_BN: Tensor, columns: Tensor, count: int) -> Tensor:
    """The columns of the `count` largest values, the largest first, ties by column; columns: [N] or [B, N]."""
    # One integer for value and place: the bits of a float, read as an integer and mirrored for negative
    # numbers, are in the order of the floats. Adding 0 makes one zero of two; NaN comes first, as in topk.
    infinity = float("inf")
    bits_BN = (values_BN + 0.0).nan_to_num(infinity, infinity, -infinity).view(torch.int32)
    ordered_BN = bits_BN ^ ((bits_BN >> 31) & 0x7FFFFFFF)
    keys_BN = (ordered_BN.long() << 32) | (0xFFFFFFFF - columns)
    best_BC = keys_BN.topk(count, dim=1).values
    return 0xFFFFFFFF - (best_BC & 0xFFFFFFFF)


def suppress(
    log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, suppressed_N: Tensor, options: SearchOptions
) -> None:
    """Writes -inf over the tokens that may not come next; the others keep the model's probabilities.

    These are the suppressed ids, EOS before min_length, and tokens that would repeat an n-gram.
    tokens_BKT: the hypotheses so far, BOS first. length_B: their |Y|.
    """
    if len(suppressed_N):
        log_probs_BKV.index_fill_(2, suppressed_N, -math.inf)
    if options.min_length:
        early_B1 = (length_B + 1 < options.min_length)[:, None]
        log_probs_BKV[:, :, EOS_ID].masked_fill_(early_B1, -math.inf)
    if options.no_repeat_ngram is not None:
        suppress_repeats(log_probs_BKV, tokens_BKT, length_B, options.no_repeat_ngram)


def suppress_repeats(log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, size: int) -> None:
    """Writes -inf over tokens that would complete `size` ids in a row which the hypothesis already holds.

    Every place of the hypothesis is compared with its last `size - 1` ids at once. EOS ends a hypothesis, so none
    holds it and it is never ruled out.
    """
    said_BKT = tokens_BKT[:, :, 1:]  # BOS is no target token
    num_places = said_BKT.shape[2] - size + 1
    if num_places < 1:
        return
    follower_P = torch.arange(size - 1, size - 1 + num_places, device=said_BKT.device)  # what came after each place
    repeats_BKP = (follower_P < length_B[:, None, None]).expand(*said_BKT.shape[:2], -1)
    for place in range(size - 1):
        recent_B11 = (length_B - (size - 1) + place).clamp(min=0)[:, None, None]
        recent_BK1 = said_BKT.gather(2, recent_B11.expand(-1, said_BKT.shape[1], -1))
        repeats_BKP = repeats_BKP & (said_BKT[:, :, place : place + num_places] == recent_BK1)
    penalty_BKP = torch.zeros_like(repeats_BKP, dtype=log_probs_BKV.dtype).masked_fill_(repeats_BKP, -math.inf)
    # Added and not written: a token may follow several places, of which only some repeat.
    log_probs_BKV.scatter_add_(2, said_BKT[:, :, size - 1 :], penalty_BKP)


# SplitMix64 (Steele, Lea and Flood 2014): the increment and the two multipliers, as signed numbers.
_INCREMENT, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def sample(log_probs_BKV: Tensor, keys_B: Tensor, steps_B: Tensor, options: SearchOptions) -> Tensor:
    """One token for each of the K samples of each sentence, int64 [B, K].

    log_probs_BKV: fp32, -inf for tokens that may not be drawn. keys_B, steps_B: int64, what a sentence's numbers
    depend on beside options.seed and the number of the sample.
    """
    # The largest becomes 0 first, which changes no choice: a low temperature would make all of them -inf.
    values_BKN = (log_probs_BKV - log_probs_BKV.amax(2, keepdim=True)) / options.temperature
    tokens_BKN = torch.arange(log_probs_BKV.shape[2], device=log_probs_BKV.device)[None, None]  # 1, 1, V
    if options.top_k is not None:
        values_MN, tokens_MN = best_candidates(values_BKN.flatten(0, 1), min(options.top_k, values_BKN.shape[2]))
        values_BKN = values_MN.view(*log_probs_BKV.shape[:2], -1)
        tokens_BKN = tokens_MN.view(*log_probs_BKV.shape[:2], -1)
    elif options.top_p is not None:
        values_BKN, tokens_BKN = values_BKN.sort(dim=2, descending=True, stable=True)
    if options.top_p is not None:
        probabilities_BKN = values_BKN.softmax(2)
        better_BKN = probabilities_BKN.cumsum(2) - probabilities_BKN  # the probability of all that come before
        values_BKN = values_BKN.masked_fill(better_BKN >= options.top_p, -math.inf)

    samples_K = torch.arange(log_probs_BKV.shape[1], device=log_probs_BKV.device)
    seed = torch.full_like(keys_B, options.seed)
    stream_BK = hashed(hashed(hashed(seed, keys_B), steps_B)[:, None], samples_K)
    drawn_BK1 = (values_BKN + gumbel(stream_BK[:, :, None], tokens_BKN)).argmax(2, keepdim=True)
    return tokens_BKN.expand_as(values_BKN).gather(2, drawn_BK1).squeeze(2)


def gumbel(streams: Tensor, numbers: Tensor) -> Tensor:
    """The Gumbel number of each number in its stream: int64 tensors that broadcast, fp32 out, finite or -inf."""
    # 63 bits as a float keep 24 digits however small they are, so large Gumbel numbers are as fine as small ones.
    bits = _shifted(hashed(streams, numbers), 1)
    uniform = bits.to(torch.float32).mul_(2.0**-63).clamp_(min=2.0**-64)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def hashed(stream: Tensor, number: Tensor) -> Tensor:
    """The number's 64 random bits in that stream, int64; SplitMix64's output for the state stream + n increments."""
    mixed = stream + (number + 1) * _INCREMENT
    mixed = (mixed ^ _shifted(mixed, 30)).mul_(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)).mul_(_SECOND)
    return mixed ^ _shifted(mixed, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's own repeats the sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


class Hypotheses(NamedTuple):
    """Everything that hypotheses own but the decoder's state; every tensor is [B, K, ...].

    tokens_BKT: BOS and the tokens, behind which lies anything; T is one more than the longest limit in flight.
    length_BK: |Y|. log_prob_BK is -inf for an empty, ended or dropped entry, which can never come back.
    score_BK: equation 14 for results, -inf for active hypotheses. coverage_BKS: attention so far, summed over the
    tokens; no columns where the coverage penalty is off. beam_index_BKT: for each token, the entry of the beam that
    was asked for it (attention is kept by entry, not moved with hypotheses); no columns where nobody asked for it.
    """

    tokens_BKT: Tensor
    length_BK: Tensor
    log_prob_BK: Tensor
    score_BK: Tensor
    coverage_BKS: Tensor
    beam_index_BKT: Tensor

    def take(self, entries_BN: Tensor) -> Hypotheses:
        """The given entries of each sentence's beam: the only place where hypotheses change their places."""
        return Hypotheses(*select_beams(self, entries_BN))

    def select(self, rows_N: Tensor) -> Hypotheses:
        """The given sentences."""
        return Hypotheses(*(tensor.index_select(0, rows_N) for tensor in self))

    def trim(self, target_width: int, source_width: int) -> Hypotheses:
        """Views of so many columns of T and of S; what is cut off was padding."""
        return self._replace(
            tokens_BKT=self.tokens_BKT[:, :, :target_width],
            coverage_BKS=self.coverage_BKS[:, :, :source_width],
            beam_index_BKT=self.beam_index_BKT[:, :, :target_width],
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
    if grown.beam_index_BKT.shape[2]:
        grown.beam_index_BKT.scatter_(2, length_BN[:, :, None], parents_BN[:, :, None])
    coverage_BNS = grown.coverage_BKS
    if attention_BKS is not None and coverage_BNS.shape[2]:
        [step_BNS] = select_beams([attention_BKS], parents_BN)
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


def prune(active: Hypotheses, finished: Hypotheses, options: SearchOptions, pruning: float) -> Hypotheses:
    """Active hypotheses far below the best finished one get log P = -inf; both sides without coverage."""
    alpha, constant = options.length_penalty_alpha, options.length_penalty_constant
    best_B1 = finished.log_prob_BK[:, :1] / length_penalty(finished.length_BK[:, :1], alpha, constant)
    normalized_BK = active.log_prob_BK / length_penalty(active.length_BK, alpha, constant)
    hopeless_BK = normalized_BK < best_B1 - pruning
    return active._replace(log_prob_BK=active.log_prob_BK.masked_fill(hopeless_BK, -math.inf))


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


class ActiveBatch(NamedTuple):
    """All that is in flight, one row for each sentence in everything here.

    attention_BTKS: what the decoder looked at in each step, by entry of the beam; see Hypotheses.beam_index_BKT.
    """

    sentences: Sentences
    memory: Memory
    decoder: DecoderState
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
    ) -> ActiveBatch:
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
            beam_index_BKT=torch.zeros(*shape, target_width if with_attention else 0, dtype=torch.long, device=device),
        )
        log_prob_BK = empty.log_prob_BK.clone()
        log_prob_BK[:, : beam if options.sampling else 1] = 0.0
        attention_shape = (num_sentences, target_width, beam, source_width if with_attention else 0)
        return ActiveBatch(
            sentences=sentences,
            memory=memory,
            decoder=model.start(memory, beam),
            active=empty._replace(log_prob_BK=log_prob_BK),
            results=empty,
            attention_BTKS=torch.zeros(attention_shape, device=device),
        )

    def only(self, rows_N: Tensor) -> ActiveBatch:
        """Those sentences with their results, and without what only further steps would need."""
        return ActiveBatch(
            Sentences(*(tensor.index_select(0, rows_N) for tensor in self.sentences)),
            Memory(self.memory.states_BSH[rows_N, :, :0], self.memory.mask_BS.index_select(0, rows_N), {}),
            DecoderState({}),
            self.active.select(rows_N),
            self.results.select(rows_N),
            self.attention_BTKS.index_select(0, rows_N),
        )

    def stay(self, rows: Sequence[int], target_width: int, source_width: int, num_steps: int) -> ActiveBatch:
        """The given sentences, in an order of `compact_order`; T and S cut to the widths that these still need.

        num_steps: the most steps that one of them has taken. Memory is changed in place.
        """
        device = self.memory.mask_BS.device
        rows_N = torch.tensor(rows, device=device)
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        holes_M, movers_M = torch.tensor(moved, dtype=torch.long, device=device).view(-1, 2).unbind(1)
        return ActiveBatch(
            Sentences(*(tensor.index_select(0, rows_N) for tensor in self.sentences)),
            self.memory.compact(holes_M, movers_M, len(rows)).trim(source_width),
            self.decoder.trim(num_steps).select(rows_N),
            self.active.trim(target_width, source_width).select(rows_N),
            self.results.trim(target_width, source_width).select(rows_N),
            self.attention_BTKS[:, :target_width, :, :source_width].index_select(0, rows_N),
        )

    @staticmethod
    def join(some: ActiveBatch, others: ActiveBatch) -> ActiveBatch:
        """The sentences of both."""
        return ActiveBatch(
            Sentences(*(join_rows(pair) for pair in zip(some.sentences, others.sentences, strict=True))),
            Memory.join([some.memory, others.memory]),
            DecoderState.join([some.decoder, others.decoder]),
            Hypotheses.join(some.active, others.active),
            Hypotheses.join(some.results, others.results),
            join_rows([some.attention_BTKS, others.attention_BTKS]),
        )


def compact_order(rows: Sequence[int]) -> list[int]:
    """The same rows, in ascending order, but that the last ones stand in the places of those that are missing."""
    kept, last = set(rows), sorted(rows)
    return [row if row in kept else last.pop() for row in range(len(kept))]


def advance(
    model: SearchModel,
    flight: ActiveBatch,
    suppressed_N: Tensor,
    options: SearchOptions,
    *,
    some_forced: bool,
    some_at_limit: bool,
) -> ActiveBatch:
    """All hypotheses grow by one token.

    some_forced: a sentence may still be within its prefix. some_at_limit: a sentence may reach its limit now. The
    caller counts steps and so knows without asking the device.
    """
    sentences, active, mask_BS = flight.sentences, flight.active, flight.memory.mask_BS
    last_BK = active.tokens_BKT.gather(2, sentences.length_B[:, None, None].expand(-1, active.tokens_BKT.shape[1], -1))
    log_probs_BKV, attention_BKS, decoder = model.step(last_BK.squeeze(2), flight.decoder, flight.memory)
    flight = _remember_attention(flight, attention_BKS)
    has_attention = attention_BKS is not None

    candidates = _candidates(log_probs_BKV, flight, suppressed_N, options, some_forced)
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
        active = prune(active, results, options, options.pruning)

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
    log_probs_BKV: Tensor, flight: ActiveBatch, suppressed_N: Tensor, options: SearchOptions, some_forced: bool
) -> Candidates:
    """What the hypotheses may become in this step."""
    sentences, active = flight.sentences, flight.active
    if some_forced:  # looked up before anything is ruled out: a prefix may hold what search may not say
        place_B1 = sentences.length_B.clamp(max=sentences.prefix_BP.shape[1] - 1)[:, None]
        token_B1 = sentences.prefix_BP.gather(1, place_B1)
        token_BK1 = token_B1[:, :, None].expand(-1, log_probs_BKV.shape[1], -1)
        token_log_prob_BK = log_probs_BKV.gather(2, token_BK1).squeeze(2)
    suppress(log_probs_BKV, active.tokens_BKT, sentences.length_B, suppressed_N, options)
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


def _remember_attention(flight: ActiveBatch, attention_BKS: Tensor | None) -> ActiveBatch:
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
