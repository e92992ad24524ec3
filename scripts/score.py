"""Score given translations: the log-probability and the search score of each pair of lines.

  python scripts/score.py checkpoint=runs/demo/best.pt source=a.en target=a.de
  python scripts/score.py checkpoint=runs/demo/best.pt source=a.en target=a.de output=scores.tsv format=tsv
  python scripts/score.py checkpoint=runs/demo/best.pt input=out.jsonl output=scores.jsonl
  python scripts/score.py checkpoint=runs/demo/best.pt source=a.en target=a.de output=out.tsv format=tsv alignments=true

Each translation gives one line of output: its line number and rank, log P(Y|X) (natural), the score of search (Wu et
al. 2016, eq. 14), and in jsonl the tokens with the log-probability of each, and both texts with that of each word. The
mean and the perplexity are logged. Text is tokenized, and scored with the penalties that the training recorded. input=
takes the token ids and the penalties from a file that translate.py wrote with format=jsonl. The scores then equal those
that search reported (in fp32 and bf16; in int8 up to about 1e-3 per token). A warning names lines that another
precision or other checkpoints have translated.

Main keys:
  checkpoint         best.pt of a run, or any other checkpoint of it; several form an ensemble: [a.pt,b.pt]
  source, target     UTF-8 text files, plain, .gz, .bz2 or .xz; line N of target is the translation of line N of source
  pairs, columns     instead of source and target: a .tsv or .jsonl file, and the keys of both sides in .jsonl
  input              instead of them: a file that translate.py wrote with format=jsonl
  target_language    the language of the translations, for a model of data=multilingual
  output, format     a path, or - for standard output; jsonl or tsv
  alignments         adds word alignments, such as 0-0 1-2, from the attention while the given target is decoded
  word_attention     adds the attention between words (jsonl)
  max_source_tokens  the value that the lines of input= were translated with, if long ones were cut
  decoding.*         length_penalty_alpha, length_penalty_constant, coverage_beta: replace the recorded values and those
                     in the lines of input=
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from gnmt.config.cli import run_command
from gnmt.config.schema import ScoreConfig


def main(cfg: ScoreConfig) -> None:
    from gnmt.checkpoint.file import short_digests
    from gnmt.decoding.options import given_options
    from gnmt.decoding.translator import load_translator
    from gnmt.fileio import path_list
    from gnmt.translation.formats import OutputFormat
    from gnmt.translation.score_files import Scorable, score_files

    output_format = OutputFormat(cfg.format, cfg.alignments, cfg.word_attention)
    scorable = Scorable(cfg.source, cfg.target, cfg.input, cfg.pairs, cfg.columns)
    checkpoints = path_list(cfg.checkpoint)
    scorable.check_output(cfg.output, checkpoints)
    loaded = load_translator(cfg)
    output_format.check(loaded.translator.options)
    for option in ("alignments", "word_attention"):
        if cfg[option]:
            loaded.require_attention(f"{option}=true")
    overridden = given_options(cfg.decoding).keys()
    digests = short_digests(checkpoints)
    score_files(loaded.translator, scorable, cfg.output, output_format, overridden, digests)


if __name__ == "__main__":
    run_command(main, "score")
