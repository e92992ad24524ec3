"""Turn raw parallel text into a preprocessed folder; train.py does the same by itself when needed.

  python scripts/prepare.py                                            the embedded demo corpus
  python scripts/prepare.py data=multi30k data.folder=FOLDER tokenizer.vocab_size=6000
  python scripts/prepare.py data=files data.train.source=a.en data.train.target=a.de \\
      data.dev.source=b.en data.dev.target=b.de data.preprocessed=preprocessed/mine

The folder holds the tokenizer, the training pairs as memory-mapped ids and text, dev and test text, a report of
what cleaning left out, and a manifest. With the same inputs and settings again, nothing is done.

Main keys:
  data, tokenizer    what to prepare and how to cut it into pieces
  data.cleaning.*    limits of length and ratio, duplicates, identical and blank sides
  data.preprocessed      the folder; by default preprocessed/<name>-<digest of the settings>
  overwrite          true replaces a folder that was made from other inputs or settings
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.config.build import build
from gnmt.config.cli import entry
from gnmt.config.schema import PrepareConfig
from gnmt.data.preprocess import preprocess
from gnmt.errors import counted


@entry("prepare")
def main(cfg: PrepareConfig) -> None:
    preprocessed = preprocess(build(cfg.data), build(cfg.tokenizer), overwrite=cfg.overwrite)
    print(
        f"{preprocessed.folder}: {counted(len(preprocessed.store), 'training pair')}, {counted(len(preprocessed.dev), 'dev pair')}"
    )
    for name, pairs in preprocessed.tests.items():
        print(f"test set {name}: {counted(len(pairs), 'pair')}")
    print(preprocessed.report.text(), end="")


if __name__ == "__main__":
    main()
