"""Helpers for messages: counts, flattened settings and their changes."""

from __future__ import annotations

import pytest

from gnmt.errors import describe_changes, flatten, format_count


@pytest.mark.parametrize(("number", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (1000, "1000 pairs")])
def test_counts_agree_with_their_nouns(number: int, text: str) -> None:
    assert format_count(number, "pair") == text


def test_thousands_of_a_count() -> None:
    assert format_count(12_345, "line", comma=True) == "12,345 lines"


def test_flatten_joins_nested_keys_and_keeps_lists() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": {}}) == {"a.b": 1, "a.c.d": [2, 3], "e": {}}


def test_changes_are_sorted_by_key_and_name_absent_values() -> None:
    old, new = {"b": {"x": 1, "y": "t"}, "c": None}, {"b": {"x": 2, "y": "t"}, "a": [1]}
    assert describe_changes(old, new) == ["a: absent → [1]", "b.x: 1 → 2", "c: null → absent"]
