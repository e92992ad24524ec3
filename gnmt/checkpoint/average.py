"""One set of weights out of several checkpoints of a training, or of trainings from the same start."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint, write_checkpoint
from gnmt.checkpoint.load import inference_weights
from gnmt.config.run_folder import changed_settings
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError
from gnmt.fileio import sha256_of

log = logging.getLogger(__name__)


def average_checkpoints(paths: Sequence[Path], output: Path) -> None:
    """Writes the mean of the weights that each checkpoint has for use, as a checkpoint of weights alone.

    For use are averaged weights (`trainer.ema_decay`) where a checkpoint has them. Sums are fp64. All else is that of
    the checkpoint with the most updates; its dev figures, which are not those of the mean, are left out. Raises
    InputError for checkpoints of different models or subwords, of which no mean makes sense, and for an output that
    exists already.
    """
    if output.exists():
        raise InputError(f"output={output} exists already: choose another name, or remove it")
    newest: dict[str, Any] = {}
    sums: dict[str, Tensor] = {}
    unused: set[int] | None = None
    for path in paths:
        contents = read_checkpoint(path, REQUIRED_ENTRIES)
        if newest:
            refuse_other_model(paths[0], newest, path, contents)
        for name, weight in inference_weights(contents).items():
            sums[name] = weight.double() if name not in sums else sums[name] + weight
        own_unused = set(contents.get("unused_target_ids", []))
        unused = own_unused if unused is None else unused & own_unused
        if not newest or contents["step"] > newest["step"]:
            newest = contents
        log.info("%s: update %d", path, contents["step"])
    made_of = [{"file": str(path), "sha256": sha256_of(path)} for path in paths]
    kept = (*REQUIRED_ENTRIES, "git_revision", "torch_version", "versions")
    means: dict[int, Tensor] = {}  # by memory, so that tied weights stay tied, and are written once
    for name, weight in newest["model"].items():
        means.setdefault(weight.data_ptr(), (sums[name] / len(paths)).to(weight.dtype))
    result = {key: newest[key] for key in kept if key in newest} | {
        "model": {name: means[weight.data_ptr()] for name, weight in newest["model"].items()},
        "best": {},
        "best_step": newest["step"],
        "unused_target_ids": sorted(unused or ()),
        "average_of": made_of,
    }
    try:
        write_checkpoint(output, result)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror})") from None


def refuse_other_model(first: Path, expected: Mapping[str, Any], path: Path, found: Mapping[str, Any]) -> None:
    """Raises InputError where the rows and columns of two checkpoints' weights mean different things."""
    digests = [Tokenizers.from_checkpoint(contents["tokenizers"]).digest for contents in (expected, found)]
    if digests[0] != digests[1]:
        raise InputError(f"{path} has other subwords than {first}: their weights belong to other pieces")
    nodes = [{"model": json.loads(contents["config"])["model"]} for contents in (expected, found)]
    if changes := changed_settings(*nodes):
        raise InputError(f"{path} is of another model than {first}:\n  " + "\n  ".join(changes))
    shapes = [{name: weight.shape for name, weight in contents["model"].items()} for contents in (expected, found)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{path} has weights of other names or shapes than {first}")
