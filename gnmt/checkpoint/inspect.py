"""Inspection: describe a checkpoint as text for people or as JSON for programs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint
from gnmt.checkpoint.load import read_description
from gnmt.data.tokenizer import Tokenizers

_PLAIN_TEXT = re.compile(r"[A-Za-z/][\w./, +-]*(?<! )")
_YAML_WORDS = frozenset(
    {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
)  # YAML does not read these as text


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the entries of a checkpoint, without tensors, as JSON values, and the number of its parameters.

    Raises InputError if the file is not a checkpoint or lacks an entry.
    """
    contents = read_checkpoint(path, REQUIRED_ENTRIES)
    config, tokenizers = read_description(contents, f"checkpoint {path}")
    return {
        "file": str(path),
        "size_bytes": Path(path).stat().st_size,
        "kind": "full, training can resume from it" if "optimizer" in contents else "weights only, for inference",
        "step": contents["step"],
        "best": contents["best"],
        "best_step": contents["best_step"],
        "parameters": count_parameters(contents["model"]),
        "tokenizers": _describe_tokenizers(tokenizers),
        "data_fingerprint": contents["data_fingerprint"],
        "preprocessed_folder": contents["preprocessed_folder"],
        "precision": contents["precision"],
        "versions": {
            "format": contents["format_version"],
            "git_revision": contents["git_revision"],
            "torch": contents["torch_version"],
            **contents["versions"],
        },
        "config": config,
    }


def count_parameters(weights: dict[str, Tensor]) -> dict[str, int]:
    """Return the number of parameters by module, up to three names deep, and in total; a tied tensor counts once."""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        module = ".".join(name.split(".")[:-1][:3])
        counts[module] = counts.get(module, 0) + tensor.numel()
    return counts | {"total": sum(counts.values())}


def _describe_tokenizers(tokenizers: Tokenizers) -> dict[str, Any]:
    sides = {"source": tokenizers.source, "target": tokenizers.target}
    described = {
        name: {
            "kind": side.kind,
            "vocabulary_size": side.vocabulary_size,
            "digest": side.digest[:16],
            "never_produced": [side.subword(id) for id in side.never_produced],
        }
        for name, side in sides.items()
    }
    languages = {"target_languages": sorted(tokenizers.tags)} if tokenizers.tags else {}
    return {"joint": tokenizers.joint, "source_bos": tokenizers.source_bos, **languages, **described}


def as_text(description: dict[str, Any], indent: int = 0, thousands: bool = True) -> str:
    """Return the description as text: one line for each value, nested by indentation.

    thousands: whether large numbers get separators. Those in the config never do, so that its lines are valid YAML.
    """
    lines = []
    for key, value in description.items():
        prefix = " " * indent + f"{key}:"
        if isinstance(value, dict) and value:
            lines += [prefix, as_text(value, indent + 2, thousands and key != "config")]
        elif thousands and type(value) is int and value >= 10_000:
            lines.append(f"{prefix} {value:,}")
        else:
            lines.append(f"{prefix} {_as_yaml(value)}")
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    """Return a value on one line of YAML, text without quotes where YAML reads it as text."""
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def as_json(description: dict[str, Any]) -> str:
    """Return the description as JSON, with null for numbers that are not finite, which JSON cannot express."""
    return json.dumps(_finite(description), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return the nested values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
