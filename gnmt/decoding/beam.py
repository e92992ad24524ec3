"""One step of beam search or sampling on the active batch.

The active batch holds the sentences that are being searched. `advance` extends each of their hypotheses by one token:
it runs one decoder step, selects candidates (`next_candidates`), moves those that end to the results (`finish`),
extends the others (`extend_active`), and marks the sentences whose search is over (`stopped`).

The module is laid out in this order: the tensors of the active batch, the step, the selection of candidates (top-k,
forced prefixes, suppressed tokens, random samples), and the operations on hypotheses.

Shapes: B sentences of the active batch, K hypotheses of a sentence (the beam), N candidates of a sentence, V target
vocabulary, T target positions, S source positions, P prefix tokens. A beam index is a position on the axis K.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, Tokens
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import check_coverage, length_penalty, score
from gnmt.device import triton_runs
from gnmt.model import interfaces
from gnmt.model.interfaces import DecoderState, Memory, SearchModel, join_rows

# Columns of one block in `best_candidates`.
BLOCK_SIZE = 128

# By device type: elements of a block of sentences in which `sample` draws, so that its temporary tensors stay in the
# cache. Without an entry, all sentences are one block.
SAMPLED_ELEMENTS = {"cpu": 2**18}

# Increment and multipliers of SplitMix64 (Steele, Lea and Flood 2014) as signed 64-bit numbers.
INCREMENT, FIRST_MULTIPLIER, SECOND_MULTIPLIER = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Hypotheses(NamedTuple):
    """The hypotheses of each sentence, without the decoder's state. Every tensor is [B, K, ...].

    Attributes:
        tokens_BKT: int64, BOS and the tokens. Positions after the last token are undefined. T is one more than the
            largest length limit in the active batch.
        length_BK: int64, |Y|.
        log_prob_BK: fp32, log P(Y|X). It is -inf for an empty, finished or pruned hypothesis, which no step revives.
        score_BK: fp32, equation 14 for results, -inf for active hypotheses.
        coverage_BKS: fp32, attention summed over the tokens. S is 0 when the coverage penalty is off.
        beam_index_BKT: int64, for each token the beam index that produced it. Attention is stored by beam index and
            does not move with the hypotheses. T is 0 when attention is not recorded.
    """

    tokens_BKT: Tensor
    length_BK: Tensor
    log_prob_BK: Tensor
    score_BK: Tensor
    coverage_BKS: Tensor
    beam_index_BKT: Tensor

    def take(self, beams_BN: Tensor) -> Hypotheses:
        """Return the hypotheses with the given beam indices, int64 [B, N], in that order."""
        return Hypotheses(*select_beams(self, beams_BN))

    def select(self, rows_N: Tensor) -> Hypotheses:
        """Return the hypotheses of the given sentences."""
        return Hypotheses(*(tensor.index_select(0, rows_N) for tensor in self))

    def trim(self, target_width: int, source_width: int) -> Hypotheses:
        """Return views of the first `target_width` columns of T and `source_width` columns of S."""
        return self._replace(
            tokens_BKT=self.tokens_BKT[:, :, :target_width],
            coverage_BKS=self.coverage_BKS[:, :, :source_width],
            beam_index_BKT=self.beam_index_BKT[:, :, :target_width],
        )

    @staticmethod
    def join(first: Hypotheses, second: Hypotheses) -> Hypotheses:
        """Return the sentences of both. T and S are padded to the larger width."""
        return Hypotheses(*(join_rows(pair) for pair in zip(first, second, strict=True)))


class Candidates(NamedTuple):
    """Extensions of hypotheses by one token, the best first. Every tensor is [B, N].

    Attributes:
        log_prob_BN: fp32, log P of the parent and the token together.
        parents_BN: int64, beam index of the parent hypothesis.
        tokens_BN: int64, the next token.
    """

    log_prob_BN: Tensor
    parents_BN: Tensor
    tokens_BN: Tensor

    def take(self, columns_BM: Tensor) -> Candidates:
        """Return the candidates in the given columns, int64 [B, M]."""
        return Candidates(*(tensor.gather(1, columns_BM) for tensor in self))


class Sentences(NamedTuple):
    """Length, limit, prefix and sampling key of each sentence, and whether its search is over.

    Attributes:
        length_B: int64, decoder steps taken, which is |Y| of the active hypotheses.
        limit_B: int64, the largest |Y|.
        longest_penalty_B: fp32, the length penalty at the limit.
        done_B: bool, True when the search is over.
        keys_B: int64, seed of the sentence's samples.
        prefix_BP: int64, target ids that the translation starts with, padded.
        prefix_length_B: int64, the number of these ids.
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
        """Return the state of sentences before their first step."""
        return Sentences(
            length_B=torch.zeros_like(limit_B),
            limit_B=limit_B,
            longest_penalty_B=length_penalty(limit_B, options.length_penalty_alpha, options.length_penalty_constant),
            done_B=torch.zeros_like(limit_B, dtype=torch.bool),
            keys_B=keys_B,
            prefix_BP=prefix.ids_BT,
            prefix_length_B=prefix.lengths_B,
        )

    def select(self, rows_N: Tensor) -> Sentences:
        """Return the given sentences."""
        return Sentences(*(tensor.index_select(0, rows_N) for tensor in self))


