"""What a SentencePiece model file says of its pieces.

SentencePiece's own Python classes say neither which kind of model it is nor which pieces are user-defined symbols, and
its protobuf classes need one exact version of protobuf; a model file is three small messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

# SentencePiece.Type and TrainerSpec.ModelType of sentencepiece_model.proto.
_NORMAL, UNKNOWN, _CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    """One entry of the vocabulary; type as in sentencepiece_model.proto."""

    text: str
    score: float
    type: int = _NORMAL


class PieceTable(NamedTuple):
    """kind: unigram, bpe, word or char. pieces: by their ids."""

    kind: str
    pieces: list[Piece]

    @classmethod
    def read(cls, model: bytes) -> PieceTable:
        """Of a serialised ModelProto that SentencePiece has accepted."""
        kind, pieces = _KINDS[1], []
        for number, value in _fields(model):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                kind = _KINDS[dict(_fields(value)).get(3, 1)]
        return cls(kind, pieces)

    def ids(self, *types: int) -> dict[str, int]:
        """The ids of all pieces of these types, by their text."""
        return {piece.text: id for id, piece in enumerate(self.pieces) if piece.type in types}

    @property
    def mergeable(self) -> dict[str, int]:
        """What text is cut into: ids of normal, unused and user-defined pieces."""
        return self.ids(_NORMAL, UNUSED, USER_DEFINED)


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, _NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[wire_type]
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    number = shift = 0
    while message[place] & 0x80:
        number |= (message[place] & 0x7F) << shift
        shift += 7
        place += 1
    return number | message[place] << shift, place + 1
