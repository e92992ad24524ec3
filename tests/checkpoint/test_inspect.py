"""The description of a checkpoint as text and as JSON."""

import json

from gnmt.checkpoint.inspect import as_json, as_text


def test_json_has_null_for_numbers_that_are_not_finite() -> None:
    """A best.pt whose dev loss was NaN gave `NaN`, which is not JSON."""
    description = {"best": {"loss": float("nan"), "perplexity": float("inf"), "bleu": 0.0}, "steps": [1, float("-inf")]}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(as_json(description), parse_constant=refuse)
    assert found == {"best": {"loss": None, "perplexity": None, "bleu": 0.0}, "steps": [1, None]}
    assert "  perplexity: Infinity" in as_text(description)