class ActiveBatch(NamedTuple):
    """The sentences that are being searched, one row of every tensor for each.

    Attributes:
        sentences: Lengths, limits and prefixes.
        memory: The encoded sources.
        decoder: The decoder's state of each active hypothesis.
        active: The hypotheses that the next step extends.
        results: The best finished hypotheses of each sentence, or its samples.
        attention_BTKS: fp32, the attention of each step by beam index, see Hypotheses.beam_index_BKT. S is 0 when
            attention is not recorded.
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
        """Encode the sources and return them before their first step.

        Each sentence has one active hypothesis, which consists of BOS; with sampling, one for each sample.

        Args:
            model: The model, or an ensemble.
            source: Source ids with EOS.
            sentences: Limits, keys and prefixes.
            target_width: Columns of T, one more than the largest length limit.
            options: The search options.
            with_attention: Record attention.
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

    def extract(self, rows_N: Tensor) -> ActiveBatch:
        """Return the given sentences with their results, without encoder states and decoder state."""
        return ActiveBatch(
            self.sentences.select(rows_N),
            Memory(self.memory.states_BSH[rows_N, :, :0], self.memory.mask_BS.index_select(0, rows_N), {}),
            DecoderState({}),
            self.active.select(rows_N),
            self.results.select(rows_N),
            self.attention_BTKS.index_select(0, rows_N),
        )

    def compact(self, rows: Sequence[int], target_width: int, source_width: int, num_steps: int) -> ActiveBatch:
        """Return the given sentences, trimmed to the widths that they need. Changes the memory in place.

        Args:
            rows: Their indices in the order of `compact_order`.
            target_width: Columns of T, one more than their largest length limit.
            source_width: Their largest source length.
            num_steps: The largest number of decoder steps that one of them has taken.
        """
        device = self.memory.mask_BS.device
        rows_N = torch.tensor(rows, device=device)
        moves = [(index, row) for index, row in enumerate(rows) if index != row]
        free_M, moved_M = torch.tensor(moves, dtype=torch.long, device=device).view(-1, 2).unbind(1)
        return ActiveBatch(
            self.sentences.select(rows_N),
            self.memory.compact(free_M, moved_M, len(rows)).trim(source_width),
            self.decoder.trim(num_steps).select(rows_N),
            self.active.trim(target_width, source_width).select(rows_N),
            self.results.trim(target_width, source_width).select(rows_N),
            self.attention_BTKS[:, :target_width, :, :source_width].index_select(0, rows_N),
        )

    def mapped(self, function: Callable[..., Tensor], *others: ActiveBatch) -> ActiveBatch:
        """Return a batch with the results of `function`, which gets each tensor and the same tensors of other batches.

        Memories and decoder states of the others may hold further tensors.
        """

        def of_names(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: function(*(mapping[name] for mapping in mappings)) for name in mappings[0]}

        batches = (self, *others)
        memories = [batch.memory for batch in batches]
        return ActiveBatch(
            Sentences(*map(function, *(batch.sentences for batch in batches))),
            Memory(
                function(*(memory.states_BSH for memory in memories)),
                function(*(memory.mask_BS for memory in memories)),
                of_names([memory.extras for memory in memories]),
                of_names([memory.by_sentence for memory in memories]),
            ),
            DecoderState(
                of_names([batch.decoder.tensors for batch in batches]),
                of_names([batch.decoder.by_step for batch in batches]),
            ),
            Hypotheses(*map(function, *(batch.active for batch in batches))),
            Hypotheses(*map(function, *(batch.results for batch in batches))),
            function(*(batch.attention_BTKS for batch in batches)),
        )

    @staticmethod
    def join(first: ActiveBatch, second: ActiveBatch) -> ActiveBatch:
        """Return the sentences of both, those of `first` before those of `second`."""
        return ActiveBatch(
            Sentences(*(join_rows(pair) for pair in zip(first.sentences, second.sentences, strict=True))),
            Memory.join([first.memory, second.memory]),
            DecoderState.join([first.decoder, second.decoder]),
            Hypotheses.join(first.active, second.active),
            Hypotheses.join(first.results, second.results),
            join_rows([first.attention_BTKS, second.attention_BTKS]),
        )


