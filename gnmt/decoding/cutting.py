"""Long lines in pieces that a model can read: at sentence ends, else between words, else anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from gnmt.data.tokenizer import AnyTokenizer, Tokenizers

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
