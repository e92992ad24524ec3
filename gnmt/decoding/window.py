"""A window of lines on its way through the search: cut, sorted by length, searched, put together again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from gnmt.decoding.alignment import Words, with_unknown_copied, words_of_source
from gnmt.decoding.cutting import cut_line
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.places import place_of
from gnmt.decoding.search import Hypothesis, SearchResult, search
from gnmt.types import UNK_ID, InputError, Translation

if TYPE_CHECKING:
    from gnmt.decoding.translator import Translator

log = logging.getLogger(__name__)

# The pieces of a cut line draw other samples than each other and than any line with a number below this.
_KEYS_OF_PIECES = 1 << 40


class Piece(NamedTuple):
    """What is searched at once: the `part`-th part of the line in that row of the window; ids end with EOS."""

    row: int
    part: int
    ids: list[int]


def translate_window(
    translator: Translator,
    lines: Sequence[str],
    prefixes: Sequence[str],
    first_line: int,
    path: str | None,
    options: SearchOptions,
    attention: bool,
    on_lines: Callable[[int], object],
) -> list[Translation]:
    """One translation for each line; see Translator.stream. on_lines: told how many lines more are done."""
    parts = [_cut(translator, line, place_of(path, first_line + row)) for row, line in enumerate(lines)]
    on_lines(sum(not line for line in parts))
    # The longest first: what does not fit into memory shows early, and the last to be searched take few steps.
    pieces = sorted(
        (Piece(row, part, ids) for row, line in enumerate(parts) for part, ids in enumerate(line)),
        key=lambda piece: -len(piece.ids),
    )
    with_attention = attention or translator.copies_unknown
    results = _search(translator, pieces, prefixes, first_line, path, options, with_attention, on_lines)
    of_line: list[dict[int, SearchResult]] = [{} for _ in lines]
    for piece, result in zip(pieces, results, strict=True):
        of_line[piece.row][piece.part] = result
    for row, found in enumerate(of_line):
        if not all(result.hypotheses for result in found.values()):
            log.warning(
                "%s has no translation, because no token may follow what must come first: decoding.min_length and "
                "decoding.no_repeat_ngram together leave none, or its prefix has no probability; it stays empty",
                place_of(path, first_line + row),
            )
    return [
        _translation(translator, line, sources, [found[part] for part in range(len(sources))], attention)
        for line, sources, found in zip(lines, parts, of_line, strict=True)
    ]


def _cut(translator: Translator, line: str, place: str) -> list[list[int]]:
    """What of a line is searched at once, with a warning where that is not the whole line."""
    tokenizers, limit = translator.tokenizers, translator.max_source_tokens
    parts = cut_line(tokenizers, line, limit)
    if len(parts) > 1:
        framing = tokenizers.num_framing_ids
        log.warning(
            "%s has %d tokens, at most %d are translated at once: it is translated in %d pieces",
            *(place, sum(len(part) - framing for part in parts), limit - framing, len(parts)),
        )
    return parts


def _search(
    translator: Translator,
    pieces: Sequence[Piece],
    prefixes: Sequence[str],
    first_line: int,
    path: str | None,
    options: SearchOptions,
    with_attention: bool,
    on_lines: Callable[[int], object],
) -> list[SearchResult]:
    """The result of each piece, with smaller batches where memory runs out."""
    encode = translator.tokenizers.target.encode
    prefix_ids = [encode(prefixes[piece.row]) if piece.part == 0 else [] for piece in pieces]
    keys = [first_line + piece.row + piece.part * _KEYS_OF_PIECES for piece in pieces]
    found: dict[int, SearchResult] = {}
    left_of_row = Counter(piece.row for piece in pieces)

    def keep(place: int, result: SearchResult) -> None:
        found[place] = result
        row = pieces[place].row
        left_of_row[row] -= 1
        if not left_of_row[row]:
            on_lines(1)

    def places_left() -> list[int]:
        return [place for place in range(len(pieces)) if place not in found]

    def first_left() -> str:
        piece = pieces[places_left()[0]]
        return f"{place_of(path, first_line + piece.row)} ({len(piece.ids)} tokens)"

    def run(batch_size: int) -> None:
        places = places_left()
        search(
            translator.search_model,
            [pieces[place].ids for place in places],
            options,
            device=translator.precision.device,
            banned=translator.banned,
            prefixes=[prefix_ids[place] for place in places],
            keys=[keys[place] for place in places],
            with_attention=with_attention,
            batch_size=batch_size,
            on_done=lambda index, result: keep(places[index], result),
        )

    translator.within_memory(run, first_left)
    return [found[place] for place in range(len(pieces))]


def _translation(
    translator: Translator,
    line: str,
    sources: Sequence[Sequence[int]],
    results: Sequence[SearchResult],
    attention: bool,
) -> Translation:
    """One line's translation from the results of its pieces, none for a blank line.

    Where a piece has no result, the line has none: an empty translation, which is not finished.
    """
    source_tokens = tuple(token for source in sources for token in source)
    words = words_of_source(translator.tokenizers.source, line, source_tokens) if translator.copies_unknown else None
    # Where one piece has fewer hypotheses than another, the line has as few.
    by_rank = list(zip(*(result.hypotheses for result in results), strict=False)) or [()]
    best, *others = [
        Translation(
            text=_text(translator, hypotheses, words),
            score=sum((hypothesis.score for hypothesis in hypotheses), 0.0),
            tokens=tuple(token for hypothesis in hypotheses for token in hypothesis.tokens),
            attentions=_attentions(hypotheses) if attention else (),
            finished=len(hypotheses) == len(results) and all(hypothesis.finished for hypothesis in hypotheses),
            log_prob=sum((hypothesis.log_prob for hypothesis in hypotheses), 0.0),
            source_tokens=source_tokens,
            part_lengths=tuple(len(hypothesis.tokens) for hypothesis in hypotheses) if len(hypotheses) > 1 else (),
        )
        for hypotheses in by_rank
    ]
    return replace(
        best,
        alternatives=tuple(others),
        steps=sum(result.steps for result in results),
        steps_after_best=sum(result.steps - result.best_found_at for result in results),
    )


def _text(translator: Translator, hypotheses: Sequence[Hypothesis], words: Words | None) -> str:
    """The pieces' texts, joined by a space. words: of the source, where they stand in for unknown pieces."""
    target = translator.tokenizers.target
    texts, column = [], 0
    for hypothesis in hypotheses:
        if words is None or UNK_ID not in hypothesis.tokens:
            texts.append(target.decode(hypothesis.tokens))
        else:
            texts.append(with_unknown_copied(target, hypothesis.tokens, _required(hypothesis), words, column))
        if words is not None:
            column += _required(hypothesis).shape[1]
    return " ".join(text for text in texts if text)


def _required(hypothesis: Hypothesis) -> torch.Tensor:
    """A hypothesis' attention, which copying needs."""
    if hypothesis.attention_TS is None:
        raise InputError(
            "replace_unknown=copy takes the most attended source word, but this model has no attention that aligns "
            "target with source tokens: use replace_unknown=none"
        )
    return hypothesis.attention_TS


def _attentions(hypotheses: Sequence[Hypothesis]) -> tuple[torch.Tensor, ...]:
    """Those of the pieces."""
    return tuple(hypothesis.attention_TS for hypothesis in hypotheses if hypothesis.attention_TS is not None)