def compact_order(rows: Sequence[int]) -> list[int]:
    """Order the rows that stay so that few of them move: the last rows fill the indices of missing ones.

    [4, 0, 3] gives [0, 4, 3]: rows 1 and 2 are missing, so row 4 moves to index 1 and row 3 to index 2.
    """
    kept, last = set(rows), sorted(rows)
    return [row if row in kept else last.pop() for row in range(len(kept))]


def advance(
    model: SearchModel,
    batch: ActiveBatch,
    suppressed_N: Tensor,
    options: SearchOptions,
    *,
    some_forced: bool,
    some_at_limit: bool,
) -> ActiveBatch:
    """Extend every active hypothesis by one token.

    The two flags spare work. The caller derives them from the number of steps, without synchronizing with the device.

    Args:
        model: Runs one decoder step.
        batch: The active batch.
        suppressed_N: int64, ids that are never produced.
        options: The search options.
        some_forced: A sentence may still be within its prefix.
        some_at_limit: A sentence may reach its length limit in this step.
    """
    length_BK1 = batch.sentences.length_B[:, None, None].expand(-1, options.num_hypotheses, -1)
    last_BK = batch.active.tokens_BKT.gather(2, length_BK1).squeeze(2)
    log_probs_BKV, attention_BKS, decoder = model.step(last_BK, batch.decoder, batch.memory)
    batch = record_attention(batch, attention_BKS)
    candidates = next_candidates(log_probs_BKV, batch, suppressed_N, options, some_forced)
    batch, parents_BK = update_hypotheses(batch, candidates, attention_BKS, options, some_at_limit)
    if options.num_hypotheses > 1 and not options.sampling:
        decoder = decoder.reorder(parents_BK, select_beams)
    # Otherwise each hypothesis keeps its beam index, so the state needs no reordering.
    return batch._replace(decoder=decoder)


def update_hypotheses(
    batch: ActiveBatch,
    candidates: Candidates,
    attention_BKS: Tensor | None,
    options: SearchOptions,
    some_at_limit: bool,
) -> tuple[ActiveBatch, Tensor]:
    """Finish, extend, prune and stop hypotheses after a step, but for the decoder's state.

    On a GPU on which Triton kernels run, two of them do this for beam and greedy search.

    Args:
        batch: The active batch before the step.
        candidates: The candidates of the step.
        attention_BKS: The attention of the step.
        options: The search options.
        some_at_limit: A sentence may reach its length limit in this step.

    Returns:
        The batch after the step, and the beam index of each active hypothesis's parent, int64 [B, K].
    """
    check_coverage(options, has_attention=attention_BKS is not None)
    sentences, active = batch.sentences, batch.active
    if not options.sampling and search_kernels_run(sentences.done_B.device):
        from gnmt.decoding.engine import kernels

        if options.beam_size <= kernels.LARGEST_BEAM:
            updated = kernels.update_hypotheses(
                sentences[:4],
                active,
                batch.results,
                candidates,
                attention_BKS,
                batch.memory.mask_BS,
                options,
                at_limit=some_at_limit,
            )
            return (
                batch._replace(
                    sentences=sentences._replace(length_B=updated.length_B, done_B=updated.done_B),
                    active=Hypotheses(*updated.active),
                    results=Hypotheses(*updated.results),
                ),
                updated.parents_BK,
            )

    length_B = sentences.length_B + ~sentences.done_B
    ends_BN = candidates.tokens_BN == EOS_ID
    results = finish(batch, candidates, ends_BN, length_B, attention_BKS, options)
    active, parents_BK = extend_active(active, candidates, ends_BN, length_B, attention_BKS, options)
    if options.pruning is not None and not options.sampling:
        active = prune(active, results, options, options.pruning)
    if some_at_limit:
        has_attention = attention_BKS is not None
        results = add_unfinished(results, active, sentences, length_B, batch.memory.mask_BS, has_attention, options)

    sentences = sentences._replace(length_B=length_B)
    done_B = sentences.done_B | stopped(active, results, sentences, options)
    active = active._replace(log_prob_BK=active.log_prob_BK.masked_fill(done_B[:, None], -math.inf))
    sentences = sentences._replace(done_B=done_B)
    return batch._replace(sentences=sentences, active=active, results=results), parents_BK


