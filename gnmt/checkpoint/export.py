"""A checkpoint as files that other tools read: safetensors for the weights, JSON for all else.

model.safetensors      the weights for use (averaged ones where there are), tied ones once
checkpoint.json        config, tokenizers, what was measured, and the names of tied weights
source.model …         the tokenizers' own files: SentencePiece models, or JSON lists of pieces
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
from gnmt.checkpoint.load import inference_weights
from gnmt.data.tokenizer import TokenizerEntry, saved_entries
from gnmt.errors import InputError, first_line
from gnmt.fileio import encodable

FORMAT, FORMAT_VERSION = "gnmt-safetensors", 1
WEIGHTS_FILE, JSON_FILE = "model.safetensors", "checkpoint.json"
_SUFFIX = {"sentencepiece": ".model", "pretokenized": ".vocabulary.json"}
# What a checkpoint may say of itself beside its weights and tokenizers.
_KEPT = (
    *(part for part in REQUIRED_ENTRIES if part not in ("config", "tokenizers", "model")),
    *("git_revision", "torch_version", "versions", "unused_target_ids", "average_of", "imported_from"),
)


def export_folder(checkpoint: str | Path, folder: Path) -> int:
    """Writes the folder, and tells the number of weights. Of a whole checkpoint the training's state is left out.

    Raises InputError for a checkpoint that cannot be read or holds something that the files have no place for, and for
    a folder that exists already.
    """
    contents = read_checkpoint(checkpoint, REQUIRED_ENTRIES)
    if folder.exists():
        raise InputError(f"output={folder} exists already: choose another name, or remove it")
    described: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    described |= {name: contents[name] for name in _KEPT if name in contents}
    described["config"] = json.loads(contents["config"])
    entries = {side: TokenizerEntry.read(contents["tokenizers"], side) for side in ("source", "target")}
    joint = (entries["source"].kind, entries["source"].content) == (entries["target"].kind, entries["target"].content)
    files = {side: f"{'source' if joint else side}{_SUFFIX[entry.kind]}" for side, entry in entries.items()}
    described["tokenizers"] = {
        side: {"kind": entry.kind, "file": files[side], "framing": {"bos": entry.bos, "eos": True}}
        for side, entry in entries.items()
    }
    weights, described["tied"] = untied(inference_weights(contents))
    try:
        text = json.dumps(described, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise InputError(f"checkpoint {checkpoint}: JSON cannot hold what it says of itself: {error}") from None
    library = safetensors_library()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for side, entry in entries.items():
            (temporary / files[side]).write_bytes(entry.content)
        library.save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / JSON_FILE).write_text(encodable(text) + "\n", encoding="utf-8")  # file names may be no text
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"output={folder} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(weight.numel() for weight in weights.values())


def untied(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights with tied ones under their first name alone, and that name for each other name."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    kept, tied = {}, {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), tuple(weight.shape))
        if place in first:
            tied[name] = first[place]
        else:
            first[place], kept[name] = name, weight.contiguous()
    return kept, tied


def read_folder(folder: str | Path) -> dict[str, Any]:
    """The contents of the checkpoint that `export_folder` wrote. Raises InputError for anything else, by its name."""
    folder = Path(folder)
    path = folder / JSON_FILE
    described = _read_json(path)
    found = described.get("format"), described.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path}: format and format_version are {found[0]!r} and {found[1]!r}, allowed are {FORMAT!r} and "
            f"{FORMAT_VERSION}"
        )
    known = {*_KEPT, "format", "format_version", "config", "tokenizers", "tied"}
    if unknown := sorted(described.keys() - known):
        raise InputError(f"{path}: unknown keys {', '.join(unknown)}; allowed are {', '.join(sorted(known))}")
    missing = [key for key in (*REQUIRED_ENTRIES, "tied") if key not in described and key != "model"]
    if missing:
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
    entries = [_read_entry(folder, described["tokenizers"], side) for side in ("source", "target")]
    contents = {name: described[name] for name in _KEPT if name in described}
    return contents | {
        "config": json.dumps(described["config"]),
        "tokenizers": saved_entries(*entries),
        "model": weights,
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of finite floating-point numbers."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, allowed is the file of weights that export_checkpoint.py wrote")
    try:
        weights: dict[str, Tensor] = safetensors_library().load_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the library has an error of its own, which is no ValueError
        raise InputError(f"{path} is damaged: {first_line(error)}") from None
    for name, weight in weights.items():
        if not weight.is_floating_point() or not weight.isfinite().all():
            numbers = "numbers that are not finite" if weight.is_floating_point() else f"numbers of {weight.dtype}"
            raise InputError(f"{path}: {name} holds {numbers}, allowed are finite floating-point numbers")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; an exported folder holds it") from None
    except RecursionError:
        raise InputError(f"{path} is no description of a checkpoint: it is nested too deep") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(described, dict):
        raise InputError(f"{path} must hold an object, found {type(described).__name__}")
    return described


def _read_entry(folder: Path, tokenizers: Any, side: str) -> TokenizerEntry:
    """A side's tokenizer; its file must lie in the folder itself."""
    entry = tokenizers.get(side) if isinstance(tokenizers, Mapping) else None
    path = f"{folder / JSON_FILE}: tokenizers.{side}"
    if not isinstance(entry, Mapping) or not {"kind", "file", "framing"} <= entry.keys():
        raise InputError(f"{path} must hold kind, file and framing")
    name, framing = entry["file"], entry["framing"]
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise InputError(f"{path}.file is {name!r}, allowed is the name of a file in the folder")
    if not isinstance(entry["kind"], str) or entry["kind"] not in _SUFFIX:
        raise InputError(f"{path}.kind is {entry['kind']!r}, allowed is one of {', '.join(_SUFFIX)}")
    if framing not in ({"bos": True, "eos": True}, {"bos": False, "eos": True}):
        raise InputError(f"{path}.framing is {framing!r}, allowed is bos, true or false, and eos, true")
    try:
        return TokenizerEntry(entry["kind"], (folder / name).read_bytes(), framing["bos"])
    except OSError as error:
        raise InputError(f"{folder / name} cannot be read: {error.strerror}") from None


def safetensors_library() -> ModuleType:
    """The library, which comes with an extra."""
    try:
        import safetensors.torch
    except ImportError:
        raise InputError("this needs the package safetensors: pip install -e '.[interchange]'") from None
    library: ModuleType = safetensors.torch
    return library
