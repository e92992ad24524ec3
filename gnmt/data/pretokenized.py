"""A fixed list of subwords, for text that another tool has segmented: "a small dog bar@@ ks".

`PretokenizedTokenizer` has the methods of `gnmt.data.tokenizer.Tokenizer`. Imported checkpoints use it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS, parse_json

_UNKNOWN_SURFACE = "⁇"
_NUM_SPECIAL = 4


@dataclass(frozen=True)
class PretokenizedTokenizer:
    """A tokenizer that looks up subwords separated by white space.

    It is made for vocabularies of subword-nmt (Sennrich et al. 2016), and neither tokenizes nor applies merges. Raises
    InputError for a vocabulary that is too short, contains a subword twice, or contains one that is not valid Unicode,
    and for a separator that is empty or contains white space.

    Args:
        vocabulary: The subword of each id; None for an id without one. The first four are PAD, UNK, BOS and EOS,
            whatever their names; text is never encoded as PAD, BOS or EOS.
        separator: Mark at the end of a subword whose word continues in the next subword.
    """

    vocabulary: tuple[str | None, ...]
    separator: str = "@@"

    kind: ClassVar[str] = "pretokenized"
    control_symbols: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def __post_init__(self) -> None:
        if len(self.vocabulary) < _NUM_SPECIAL:
            raise InputError(
                f"tokenizer: {len(self.vocabulary)} subwords, but at least {_NUM_SPECIAL} are needed: "
                "PAD, UNK, BOS and EOS"
            )
        if not self.separator or re.search(r"\s", self.separator):
            raise InputError(f"tokenizer: the separator must be a string without white space, found {self.separator!r}")
        seen: set[str] = set()
        for id, subword in enumerate(self.vocabulary):
            if subword is None:
                continue
            if subword in seen:
                raise InputError(f"tokenizer: the subword {subword!r} occurs twice, the second time as id {id}")
            if re.search("[\ud800-\udfff]", subword):
                raise InputError(f"tokenizer: the subword of id {id} contains half a surrogate pair: {subword!r}")
            seen.add(subword)

    @classmethod
    def from_bytes(cls, content: bytes) -> PretokenizedTokenizer:
        """Return the tokenizer that `to_bytes` serialized. Raises InputError for anything else."""
        try:
            saved = parse_json(content)
            vocabulary, separator = saved["subwords"], saved["separator"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"tokenizer: not a list of subwords: {error!r}") from error
        if not isinstance(vocabulary, list) or not all(item is None or isinstance(item, str) for item in vocabulary):
            raise InputError("tokenizer: subwords must be a list of strings, with null for an id without a subword")
        if not isinstance(separator, str):
            raise InputError(f"tokenizer: the separator must be a string without white space, found {separator!r}")
        return cls(tuple(vocabulary), separator)

    def to_bytes(self) -> bytes:
        """Return JSON: {"separator": "@@", "subwords": [...]}."""
        return json.dumps({"separator": self.separator, "subwords": self.vocabulary}).encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS; unknown subwords become UNK."""
        return [self._ids.get(subword, UNK_ID) for subword in text.split()]

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """Return the ids of each text; num_threads has no effect."""
        return [self.encode(text) for text in texts]

    def encode_sampled(self, text: str, alpha: float, seed: int) -> list[int]:
        """Raise InputError, because text that is segmented already has no other segmentation."""
        raise InputError(
            "trainer.subword_regularization must be 0: these tokenizers read text that is segmented already"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the subwords joined to words, on one line; UNK becomes ⁇, and ids without a subword are skipped."""
        return self.decode_with_spans([int(id) for id in ids])[0]

    def decode_all(self, ids: Sequence[list[int]], num_threads: int = -1) -> list[str]:
        """Return `decode` of each list of ids; num_threads has no effect."""
        return [self.decode(of_text) for of_text in ids]

    def encode_with_spans(self, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """Return the text, its ids, and the span [begin, end) of each id in the text."""
        return text, self.encode(text), [match.span() for match in re.finditer(r"\S+", text)]

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of the ids (see `decode`), and the span [begin, end) of each id in the text."""
        text, spans = "", []
        joined = True  # True if the next subword follows without a space
        for id in ids:
            surface = self._surface(id)
            if surface and not joined:
                text += " "
            continues = surface.endswith(self.separator)
            spans.append((len(text), len(text) + len(surface) - len(self.separator) * continues))
            text += surface.removesuffix(self.separator)
            joined = continues if surface else joined
        return text, spans

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, including special ones and those without a subword."""
        return len(self.vocabulary)

    def subword(self, id: int) -> str:
        """Return the subword of an id, with the separator."""
        subword = self.vocabulary[id]
        return f"<no subword {id}>" if subword is None else subword

    def subwords(self, ids: Iterable[int]) -> list[str]:
        """Return `subword` of each id."""
        return [self.subword(int(id)) for id in ids]

    @cached_property
    def never_produced(self) -> tuple[int, ...]:
        """The ids that never follow BOS in a target: PAD, BOS, and those without a subword."""
        return tuple(id for id, subword in enumerate(self.vocabulary) if id in (PAD_ID, BOS_ID) or subword is None)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def subwords_digest(self) -> str:
        """The digest: there is no normalizer, so it depends on the subwords alone."""
        return self.digest

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {subword: id for id, subword in enumerate(self.vocabulary) if subword is not None and id >= _NUM_SPECIAL}

    def _surface(self, id: int) -> str:
        """Return the text that an id adds, with the separator if the word continues."""
        if id == UNK_ID:
            return _UNKNOWN_SURFACE
        if id in (PAD_ID, BOS_ID, EOS_ID) or not 0 <= id < len(self.vocabulary):
            return ""
        return (self.vocabulary[id] or "").translate(LINE_BREAKS)
