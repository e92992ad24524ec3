"""Import: check every value of a foreign model or an exported folder, and write it as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gnmt.checkpoint.export import read_folder
from gnmt.checkpoint.file import write_checkpoint
from gnmt.checkpoint.import_nvidia import read_nvidia_gnmt
from gnmt.checkpoint.load import build_model, load_weights, read_description
from gnmt.config.validate import check_component
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError
from gnmt.fileio import check_new_output
from gnmt.model.seq2seq import Seq2Seq

READERS: Mapping[str, Callable[[str | Path], dict[str, Any]]] = {
    "nvidia_gnmt": read_nvidia_gnmt,
    "safetensors": read_folder,
}
"""For each source, the function that reads a path and returns the contents of a checkpoint."""


def import_checkpoint(
    source: str, checkpoint: str | Path, output: Path, trusted_packages: tuple[str, ...] = ()
) -> Seq2Seq:
    """Write an imported model as a weights-only checkpoint and return the model.

    Args:
        source: One of `READERS`.
        checkpoint: The file or folder to read.
        output: The file to write, which must not exist.
        trusted_packages: Packages whose classes the config may name.

    Raises:
        InputError: The input has a value that a checkpoint cannot hold, or `output` exists.
    """
    check_new_output("output", output)
    contents = READERS[source](checkpoint)
    config, tokenizers = read_description(contents, str(checkpoint))
    model = build_model(config["model"], tokenizers, trusted_packages, str(checkpoint), contents["model"])
    load_weights(model, contents, str(checkpoint))
    _check_search_options(config, str(checkpoint))
    try:
        write_checkpoint(output, contents)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror}): choose another path") from None
    return model


def _check_search_options(config: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if a search option of the config is wrong; loading checks them only with the given ones."""
    errors = check_component(config["decoding"], "config.decoding", expected=(SearchOptions,))
    if errors:
        raise InputError(f"{origin}: the search options are wrong:\n  " + "\n  ".join(errors))
