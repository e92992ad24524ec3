"""What inspect_checkpoint.py prints, for people and for programs, and how messages count."""

import json

import pytest

from gnmt.checkpoint.inspect import as_json, as_text
from gnmt.errors import counted


def test_json_for_programs_holds_no_nan() -> None:
    """A best.pt whose dev loss was not a number gave `NaN`, which JSON does not know."""
    description = {"best": {"loss": float("nan"), "perplexity": float("inf"), "bleu": 0.0}, "steps": [1, float("-inf")]}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(as_json(description), parse_constant=refuse)
    assert found == {"best": {"loss": None, "perplexity": None, "bleu": 0.0}, "steps": [1, None]}
    assert "  perplexity: Infinity" in as_text(description)


@pytest.mark.parametrize(("number", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (1000, "1000 pairs")])
def test_counts_agree_with_their_nouns(number: int, text: str) -> None:
    assert counted(number, "pair") == text


def test_thousands_of_a_count() -> None:
    assert counted(12_345, "line", comma=True) == "12,345 lines"
