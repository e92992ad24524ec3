"""Exceptions with messages for the user, and functions that format values for such messages."""

from __future__ import annotations

import difflib
import json
import signal
from collections.abc import Collection, Mapping
from typing import Any


class InputError(ValueError):
    """Raised for a wrong config, file, checkpoint or line of text from the user.

    The message names the key or `path:line`, the value found, the allowed values and the remedy. Scripts print the
    message without a traceback; a traceback means a bug in this package.
    """


class DivergedError(InputError):
    """Raised when the values that a model computes are no longer finite, which further updates cannot repair."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops the command.

    Args:
        message: Tells what was saved and how to resume.
        exit_code: Exit code of the command.
        number: The signal.
        agreed: True if all processes of the job stop together, False if the work is broken off.
    """

    def __init__(self, message: str, exit_code: int, *, number: int = signal.SIGINT, agreed: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.number = signal.Signals(number)
        self.agreed = agreed


def format_count(number: int, noun: str, comma: bool = False) -> str:
    """Return "1 pair", "2 pairs" and so on; with `comma`, thousands are separated as in "12,345 pairs"."""
    return f"{number:{',' if comma else ''}} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def format_value(value: Any, quote: bool = True) -> str:
    """Return a config value as text of at most 80 characters; strings are quoted if `quote`."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"a component ({value['_target_']})"
    text = value if isinstance(value, str) and not quote else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line "key: old → new" for each value that differs between two nested mappings, sorted by key.

    A mapping that replaces another kind of value, such as a component in place of null, is one change.
    """
    before, after = flatten(old), flatten(new)
    for one, other in ((before, after), (after, before)):
        for key in one.keys() - other.keys():
            inner = [name for name in other if name.startswith(f"{key}.")]
            if inner:
                other[key] = {name.removeprefix(f"{key}."): other.pop(name) for name in inner}
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            lines.append(f"{key}: absent → {format_value(after[key])}")
        elif key not in after:
            lines.append(f"{key}: {format_value(before[key])} → absent")
        elif before[key] != after[key]:
            lines.append(f"{key}: {format_value(before[key])} → {format_value(after[key])}")
    return lines


def did_you_mean(name: str, names: Collection[str], prefix: str = "") -> str:
    """Return "; did you mean X?" with the most similar of `names`, or "" if none is similar.

    With a `prefix`, the suggestion is "prefix.X".
    """
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {prefix + '.' if prefix else ''}{matches[0]}?" if matches else ""
