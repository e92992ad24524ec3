"""How two manifests of prepared text differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting or input that differs between two manifests. Moved files of equal content do not."""
    if old["format"] != new["format"]:
        return [f"format: {old['format']} → {new['format']}"]
    changes = _differences(_flat(old["settings"]), _flat(new["settings"]))
    old_texts, new_texts = texts_of(old["inputs"]), texts_of(new["inputs"])
    for name in [*old_texts, *(name for name in new_texts if name not in old_texts)]:
        if name not in old_texts or name not in new_texts:
            changes.append(f"data.{name}: " + ("not given before" if name in new_texts else "not given any more"))
            continue
        changes += _file_changes(f"data.{name}", old_texts[name].get("files", []), new_texts[name].get("files", []))
        before, after = ({k: v for k, v in texts[name].items() if k != "files"} for texts in (old_texts, new_texts))
        changes += _differences(_flat(before, f"data.{name}."), _flat(after, f"data.{name}."))
    return changes


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    keys = [*old, *(key for key in new if key not in old)]
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _file_changes(key: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if [file["role"] for file in old] != [file["role"] for file in new]:
        names = (", ".join(file["path"] for file in files) for files in (old, new))
        return [f"{key}: " + " → ".join(names)]
    return [
        f"{key}.{after['role']}: other content: {before['path']} ({before['size']} bytes, sha256 "
        f"{before['sha256'][:8]}) → {after['path']} ({after['size']} bytes, sha256 {after['sha256'][:8]})"
        for before, after in zip(old, new, strict=True)
        if (before["sha256"], before["columns"]) != (after["sha256"], after["columns"])
    ]


def texts_of(inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest says of the texts, by their keys without `data.`."""
    tests = {f"test.{name}": text for name, text in inputs["test"].items()}
    return {"train": inputs["train"], "dev": inputs["dev"], **tests}
