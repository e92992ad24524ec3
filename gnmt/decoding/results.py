"""What a search found, brought from the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnmt.decoding.flight import Flight
from gnmt.types import EOS_ID


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


@dataclass(frozen=True)
class SearchResult:
    """What search found for a sentence, and how long it took.

    hypotheses: 1 to options.n_best, the best first, or samples in the order drawn; none where no token may follow, as
    decoding.min_length and decoding.no_repeat_ngram can have it together, or a prefix is impossible. steps: decoder
    steps taken. best_found_at: the step in which the first of them was finished; steps - best_found_at were only needed
    to know that nothing better comes.
    """

    hypotheses: list[Hypothesis]
    steps: int
    best_found_at: int


def collect(flight: Flight, n_best: int) -> list[SearchResult]:
    """The results of sentences whose search is over."""
    some = flight.results
    columns = (some.tokens_BKT[:, :n_best], some.length_BK, some.log_prob_BK, some.score_BK)
    rows = zip(*(tensor[:, :n_best].tolist() for tensor in columns), strict=True)
    steps, num_source_tokens = flight.sentences.length_B.tolist(), flight.memory.mask_BS.sum(1).tolist()
    attention_BKTS = attention_of_results(flight, n_best)
    results = []
    for row, (tokens_KT, lengths_K, log_probs_K, scores_K) in enumerate(rows):
        hypotheses = []
        for entry, (length, log_prob) in enumerate(zip(lengths_K, log_probs_K, strict=True)):
            if log_prob > -torch.inf:
                tokens = tuple(tokens_KT[entry][1 : length + 1])
                attention_TS = None
                if attention_BKTS is not None:  # a copy, which does not hold that of all the others
                    attention_TS = attention_BKTS[row, entry, :length, : num_source_tokens[row]].clone()
                finished = tokens[-1] == EOS_ID
                hypotheses.append(Hypothesis(tokens, log_prob, scores_K[entry], finished, attention_TS))
        best_found_at = len(hypotheses[0].tokens) if hypotheses else steps[row]
        results.append(SearchResult(hypotheses, steps[row], best_found_at))
    return results


def attention_of_results(flight: Flight, n_best: int) -> Tensor | None:
    """What the best results looked at, fp32 [B, n_best, T, S] on the CPU, T the most steps that one has taken.

    In each step it is what the entry of the beam that the result came from looked at. All in one copy, which a device
    is waited for once. None where attention was not asked for.
    """
    if not flight.attention_BTKS.shape[3]:
        return None
    num_steps = int(flight.sentences.length_B.max())
    slots_BKT = flight.results.slots_BKT[:, :n_best, 1 : num_steps + 1]
    rows_B11 = torch.arange(len(slots_BKT), device=slots_BKT.device)[:, None, None]
    steps_T = torch.arange(num_steps, device=slots_BKT.device)
    return flight.attention_BTKS[rows_B11, steps_T, slots_BKT].cpu()
