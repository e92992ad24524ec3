"""Export: write a checkpoint as files that other tools read, safetensors for the weights and JSON for the rest.

The exported folder contains:

    model.safetensors    the weights for inference (averaged ones if the checkpoint has them), tied ones once
    checkpoint.json      config, tokenizers, scores, versions, and the names of tied weights
    source.model, ...    the tokenizers' own files: SentencePiece models, or JSON vocabularies

`export_folder` writes it, and `read_folder` reads it back as the contents of a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint
from gnmt.checkpoint.load import inference_weights, read_description
from gnmt.data.tokenizer import SUFFIX_OF_KIND, TokenizerEntry, saved_entries
from gnmt.errors import InputError, first_line
from gnmt.fileio import check_new_output, encodable, parse_json

FORMAT, FORMAT_VERSION = "gnmt-safetensors", 2
WEIGHTS_FILE, JSON_FILE = "model.safetensors", "checkpoint.json"
_CONVERTED = ("config", "tokenizers", "model")  # entries that the folder holds in another form
_OPTIONAL = ("average_of", "imported_from")
_COPIED = (*(entry for entry in REQUIRED_ENTRIES if entry not in _CONVERTED), *_OPTIONAL)


# Write


def export_folder(checkpoint: str | Path, folder: Path) -> int:
    """Export a checkpoint, without training state, and return the number of its parameters.

    Raises InputError if the checkpoint cannot be read or has an entry that JSON cannot express, or if `folder` exists.
    """
    library = safetensors_library()
    check_new_output("output", folder, make_folder=True)
    contents = read_checkpoint(checkpoint, REQUIRED_ENTRIES)
    config, _ = read_description(contents, f"checkpoint {checkpoint}")
    entries = {side: TokenizerEntry.read(contents["tokenizers"], side) for side in ("source", "target")}
    joint = (entries["source"].kind, entries["source"].content) == (entries["target"].kind, entries["target"].content)
    files = {side: f"{'source' if joint else side}{SUFFIX_OF_KIND[entry.kind]}" for side, entry in entries.items()}
    weights, tied = _untie(inference_weights(contents))
    described = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{entry: contents[entry] for entry in _COPIED if entry in contents},
        "config": config,
        "tokenizers": {
            side: {"kind": entry.kind, "file": files[side], "framing": {"bos": entry.bos, "eos": True}}
            for side, entry in entries.items()
        },
        "tied": tied,
    }
    try:
        text = json.dumps(described, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise InputError(f"checkpoint {checkpoint} has an entry that JSON cannot express: {error}") from None
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for side, entry in entries.items():
            (temporary / files[side]).write_bytes(entry.content)
        library.save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / JSON_FILE).write_text(encodable(text) + "\n", encoding="utf-8")  # a path may be invalid text
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"output={folder} cannot be written ({error.strerror}): choose another path") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(weight.numel() for weight in weights.values())


def _untie(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights with tied ones only once, and a mapping from each left-out name to the name that is kept."""
    first_names: dict[tuple[int, tuple[int, ...]], str] = {}
    kept, tied = {}, {}
    for name, weight in weights.items():
        storage = (weight.data_ptr(), tuple(weight.shape))
        if storage in first_names:
            tied[name] = first_names[storage]
        else:
            first_names[storage], kept[name] = name, weight.contiguous()
    return kept, tied


# Read


def read_folder(folder: str | Path) -> dict[str, Any]:
    """Return the contents of a checkpoint from a folder that `export_folder` wrote.

    Raises InputError, with the file and the key, if anything is missing, unknown or malformed.
    """
    folder = Path(folder)
    path = folder / JSON_FILE
    described = _read_json(path)
    found = described.get("format"), described.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path}: format and format_version are {found[0]!r} and {found[1]!r}, allowed are {FORMAT!r} and "
            f"{FORMAT_VERSION}: export the checkpoint again with this version of gnmt"
        )
    known = {*_COPIED, "format", "format_version", "config", "tokenizers", "tied"}
    if unknown := sorted(described.keys() - known):
        raise InputError(f"{path}: unknown keys {', '.join(unknown)}; allowed are {', '.join(sorted(known))}")
    if missing := [key for key in (*REQUIRED_ENTRIES, "tied") if key not in described and key != "model"]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    weights = _read_weights(folder / WEIGHTS_FILE)
    if not isinstance(described["tied"], dict):
        raise InputError(f"{path}: tied is {described['tied']!r}, allowed are pairs of names")
    if twice := sorted(described["tied"].keys() & weights.keys()):
        raise InputError(f"{path}: tied names {', '.join(twice)}, which {WEIGHTS_FILE} holds itself: keep one of them")
    for name, first in described["tied"].items():
        if not isinstance(first, str) or first not in weights:
            raise InputError(f"{path}: tied.{name} is {first}, which {WEIGHTS_FILE} does not hold")
        weights[name] = weights[first]
    source, target = (_read_tokenizer(folder, described["tokenizers"], side) for side in ("source", "target"))
    return {
        **{entry: described[entry] for entry in _COPIED if entry in described},
        "config": json.dumps(described["config"]),
        "tokenizers": saved_entries(source, target),
        "model": weights,
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in checkpoint.json."""
    try:
        described = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give a folder that export_checkpoint.py wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not the description of a checkpoint: {error}") from None
    if not isinstance(described, dict):
        raise InputError(f"{path} must hold an object, found {type(described).__name__}")
    return described


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return tensors of finite floating-point numbers by name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, allowed is the file of weights that export_checkpoint.py wrote")
    try:
        weights: dict[str, Tensor] = safetensors_library().load_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the library's own error is not a ValueError
        raise InputError(f"{path} is damaged: {first_line(error)}") from None
    for name, weight in weights.items():
        if not weight.is_floating_point() or not weight.isfinite().all():
            numbers = "numbers that are not finite" if weight.is_floating_point() else f"numbers of {weight.dtype}"
            raise InputError(f"{path}: {name} holds {numbers}, allowed are finite floating-point numbers")
    return weights


def _read_tokenizer(folder: Path, tokenizers: Any, side: str) -> TokenizerEntry:
    """Return the tokenizer of a side, whose file must be directly in the folder."""
    entry = tokenizers.get(side) if isinstance(tokenizers, Mapping) else None
    key = f"{folder / JSON_FILE}: tokenizers.{side}"
    if not isinstance(entry, Mapping) or not {"kind", "file", "framing"} <= entry.keys():
        raise InputError(f"{key} must hold kind, file and framing")
    name, framing = entry["file"], entry["framing"]
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise InputError(f"{key}.file is {name!r}, allowed is the name of a file in the folder")
    if not isinstance(entry["kind"], str) or entry["kind"] not in SUFFIX_OF_KIND:
        raise InputError(f"{key}.kind is {entry['kind']!r}, allowed is one of {', '.join(SUFFIX_OF_KIND)}")
    if framing not in ({"bos": True, "eos": True}, {"bos": False, "eos": True}):
        raise InputError(f"{key}.framing is {framing!r}, allowed is bos, true or false, and eos, true")
    try:
        return TokenizerEntry(entry["kind"], (folder / name).read_bytes(), framing["bos"])
    except OSError as error:
        raise InputError(f"{folder / name} cannot be read: {error.strerror}") from None


def safetensors_library() -> ModuleType:
    """Import and return safetensors.torch, which the extra `interchange` installs."""
    try:
        import safetensors.torch
    except ImportError:
        raise InputError("this needs the package safetensors: pip install -e '.[interchange]'") from None
    library: ModuleType = safetensors.torch
    return library
