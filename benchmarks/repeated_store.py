"""Make a preprocessed folder with repeated training pairs, to measure the start of training.

python -m benchmarks.repeated_store PREPROCESSED TIMES FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from gnmt.data.store import EncodedSide, Store, StoreWriter, read_preprocessed


def main(preprocessed: Path, times: int, folder: Path) -> None:
    opened = read_preprocessed(preprocessed)
    shutil.copytree(preprocessed, folder, ignore=lambda where, _: ["train"] if Path(where) == preprocessed else [])
    (folder / "train").mkdir()
    sizes = (opened.tokenizers.source.vocabulary_size, opened.tokenizers.target.vocabulary_size)
    sides = [read_side(opened.store, side) for side in ("source", "target")]
    with StoreWriter(folder / "train", *sizes) as writer:
        for _ in range(times):
            writer.append(*sides)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["pairs_per_corpus"] = [len(opened.store) * times]
    manifest["counts"] = {key: count * (times if "train" in key else 1) for key, count in manifest["counts"].items()}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def read_side(store: Store, side: str) -> EncodedSide:
    """Return one side of all pairs of a store, in memory."""
    dtypes = array_dtypes(store, side)
    arrays = {name: np.fromfile(store.folder / f"{side}.{name}", dtype) for name, dtype in dtypes.items()}
    lengths = arrays["lengths"].astype(np.int64)
    return EncodedSide(arrays["ids"], lengths, arrays["text"], np.diff(arrays["text_offsets"]))


def array_dtypes(store: Store, side: str) -> dict[str, str]:
    """Return the NumPy dtype of each array of a side by name."""
    described = json.loads((store.folder / "store.json").read_text(encoding="utf-8"))["arrays"]
    return {name: described[f"{side}.{name}"]["dtype"] for name in ("ids", "lengths", "text", "text_offsets")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
