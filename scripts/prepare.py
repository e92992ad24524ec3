"""Preprocess raw parallel text. train.py does the same when it finds no preprocessed folder.

  python scripts/prepare.py                                            the embedded demo corpus
  python scripts/prepare.py data=multi30k data.folder=FOLDER tokenizer.vocab_size=6000
  python scripts/prepare.py data=files data.train.source=a.en data.train.target=a.de \\
      data.dev.source=b.en data.dev.target=b.de data.preprocessed=preprocessed/mine

The preprocessed folder holds the tokenizer, the training pairs as memory-mapped ids and as text, dev and test text, a
report of the pairs that cleaning removed and of the dev and test lines that stand in the training text, and a manifest,
which also counts the lines that the tokenizers change. A second run with the same inputs and settings does nothing.

Main keys:
  data, tokenizer    the corpus, and how its text is split into subwords
  data.max_pairs     a random sample of the training pairs, for a quick try or a learning curve
  data.cleaning.*    limits of length and length ratio, duplicates, pairs with identical or blank sides
  initialize_from    a checkpoint whose tokenizers to use, as train.py with the same key does
  data.preprocessed  the folder; by default preprocessed/<name>-<digest of the settings>
  overwrite          true: replace a folder that was made from other inputs or settings, or is damaged
  verify             true: only compare every file of the folder with its checksums
  text_folder        also write the pairs that training uses, and dev and test sets, as text files to this folder
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import PrepareConfig


def main(cfg: PrepareConfig) -> None:
    from gnmt.config.build import build, resolve
    from gnmt.data.preprocess import preprocess, preprocessed_folder
    from gnmt.data.store import verify_preprocessed, write_text
    from gnmt.errors import InputError, format_count
    from gnmt.fileio import check_output_folder

    corpus = build(cfg.data)
    if cfg.initialize_from is None:
        tokenizer = build(cfg.tokenizer)
    else:
        from gnmt.config.run_folder import current_overrides
        from gnmt.training.initial_checkpoint import read_initial_checkpoint

        initial = read_initial_checkpoint(cfg.initialize_from, cfg.trusted_packages)
        initial.check_tokenizer_overrides(resolve(initial.with_its_settings(cfg, current_overrides())))
        tokenizer = initial.tokenizer_source
    if cfg.verify:
        folder = preprocessed_folder(corpus, tokenizer)
        num_files, num_bytes = verify_preprocessed(folder)
        print(f"{folder}: {format_count(num_files, 'file')}, {num_bytes:,} bytes: all are intact")
        return
    if cfg.text_folder is not None:
        check_output_folder("text_folder", cfg.text_folder)
        if corpus.target_languages:
            raise InputError("text_folder= writes the files of two languages, and this data has several: leave it out")
    preprocessed = preprocess(corpus, tokenizer, overwrite=cfg.overwrite)
    training_pairs = format_count(len(preprocessed.store), "training pair")
    dev_pairs = format_count(len(preprocessed.dev), "dev pair")
    print(f"{preprocessed.folder}: {training_pairs}, {dev_pairs}")
    for name, pairs in preprocessed.tests.items():
        print(f"test set {name}: {format_count(len(pairs), 'pair')}")
    changed = ", ".join(f"{text} {lines.num_changed}" for text, lines in preprocessed.changed_lines.items())
    print(f"lines that change when they are encoded as subwords and decoded: {changed}")
    print(preprocessed.report.text(), end="")
    if cfg.text_folder is not None:
        for path in write_text(preprocessed, Path(cfg.text_folder), corpus.source_language, corpus.target_language):
            print(path)


if __name__ == "__main__":
    run_command(main, "prepare")
