"""Exceptions that carry a message for the user."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any


class InputError(ValueError):
    """Something that a user gave is wrong: a config, a file, a checkpoint, a line of text.

    The message is the product: it names the key or `path:line`, what was found, what is allowed
    and how to mend it. Scripts print it alone; a traceback is for our own bugs.
    """


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop. The message says what was saved and how to go on; scripts end with exit_code.

    agreed: whether the work was stopped in good order, in all its processes; False where it was broken off.
    """

    def __init__(self, message: str, exit_code: int, *, agreed: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.agreed = agreed


def counted(number: int, noun: str, comma: bool = False) -> str:
    """1 pair, 2 pairs: a number with its noun, for messages. comma: between thousands."""
    return f"{number:{',' if comma else ''}} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """An exception's first line, or its kind where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def shown(value: Any, quote: bool = True) -> str:
    """A value as YAML would hold it, shortened."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"a component ({value['_target_']})"
    text = value if isinstance(value, str) and not quote else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line `key: old → new` for each value that differs between two nested mappings, sorted by key."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after or before[key] != after[key]:
            values = [shown(side[key]) if key in side else "absent" for side in (before, after)]
            lines.append(f"{key}: {values[0]} → {values[1]}")
    return lines


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """ "; did you mean X?" for the most similar name, or nothing where none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {prefix + '.' if prefix else ''}{matches[0]}?" if matches else ""
