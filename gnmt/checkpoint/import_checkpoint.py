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
from gnmt.device import PRECISIONS
from gnmt.errors import InputError, format_value
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
    model = build_model(config["model"], tokenizers, trusted_packages, str(checkpoint))
    load_weights(model, contents, str(checkpoint))
    _check_entries(contents, tokenizers.target.vocabulary_size, str(checkpoint))
    _check_config(config, str(checkpoint))
    try:
        write_checkpoint(output, contents)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror}): choose another path") from None
    return model


def _check_entries(contents: Mapping[str, Any], target_vocabulary_size: int, origin: str) -> None:
    """Raise InputError if the value of an entry has the wrong type or range."""
    for entry, (is_valid, allowed) in _ENTRIES.items():
        if entry in contents and not is_valid(contents[entry]):
            raise InputError(f"{origin}: {entry} is {format_value(contents[entry])}, allowed is {allowed}")
    for id in contents["unused_target_ids"]:
        if not _is_count(id) or id >= target_vocabulary_size:
            raise InputError(
                f"{origin}: unused_target_ids holds {format_value(id)}, allowed are ids of 0 to "
                f"{target_vocabulary_size - 1}"
            )


def _check_config(config: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if a setting that translation or evaluation reads is wrong; the model is checked before."""
    for part in ("decoding", "trainer", "data"):
        if not isinstance(config.get(part), Mapping):
            raise InputError(f"{origin}: config.{part} is {format_value(config.get(part))}, allowed is an object")
    errors = check_component(config["decoding"], "config.decoding", expected=(SearchOptions,))
    if errors:
        raise InputError(f"{origin}: the search options are wrong:\n  " + "\n  ".join(errors))
    size = config["trainer"].get("evaluation_batch_size")
    if not _is_count(size) or size == 0:
        raise InputError(
            f"{origin}: config.trainer.evaluation_batch_size is {format_value(size)}, allowed is a whole number of at "
            "least 1"
        )
    texts = {"target_language": "unknown", **config["data"]}  # an imported model has no corpus
    for key, example in (("bleu_tokenize", "13a"), ("target_language", "de")):
        if not isinstance(value := texts.get(key), str):
            raise InputError(
                f"{origin}: config.data.{key} is {format_value(value)}, allowed is text, such as {example}"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object_of(is_valid: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(is_valid, value.values()))


def _is_list_of(is_valid: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


_TRAINING_PRECISIONS = tuple(name for name in PRECISIONS if name != "auto")
# For each entry, the check of its value and the description of allowed values in the error message.
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a whole number of at least 0"),
    "best_step": (_is_count, "a whole number of at least 0"),
    "best": (_is_object_of(_is_number), "an object of numbers"),
    "data_fingerprint": (_is_text, "text"),
    "preprocessed_folder": (_is_text, "text"),
    "torch_version": (_is_text, "text"),
    "precision": (lambda value: value in _TRAINING_PRECISIONS, f"one of {', '.join(_TRAINING_PRECISIONS)}"),
    "git_revision": (lambda value: value is None or _is_text(value), "text or null"),
    "unused_target_ids": (lambda value: isinstance(value, list), "a list of ids"),
    "versions": (_is_object_of(_is_text), "an object of texts"),
    "imported_from": (_is_object_of(_is_text), "an object of texts"),
    "average_of": (_is_list_of(_is_object_of(_is_text)), "a list of objects of texts"),
}
