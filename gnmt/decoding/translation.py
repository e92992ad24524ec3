"""Long lines cut into segments, and the translation that is joined from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gnmt.data.tokenizer import AnyTokenizer, Tokenizers


@dataclass(frozen=True)
class Translation:
    """One translation of a line.

    text: detokenized. score: eq. 14 of Wu et al. 2016. tokens: the pieces' ids, with EOS where finished.
    attentions: fp32, one row a target token, one column a source token with EOS; one matrix, and of a line that was
    translated in pieces one for each; empty where not asked for.
    finished: False where the length limit cut it off. log_prob: log P(Y|X), natural logarithm.
    source_tokens: the ids that were read, with EOS of each piece: the columns of the attentions.
    segment_lengths: of a line that was translated in pieces, how many of the tokens come from each; else empty.
    alternatives: the other hypotheses of an n-best list, or the other samples, in their order.
    steps: decoder steps of its search. steps_after_best: those after the best was found, which is what the stopping
    rule costs.
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
        """All tokens' attention [T, S], or None; of a line in pieces a copy with theirs along the diagonal."""
        if len(self.attentions) <= 1:
            return self.attentions[0] if self.attentions else None
        along_diagonal: Tensor = torch.block_diag(*self.attentions)  # type: ignore[no-untyped-call]
        return along_diagonal


# Ends of sentences: in scripts with spaces, marks before a space; in those without, the marks alone. Each run of marks
# is read once: from its beginning, and nothing of it is given back, which would never help, since what may follow a run
# is none of it. Otherwise a run without a space behind it is tried from each of its marks to each of its ends.
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]++[」』”’）]*+""")


def cut_line(tokenizers: Tokenizers, line: str, max_tokens: int) -> list[list[int]]:
    """The ids of what is read at once, each framed: none for a line without a token, one whole line, or pieces.

    max_tokens: of a piece, its framing counted, and more than that. Sentences that fit together stay together.
    """
    ids = tokenizers.source.encode(line) if line.strip() else []
    limit = max_tokens - tokenizers.num_framing_ids
    if len(ids) <= limit:
        return [tokenizers.framed(ids)] if ids else []
    pieces: list[list[int]] = [[]]
    for unit in _units(tokenizers.source, line, limit):
        if pieces[-1] and len(pieces[-1]) + len(unit) > limit:
            pieces.append([])
        pieces[-1] += unit
    return [tokenizers.framed(piece) for piece in pieces]


def _units(tokenizer: AnyTokenizer, line: str, limit: int) -> Iterator[list[int]]:
    """Token ids of sentences; of words where a sentence is over the limit; of parts where a word is."""
    for sentence in split_sentences(line):
        ids = tokenizer.encode(sentence)
        if len(ids) <= limit:
            yield ids
            continue
        for word in sentence.split():
            ids = tokenizer.encode(word)
            yield from (ids[start : start + limit] for start in range(0, len(ids), limit))


def split_sentences(line: str) -> list[str]:
    """The line cut behind each sentence end; joined, they are the line again."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    cuts = [0, *ends, len(line)]
    return [line[start:end] for start, end in pairwise(cuts) if end > start]
