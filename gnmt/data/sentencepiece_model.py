"""The file of a SentencePiece model, read and edited as a protobuf message (sentencepiece_model.proto).

`PieceTable` reads the vocabulary; it keeps SentencePiece's word for a subword, "piece". `with_normalizer` replaces the
normalizer. SentencePiece's own classes for the message need a protobuf package of the same version as theirs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

# Enumerations SentencePiece.Type and TrainerSpec.ModelType of sentencepiece_model.proto, and protobuf's wire types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
# The field of ModelProto that holds the normalizer.
_NORMALIZER_SPEC = 3


class Piece(NamedTuple):
    """An entry of the vocabulary; `type` is a value of SentencePiece.Type in sentencepiece_model.proto."""

    text: str
    score: float
    type: int = NORMAL


class PieceTable(NamedTuple):
    """The kind of a model (unigram, bpe, word or char) and its vocabulary, by id."""

    kind: str
    pieces: list[Piece]

    @classmethod
    def read(cls, model: bytes) -> PieceTable:
        """Read a serialized ModelProto, which SentencePiece must have accepted."""
        kind, pieces = _KINDS[1], []
        for number, value in fields_of(model):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                kind = _KINDS[dict(fields_of(value)).get(3, 1)]
        return cls(kind, pieces)

    def ids(self, *types: int) -> dict[str, int]:
        """Return the ids of all pieces of these types, by text."""
        return {piece.text: id for id, piece in enumerate(self.pieces) if piece.type in types}

    @property
    def mergeable(self) -> dict[str, int]:
        """The ids of normal, unused and user-defined pieces, by text: those that merges can produce."""
        return self.ids(NORMAL, UNUSED, USER_DEFINED)


def _piece(message: bytes) -> Piece:
    fields = dict(fields_of(message))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, NORMAL))


def with_normalizer(model: bytes, normalizer_spec: bytes) -> bytes:
    """Return a serialized ModelProto with another serialized NormalizerSpec."""
    others = b"".join(field.encoded for field in _fields(model) if field.number != _NORMALIZER_SPEC)
    key = _NORMALIZER_SPEC << 3 | _LENGTH_DELIMITED
    return others + _encoded_varint(key) + _encoded_varint(len(normalizer_spec)) + normalizer_spec


def fields_of(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value (int or bytes) of each field of a protobuf message."""
    return ((field.number, field.value) for field in _fields(message))


class _Field(NamedTuple):
    """A field of a protobuf message: its number, its value (int or bytes), and the bytes that encode both."""

    number: int
    value: Any
    encoded: bytes


def _fields(message: bytes) -> Iterator[_Field]:
    end = 0
    while end < len(message):
        start = end
        key, end = _varint(message, start)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, end = _varint(message, end)
            yield _Field(key >> 3, value, message[start:end])
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, end = _varint(message, end)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[wire_type]
        end += length
        yield _Field(key >> 3, message[end - length : end], message[start:end])


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    """Return the varint (seven bits per byte) that begins at an offset, and the offset after it."""
    number = shift = 0
    while message[offset] & 0x80:
        number |= (message[offset] & 0x7F) << shift
        shift += 7
        offset += 1
    return number | message[offset] << shift, offset + 1


def _encoded_varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
