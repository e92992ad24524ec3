"""Alignment of words from attention over subwords, copies of unknown words, and pictures of attention.

A word is a run of characters without white space. Every subword belongs to at most one word, so attention between
subwords adds up to attention between words. `word_alignment` and `word_attention` do this for a Translation,
`copy_unknown_words` replaces UNK by source words, and `draw_alignment` draws the attention between subwords.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, UNK_ID
from gnmt.data.tokenizer import AnyTokenizer, Tokenizers
from gnmt.decoding.segments import Translation
from gnmt.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stripped from copied words, so that a name is copied without the comma that follows it in the source.
PUNCTUATION = string.punctuation + "“”„‚‘’«»‹›…–—¿¡。，、！？：；「」『』（）"


class Words(NamedTuple):
    """The words of a text.

    Attributes:
        texts: The words in order.
        of_token: For each token the index of its word, or None for BOS, EOS, tags and tokens outside words.
    """

    texts: list[str]
    of_token: list[int | None]


class Block(NamedTuple):
    """Attention between the words of one segment.

    Attributes:
        first_target: Index of the target word of the first row.
        first_source: Index of the source word of the first column.
        weights: fp32 [target words, source words].
    """

    first_target: int
    first_source: int
    weights: Tensor


def word_alignment(tokenizers: Tokenizers, source: str, translation: Translation) -> list[tuple[int, int]]:
    """Align each target word with the source word that received most of its attention.

    Ties go to the first source word. A target word whose attention is all on EOS is left out. In a line that was cut,
    words are aligned within their segment.

    Args:
        tokenizers: The tokenizers of both sides.
        source: The source line.
        translation: Its translation with attention.

    Returns:
        (source word, target word) for each aligned target word, sorted. Both are indices from 0, into the words of
        `source` and of `translation.text`.

    Raises:
        InputError: The translation has no attention. A blank line needs none.
    """
    found: dict[int, tuple[float, int]] = {}
    for block in _blocks(*_words_of_both(tokenizers, source, translation), translation.attentions):
        best = block.weights.numpy().argmax(axis=1)  # NumPy takes the first of equal values
        for row, column in enumerate(best.tolist()):
            weight = float(block.weights[row, column])
            # A word that is cut by a segment's end has a row in both segments.
            if weight > found.get(block.first_target + row, (0.0, 0))[0]:
                found[block.first_target + row] = weight, block.first_source + column
    return sorted((source_word, target_word) for target_word, (_, source_word) in found.items())


def word_attention(tokenizers: Tokenizers, source: str, translation: Translation) -> Tensor:
    """Return the attention between words, fp32 [target words, source words].

    It is the sum over the subwords of a source word and the mean over those of a target word. A row sums to 1 minus
    the attention on BOS and EOS. See word_alignment for arguments and errors.
    """
    source_words, target_words = _words_of_both(tokenizers, source, translation)
    matrix = torch.zeros(len(target_words.texts), len(source_words.texts))
    for first_target, first_source, weights in _blocks(source_words, target_words, translation.attentions):
        rows, columns = weights.shape
        matrix[first_target : first_target + rows, first_source : first_source + columns] += weights
    return matrix


def _words_of_both(tokenizers: Tokenizers, source: str, translation: Translation) -> tuple[Words, Words]:
    """Return source and target words. Raises InputError if both have words and there is no attention."""
    source_words = words_of_source(tokenizers.source, source, translation.source_tokens)
    target_words = words_of_target(tokenizers.target, translation.tokens)
    if source_words.texts and target_words.texts and not translation.attentions:
        raise InputError(
            "this translation has no attention, from which alignments are computed: translate with attention=True, and "
            "with a model that has attention"
        )
    return source_words, target_words


def _blocks(source_words: Words, target_words: Words, attentions: Sequence[Tensor]) -> Iterator[Block]:
    """Yield a block for each segment that has words on both sides.

    The matrix between all words of a line is never built: for a long line it is large and mostly zero.
    """
    num_tokens = Counter(target_words.of_token)
    row = column = 0
    for attention_TS in attentions:
        target_T = target_words.of_token[row : row + attention_TS.shape[0]]
        source_S = source_words.of_token[column : column + attention_TS.shape[1]]
        row, column = row + len(target_T), column + len(source_S)
        rows = [index for index, word in enumerate(target_T) if word is not None]
        columns = [index for index, word in enumerate(source_S) if word is not None]
        if not rows or not columns:
            continue
        targets = torch.tensor([target_T[index] for index in rows])
        sources = torch.tensor([source_S[index] for index in columns])
        factors = torch.tensor([1 / num_tokens[target_T[index]] for index in rows])
        first_target, first_source = int(targets.min()), int(sources.min())
        by_source = torch.zeros(len(rows), int(sources.max()) - first_source + 1)
        by_source.index_add_(1, sources - first_source, attention_TS[rows][:, columns])
        weights = torch.zeros(int(targets.max()) - first_target + 1, by_source.shape[1])
        weights.index_add_(0, targets - first_target, by_source * factors[:, None])
        yield Block(first_target, first_source, weights)


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """Format an alignment as word aligners do: "0-0 1-2", source word first, counted from 0."""
    return " ".join(f"{source}-{target}" for source, target in pairs)


def words_of_source(tokenizer: AnyTokenizer, line: str, tokens: Sequence[int]) -> Words:
    """Return the words of a source line and the word of each of its tokens.

    A line that was cut may be tokenized differently from the whole line. Its words are then those of its decoded
    subwords.

    Args:
        tokenizer: The tokenizer of the source.
        line: The source line.
        tokens: Its ids, with the framing of each segment.
    """
    text, ids, spans = tokenizer.encode_with_spans(line)
    is_framing = _is_framing(tokenizer, tokens)
    subwords = _without(tokens, is_framing)
    if ids != subwords:
        text, spans = tokenizer.decode_with_spans(subwords)
    return _words(text, is_framing, spans)


def words_of_target(tokenizer: AnyTokenizer, tokens: Sequence[int]) -> Words:
    """Return the words of the decoded tokens and the word of each token."""
    is_framing = _is_framing(tokenizer, tokens)
    text, spans = tokenizer.decode_with_spans(_without(tokens, is_framing))
    return _words(text, is_framing, spans)


def _is_framing(tokenizer: AnyTokenizer, tokens: Sequence[int]) -> list[bool]:
    """Return for each token whether it is BOS, EOS or a tag, which have no text."""
    framing = {BOS_ID, EOS_ID, *tokenizer.control_symbols.values()}
    return [token in framing for token in tokens]


def _without(tokens: Sequence[int], is_framing: Sequence[bool]) -> list[int]:
    return [token for token, is_out in zip(tokens, is_framing, strict=True) if not is_out]


def _words(text: str, is_framing: Sequence[bool], spans: Iterable[tuple[int, int]]) -> Words:
    """Split a text into words.

    Args:
        text: The text.
        is_framing: For each token, whether it is BOS, EOS or a tag.
        spans: The characters [begin, end) of each other token.
    """
    words = list(re.finditer(r"\S+", text))
    word_at = {position: index for index, word in enumerate(words) for position in range(*word.span())}
    remaining = iter(spans)
    of_token = [None if is_out else _word_of(next(remaining), word_at, len(text)) for is_out in is_framing]
    return Words([word.group() for word in words], of_token)


def _word_of(span: tuple[int, int], word_at: dict[int, int], end: int) -> int | None:
    """Return the word that a token belongs to: the word of its last character that is not a space.

    A token without such a character, such as a space or the first bytes of a character, belongs to the next word.

    Args:
        span: The token's characters [begin, end).
        word_at: The word of each character.
        end: Length of the text.
    """
    for position in chain(reversed(range(*span)), range(span[1], end)):  # lazily, since a line may be long
        if position in word_at:
            return word_at[position]
    return None


def copy_unknown_words(
    tokenizer: AnyTokenizer, tokens: Sequence[int], attention_TS: Tensor, source_words: Words, first_column: int = 0
) -> str:
    """Decode a translation and replace each UNK by the source word that received most of its attention.

    The word is copied without the punctuation around it. An UNK whose attention is all on EOS stays ` ⁇ `.

    Args:
        tokenizer: The tokenizer of the target.
        tokens: Target ids.
        attention_TS: One row per token.
        source_words: The words of the source line.
        first_column: Index of the source token of the first column of attention_TS.
    """
    subwords = _without(tokens, _is_framing(tokenizer, tokens))
    text, spans = tokenizer.decode_with_spans(subwords)
    of_column = source_words.of_token[first_column : first_column + attention_TS.shape[1]]
    # From the end, so that the spans of earlier tokens stay valid.
    for step in reversed([step for step, token in enumerate(subwords) if token == UNK_ID]):
        word = _most_attended(attention_TS[step], of_column)
        if word is not None:
            begin, end = spans[step]
            copied = source_words.texts[word]
            text = text[:begin] + (copied.strip(PUNCTUATION) or copied) + text[end:]
    return text


def _most_attended(weights_S: Tensor, word_of_column: Sequence[int | None]) -> int | None:
    """Return the index of the word with the largest sum of weights, the first of equal ones; None if all sums are 0."""
    sums: dict[int, float] = {}
    for weight, word in zip(weights_S.tolist(), word_of_column, strict=True):
        if word is not None:
            sums[word] = sums.get(word, 0.0) + weight
    best = max(sums, key=lambda word: (sums[word], -word), default=None)
    return best if best is not None and sums[best] > 0 else None


def draw_alignment(tokenizers: Tokenizers, translation: Translation) -> Figure | None:
    """Draw the attention of a translation between the subwords of both sides.

    Returns None for a translation without attention and for a line that was cut.
    """
    if len(translation.attentions) != 1:
        return None
    from gnmt.reporting.figures import alignment_figure  # here, because matplotlib takes long to import

    source_subwords = tokenizers.source.subwords(translation.source_tokens)
    target_subwords = tokenizers.target.subwords(translation.tokens)
    return alignment_figure(source_subwords, target_subwords, translation.attentions[0])
