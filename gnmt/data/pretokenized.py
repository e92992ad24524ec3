"""A fixed list of pieces, for text that another tool has split already: "a small dog bar@@ ks"."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS

_UNKNOWN_SURFACE = "⁇"
_NUM_SPECIAL = 4


@dataclass(frozen=True)
class PretokenizedTokenizer:
    """Looks up pieces that white space separates; a piece that ends with the separator goes on in the next one.

    The counterpart of `gnmt.data.tokenizer.Tokenizer` for vocabularies of subword-nmt (Sennrich et al. 2016), whose
    separator is "@@": it neither tokenizes nor applies merges. by_id: the piece of each id; the first four stand for
    PAD, UNK, BOS and EOS, whatever they are called, and text never holds them; None is an id without a piece.
    Raises InputError for a list that is too short, holds a piece twice or one that is no text.
    """

    by_id: tuple[str | None, ...]
    separator: str = "@@"

    kind: ClassVar[str] = "pretokenized"

    def __post_init__(self) -> None:
        if len(self.by_id) < _NUM_SPECIAL:
            raise InputError(f"tokenizer: {len(self.by_id)} pieces, but PAD, UNK, BOS and EOS alone are {_NUM_SPECIAL}")
        if not self.separator or re.search(r"\s", self.separator):
            raise InputError(f"tokenizer: the separator must be a string without white space, found {self.separator!r}")
        seen: set[str] = set()
        for id, piece in enumerate(self.by_id):
            if piece is None:
                continue
            if piece in seen:
                raise InputError(f"tokenizer: the piece {piece!r} is there twice, the second time as id {id}")
            if re.search("[\ud800-\udfff]", piece):
                raise InputError(f"tokenizer: the piece of id {id} is no text but half a character: {piece!r}")
            seen.add(piece)

    @classmethod
    def from_bytes(cls, content: bytes) -> PretokenizedTokenizer:
        """What `to_bytes` wrote. Raises InputError for anything else."""
        try:
            described = json.loads(content)
            by_id, separator = described["subwords"], described["separator"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"tokenizer: not a list of pieces: {error!r}") from error
        if not isinstance(by_id, list) or not all(piece is None or isinstance(piece, str) for piece in by_id):
            raise InputError("tokenizer: not a list of pieces: they must be strings, or null for an id without one")
        if not isinstance(separator, str):
            raise InputError(f"tokenizer: the separator must be a string without white space, found {separator!r}")
        return cls(tuple(by_id), separator)

    def to_bytes(self) -> bytes:
        """JSON: {"separator": "@@", "subwords": [...]}."""
        return json.dumps({"separator": self.separator, "subwords": self.by_id}).encode()

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces, without BOS and EOS; UNK for what is none."""
        return [self._ids.get(piece, UNK_ID) for piece in text.split()]

    def encode_all(self, texts: Sequence[str], num_threads: int = -1) -> list[list[int]]:
        """`encode` of each text, in this thread."""
        return [self.encode(text) for text in texts]

    def encode_sampled(self, text: str, alpha: float, seed: int) -> list[int]:
        """Always an InputError: text that is split already has no other pieces."""
        raise InputError(
            "trainer.subword_regularization must be 0: these tokenizers read text that is split into pieces already"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces joined to words, on one line; UNK reads ⁇, and ids without a piece are left out."""
        return self.decode_with_spans([int(id) for id in ids])[0]

    def encode_with_spans(self, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
        """The text, `encode` of it, and each piece's [begin, end) in it."""
        return text, self.encode(text), [match.span() for match in re.finditer(r"\S+", text)]

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """`decode`, and the characters of the text that each id became."""
        text, spans = "", []
        joined = True  # whether the next piece goes on where the text ends
        for id in ids:
            surface = self._surface(id)
            if surface and not joined:
                text += " "
            goes_on = surface.endswith(self.separator)
            spans.append((len(text), len(text) + len(surface) - len(self.separator) * goes_on))
            text += surface.removesuffix(self.separator)
            joined = goes_on if surface else joined
        return text, spans

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special ones and those without a piece included."""
        return len(self.by_id)

    def subword(self, id: int) -> str:
        """The piece as it stands in text that is split."""
        piece = self.by_id[id]
        return f"<no piece {id}>" if piece is None else piece

    def subwords(self, ids: Iterable[int]) -> list[str]:
        return [self.subword(int(id)) for id in ids]

    @cached_property
    def never_produced(self) -> tuple[int, ...]:
        """Ids that no target ever holds after its BOS: PAD, BOS, and those without a piece."""
        return tuple(id for id, piece in enumerate(self.by_id) if id in (PAD_ID, BOS_ID) or piece is None)

    @cached_property
    def digest(self) -> str:
        """Hash of what the ids mean."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: id for id, piece in enumerate(self.by_id) if piece is not None and id >= _NUM_SPECIAL}

    def _surface(self, id: int) -> str:
        """What an id adds to a text, with the separator where the word goes on."""
        if id == UNK_ID:
            return _UNKNOWN_SURFACE
        if id in (PAD_ID, BOS_ID, EOS_ID) or not 0 <= id < len(self.by_id):
            return ""
        return (self.by_id[id] or "").translate(LINE_BREAKS)
