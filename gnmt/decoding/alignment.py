"""Where a translation looked: pictures, alignments of words, and source words in the place of unknown ones."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gnmt.data.tokenizer import AnyTokenizer, Tokenizers
from gnmt.reporting.figures import alignment_figure
from gnmt.types import BOS_ID, EOS_ID, UNK_ID, InputError, Translation

_FRAMING = (BOS_ID, EOS_ID)  # what stands around the pieces and belongs to no word
# What clings to a word without being part of it, so that a copied name does not bring the comma of its source.
_PUNCTUATION = string.punctuation + "“”„‚‘’«»‹›…–—¿¡。，、！？：；「」『』（）"


class Words(NamedTuple):
    """The words of a text, which white space separates, and for each token the word that it belongs to, or None."""

    texts: list[str]
    of_token: list[int | None]


def draw_alignment(tokenizers: Tokenizers, translation: Translation) -> Figure | None:
    """A translation's attention over the pieces of both sides.

    None where there is none to draw: a blank line, attention not asked for, or a line that was translated in pieces.
    """
    if translation.attention_TS is None or translation.source_tokens.count(EOS_ID) != 1:
        return None
    source_pieces = tokenizers.source.pieces(translation.source_tokens)
    target_pieces = tokenizers.target.pieces(translation.tokens)
    return alignment_figure(source_pieces, target_pieces, translation.attention_TS)


def word_alignment(tokenizers: Tokenizers, source: str, translation: Translation) -> list[tuple[int, int]]:
    """(source word, target word) for each target word, counted from 0 in `source` and `translation.text`, in order.

    A target word goes to the source word that got most of its attention, the first of equal ones; one that looked at
    nothing but the end of the sentence goes to none. The translation must hold attention (InputError), but a blank
    line needs none. In a line that was cut into pieces, a word only finds words of its own piece.
    """
    attention_TS = word_attention(tokenizers, source, translation)
    if attention_TS.numel() == 0:
        return []
    best = attention_TS.numpy().argmax(axis=1)  # NumPy's takes the first of equal ones
    return sorted((int(best[word]), word) for word in range(len(best)) if attention_TS[word, best[word]] > 0)


def word_attention(tokenizers: Tokenizers, source: str, translation: Translation) -> Tensor:
    """fp32 [target words, source words]: attention summed over a source word's pieces, mean over a target word's.

    A row's sum is 1 less what went to BOS and EOS. See word_alignment.
    """
    source_words = words_of_source(tokenizers.source, source, translation.source_tokens)
    target_words = words_of_target(tokenizers.target, translation.tokens)
    matrix = torch.zeros(len(target_words.texts), len(source_words.texts))
    if matrix.numel() == 0:
        return matrix
    if translation.attention_TS is None:
        raise InputError(
            "this translation holds no attention, which alignments are made of: translate with attention=True, and "
            "with a model that has attention"
        )
    rows_T, columns_S = _one_hot(target_words), _one_hot(source_words)
    return (rows_T / rows_T.sum(0).clamp(min=1)).T @ translation.attention_TS @ columns_S


def _one_hot(words: Words) -> Tensor:
    """fp32 [tokens, words], 1 where the token belongs to the word."""
    matrix = torch.zeros(len(words.of_token), len(words.texts))
    for token, word in enumerate(words.of_token):
        if word is not None:
            matrix[token, word] = 1.0
    return matrix


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """The alignment as aligners write it: "0-0 1-2", source word first, counted from 0."""
    return " ".join(f"{source}-{target}" for source, target in pairs)


def words_of_source(tokenizer: AnyTokenizer, line: str, tokens: Sequence[int]) -> Words:
    """The words of a line that was read as these tokens (with their framing).

    Where a cut made other pieces than the line as a whole has, they are the words of the pieces' own text.
    """
    text, ids, spans = tokenizer.encode_with_spans(line)
    pieces = [token for token in tokens if token not in _FRAMING]
    if ids != pieces:
        text, spans = tokenizer.decode_with_spans(pieces)
    return _words(text, tokens, spans)


def words_of_target(tokenizer: AnyTokenizer, tokens: Sequence[int]) -> Words:
    """The words of the text of these tokens."""
    pieces = [token for token in tokens if token not in _FRAMING]
    text, spans = tokenizer.decode_with_spans(pieces)
    return _words(text, tokens, spans)


def _words(text: str, tokens: Sequence[int], spans: Iterable[tuple[int, int]]) -> Words:
    """spans: the characters [begin, end) of each token that is no BOS or EOS."""
    words = list(re.finditer(r"\S+", text))
    word_at = {place: number for number, word in enumerate(words) for place in range(*word.span())}
    remaining = iter(spans)
    of_token = [None if token in _FRAMING else _word_of(next(remaining), word_at, len(text)) for token in tokens]
    return Words([word.group() for word in words], of_token)


def _word_of(span: tuple[int, int], word_at: dict[int, int], end: int) -> int | None:
    """The word of a piece's last letter.

    What has no letter of its own, a space or the first bytes of a character, belongs to the word that goes on there.
    """
    for place in (*reversed(range(*span)), *range(span[1], end)):
        if place in word_at:
            return word_at[place]
    return None


def with_unknown_copied(
    tokenizer: AnyTokenizer, tokens: Sequence[int], attention_TS: Tensor, source_words: Words, first_column: int = 0
) -> str:
    """The text of a translation, each UNK replaced by the source word that got most attention when it was produced.

    The word is copied without the punctuation around it. first_column: the token of source_words that the first
    column of attention_TS belongs to. An UNK that looked at EOS alone stays ` ⁇ `.
    """
    pieces = [token for token in tokens if token not in _FRAMING]
    text, spans = tokenizer.decode_with_spans(pieces)
    of_column = source_words.of_token[first_column : first_column + attention_TS.shape[1]]
    # From the end, so that earlier places stay where they are.
    for step in reversed([step for step, token in enumerate(pieces) if token == UNK_ID]):
        word = _most_attended(attention_TS[step], of_column)
        if word is not None:
            begin, end = spans[step]
            copied = source_words.texts[word]
            text = text[:begin] + (copied.strip(_PUNCTUATION) or copied) + text[end:]
    return text


def _most_attended(weights_S: Tensor, word_of_column: Sequence[int | None]) -> int | None:
    """The word with the largest sum of weights, the first of equal ones; None where all is on EOS."""
    sums: dict[int, float] = {}
    for weight, word in zip(weights_S.tolist(), word_of_column, strict=True):
        if word is not None:
            sums[word] = sums.get(word, 0.0) + weight
    best = max(sums, key=lambda word: (sums[word], -word), default=None)
    return best if best is not None and sums[best] > 0 else None
