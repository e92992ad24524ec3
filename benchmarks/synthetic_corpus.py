"""Generate a parallel corpus of any size from the demo grammar, to measure preprocessing. Sentences repeat.

python -m benchmarks.synthetic_corpus 10_000_000 FOLDER   writes train.en, train.de, dev.en and dev.de to FOLDER
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from gnmt.data.demo_grammar.corpus import samples

NUM_DEV = 500


def main(num_pairs: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, seed, number in (("train", 1, num_pairs), ("dev", 2, NUM_DEV)):
        with (folder / f"{split}.en").open("w") as english, (folder / f"{split}.de").open("w") as german:
            for sample in islice(samples(seed), number):
                english.write(f"{sample.pair[0]}\n")
                german.write(f"{sample.pair[1]}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
