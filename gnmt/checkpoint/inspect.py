"""What a checkpoint holds, as text or JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from gnmt.checkpoint.file import read_checkpoint
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError

PLAIN_TEXT = re.compile(r"[A-Za-z/][\w./, +-]*(?<! )")
NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything that the file says of itself, as JSON values.

    Raises InputError for a file that is no checkpoint, or lacks a part of one.
    """
    contents = read_checkpoint(path)
    try:
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
        return {
            "file": str(path),
            "size_bytes": Path(path).stat().st_size,
            "kind": "whole, training can go on from it" if "optimizer" in contents else "weights, for use",
            "step": contents["step"],
            "best": contents["best"],
            "best_step": contents["best_step"],
            "parameters": count_parameters(contents["model"]),
            "tokenizers": describe_tokenizers(tokenizers),
            "data_fingerprint": contents["data_fingerprint"],
            "preprocessed_folder": contents["preprocessed_folder"],
            "precision": contents["precision"],
            "versions": {
                "format": contents["format_version"],
                "git_revision": contents["git_revision"],
                "torch": contents["torch_version"],
                **contents.get("versions", {}),  # older checkpoints have none
            },
            "config": json.loads(contents["config"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path} lacks an entry or has a malformed one: {error!r}") from None


def count_parameters(weights: dict[str, Tensor]) -> dict[str, int]:
    """Numbers by module, three names deep, and in all; a tied tensor counts once, where it comes first."""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        module = ".".join(name.split(".")[:-1][:3])
        counts[module] = counts.get(module, 0) + tensor.numel()
    return counts | {"in all": sum(counts.values())}


def describe_tokenizers(tokenizers: Tokenizers) -> dict[str, Any]:
    """Sizes and digests of both sides."""
    sides = {"source": tokenizers.source, "target": tokenizers.target}
    described = {
        name: {
            "kind": side.kind,
            "subwords": side.vocabulary_size,
            "digest": side.digest[:16],
            "never_produced": [side.subword(piece) for piece in side.never_produced],
        }
        for name, side in sides.items()
    }
    return {"joint": tokenizers.joint, "source_bos": tokenizers.source_bos, **described}


def as_text(description: dict[str, Any], indent: int = 0, thousands: bool = True) -> str:
    """The description for people: a line for each value, nested by indentation.

    thousands: whether large numbers get separators. Those of the config do not: its values are as YAML and overrides
    take them.
    """
    lines = []
    for key, value in description.items():
        prefix = " " * indent + f"{key}:"
        if isinstance(value, dict) and value:
            lines += [prefix, as_text(value, indent + 2, thousands and key != "config")]
        elif thousands and type(value) is int and value >= 10_000:
            lines.append(f"{prefix} {value:,}")
        else:
            lines.append(f"{prefix} {as_yaml(value)}")
    return "\n".join(lines)


def as_json(description: dict[str, Any]) -> str:
    """The description for programs, with null for figures that are not finite: JSON has no NaN."""
    return json.dumps(finite(description), indent=2, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A value in which None stands for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_yaml(value: Any) -> str:
    """A value on one line; text without quotes where it can be nothing else."""
    if isinstance(value, str) and PLAIN_TEXT.fullmatch(value) and value.lower() not in NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)
