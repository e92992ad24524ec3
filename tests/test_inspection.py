"""What inspect.py prints, for people and for programs."""

import json

from gnmt.inspection import as_json, as_text


def test_json_for_programs_holds_no_nan() -> None:
    """A best.pt whose dev loss was not a number gave `NaN`, which JSON does not know."""
    description = {"best": {"loss": float("nan"), "perplexity": float("inf"), "bleu": 0.0}, "steps": [1, float("-inf")]}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(as_json(description), parse_constant=refuse)
    assert found == {"best": {"loss": None, "perplexity": None, "bleu": 0.0}, "steps": [1, None]}
    assert "  perplexity: Infinity" in as_text(description)