def record_attention(batch: ActiveBatch, attention_BKS: Tensor | None) -> ActiveBatch:
    """Write the step's attention into the batch if it is recorded. If the model has no attention, none is recorded."""
    if attention_BKS is None:
        return batch._replace(attention_BTKS=batch.attention_BTKS[..., :0])
    if batch.attention_BTKS.shape[3]:
        length_B = batch.sentences.length_B
        rows_B = torch.arange(len(length_B), device=length_B.device)
        batch.attention_BTKS[rows_B, length_B] = attention_BKS.to(batch.attention_BTKS.dtype)
    return batch


def next_candidates(
    log_probs_BKV: Tensor, batch: ActiveBatch, suppressed_N: Tensor, options: SearchOptions, some_forced: bool
) -> Candidates:
    """Return the candidates of this step. Writes -inf over the log-probabilities of suppressed tokens."""
    sentences, active = batch.sentences, batch.active
    if some_forced:  # read before tokens are suppressed, since a prefix may hold suppressed tokens
        column_B1 = sentences.length_B.clamp(max=sentences.prefix_BP.shape[1] - 1)[:, None]
        token_B1 = sentences.prefix_BP.gather(1, column_B1)
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
        candidates = follow_prefix(candidates, forced_B, active, token_B1, token_log_prob_BK)
    return candidates


def finish(
    batch: ActiveBatch,
    candidates: Candidates,
    ends_BN: Tensor,
    length_B: Tensor,
    attention_BKS: Tensor | None,
    options: SearchOptions,
) -> Hypotheses:
    """Return the results, with those of the best K candidates that end with EOS added.

    Args:
        batch: The active batch before this step.
        candidates: The candidates of this step.
        ends_BN: bool, True for candidates that end with EOS.
        length_B: int64, |Y| of the candidates.
        attention_BKS: The attention of this step.
        options: The search options.
    """
    beam = options.num_hypotheses
    finishing_BK = ends_BN[:, :beam] & (candidates.log_prob_BN[:, :beam] > -math.inf)
    if not finishing_BK.is_cuda and not finishing_BK.any():  # reading `any` on CUDA would wait for the device
        return batch.results
    best = Candidates(*(tensor[:, :beam] for tensor in candidates))
    grown = grow(batch.active, best, length_B, attention_BKS)
    finished = scored(grown, finishing_BK, batch.memory.mask_BS, attention_BKS is not None, options)
    return add_results(batch.results, finished, options)


def extend_active(
    active: Hypotheses,
    candidates: Candidates,
    ends_BN: Tensor,
    length_B: Tensor,
    attention_BKS: Tensor | None,
    options: SearchOptions,
) -> tuple[Hypotheses, Tensor]:
    """Return the hypotheses that stay active, the best K candidates without EOS, and the beam indices of their parents.

    See `finish` for the arguments.
    """
    beam, chosen = options.num_hypotheses, candidates
    if beam > 1 and not options.sampling:
        chosen = candidates.take(ends_BN.byte().argsort(dim=1, stable=True)[:, :beam])
    active = grow(active, chosen, length_B, attention_BKS)
    log_prob_BK = active.log_prob_BK.masked_fill(chosen.tokens_BN == EOS_ID, -math.inf)
    return active._replace(log_prob_BK=log_prob_BK), chosen.parents_BN


def add_unfinished(
    results: Hypotheses,
    active: Hypotheses,
    sentences: Sentences,
    length_B: Tensor,
    mask_BS: Tensor,
    has_attention: bool,
    options: SearchOptions,
) -> Hypotheses:
    """Return the results, with the active hypotheses of sentences at their length limit added.

    Beam search adds them only when none of the sentence's hypotheses has finished. Sampling adds every unfinished
    sample.
    """
    at_limit_B1 = ((length_B >= sentences.limit_B) & ~sentences.done_B)[:, None]
    if not options.sampling:
        at_limit_B1 = at_limit_B1 & (results.score_BK[:, :1] == -math.inf)
    unfinished_BK = at_limit_B1 & (active.log_prob_BK > -math.inf)
    return add_results(results, scored(active, unfinished_BK, mask_BS, has_attention, options), options)


