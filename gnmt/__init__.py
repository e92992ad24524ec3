"""A GNMT-style translator in PyTorch. docs/architecture.md describes the path of a sentence through the modules.

`Translator` and `__version__` are imported when they are first used: `import gnmt` alone does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnmt.decoding.translator import Translator as Translator

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "Translator":
        from gnmt.decoding.translator import Translator

        return Translator
    if name == "__version__":
        from importlib.metadata import version

        return version("gnmt")
    raise AttributeError(f"module 'gnmt' has no attribute '{name}'")
