"""Choose the search options of a checkpoint on its dev set: BLEU and chrF of every combination of a grid.

  python scripts/tune_decoding.py checkpoint=runs/demo/best.pt
  python scripts/tune_decoding.py checkpoint=runs/demo/best.pt grid.beam_size=[1,5,10] grid.no_repeat_ngram=[null,3]
  python scripts/tune_decoding.py checkpoint=[a.pt,b.pt] output=ensemble/decoding/tuned.yaml
  python scripts/translate.py --config-dir runs/demo decoding=tuned checkpoint=runs/demo/best.pt input=a.en

The table of all combinations is printed. The best one is written as a decoding config, by default to
decoding/tuned.yaml in the checkpoint's run; --config-dir with the folder above decoding/ lets every command find it.
Choose on dev, never on the test set that is reported: the best of many scores is too high.

Main keys:
  checkpoint         best.pt of a run, or any other checkpoint of it; several form an ensemble: [a.pt,b.pt]
  grid               values of search options to try, such as grid.length_penalty_alpha=[0.6,1.0]
  metric             bleu or chrf, which chooses the best combination
  output             the .yaml file to write
  test_set           a named test set of the training's data; by default dev
  source, target     instead of test_set: a pair of files; target=[a.de,b.de] for several references
  pairs, columns     instead of source and target: a .tsv or .jsonl file, and the keys of both sides in .jsonl
  decoding.*         options that the grid does not try: replace the recorded ones
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
import os
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import TuneDecodingConfig
from gnmt.errors import InputError


def main(cfg: TuneDecodingConfig) -> None:
    from gnmt.config.build import resolve
    from gnmt.decoding.scoring import check_coverage
    from gnmt.decoding.translator import load_translator
    from gnmt.evaluation.evaluate import choose_bleu_tokenizer, given_files, read_text, run_of
    from gnmt.evaluation.metrics import check_tokenizer
    from gnmt.evaluation.tune_decoding import best_trial, combinations, table_of, tune, write_config
    from gnmt.fileio import check_output, check_stdout, path_list

    check_stdout()
    files = given_files(cfg)
    checkpoints = path_list(cfg.checkpoint)
    run = run_of(Path(checkpoints[0])) if len(checkpoints) == 1 else None
    if cfg.output is None and run is None:
        raise InputError("the checkpoints belong to no single run: give output=FOLDER/decoding/NAME.yaml")
    output = Path(cfg.output) if cfg.output is not None else Path(os.path.relpath(run)) / "decoding" / "tuned.yaml"
    if output.suffix != ".yaml" or output.parent.resolve().name != "decoding":
        raise InputError(f"output={output} is no config of the group decoding: give output=FOLDER/decoding/NAME.yaml")
    loaded = load_translator(cfg)
    translator, _, members = loaded
    settings = combinations(translator.options, resolve(cfg)["grid"])
    has_attention = any(member.model.decoder.has_attention for member in members)
    for options, _ in settings:
        check_coverage(options, has_attention)
    text = read_text(cfg, files, members[0], default_set="dev")
    language = cfg.target_language if text.direction is None else text.direction.target_language
    translator = translator.into(language)
    bleu_tokenize = choose_bleu_tokenizer(cfg.bleu_tokenize, members[0].config["data"], text.rows, language)
    check_tokenizer(bleu_tokenize, key="bleu_tokenize")
    check_output("output", output, make_folder=True)
    trials = tune(translator, text.rows, settings, bleu_tokenize, cfg.lowercase)
    best = best_trial(trials, cfg.metric)
    write_config(output, best, cfg.metric, checkpoints, text.name, len(trials))
    print(table_of(trials, best).as_markdown())
    print(f"best by {cfg.metric}: {' '.join(best.overrides())}")
    print(f"decoding config: {output}   (--config-dir {output.parent.parent} decoding={output.stem})")


if __name__ == "__main__":
    run_command(main, "tune_decoding")