def stopped(active: Hypotheses, results: Hypotheses, sentences: Sentences, options: SearchOptions) -> Tensor:
    """Return bool [B], True for sentences whose search is over; see SearchOptions.stop."""
    best_active_B = active.log_prob_BK.amax(1)
    done_B = (sentences.limit_B <= sentences.length_B) | (best_active_B == -math.inf)
    if options.sampling:
        return done_B
    if options.stop == "first" or options.beam_size == 1:
        return done_B | (results.score_BK > -math.inf).all(1)
    if options.stop == "bound":
        # An upper bound of every score to come: log P only falls, lp is largest at the limit, and cp is at most 0.
        return done_B | (results.score_BK[:, options.n_best - 1] >= best_active_B / sentences.longest_penalty_B)
    return done_B


def beam_candidates(log_probs_BKV: Tensor, log_prob_BK: Tensor, pruning: float | None) -> Candidates:
    """Return the best 2K candidates of each sentence, or the best one when K = 1.

    Ties are broken in favor of the better parent, then of the lower token id. A hypothesis contributes at most 2K
    candidates, so the best 2K tokens of each are selected first and only these are added up.

    Args:
        log_probs_BKV: fp32, log-probabilities of the next token.
        log_prob_BK: fp32, log P of the hypotheses, the best first.
        pruning: Tokens more than this many nats below the hypothesis's best token are left out; None keeps all.
    """
    beam, vocabulary_size = log_probs_BKV.shape[1:]
    num_candidates = 2 * beam if beam > 1 else 1  # with K = 1, search ends at the first EOS and needs no second choice
    of_each = min(num_candidates, vocabulary_size)
    best_MC, tokens_MC = best_candidates(log_probs_BKV.flatten(0, 1), of_each)
    best_BKC, tokens_BKC = best_MC.view(-1, beam, of_each), tokens_MC.view(-1, beam, of_each)
    if pruning is not None:
        best_BKC = best_BKC.masked_fill(best_BKC < best_BKC[:, :, :1] - pruning, -math.inf)
    total_BM = (log_prob_BK[:, :, None] + best_BKC).flatten(1)
    log_prob_BN, columns_BN = best_candidates(total_BM, num_candidates)
    return Candidates(log_prob_BN, columns_BN // of_each, tokens_BKC.flatten(1).gather(1, columns_BN))


def best_candidates(total_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row, fp32, and their columns, int64.

    The largest value comes first and ties are ordered by column. The result depends on the row alone, and no value
    is copied to the host.

    `torch.topk` is slow on rows as wide as vocabulary times beam and leaves the order of equal values open. A wide row
    is therefore split into blocks first. Each of the best `count` elements lies in one of the `count` blocks with the
    largest maxima (ties by block number): were it in another one, each of these blocks would hold an element that
    precedes it. Only these blocks are searched.

    total_BN: fp32 or narrower, with at least `count` columns.
    """
    assert total_BN.dtype != torch.float64, "_best_columns packs values of 32 bits"
    total_BN = total_BN.float()
    if search_kernels_run(total_BN.device):
        from gnmt.decoding.engine import kernels

        if count <= kernels.MOST_CANDIDATES:
            return kernels.best_candidates(total_BN, count)
    width = total_BN.shape[1]
    num_blocks = width // BLOCK_SIZE
    if num_blocks <= 2 * count:
        columns_BC = _best_columns(total_BN, torch.arange(width, device=total_BN.device), count)
        return total_BN.gather(1, columns_BC), columns_BC
    blocked_BN = total_BN
    if width % BLOCK_SIZE:
        num_blocks += 1
        blocked_BN = F.pad(total_BN, (0, num_blocks * BLOCK_SIZE - width), value=-math.inf)
    blocks_BGW = blocked_BN.view(-1, num_blocks, BLOCK_SIZE)
    numbers_G = torch.arange(num_blocks, device=total_BN.device)
    chosen_BC = _best_columns(blocks_BGW.amax(2), numbers_G, count)
    inside_W = torch.arange(BLOCK_SIZE, device=total_BN.device)
    columns_BM = (chosen_BC[:, :, None] * BLOCK_SIZE + inside_W).flatten(1)
    values_BM = blocked_BN.gather(1, columns_BM)
    best_BC = _best_columns(values_BM, columns_BM, count)
    return blocked_BN.gather(1, best_BC), best_BC


def _best_columns(values_BN: Tensor, columns: Tensor, count: int) -> Tensor:
    """Return the columns of the `count` largest values, the largest first, ties by column. columns: [N] or [B, N]."""
    # One int64 key packs value and column. The bits of a float, read as an integer and mirrored for negative numbers,
    # sort like the floats. Adding 0 turns -0 into 0; NaN sorts first, as in topk.
    bits_BN = (values_BN + 0.0).nan_to_num(math.inf, math.inf, -math.inf).view(torch.int32)
    ordered_BN = bits_BN ^ ((bits_BN >> 31) & 0x7FFFFFFF)
    keys_BN = (ordered_BN.long() << 32) | (0xFFFFFFFF - columns)
    best_BC = keys_BN.topk(count, dim=1).values
    return 0xFFFFFFFF - (best_BC & 0xFFFFFFFF)


def follow_prefix(
    candidates: Candidates, forced_B: Tensor, active: Hypotheses, token_B1: Tensor, token_log_prob_BK: Tensor
) -> Candidates:
    """Replace the candidates of sentences within their prefix by the prefix's next token.

    Args:
        candidates: The candidates of all sentences.
        forced_B: bool, True for sentences within their prefix.
        active: The active hypotheses.
        token_B1: int64, the next prefix token.
        token_log_prob_BK: fp32, its log-probability after each hypothesis.
    """
    beam, num_candidates = active.log_prob_BK.shape[1], candidates.tokens_BN.shape[1]
    followed_BN = torch.full_like(candidates.log_prob_BN, -math.inf)
    followed_BN[:, :beam] = active.log_prob_BK + token_log_prob_BK
    parents_N = torch.arange(num_candidates, device=token_B1.device).clamp(max=beam - 1)
    forced_B1 = forced_B[:, None]
    return Candidates(
        torch.where(forced_B1, followed_BN, candidates.log_prob_BN),
        torch.where(forced_B1, parents_N, candidates.parents_BN),
        torch.where(forced_B1, token_B1, candidates.tokens_BN),
    )


def suppress(
    log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, suppressed_N: Tensor, options: SearchOptions
) -> None:
    """Write -inf over the log-probabilities of tokens that must not come next. The others are unchanged.

    Suppressed are the given ids, EOS before options.min_length, and tokens that would repeat an n-gram.

    Args:
        log_probs_BKV: fp32, changed in place.
        tokens_BKT: int64, the hypotheses, BOS first.
        length_B: int64, their |Y|.
        suppressed_N: int64, ids that are never produced.
        options: The search options.
    """
    if len(suppressed_N):
        log_probs_BKV.index_fill_(2, suppressed_N, -math.inf)
    if options.min_length:
        early_B1 = (length_B + 1 < options.min_length)[:, None]
        log_probs_BKV[:, :, EOS_ID].masked_fill_(early_B1, -math.inf)
    if options.no_repeat_ngram is not None:
        suppress_repeats(log_probs_BKV, tokens_BKT, length_B, options.no_repeat_ngram)


def suppress_repeats(log_probs_BKV: Tensor, tokens_BKT: Tensor, length_B: Tensor, size: int) -> None:
    """Write -inf over tokens that would complete an n-gram of `size` ids that the hypothesis already holds.

    All positions of a hypothesis are compared with its last `size - 1` ids at once. No active hypothesis holds EOS, so
    EOS is never suppressed here. P: positions at which an n-gram may begin.
    """
    target_BKT = tokens_BKT[:, :, 1:]  # without BOS
    num_positions = target_BKT.shape[2] - size + 1
    if num_positions < 1:
        return
    # The position of the last token of each n-gram.
    last_P = torch.arange(size - 1, size - 1 + num_positions, device=target_BKT.device)
    repeats_BKP = (last_P < length_B[:, None, None]).expand(*target_BKT.shape[:2], -1)
    for offset in range(size - 1):
        recent_B11 = (length_B - (size - 1) + offset).clamp(min=0)[:, None, None]
        recent_BK1 = target_BKT.gather(2, recent_B11.expand(-1, target_BKT.shape[1], -1))
        repeats_BKP = repeats_BKP & (target_BKT[:, :, offset : offset + num_positions] == recent_BK1)
    penalty_BKP = torch.zeros_like(repeats_BKP, dtype=log_probs_BKV.dtype).masked_fill_(repeats_BKP, -math.inf)
    # Added, because a token that ends several n-grams is suppressed if any of them would be repeated.
    log_probs_BKV.scatter_add_(2, target_BKT[:, :, size - 1 :], penalty_BKP)


def sample(log_probs_BKV: Tensor, keys_B: Tensor, steps_B: Tensor, options: SearchOptions) -> Tensor:
    """Draw one token for each of the K samples of each sentence, int64 [B, K].

    The random numbers are a function of options.seed, the sentence's key, its step and the index of the sample, so
    they do not depend on the batch.

    Args:
        log_probs_BKV: fp32, -inf for suppressed tokens.
        keys_B: int64, the sentences' keys.
        steps_B: int64, decoder steps that each sentence has taken.
        options: The search options, of which temperature, top_k, top_p and seed are used.
    """
    samples_K = torch.arange(log_probs_BKV.shape[1], device=log_probs_BKV.device)
    stream_BK = hashed(hashed(hashed(torch.full_like(keys_B, options.seed), keys_B), steps_B)[:, None], samples_K)
    bits_BK = hashed(stream_BK, torch.zeros_like(stream_BK))
    elements = SAMPLED_ELEMENTS.get(log_probs_BKV.device.type, log_probs_BKV.numel())
    block_size = max(1, elements // log_probs_BKV[0].numel())
    blocks = [slice(start, start + block_size) for start in range(0, len(keys_B), block_size)]
    return torch.cat([_sample_block(log_probs_BKV[block], bits_BK[block], options) for block in blocks])


def _sample_block(log_probs_BKV: Tensor, bits_BK: Tensor, options: SearchOptions) -> Tensor:
    """Draw the tokens of some sentences with the random bits of each sample; see `sample`."""
    # The largest value becomes 0 first, which changes no choice. Otherwise a low temperature makes all values -inf.
    values_BKN = (log_probs_BKV - log_probs_BKV.amax(2, keepdim=True)) / options.temperature
    tokens_BKN = torch.arange(log_probs_BKV.shape[2], device=log_probs_BKV.device)[None, None]  # 1, 1, V
    if options.top_k is not None:
        values_MN, tokens_MN = best_candidates(values_BKN.flatten(0, 1), min(options.top_k, values_BKN.shape[2]))
        values_BKN = values_MN.view(*log_probs_BKV.shape[:2], -1)
        tokens_BKN = tokens_MN.view(*log_probs_BKV.shape[:2], -1)
    elif options.top_p is not None:
        values_BKN, tokens_BKN = values_BKN.sort(dim=2, descending=True, stable=True)
    if options.top_p is not None:
        numbers_BKN = whole_numbers(values_BKN)
        sums_BKN = numbers_BKN.cumsum(2)
        smallest_BK1 = options.top_p * sums_BKN[:, :, -1:].double()
        values_BKN = values_BKN.masked_fill((sums_BKN - numbers_BKN).double() >= smallest_BK1, -math.inf)

    drawn_BK = draw(values_BKN, bits_BK)
    return tokens_BKN.expand_as(values_BKN).gather(2, drawn_BK[:, :, None]).squeeze(2)


def draw(values_BKN: Tensor, bits_BK: Tensor) -> Tensor:
    """Draw an index of each row, int64 [B, K], with a probability proportional to the exponential of its value.

    The drawn index is the first whose running sum of `whole_numbers` is above a random number below the total.

    Args:
        values_BKN: fp32, the largest of each row is 0. Values below -27.7, 2^-40 of the largest probability, are never
            drawn.
        bits_BK: int64, 64 random bits for each row.
    """
    sums_BKN = whole_numbers(values_BKN).cumsum(2)
    total_BK1 = sums_BKN[:, :, -1:]
    uniform_BK1 = _shifted(bits_BK, 11)[:, :, None].to(torch.float64) * 2.0**-53  # in [0, 1)
    # With a total above 2^53 the product may be rounded up to it.
    threshold_BK1 = torch.minimum((uniform_BK1 * total_BK1).to(torch.int64), total_BK1 - 1)
    return torch.searchsorted(sums_BKN, threshold_BK1, right=True).squeeze(2)


def whole_numbers(values: Tensor) -> Tensor:
    """Return 2^40 times the exponential of values up to 0, int64. Sums of them are exact in any order of addition."""
    return values.exp().mul_(2.0**40).to(torch.int64)


def hashed(stream: Tensor, number: Tensor) -> Tensor:
    """Return output `number`, from 0, of a SplitMix64 generator with the state `stream`: 64 random bits, int64."""
    mixed = stream + (number + 1) * INCREMENT
    mixed = (mixed ^ _shifted(mixed, 30)).mul_(FIRST_MULTIPLIER)
    mixed = (mixed ^ _shifted(mixed, 27)).mul_(SECOND_MULTIPLIER)
    return mixed ^ _shifted(mixed, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shift to the right by `count` bits and fill with zeros. `>>` of torch repeats the sign bit."""
    return (bits >> count).bitwise_and_((1 << (64 - count)) - 1)


@functools.cache
def search_kernels_run(device: torch.device) -> bool:
    """Return whether the Triton kernels of search run on a device; see `triton_runs`."""

    def trial() -> None:
        from gnmt.decoding.engine import kernels

        kernels.call_all(device)

    return triton_runs(device, trial, "search")


def select_beams(tensors: Sequence[Tensor], beams_BN: Tensor) -> list[Tensor]:
    """Return the hypotheses [B, N, ...] with the given beam indices from each tensor [B, K, ...].

    On a GPU on which Triton kernels run, one kernel copies all tensors.
    """
    if search_kernels_run(beams_BN.device):
        from gnmt.decoding.engine import kernels

        return kernels.select_beams(tensors, beams_BN)
    return interfaces.select_beams(tensors, beams_BN)


def grow(active: Hypotheses, chosen: Candidates, length_B: Tensor, attention_BKS: Tensor | None) -> Hypotheses:
    """Return the chosen candidates as hypotheses without scores.

    Each is its parent with one more token and the step's attention. length_B: their |Y|, with this token.
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
    hypotheses: Hypotheses, selected_BK: Tensor, mask_BS: Tensor, has_attention: bool, options: SearchOptions
) -> Hypotheses:
    """Return the hypotheses with the scores of equation 14. Those outside bool `selected_BK` become empty."""
    coverage_BKS = hypotheses.coverage_BKS if has_attention else None
    score_BK = score(hypotheses.log_prob_BK, hypotheses.length_BK, coverage_BKS, mask_BS[:, None], options)
    return hypotheses._replace(
        log_prob_BK=hypotheses.log_prob_BK.masked_fill(~selected_BK, -math.inf),
        score_BK=score_BK.masked_fill(~selected_BK, -math.inf),
    )


def add_results(results: Hypotheses, new: Hypotheses, options: SearchOptions) -> Hypotheses:
    """Add scored hypotheses to the results; empty ones add nothing.

    Beam search keeps the best K of both, the best first, ties in favor of older ones. Samples do not compete: each
    keeps its beam index.
    """
    if options.sampling:
        is_new_BK = new.log_prob_BK > -math.inf
        return Hypotheses(
            *(
                torch.where(is_new_BK.view(*is_new_BK.shape, *[1] * (old.dim() - 2)), now, old)
                for old, now in zip(results, new, strict=True)
            )
        )
    both = Hypotheses(*(torch.cat(pair, 1) for pair in zip(results, new, strict=True)))
    order = both.score_BK.sort(dim=1, descending=True, stable=True).indices
    return both.take(order[:, : results.score_BK.shape[1]])


def prune(active: Hypotheses, finished: Hypotheses, options: SearchOptions, pruning: float) -> Hypotheses:
    """Set log P to -inf for active hypotheses more than `pruning` nats below the best finished one.

    Both sides are compared by log P / lp, without the coverage penalty.
    """
    alpha, constant = options.length_penalty_alpha, options.length_penalty_constant
    best_B1 = finished.log_prob_BK[:, :1] / length_penalty(finished.length_BK[:, :1], alpha, constant)
    normalized_BK = active.log_prob_BK / length_penalty(active.length_BK, alpha, constant)
    pruned_BK = normalized_BK < best_B1 - pruning
    return active._replace(log_prob_BK=active.log_prob_BK.masked_fill(pruned_BK, -math.inf))
