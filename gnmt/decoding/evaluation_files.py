"""Where the figures of an evaluation go, under names that take no other evaluation's place.

The JSON of each says what it is of: the two files, or the training data whose named test set it is, and the places of
its checkpoints. What lies in the folder is asked before a name is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnmt.types import InputError

SIDES = ("source", "target")
TEXT_KEYS = (*SIDES, "data_identity")
PLACES_KEY = "checkpoint_files"


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in: best.pt at its top, the whole ones in checkpoints/; None outside of any."""
    folder = checkpoint.resolve().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder if (folder / "config.json").is_file() else None


def folder_for(checkpoints: Sequence[Path], output: Path | None) -> Path:
    """`output`, or translations/ of the checkpoint's run; outside of any run, a folder named after the checkpoint.

    Raises InputError for an ensemble without output, which belongs to no single run.
    """
    if output is not None:
        return output
    if len(checkpoints) > 1:
        raise InputError("an ensemble belongs to no single run: say with output=FOLDER where its figures go")
    run, place = run_of(checkpoints[0]), checkpoints[0].resolve()
    return place.with_name(f"{place.stem}.translations") if run is None else run / "translations"


def described(files: tuple[str, str] | None, data_identity: str | None, checkpoints: Sequence[Path]) -> dict[str, Any]:
    """What an evaluation is of, as its JSON says it: `source` and `target`, or `data_identity`; `checkpoint_files`."""
    text: dict[str, Any] = {}
    if files is not None:
        text = {side: str(Path(path).resolve()) for side, path in zip(SIDES, files, strict=True)}
    elif data_identity is not None:
        text = {"data_identity": data_identity}
    return text | {PLACES_KEY: [str(checkpoint.resolve()) for checkpoint in checkpoints]}


def distinct_names(
    test_set: str, checkpoint_name: str, variant: str, ours: Mapping[str, Any], folder: Path, *, is_runs_own: bool
) -> tuple[str, str]:
    """The names of test set and checkpoints under which these figures take the place of no others.

    A digest of what they are of is added to the test set's where the folder has figures of another text by that name,
    and to files without an ending, which may be called like a test set of the data. One of the checkpoints' places is
    added to theirs where the file to write is of other checkpoints; one that cannot be read may be of any. The same
    evaluation gets the same names again.

    ours: see `described`. is_runs_own: whether the folder is translations/ of the checkpoint's run, where the data is
    always the run's, and a checkpoint is known by its name, last.pt whatever it points to.
    """
    text = {key: ours[key] for key in TEXT_KEYS if key in ours}
    if ("source" in text and "." not in test_set) or _holds_other_text(test_set, text, folder, is_runs_own):
        test_set = f"{test_set}-{_digest(text)}"
    path = folder / f"{test_set}.{checkpoint_name}{variant}.json"
    if path.exists():
        figures = _read(path)
        if figures is None or (not is_runs_own and figures.get(PLACES_KEY) != ours[PLACES_KEY]):
            checkpoint_name = f"{checkpoint_name}-{_digest(ours[PLACES_KEY])}"
    return test_set, checkpoint_name


def _holds_other_text(test_set: str, text: Mapping[str, Any], folder: Path, is_runs_own: bool) -> bool:
    for path in folder.glob("*.json"):
        figures = _read(path) if path.name.startswith(f"{test_set}.") else None
        if figures is None or figures.get("test_set") != test_set:
            continue
        theirs = {key: figures[key] for key in TEXT_KEYS if key in figures}
        if not theirs and is_runs_own and "source" not in text:
            continue  # from before it was recorded; the run's own data has not changed
        if theirs != text:
            return True
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """The figures in a file, None where it holds none that can be read."""
    try:
        figures = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return figures if isinstance(figures, dict) and "test_set" in figures else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
