"""How a checkpoint holds a tokenizer: {kind, files: {name: uint8 tensor}, framing: {bos, eos}}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gnmt.types import InputError

FILE_OF_KIND = {"sentencepiece": "model", "pieces": "vocabulary"}


@dataclass(frozen=True)
class TokenizerEntry:
    """content: the file that the kind of tokenizer is made from. bos: whether BOS goes before the pieces; EOS always
    comes after them.
    """

    kind: str
    content: bytes
    bos: bool

    @classmethod
    def read(cls, saved: Mapping[str, Any], side: str) -> TokenizerEntry:
        """That of a side. Raises InputError for a kind or a framing that this version does not know."""
        entry = saved.get(side) if isinstance(saved, Mapping) else None
        if not isinstance(entry, Mapping) or not {"kind", "files", "framing"} <= entry.keys():
            raise InputError(f"checkpoint: tokenizers.{side} must hold kind, files and framing")
        kind, framing, files = entry["kind"], entry["framing"], entry["files"]
        if kind not in FILE_OF_KIND:
            raise InputError(f"checkpoint: tokenizers.{side}.kind must be sentencepiece or pieces, found {kind!r}")
        # Training puts BOS before every target; what an encoder reads may have one.
        allowed = [{"bos": bos, "eos": True} for bos in ((False, True) if side == "source" else (True,))]
        if framing not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"checkpoint: tokenizers.{side}.framing must be {expected}, found {framing}")
        name = FILE_OF_KIND[kind]
        content = files.get(name) if isinstance(files, Mapping) else None
        if not isinstance(content, torch.Tensor) or content.dtype != torch.uint8:
            raise InputError(f"checkpoint: tokenizers.{side}.files.{name} must be a tensor of bytes")
        return cls(kind, content.numpy().tobytes(), framing["bos"])


def saved_entries(source: TokenizerEntry, target: TokenizerEntry) -> dict[str, Any]:
    """Both sides as a checkpoint holds them; equal files are one tensor, which is saved once."""
    files = {side.content: torch.frombuffer(bytearray(side.content), dtype=torch.uint8) for side in (source, target)}
    return {
        side: {
            "kind": entry.kind,
            "files": {FILE_OF_KIND[entry.kind]: files[entry.content]},
            "framing": {"bos": entry.bos, "eos": True},
        }
        for side, entry in (("source", source), ("target", target))
    }
