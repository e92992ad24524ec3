"""Evaluate a checkpoint on a test set: BLEU, chrF, chrF++ and TER with sacreBLEU's signatures, and GLEU.

  python scripts/evaluate.py checkpoint=runs/demo/best.pt                 the only test set of the data
  python scripts/evaluate.py checkpoint=runs/demo/best.pt test_set=dev
  python scripts/evaluate.py checkpoint=runs/demo/best.pt source=a.en target=a.de
  python scripts/evaluate.py checkpoint=runs/demo/best.pt decoding.beam_size=1 output=greedy
  python scripts/evaluate.py checkpoint=runs/x/last.pt weights=raw test_set=dev

The scores (.json), the translations (.txt) and a table of the sentences with chrF and score, worst first (.tsv), are
written to the translations/ folder of the checkpoint's run, and the scores to its TensorBoard events; with output=, to
that folder only. For a checkpoint outside of any run, such as
average.pt, the folder is average.translations/ beside it. A file name contains the test set, a hash of its text, the
checkpoint, decoding options that differ from the recorded ones, and a hash of the checkpoint. So no file of other text
or of another checkpoint is overwritten. On dev, with the recorded decoding, BLEU equals that of training.

Main keys:
  checkpoint         best.pt of a run, or any other checkpoint of it; several form an ensemble: [a.pt,b.pt]
  test_set           a named test set of the training's data, or dev
  source, target     instead of test_set: a pair of files; target=[a.de,b.de] for several references
  pairs, columns     instead of source and target: a .tsv or .jsonl file, and the keys of both sides in .jsonl
  decoding.*         beam_size, length_penalty_alpha, ...: replace the recorded options
  weights            of a run with trainer.ema_decay: averaged (default) or raw
  max_source_tokens  longer lines are translated in segments
  num_alignments     draws the attention of the first sentences, beside the translations
  target_language            the language of target=, for a model of data=multilingual
  bleu_tokenize, lowercase   BLEU's tokenization and case; by default as in the training's data config, with case
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from dataclasses import asdict
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import EvaluateConfig
from gnmt.errors import format_count


def main(cfg: EvaluateConfig) -> None:
    from gnmt.decoding.translator import load_translator
    from gnmt.evaluation.evaluate import (
        choose_bleu_tokenizer,
        evaluate,
        given_files,
        read_texts,
        variant_of,
    )

    files = given_files(cfg)
    loaded = load_translator(cfg)
    translator, checkpoints, members = loaded
    if cfg.num_alignments:
        loaded.require_attention(f"num_alignments={cfg.num_alignments}")
    contents, config = members[0].contents, members[0].config
    texts = read_texts(cfg, files, members[0])
    if files is not None:
        translator.check_target_language()
    languages = [cfg.target_language if text.direction is None else text.direction.target_language for text in texts]
    bleu_tokenizers = [
        choose_bleu_tokenizer(cfg.bleu_tokenize, config["data"], text.rows, language)
        for text, language in zip(texts, languages, strict=True)
    ]
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
    for text, bleu_tokenize in zip(texts, bleu_tokenizers, strict=True):
        evaluation = evaluate(
            translator if text.direction is None else translator.into(text.direction.target_language),
            text.rows,
            test_set=text.name,
            files=files,
            data_fingerprint=text.data_fingerprint,
            checkpoints=[Path(checkpoint) for checkpoint in checkpoints],
            steps=[member.contents["step"] for member in members],
            bleu_tokenize=bleu_tokenize,
            lowercase=cfg.lowercase,
            num_alignments=cfg.num_alignments,
            variant=variant_of(translator.options, config["decoding"], further),
            output=None if cfg.output is None else Path(cfg.output),
            direction=text.direction,
        )
        zero_shot = " (zero-shot)" if text.direction is not None and text.direction.is_zero_shot else ""
        sentences = format_count(evaluation.scores.num_sentences, "sentence")
        print(f"{evaluation.test_set}{zero_shot}, {sentences}, {', '.join(checkpoints)}")
        figures = asdict(evaluation.scores)
        for metric, signature in evaluation.scores.signatures.items():
            print(f"{metric:6} {figures[metric]:6.2f}  {signature}")
        print(f"scores: {evaluation.scores_file}")
        print(f"translations: {evaluation.translations_file}")
        print(f"by sentence, worst first: {evaluation.sentences_file}")


if __name__ == "__main__":
    run_command(main, "evaluate")
