"""A prepared folder: everything that training needs of a corpus, ready to open.

manifest.json             format, settings, input hashes, counts, versions, identity
cleaning_report.json .txt which training pairs were left out, with examples
tokenizer/                source.model and target.model (SentencePiece)
train/                    the store of training pairs
dev/, test/<name>/        source.txt and target.txt, the text as it was given
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gnmt.data.cleaning import CleaningReport
from gnmt.data.planning import Segment
from gnmt.data.store import Store
from gnmt.data.tokenizer import Tokenizers
from gnmt.types import InputError

# Rises when the layout or the meaning of a file changes.
FORMAT = 1
_MANIFEST = "manifest.json"
_IN_EVERY_MANIFEST = {"format", "settings", "inputs"}


@dataclass(frozen=True)
class Prepared:
    """An opened prepared folder.

    dev, tests: pairs of raw text, untouched by cleaning. identity: digest of training text, ids, dev text and
    tokenizers; a run may only be resumed on data of the same identity. segments: the corpora that the store holds one
    after another, each with its weight, or, where the folder was opened without the corpus, all pairs alike.
    """

    folder: Path
    store: Store
    tokenizers: Tokenizers
    dev: list[tuple[str, str]]
    tests: dict[str, list[tuple[str, str]]]
    manifest: dict[str, Any]
    report: CleaningReport
    segments: list[Segment]

    @property
    def identity(self) -> str:
        return str(self.manifest["identity"])

    @property
    def unused_target_ids(self) -> list[int]:
        """Ids that no training target holds; none are known of a folder that was prepared before they were counted."""
        return list(self.manifest.get("unused_target_ids", []))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None where the folder does not exist or is empty.

    Raises InputError for a folder that holds other things, which are then never touched.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not manifest.keys() >= _IN_EVERY_MANIFEST:
            raise ValueError("it is not one of a preparation")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: not a prepared folder (its {_MANIFEST} cannot be read: {error}); "
            + ("remove it, or " if _looks_prepared(folder) else "")
            + "choose another one with data.prepared="
        ) from error
    return manifest


def _looks_prepared(folder: Path) -> bool:
    """Whether a folder with a damaged manifest is ours all the same; what is not must not be advised to be removed."""
    parts = (_MANIFEST, "cleaning_report.json", "tokenizer/source.model", "train", "dev/source.txt")
    return all((folder / part).exists() for part in parts)


def read_prepared(folder: Path | str) -> Prepared:
    """Opens a prepared folder. Raises InputError where it is missing, damaged or of another format."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no prepared text there; make it with scripts/prepare.py")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: prepared in format {manifest['format']}, and this version reads {FORMAT}; "
            "prepare again by scripts/prepare.py with overwrite=true"
        )
    try:
        tokenizers = read_tokenizers(folder)
        dev = read_pairs(folder / "dev")
        tests = {name: read_pairs(folder / "test" / name) for name in manifest["inputs"]["test"]}
        report = json.loads((folder / "cleaning_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: damaged: {error}; prepare again by scripts/prepare.py with overwrite=true"
        ) from error
    store = Store.open(folder / "train")
    segments = [Segment(number, float(number)) for number in manifest.get("segments", [len(store)])]
    return Prepared(folder, store, tokenizers, dev, tests, manifest, CleaningReport(**report), segments)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    _write_json(folder / _MANIFEST, manifest)


def write_report(folder: Path, report: CleaningReport) -> None:
    _write_json(folder / "cleaning_report.json", report.to_json())
    (folder / "cleaning_report.txt").write_text(report.text(), encoding="utf-8", newline="\n")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_tokenizers(folder: Path, tokenizers: Tokenizers) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "source.model").write_bytes(tokenizers.source.to_bytes())
    (folder / "tokenizer" / "target.model").write_bytes(tokenizers.target.to_bytes())


def read_tokenizers(folder: Path) -> Tokenizers:
    source, target = ((folder / "tokenizer" / f"{side}.model").read_bytes() for side in ("source", "target"))
    return Tokenizers.from_models(source, target)


class WrittenPairs(NamedTuple):
    """num_with_text: those that have text on both sides. digest: of the text of all."""

    num_pairs: int
    num_with_text: int
    digest: str


def write_pairs(folder: Path, pairs: Iterable[tuple[str, str]]) -> WrittenPairs:
    """Writes source.txt and target.txt."""
    folder.mkdir(parents=True)
    num_pairs, num_with_text, digest = 0, 0, hashlib.sha256()
    with (folder / "source.txt").open("wb") as source_file, (folder / "target.txt").open("wb") as target_file:
        for source, target in pairs:
            source_line, target_line = source.encode("utf-8") + b"\n", target.encode("utf-8") + b"\n"
            source_file.write(source_line)
            target_file.write(target_line)
            digest.update(source_line + target_line)
            num_pairs += 1
            num_with_text += bool(source.strip() and target.strip())
    return WrittenPairs(num_pairs, num_with_text, digest.hexdigest())


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    # Not by `read_lines`: these lines are ours, and a CR or BOM that was left in the text stays there.
    source, target = (
        (folder / f"{side}.txt").read_bytes().decode("utf-8").split("\n")[:-1] for side in ("source", "target")
    )
    return list(zip(source, target, strict=True))
