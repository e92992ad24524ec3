"""The mixed word and character model (Wu et al. 2016, section 4.2).

Frequent words have an id each. Other words are spelled: `Miki` becomes `<B>M <M>i <M>k <E>i`, where the prefix says
whether a character begins a word, stands in the middle, or ends it. `WordCharacterTokenizer` has the methods of
`gnmt.data.tokenizer.Tokenizer`, and `learn_vocabulary` chooses words and characters.

The paper leaves open how spaces and punctuation are restored. Here a text is split at each space, and each part into
runs of letters, digits and combining marks, and single other characters. The first unit of a part includes the space
before it: `a dog-like (a)` has the units ` a`, ` dog`, `-`, `like`, ` (`, `a` and `)`. The text is therefore the
concatenation of its units without the first space, and any sequence of ids has a text, also one that a model spells
wrongly. `<B>` alone is a space without a character, so further spaces are kept.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from random import Random
from typing import ClassVar

import sentencepiece

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS, encodable, parse_json

_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_SKIPPED = (PAD_ID, BOS_ID, EOS_ID)
_NUM_BYTES = 256
_UNKNOWN_SURFACE = " ⁇"
_NORMALIZATIONS = ("nmt_nfkc", "identity")
_PREFIXES = ("<B>", "<M>", "<E>")
_MAX_CACHED = 100_000  # parts of texts whose ids are cached


@dataclass(frozen=True)
class Vocabulary:
    """The words and characters that have ids.

    The ids are, in this order: PAD, UNK, BOS, EOS; the control symbols; with `byte_fallback` the 256 bytes; `<B>`
    alone; each character with the prefixes <B>, <M>, <E>; each symbol with and without a space before it; the words.

    Args:
        characters: Characters that can be spelled.
        words: Units that have an id of their own, with the space before them if there is one.
        symbols: Strings that are one unit wherever they occur.
        control_symbols: Symbols that have an id although no text is encoded as them, such as tags of languages.
        byte_fallback: Spell other characters as the bytes of their UTF-8; otherwise their word is UNK.
    """

    characters: tuple[str, ...]
    words: tuple[str, ...]
    symbols: tuple[str, ...] = ()
    control_symbols: tuple[str, ...] = ()
    byte_fallback: bool = True

    @property
    def first_byte(self) -> int:
        """The id of byte 0, if there are bytes."""
        return len(_SPECIAL) + len(self.control_symbols)

    @property
    def begin(self) -> int:
        """The id of `<B>` alone."""
        return self.first_byte + _NUM_BYTES * self.byte_fallback

    @property
    def num_fixed(self) -> int:
        """The number of ids that are not words."""
        return self.begin + 1 + len(_PREFIXES) * len(self.characters) + 2 * len(self.symbols)

    @property
    def whole(self) -> tuple[str, ...]:
        """The units with an id of their own, in the order of their ids, which end the vocabulary."""
        return *(form for symbol in self.symbols for form in (" " + symbol, symbol)), *self.words

    @property
    def names(self) -> list[str]:
        """The name of each id, with ▁ for a space."""
        return [
            *_SPECIAL,
            *self.control_symbols,
            *(f"<0x{byte:02X}>" for byte in range(self.begin - self.first_byte)),
            _PREFIXES[0],
            *(prefix + character for character in self.characters for prefix in _PREFIXES),
            *(unit.replace(" ", "▁") for unit in self.whole),
        ]

    @property
    def surfaces(self) -> list[bytes]:
        """The UTF-8 that each id adds to a text; a leading space separates it from the text before it."""
        return [
            *(_UNKNOWN_SURFACE.encode() if id == UNK_ID else b"" for id in range(self.first_byte)),
            *(bytes([byte]) for byte in range(self.begin - self.first_byte)),
            b" ",
            *(surface.encode() for character in self.characters for surface in (" " + character, character, character)),
            *(unit.encode() for unit in self.whole),
        ]


class WordCharacterTokenizer:
    """A tokenizer that keeps frequent words whole and spells the others.

    Args:
        vocabulary: Its words and characters.
        normalization: Change of a text before it is split; see `gnmt.data.tokenizer.Normalization`.
    """

    kind: ClassVar[str] = "word_character"

    def __init__(self, vocabulary: Vocabulary, normalization: str = "identity") -> None:
        self.vocabulary = vocabulary
        self.normalization = normalization
        self._normalizer = None if normalization == "identity" else _normalizer(normalization)
        self._names, self._surfaces = vocabulary.names, vocabulary.surfaces
        first_whole = vocabulary.num_fixed - 2 * len(vocabulary.symbols)
        self._whole = {unit: first_whole + index for index, unit in enumerate(vocabulary.whole)}
        self._characters = {
            character: vocabulary.begin + 1 + len(_PREFIXES) * index
            for index, character in enumerate(vocabulary.characters)
        }
        self._symbols = {form for symbol in vocabulary.symbols for form in (" " + symbol, symbol)}
        self._cached: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[type[WordCharacterTokenizer], tuple[Vocabulary, str]]:
        return WordCharacterTokenizer, (self.vocabulary, self.normalization)

    @classmethod
    def from_bytes(cls, content: bytes) -> WordCharacterTokenizer:
        """Return the tokenizer that `to_bytes` serialized. Raises InputError for anything else."""
        try:
            saved = parse_json(content)
            lists = [saved[name] for name in ("characters", "words", "symbols", "control_symbols")]
            byte_fallback, normalization = saved["byte_fallback"], saved["normalization"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"tokenizer: not a vocabulary of words and characters: {error!r}") from error
        if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
            raise InputError("tokenizer: characters, words, symbols and control_symbols must be lists of strings")
        if not isinstance(byte_fallback, bool) or normalization not in _NORMALIZATIONS:
            raise InputError(
                f"tokenizer: byte_fallback must be true or false, found {byte_fallback!r}, and normalization "
                f"{' or '.join(_NORMALIZATIONS)}, found {normalization!r}"
            )
        characters, words, symbols, control_symbols = (tuple(texts) for texts in lists)
        vocabulary = Vocabulary(characters, words, symbols, control_symbols, byte_fallback)
        _check_vocabulary(vocabulary)
        return cls(vocabulary, normalization)

    def to_bytes(self) -> bytes:
        """Return JSON with the fields of the vocabulary and the normalization."""
        return json.dumps({**asdict(self.vocabulary), "normalization": self.normalization}, ensure_ascii=False).encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS. Any str is accepted; half surrogate pairs become U+FFFD."""
        return self._encoded(self._normalized(text))

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Return `encode` of each text; num_threads has no effect."""
        return [self.encode(text) for text in texts]

    def encode_sampled(self, text: str, alpha: float, seed: int) -> list[int]:
        """Return the ids of a text in which each word is spelled with probability alpha.

        The result depends on the arguments alone, in every process. Symbols are never spelled.
        """
        draw = Random(seed).random
        ids: list[int] = []
        for unit in _units_of(self._normalized(text), self.vocabulary.symbols):
            id = self._whole.get(unit)
            if id is not None and (unit in self._symbols or draw() >= alpha):
                ids.append(id)
            else:
                ids += self._spelled(unit)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of any ids, on one line.

        PAD, BOS, EOS and ids outside the vocabulary are skipped, UNK becomes ` ⁇`, bytes that are not UTF-8 become
        U+FFFD, and line breaks become spaces.
        """
        text = b"".join(self._surface(int(id)) for id in ids).decode("utf-8", "replace")
        return text.removeprefix(" ").translate(LINE_BREAKS)

    def decode_all(self, ids: Sequence[list[int]], num_threads: int = -1) -> list[str]:
        """Return `decode` of each list of ids; num_threads has no effect."""
        return [self.decode(of_text) for of_text in ids]

    def encode_with_spans(self, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """Return the text as `encode` reads it, its ids, and the span [begin, end) of each id in the text.

        The span of a word does not contain the space before it.
        """
        text = encodable(text)
        if self._normalizer is None:
            normalized, offsets = text, range(len(text) + 1)
        else:
            normalized, offsets = self._normalizer.normalize(text, with_offsets=True)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        position = -1  # of the space before the text, which the first unit includes
        for unit in _units_of(normalized, self.vocabulary.symbols):
            of_unit = self._ids_of_unit(unit)
            begin, end = position + unit.startswith(" "), position + len(unit)
            ids += of_unit
            # A single id may be UNK, whose own text is another one.
            within = [(0, end - begin)] if len(of_unit) == 1 else self._spans(of_unit)[1]
            spans += [(offsets[begin + first], offsets[begin + last]) for first, last in within]
            position = end
        return text, ids, spans

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of the ids (see `decode`), and the span [begin, end) of each id in the text.

        The span of a word does not contain the space before it.
        """
        text, spans = self._spans(ids)
        return text.translate(LINE_BREAKS), spans

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, including special ones."""
        return len(self._names)

    def subword(self, id: int) -> str:
        """Return the name of an id: a word with ▁ for the space before it, or a character with its prefix."""
        return self._names[id]

    def subwords(self, ids: Iterable[int]) -> list[str]:
        """Return `subword` of each id."""
        return [self.subword(int(id)) for id in ids]

    @cached_property
    def control_symbols(self) -> dict[str, int]:
        """The ids of the control symbols."""
        return {symbol: len(_SPECIAL) + index for index, symbol in enumerate(self.vocabulary.control_symbols)}

    @cached_property
    def never_produced(self) -> tuple[int, ...]:
        """The ids that never follow BOS in a target: PAD, BOS, control symbols, and UNK if there are bytes."""
        special = (PAD_ID, UNK_ID, BOS_ID) if self.vocabulary.byte_fallback else (PAD_ID, BOS_ID)
        return *special, *self.control_symbols.values()

    @cached_property
    def subwords_digest(self) -> str:
        """The SHA-256 of the vocabulary, which defines the meaning of the ids."""
        return hashlib.sha256(json.dumps(asdict(self.vocabulary)).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the vocabulary and the normalization."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def _normalized(self, text: str) -> str:
        text = encodable(text)
        return text if self._normalizer is None else self._normalizer.normalize(text)

    def _encoded(self, text: str) -> list[int]:
        """Return the ids of a normalized text."""
        ids: list[int] = []
        for part in text.split(" ") if text else ():
            of_part = self._cached.get(part)
            if of_part is None:
                of_part = [id for unit in _units(part, self.vocabulary.symbols) for id in self._ids_of_unit(unit)]
                if len(self._cached) >= _MAX_CACHED:
                    self._cached.clear()
                self._cached[part] = of_part
            ids += of_part
        return ids

    def _ids_of_unit(self, unit: str) -> list[int]:
        id = self._whole.get(unit)
        return self._spelled(unit) if id is None else [id]

    def _spelled(self, unit: str) -> list[int]:
        """Return the ids of the characters of a unit, or UNK if one of them cannot be spelled."""
        begins = unit.startswith(" ")
        characters = unit[begins:]
        if not self.vocabulary.byte_fallback and not all(character in self._characters for character in characters):
            return [UNK_ID]
        ids = [] if begins and characters and characters[0] in self._characters else [self.vocabulary.begin] * begins
        for index, character in enumerate(characters):
            first = self._characters.get(character)
            if first is None:
                ids += [self.vocabulary.first_byte + byte for byte in character.encode()]
            else:
                is_last = index == len(characters) - 1
                ids.append(first if begins and index == 0 else first + 1 + is_last)
        return ids

    def _surface(self, id: int) -> bytes:
        return self._surfaces[id] if 0 <= id < len(self._surfaces) and id not in _SKIPPED else b""

    def _spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of the ids without the space at its beginning, and the span of each id in it."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, ends, begins = "", [], []
        for index, id in enumerate(ids):
            surface = self._surface(id)
            begin = len(text)
            text += decoder.decode(surface, final=index == len(ids) - 1)
            begins.append(begin + (surface[:1] == b" " and len(surface) > 1))
            ends.append(len(text))
        shift = text.startswith(" ")
        spans = [(max(begin - shift, 0), max(end - shift, 0)) for begin, end in zip(begins, ends, strict=True)]
        return text[shift:], spans


def learn_vocabulary(
    lines: Iterable[str],
    vocab_size: int,
    *,
    character_coverage: float = 1.0,
    symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    byte_fallback: bool = True,
    text: str = "text",
) -> Vocabulary:
    """Choose the most frequent words of the lines for a vocabulary of exactly vocab_size ids.

    Of equally frequent words, the first in the order of code points is chosen. Raises InputError if the lines contain
    no text, or if the vocabulary cannot have that size.

    Args:
        lines: Normalized lines.
        vocab_size: Number of ids, with special ids, bytes and three for each character.
        character_coverage: Share of the characters in the lines that can be spelled; the rarest are left out.
        symbols, control_symbols, byte_fallback: See Vocabulary.
        text: Name of the lines in error messages.
    """
    counts = Counter(unit for line in lines if line.strip() for unit in _units_of(line, symbols))
    counts.pop(" ", None)
    if not counts:
        raise InputError(f"tokenizer: no {text} to learn from")
    for form in [form for symbol in symbols for form in (" " + symbol, symbol)]:
        counts.pop(form, None)
    characters = Counter[str]()
    for unit, count in counts.items():
        for character in unit.removeprefix(" "):
            characters[character] += count
    spelled = _most_frequent(characters)
    needed = character_coverage * characters.total()
    num_spelled = sum(covered < needed for covered in accumulate(map(characters.__getitem__, spelled))) + 1
    vocabulary = Vocabulary(
        tuple(spelled[:num_spelled]), (), tuple(symbols), tuple(control_symbols), byte_fallback=byte_fallback
    )
    num_words = vocab_size - vocabulary.num_fixed
    if num_words < 0:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too small for the {text}: the smallest possible is "
            f"{vocabulary.num_fixed} (special ids, bytes, and three for every character; a lower "
            "tokenizer.character_coverage leaves out rare characters)"
        )
    if num_words > len(counts):
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too large for the {text}: the largest possible is "
            f"{vocabulary.num_fixed + len(counts)}, with which every word has an id"
        )
    return replace(vocabulary, words=tuple(_most_frequent(counts)[:num_words]))


