"""Models of others as checkpoints of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gnmt.checkpoint import build_model, take_weights, write_checkpoint
from gnmt.checkpoint_faults import first_line
from gnmt.data.tokenizer import Tokenizers
from gnmt.interchange.checkpoint_fields import check_fields
from gnmt.interchange.nvidia_gnmt import read_nvidia_gnmt
from gnmt.interchange.safetensors_folder import read_folder
from gnmt.model.outdated import without_idle_parts
from gnmt.model.seq2seq import Seq2Seq
from gnmt.types import InputError

log = logging.getLogger(__name__)

READERS: Mapping[str, Callable[[str | Path], dict[str, Any]]] = {
    "nvidia_gnmt": read_nvidia_gnmt,
    "safetensors": read_folder,
}
"""What reads each source: from a path to the contents of a checkpoint."""


def import_checkpoint(
    source: str, checkpoint: str | Path, output: Path, trusted_packages: tuple[str, ...] = ()
) -> Seq2Seq:
    """Writes what lies at `checkpoint` as a checkpoint of weights, and gives the model, which was built to try it.

    source: one of READERS. Raises InputError where something cannot be represented, and for an output that exists.
    """
    if output.exists():
        raise InputError(f"output={output} exists already: choose another name, or remove it")
    contents = READERS[source](checkpoint)
    try:
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
        config = json.loads(contents["config"])
        node = config["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint} garbles a part of a checkpoint: {first_line(error)}") from None
    node, contents = without_idle_parts(node, contents)
    model = build_model(node, tokenizers, trusted_packages, str(checkpoint))
    take_weights(model, contents, str(checkpoint))
    check_fields(contents, config, tokenizers.target.vocabulary_size, str(checkpoint))
    try:
        write_checkpoint(output, contents)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror})") from None
    return model
