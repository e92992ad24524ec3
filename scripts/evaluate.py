"""BLEU, chrF and TER of a checkpoint on a test set, with sacreBLEU's signatures.

  python scripts/evaluate.py checkpoint=runs/demo/best.pt                 the data's only test set
  python scripts/evaluate.py checkpoint=runs/demo/best.pt test_set=dev
  python scripts/evaluate.py checkpoint=runs/demo/best.pt source=a.en target=a.de
  python scripts/evaluate.py checkpoint=runs/demo/best.pt decoding.beam_size=1 output=greedy
  python scripts/evaluate.py checkpoint=runs/x/last.pt weights=raw test_set=dev

Writes <test set>.<checkpoint>.json and .txt (the translations) to the run's translations/ folder and the figures to its
TensorBoard, or only the files to output=. Of a checkpoint outside of any run they go to <its name>.translations/ beside
it, as of average.pt to average.translations/. Decoding other than the recorded one is part of the names. Nothing takes
the place of figures of other text or of other checkpoints: those that would get 8 digits in their name. On dev, with
the recorded decoding, it gives the BLEU of training.

Main keys:
  checkpoint         best.pt of a run, or any other of its checkpoints; several are an ensemble: [a.pt,b.pt]
  test_set           a named test set of the training's data, or dev
  source, target     any other pair of files instead
  decoding.*         beam_size, length_penalty_alpha, …: replaces what the training recorded
  weights            of a run with trainer.ema_decay: averaged (default), or raw, those that training goes on with
  max_source_tokens  longer lines are translated in pieces
  num_alignments     draws the attention of the first sentences, beside the translations
  bleu_tokenize, lowercase   how BLEU is counted; by default as the training's data config says, with case
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from dataclasses import asdict
from pathlib import Path

from gnmt.config.cli import entry
from gnmt.config.schema import EvaluateConfig
from gnmt.decoding.translator import load_translator
from gnmt.errors import InputError, counted
from gnmt.evaluation.evaluate import TrainedData, evaluate, file_pairs, variant_of
from gnmt.evaluation.metrics import check_tokenizer


@entry("evaluate")
def main(cfg: EvaluateConfig) -> None:
    if (cfg.source is None) != (cfg.target is None):
        raise InputError("source= and target= belong together: give both files, or a test_set=")
    if cfg.source is not None and (cfg.test_set is not None or cfg.data_folder is not None):
        raise InputError("source= and target= name the test set: leave out test_set= and data_folder=")
    translator, members = load_translator(
        cfg,
        replace_unknown="copy" if cfg.replace_unknown == "copy" else "none",
        weights="raw" if cfg.weights == "raw" else "averaged",
    )
    contents, config = members[0].contents, members[0].config
    bleu_tokenize = cfg.bleu_tokenize or config["data"]["bleu_tokenize"]
    check_tokenizer(bleu_tokenize, key="bleu_tokenize")
    files, fingerprint = None, None
    if cfg.source is not None and cfg.target is not None:
        files = (cfg.source, cfg.target)
        test_set, pairs = file_pairs(cfg.source, cfg.target)
    else:
        trusted = tuple(cfg.trusted_packages)
        recorded = TrainedData(config["data"], contents["preprocessed_folder"], contents["data_fingerprint"], trusted)
        test_set, pairs = recorded.named(cfg.test_set, cfg.data_folder)
        fingerprint = recorded.fingerprint
    further: dict[str, object] = {"lowercase": True} if cfg.lowercase else {}
    if cfg.bleu_tokenize is not None:
        further["tokenize"] = cfg.bleu_tokenize
    if translator.precision.name != contents["precision"]:
        further["precision"] = translator.precision.name
    if cfg.weights != "averaged":
        further["weights"] = cfg.weights
    if translator.copies_unknown:
        further["replace_unknown"] = "copy"
    if len(members) > 1 and cfg.ensemble != "log_probs":
        further["ensemble"] = cfg.ensemble
    checkpoints = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint)
    evaluation = evaluate(
        translator,
        pairs,
        test_set=test_set,
        files=files,
        data_fingerprint=fingerprint,
        checkpoints=[Path(checkpoint) for checkpoint in checkpoints],
        steps=[member.contents["step"] for member in members],
        bleu_tokenize=bleu_tokenize,
        lowercase=cfg.lowercase,
        num_alignments=cfg.num_alignments,
        variant=variant_of(translator.options, config["decoding"], further),
        output=None if cfg.output is None else Path(cfg.output),
    )
    print(f"{evaluation.test_set}, {counted(evaluation.scores.num_sentences, 'sentence')}, {', '.join(checkpoints)}")
    figures = asdict(evaluation.scores)
    for metric, signature in evaluation.scores.signatures.items():
        print(f"{metric:5} {figures[metric]:6.2f}  {signature}")
    print(f"scores: {evaluation.scores_file}")
    print(f"translations: {evaluation.translations_file}")


if __name__ == "__main__":
    main()
