"""Tokenizers that exist already, such as those of a run whose weights another one starts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnmt.data.lines import missing_file
from gnmt.data.tokenizer import Tokenizers, TokenizerSource
from gnmt.types import InputError


@dataclass(frozen=True)
class TokenizerFiles(TokenizerSource):
    """SentencePiece models to use as they are, one for each side; the same file twice makes them joint.

    A prepared folder holds its own as tokenizer/source.model and tokenizer/target.model.
    """

    source: str
    target: str

    def settings(self) -> dict[str, Any]:
        """The models' contents: where they lie does not matter."""
        models = {"source": self.source, "target": self.target}
        return {f"{side}_sha256": hashlib.sha256(read_model(path)).hexdigest() for side, path in models.items()}

    def read(self) -> Tokenizers:
        """Raises InputError for a file that is missing, is no model, or whose special ids are not ours."""
        try:
            return Tokenizers.from_models(read_model(self.source), read_model(self.target))
        except RuntimeError as error:
            raise InputError(f"tokenizer: {self.source} or {self.target} is no SentencePiece model: {error}") from None


def read_model(path: str) -> bytes:
    """The bytes of a model file."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
