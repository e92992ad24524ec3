"""Pictures of where a translation looked; apart from alignment.py, since matplotlib takes long to load."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gnmt.batch import BOS_ID, EOS_ID, UNK_ID
from gnmt.data.tokenizer import AnyTokenizer, Tokenizers
from gnmt.decoding.translation import Translation
from gnmt.errors import InputError
from gnmt.reporting.figures import alignment_figure

_FRAMING = (BOS_ID, EOS_ID)  # what stands around the pieces and belongs to no word
# What clings to a word without being part of it, so that a copied name does not bring the comma of its source.
_PUNCTUATION = string.punctuation + "“”„‚‘’«»‹›…–—¿¡。，、！？：；「」『』（）"


class Words(NamedTuple):
    """The words of a text, which white space separates, and for each token the word that it belongs to, or None."""

    texts: list[str]
    of_token: list[int | None]


class Block(NamedTuple):
    """Attention between the words that a piece of a line holds; [target words, source words], fp32.

    first_target, first_source: the words of the first row and of the first column.
    """

    first_target: int
    first_source: int
    weights: Tensor


def word_alignment(tokenizers: Tokenizers, source: str, translation: Translation) -> list[tuple[int, int]]:
    """(source word, target word) for each target word, counted from 0 in `source` and `translation.text`, in order.

    A target word goes to the source word that got most of its attention, the first of equal ones; one that looked at
    nothing but the end of the sentence goes to none. The translation must hold attention (InputError), but a blank
    line needs none. In a line that was cut into pieces, a word only finds words of its own piece.
    """
    found: dict[int, tuple[float, int]] = {}
    for block in _blocks(*_words_of_both(tokenizers, source, translation), translation.attentions):
        best = block.weights.numpy().argmax(axis=1)  # NumPy's takes the first of equal ones
        for row, column in enumerate(best.tolist()):
            weight = float(block.weights[row, column])
            if weight > found.get(block.first_target + row, (0.0, 0))[0]:  # a word that a cut goes through has two rows
                found[block.first_target + row] = weight, block.first_source + column
    return sorted((source_word, target_word) for target_word, (_, source_word) in found.items())


def word_attention(tokenizers: Tokenizers, source: str, translation: Translation) -> Tensor:
    """fp32 [target words, source words]: attention summed over a source word's pieces, mean over a target word's.

    A row's sum is 1 less what went to BOS and EOS. See word_alignment.
    """
    source_words, target_words = _words_of_both(tokenizers, source, translation)
    matrix = torch.zeros(len(target_words.texts), len(source_words.texts))
    for first_target, first_source, weights in _blocks(source_words, target_words, translation.attentions):
        rows, columns = weights.shape
        matrix[first_target : first_target + rows, first_source : first_source + columns] += weights
    return matrix


def _words_of_both(tokenizers: Tokenizers, source: str, translation: Translation) -> tuple[Words, Words]:
    """Source and target words; InputError where there are some of both, but no attention between them."""
    source_words = words_of_source(tokenizers.source, source, translation.source_tokens)
    target_words = words_of_target(tokenizers.target, translation.tokens)
    if source_words.texts and target_words.texts and not translation.attentions:
        raise InputError(
            "this translation holds no attention, which alignments are made of: translate with attention=True, and "
            "with a model that has attention"
        )
    return source_words, target_words


def _blocks(source_words: Words, target_words: Words, attentions: Sequence[Tensor]) -> Iterator[Block]:
    """A block for each piece of the line that has words on both sides.

    Never the matrix between all words of the line: of a long one it is large, and zero but for these blocks.
    """
    num_tokens = Counter(target_words.of_token)
    row = column = 0
    for attention_TS in attentions:
        target_T = target_words.of_token[row : row + attention_TS.shape[0]]
        source_S = source_words.of_token[column : column + attention_TS.shape[1]]
        row, column = row + len(target_T), column + len(source_S)
        rows = [place for place, word in enumerate(target_T) if word is not None]
        columns = [place for place, word in enumerate(source_S) if word is not None]
        if not rows or not columns:
            continue
        targets = torch.tensor([target_T[place] for place in rows])
        sources = torch.tensor([source_S[place] for place in columns])
        shares = torch.tensor([1 / num_tokens[target_T[place]] for place in rows])
        first_target, first_source = int(targets.min()), int(sources.min())
        by_source = torch.zeros(len(rows), int(sources.max()) - first_source + 1)
        by_source.index_add_(1, sources - first_source, attention_TS[rows][:, columns])
        weights = torch.zeros(int(targets.max()) - first_target + 1, by_source.shape[1])
        weights.index_add_(0, targets - first_target, by_source * shares[:, None])
        yield Block(first_target, first_source, weights)


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
    for place in chain(reversed(range(*span)), range(span[1], end)):  # chained, for a line may be long
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


def draw_alignment(tokenizers: Tokenizers, translation: Translation) -> Figure | None:
    """A translation's attention over the pieces of both sides.

    None where there is none to draw: a blank line, attention not asked for, or a line that was translated in pieces.
    """
    if len(translation.attentions) != 1:
        return None
    source_pieces = tokenizers.source.subwords(translation.source_tokens)
    target_pieces = tokenizers.target.subwords(translation.tokens)
    return alignment_figure(source_pieces, target_pieces, translation.attentions[0])
