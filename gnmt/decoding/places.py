"""What messages call a line."""

from __future__ import annotations


def place_of(path: str | None, line: int) -> str:
    """`path:line` as editors and compilers write it, or `line N` for a text that is no file; line: from 1."""
    return f"line {line}" if path is None else f"{path}:{line}"
