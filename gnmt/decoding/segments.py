"""`Translation`, the result for one line, and `cut_line`, which cuts a long line into segments that fit a search."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnmt.data.tokenizer import AnyTokenizer, Tokenizers

# Ends of sentences: in scripts with spaces, marks before a space; in other scripts, the marks alone. The quantifiers
# are possessive (`++`, `*+`), so each run of marks is matched once from its beginning. With backtracking, the time
# for a run without a space after it would grow with the square of its length.
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]++[」』”’）]*+""")

SHORTEST_SEGMENT = 4
"""A segment of a long line with fewer tokens takes the next sentence too."""


@dataclass(frozen=True)
class Translation:
    """One translation of a line. A line that was cut has the tokens of its segments one after another.

    Attributes:
        text: The detokenized translation.
        score: Equation 14 of Wu et al. 2016, summed over segments.
        tokens: Target ids, with EOS if finished.
        attentions: For each segment fp32 [T, S], one row per target token and one column per source token with EOS.
            Empty if attention was not requested.
        finished: False if the length limit cut it off.
        log_prob: log P(Y|X), natural logarithm, summed over segments.
        source_tokens: Source ids with the framing of each segment. They are the columns of the attentions.
        segment_lengths: Target tokens of each segment. Empty for a line that was not cut.
        alternatives: The other hypotheses of an n-best list, or the other samples, in their order.
        steps: Decoder steps of its search.
        steps_after_best: Steps after the best hypothesis was found, which is the cost of the stopping rule.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    attentions: tuple[Tensor, ...] = ()
    finished: bool = True
    log_prob: float = 0.0
    source_tokens: tuple[int, ...] = ()
    segment_lengths: tuple[int, ...] = ()
    alternatives: tuple[Translation, ...] = ()
    steps: int = 0
    steps_after_best: int = 0

    @property
    def attention_TS(self) -> Tensor | None:
        """The attention of all tokens, [T, S], block-diagonal for a line that was cut; None if not requested."""
        if len(self.attentions) <= 1:
            return self.attentions[0] if self.attentions else None
        along_diagonal: Tensor = torch.block_diag(*self.attentions)  # type: ignore[no-untyped-call]
        return along_diagonal


def cut_line(tokenizers: Tokenizers, line: str, max_tokens: int) -> list[list[int]]:
    """Cut a line into segments and return their source ids, each with its framing.

    A line that fits is one segment, and a line without a token has none. A longer line is cut at every sentence end,
    because a model that was trained on single sentences translates only the beginning of several. A segment of fewer
    than SHORTEST_SEGMENT tokens, such as an abbreviation, takes the next sentence too if it fits. A sentence that does
    not fit is cut between words, and a word that does not fit between any two tokens; these segments take as many words
    as fit.

    Args:
        tokenizers: The tokenizers, of which the source's is used.
        line: The text.
        max_tokens: Largest number of ids of a segment, with its framing (BOS, EOS).
    """
    ids = tokenizers.source.encode(line) if line.strip() else []
    limit = max_tokens - tokenizers.num_framing_ids
    if len(ids) <= limit:
        return [tokenizers.framed(ids)] if ids else []
    segments: list[list[int]] = []
    for sentence in split_sentences(line):
        for part in _parts(tokenizers.source, sentence, limit):
            if segments and len(segments[-1]) < SHORTEST_SEGMENT and len(segments[-1]) + len(part) <= limit:
                segments[-1] += part
            else:
                segments.append(part)
    return [tokenizers.framed(segment) for segment in segments]


def _parts(tokenizer: AnyTokenizer, sentence: str, limit: int) -> Iterator[list[int]]:
    """Yield the ids of a sentence, in the fewest parts of at most `limit` tokens with whole words, if it is longer."""
    ids = tokenizer.encode(sentence)
    if len(ids) <= limit:
        if ids:
            yield ids
        return
    part: list[int] = []
    for word in sentence.split():
        ids = tokenizer.encode(word)
        for unit in (ids[start : start + limit] for start in range(0, len(ids), limit)):
            if part and len(part) + len(unit) > limit:
                yield part
                part = []
            part = part + unit
    if part:
        yield part


def split_sentences(line: str) -> list[str]:
    """Split a line after each sentence end. The sentences keep all characters: joined, they are the line."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    boundaries = [0, *ends, len(line)]
    return [line[start:end] for start, end in pairwise(boundaries) if end > start]
