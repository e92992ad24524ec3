"""Which sentences an update was made of, for people who look for the cause of a loss that is no number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gnmt.data.batching import Position
from gnmt.files import write_atomically

FILE_NAME = "nonfinite_batch.tsv"
_NUM_SHOWN = 3
_NUM_NAMED = 20
_SHOWN_LETTERS = 200


def describe_batch(pairs: Sequence[tuple[int, str, str]], position: Position, folder: Path) -> str:
    """The batch's place, its pairs' numbers and its first sentences; all of them go to a file in the folder.

    pairs: number, source and target of each; see `BatchStream.pairs_at`.
    """
    numbers = ", ".join(str(number) for number, _, _ in pairs[:_NUM_NAMED])
    more = f" and {len(pairs) - _NUM_NAMED} more" if len(pairs) > _NUM_NAMED else ""
    lines = [
        f"batch {position.batches} of epoch {position.epoch} (both counted from 0), "
        f"{len(pairs)} pairs of the prepared text: {numbers}{more}"
    ]
    path = folder / FILE_NAME
    try:
        rows = ("\t".join((str(number), *(one_line(text) for text in texts))) for number, *texts in pairs)
        write_atomically(path, "".join(row + "\n" for row in rows).encode())
        lines.append(f"all of them are in {path}; it begins with")
    except OSError as error:
        lines.append(f"{path} could not be written ({error.strerror}); it begins with")
    for number, source, target in pairs[:_NUM_SHOWN]:
        lines.append(f"{number}: {one_line(source)[:_SHOWN_LETTERS]} | {one_line(target)[:_SHOWN_LETTERS]}")
    return "\n  ".join(lines)


def one_line(text: str) -> str:
    """The text with tabs and line breaks as spaces."""
    return " ".join(text.split())
