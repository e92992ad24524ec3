"""The rows of figures that scripts/benchmark.py prints, one under another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """One field of a figure: its heading, the field's name, and how wide it stands.

    number: format of a number, which stands on the right ("-" for None); without it the last characters of a text.
    """

    heading: str
    field: str
    width: int
    number: str | None = None

    def cell(self, figure: object) -> str:
        value = getattr(figure, self.field)
        if self.number is None:
            return f"{value[-self.width :]:{self.width}}"
        return f"{'-' if value is None else format(value, self.number):>{self.width}}"


def header(columns: Sequence[Column]) -> str:
    """The headings, each over its cells."""
    return " ".join(f"{column.heading:{'<' if column.number is None else '>'}{column.width}}" for column in columns)


def row(columns: Sequence[Column], figure: object) -> str:
    """The figure's cells."""
    return " ".join(column.cell(figure) for column in columns)
