"""Validation of plain values by type annotations."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import pytest

from gnmt.config.validate import Range, check_value, describe

Fraction = Annotated[float, Range(0, 1, open_high=True)]


class Kind:
    pass


class Shape(Protocol):
    def area(self) -> float: ...


def check(value: Any, hint: Any) -> list[str]:
    """Return the errors of a value at the key k.x. A nested component gives one error that names its allowed class."""
    return check_value(value, hint, "k.x", lambda node, path, kinds, _: [f"{path}: expected {kinds[0].__name__}"])


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        (True, bool),
        ("a", str),
        (None, int | None),
        ("bpe", Literal["bpe", "unigram"]),
        (0.0, Fraction),
        (0.999, Fraction),
        (None, Annotated[int, Range(1)] | None),
        (float("inf"), Annotated[float, Range(0, float("inf"))]),
        (float("inf"), Annotated[float, Range(0, float("inf"))] | None),
        (["a", "b"], list[str]),
        (["a", "b"], Sequence[str]),
        ([0.9, 0.98], tuple[float, float]),
        ([1, 2, 3], tuple[int, ...]),
        ("a.en", str | list[str] | None),
        (["a.en"], str | list[str] | None),
        ({"a": 1}, dict[str, int]),
        ({"a": 1}, Mapping[str, int]),
        ({"a": [1, {"b": None}]}, Any),
        ([], list),
        ({}, dict[str, Kind]),
    ],
)
def test_fitting_values_pass(value: Any, hint: Any) -> None:
    assert check(value, hint) == []


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("3", int, 'k.x: found "3", allowed is a whole number'),
        (3.5, int, "k.x: found 3.5, allowed is a whole number"),
        (True, int, "k.x: found true, allowed is a whole number"),
        (True, float, "k.x: found true, allowed is a number"),
        (float("nan"), float, "k.x: found NaN, allowed is a finite number"),
        (float("inf"), float, "k.x: found Infinity, allowed is a finite number"),
        (float("-inf"), Annotated[float, Range(0)], "k.x: found -Infinity, allowed is a finite number of at least 0"),
        (float("inf"), Annotated[float, Range(0)] | None, "k.x: found Infinity, allowed is a finite number of at"),
        (float("nan"), Annotated[float, Range(0, float("inf"))], "k.x: found NaN, allowed is a finite number"),
        (10**400, float, "k.x: found 1000"),
        (1, bool, "k.x: found 1, allowed is true or false"),
        (None, int, "k.x: found null, allowed is a whole number"),
        (2016, str, "k.x: found 2016, allowed is text; to give it as text, quote it twice: k.x='\"2016\"'"),
        (1.0, Fraction, "k.x: found 1.0, allowed is a number of at least 0 and below 1"),
        (-1, Annotated[int, Range(0)] | None, "k.x: found -1, allowed is a whole number of at least 0 or null"),
        (0, Annotated[float, Range(0, open_low=True)], "k.x: found 0, allowed is a number above 0"),
        ("no", Annotated[int, Range(0)], 'k.x: found "no", allowed is a whole number of at least 0'),
        (
            "prevous",
            Literal["previous", "current"],
            'k.x: found "prevous", allowed is one of previous, current; did you mean previous?',
        ),
        (1, Literal[True, "auto"], "k.x: found 1, allowed is one of true, auto"),
        ("a", list[str], 'k.x: found "a", allowed is a list (text each)'),
        (["a", 1, None], list[str], "k.x.1: found 1, allowed is text"),
        ([1, None], str | list[int], "k.x.1: found null, allowed is a whole number"),
        ([0.9], tuple[float, float], "k.x: found [0.9], allowed is a list of 2: a number, a number"),
        ([0.9, "a"], tuple[float, float], 'k.x.1: found "a", allowed is a number'),
        ({"a": "b"}, dict[str, int], 'k.x.a: found "b", allowed is a whole number'),
        (["a"], dict[str, int], 'k.x: found ["a"], allowed is a mapping from names to a whole number'),
        ("???", int, "k.x: is missing; give it as k.x=..."),
        ({"a": "???"}, Any, "k.x.a: is missing; give it as k.x.a=..."),
        (3, Kind, "k.x: found 3, allowed is a component (`_target_` and its keywords) of the kind Kind"),
        ({"size": 3}, Kind, 'k.x: found {"size": 3}, allowed is a component (`_target_` and its keywords) of the kind'),
        ({"_target_": "a.B"}, int, "k.x: found a component (a.B), allowed is a whole number"),
        ({"_target_": "a.B"}, Kind | None, "k.x: expected Kind"),
        ({"_target_": "a.B"}, Any, "k.x: expected object"),
        ({"_target_": "a.B"}, Shape, "k.x: expected object"),
        ([{"_target_": "a.B"}], list[Kind], "k.x.0: expected Kind"),
        ({"t": {"_target_": "a.B"}}, dict[str, Kind] | None, "k.x.t: expected Kind"),
        ({"t": [{"_target_": "a.B"}]}, Any, "k.x.t.0: expected object"),
    ],
)
def test_other_values_are_named_with_what_is_allowed(value: Any, hint: Any, message: str) -> None:
    errors = check(value, hint)
    assert errors
    assert errors[0].startswith(message)


def test_long_values_are_shortened() -> None:
    (error,) = check("x" * 1000, int)
    assert len(error) < 150


def test_annotations_in_words() -> None:
    assert describe(Annotated[int, Range(2)] | None) == "a whole number of at least 2 or null"
    assert describe(None | Annotated[int, Range(3)]) == "a whole number of at least 3 or null"
    assert describe(Annotated[float, Range(0, 1, open_low=True)]) == "a number above 0 and at most 1"
