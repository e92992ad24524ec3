"""The file in a run's folder that holds the gradient's norm in each layer, as programs read it."""

from __future__ import annotations

import json
import math
from pathlib import Path

FILE_NAME = "gradient_norms.jsonl"
"""A line {"update": 10, "norms": {"encoder.1": 0.3, …}} for each record, with null for what was not finite."""

GradientRecord = tuple[int, dict[str, float | None]]
"""An update, counted from 1, and its gradient's norm in each layer, before clipping."""


_ORDER = ("embeddings", "encoder", "attention", "decoder", "output")


def place_of_layer(layer: str) -> tuple[int, float, str]:
    """Sorts the names of layers as the data passes them: encoder.2 before encoder.10 and encoder.other."""
    part, _, number = layer.partition(".")
    place = _ORDER.index(part) if part in _ORDER else len(_ORDER)
    return place, float(number) if number.isdigit() else math.inf, layer


def read_gradient_norms(folder: Path, problems: list[str]) -> list[GradientRecord]:
    """The records of a run, in their order; none where it kept none. Appends to problems what cannot be read."""
    path = folder / FILE_NAME
    records: list[GradientRecord] = []
    if not path.exists():
        return records
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            norms = {str(layer): None if norm is None else float(norm) for layer, norm in record["norms"].items()}
            records.append((int(record["update"]), norms))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.append(f"{path}:{len(records) + 1} is no record of gradient norms ({error!r})")
    return records