def _most_frequent(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], text))


def _units_of(text: str, symbols: Sequence[str]) -> Iterator[str]:
    """Yield the units of a normalized text, whose concatenation is a space and the text."""
    for part in text.split(" ") if text else ():
        yield from _units(part, symbols)


def _units(part: str, symbols: Sequence[str]) -> list[str]:
    """Split a part of a text, which has no space, into units, the first one with the space before it."""
    if symbols:
        longest_first = sorted(symbols, key=len, reverse=True)
        texts = re.split(f"({'|'.join(map(re.escape, longest_first))})", part)
    else:
        texts = [part]
    units: list[str] = []
    for index, text in enumerate(texts):
        if index % 2:
            units.append(text)
            continue
        for is_word, characters in groupby(text, _is_in_word):
            run = "".join(characters)
            units += [run] if is_word else run
    return [" " + units[0], *units[1:]] if units else [" "]


def _is_in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _normalizer(rule: str) -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )


def _check_vocabulary(vocabulary: Vocabulary) -> None:
    """Raise InputError for a vocabulary that `learn_vocabulary` cannot have made."""
    for texts in (vocabulary.control_symbols, vocabulary.characters, vocabulary.whole):
        if len(set(texts)) < len(texts):
            twice = next(text for text, count in Counter(texts).items() if count > 1)
            raise InputError(f"tokenizer: {twice!r} occurs twice in the vocabulary")
    for character in vocabulary.characters:
        if len(character) != 1 or character == " ":
            raise InputError(f"tokenizer: characters must be single characters without the space, found {character!r}")
    for unit in vocabulary.whole:
        if not unit.removeprefix(" ") or " " in unit[1:]:
            raise InputError(
                f"tokenizer: a word must have characters and no space but at its beginning, found {unit!r}"
            )
    if re.search("[\ud800-\udfff]", "".join((*vocabulary.control_symbols, *vocabulary.characters, *vocabulary.whole))):
        raise InputError("tokenizer: the vocabulary contains half a surrogate pair")
