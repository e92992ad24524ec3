"""Averaging: write a checkpoint with the mean weights of several, from one run or from runs with one initialization."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint, write_checkpoint
from gnmt.checkpoint.load import inference_weights, read_description
from gnmt.config.run_folder import changed_settings
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError
from gnmt.fileio import check_new_output, parse_json, sha256_of
from gnmt.model.clipping import is_clipping_delta

log = logging.getLogger(__name__)


def average_checkpoints(paths: Sequence[Path], output: Path) -> None:
    """Write the mean of the checkpoints' weights for inference as a weights-only checkpoint.

    A checkpoint with averaged weights (trainer.ema_decay) contributes those. Sums are computed in fp64. Only the target
    ids that are unused in all checkpoints remain unused. The other entries and the bounds of clipped activations are
    those of the checkpoint with the most updates. Dev scores are left out, because the mean has not been evaluated.

    Warns if the checkpoints are of different runs without a common initialize_from: they may have no useful mean.

    Raises InputError if the checkpoints have different models or tokenizers, or if `output` exists.
    """
    check_new_output("output", output)
    newest: dict[str, Any] = {}
    sums: dict[str, Tensor] = {}
    unused: set[int] | None = None
    first: tuple[dict[str, Any], Tokenizers] | None = None  # config and tokenizers of the first checkpoint
    for path in paths:
        contents = read_checkpoint(path, REQUIRED_ENTRIES)
        description = read_description(contents, f"checkpoint {path}")
        if first is None:
            first = description
        else:
            _check_same_model(paths[0], first, path, description)
            _check_same_shapes(paths[0], newest, path, contents)
            _warn_of_another_run(path, newest, contents)
        for name, weight in inference_weights(contents).items():
            sums[name] = weight.double() if name not in sums else sums[name] + weight
        own_unused = set(contents["unused_target_ids"])
        unused = own_unused if unused is None else unused & own_unused
        if not newest or contents["step"] > newest["step"]:
            newest = contents
        log.info("%s: update %d", path, contents["step"])
    means: dict[int, Tensor] = {}  # by memory, so that tied weights stay tied and are written once
    for name, weight in newest["model"].items():
        mean = weight if is_clipping_delta(name) else (sums[name] / len(paths)).to(weight.dtype)
        means.setdefault(weight.data_ptr(), mean)
    result = {entry: newest[entry] for entry in REQUIRED_ENTRIES} | {
        "model": {name: means[weight.data_ptr()] for name, weight in newest["model"].items()},
        "best": {},
        "best_step": newest["step"],
        "unused_target_ids": sorted(unused or ()),
        "average_of": [{"file": str(path), "sha256": sha256_of(path)} for path in paths],
    }
    try:
        write_checkpoint(output, result)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror}): choose another path") from None


def _check_same_model(
    first: Path, expected: tuple[dict[str, Any], Tokenizers], path: Path, found: tuple[dict[str, Any], Tokenizers]
) -> None:
    """Raise InputError if the configs or the tokenizers of two checkpoints describe different models."""
    if expected[1].digest != found[1].digest:
        raise InputError(f"{path} has other tokenizers than {first}: average checkpoints with the same tokenizers")
    if changes := changed_settings({"model": expected[0]["model"]}, {"model": found[0]["model"]}):
        raise InputError(f"{path} has another model than {first}:\n  " + "\n  ".join(changes))


def _check_same_shapes(first: Path, expected: Mapping[str, Any], path: Path, found: Mapping[str, Any]) -> None:
    """Raise InputError if the weights of two checkpoints have different names or shapes."""
    shapes = [{name: weight.shape for name, weight in contents["model"].items()} for contents in (expected, found)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{path} has weights of other names or shapes than {first}")


def _warn_of_another_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Log a warning if two checkpoints are of runs that were trained from different weights or in different ways."""
    configs = [parse_json(contents["config"]) for contents in (expected, found)]
    changes = changed_settings(configs[0], configs[1])
    if expected["data_fingerprint"] != found["data_fingerprint"]:
        changes.append("data")
    start = configs[0].get("initialize_from")
    if changes and (start is None or start != configs[1].get("initialize_from")):
        log.warning(
            "%s is of another run (other %s): weights that were trained apart from random ones have no useful mean; "
            "average checkpoints of one run, or of runs with the same initialize_from",
            path,
            ", ".join(change.partition(":")[0] for change in changes[:5]),
        )
