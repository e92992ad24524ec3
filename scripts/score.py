"""How probable given translations are: log-probabilities and scores of pairs of lines, or of what translate.py wrote.

  python scripts/score.py checkpoint=runs/demo/best.pt source=a.en target=a.de
  python scripts/score.py checkpoint=runs/demo/best.pt source=a.en target=a.de output=scores.tsv format=tsv
  python scripts/score.py checkpoint=runs/demo/best.pt input=a.jsonl output=scores.jsonl

A line of output for each translation: its line and rank, log P(Y|X) (natural), the score of search (Wu et al. 2016,
eq. 14), and in jsonl the tokens with the log-probability of each. The log gives the mean and the perplexity.
Text is cut into tokens anew; input= takes the token ids that search wrote (format=jsonl of translate.py), with the
length and coverage penalties that it had, and the scores are those that search reported (in fp32 and bf16; in int8 up
to about 1e-3 a token); a warning says where the lines name another precision or other checkpoints. Where text is
scored, the penalties are those that the training recorded.

Main keys:
  checkpoint         best.pt of a run, or any other of its checkpoints; several are an ensemble: [a.pt,b.pt]
  source, target     UTF-8 text files, plain or .gz, whose lines N belong together
  input              instead: a file that translate.py wrote with format=jsonl
  output, format     - is standard output; jsonl or tsv
  max_source_tokens  what the lines of input= were translated with, where long ones were cut
  decoding.*         length_penalty_alpha, length_penalty_constant, coverage_beta: replaces what the training recorded,
                     and what the lines of input= say
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.config.build import resolve
from gnmt.config.cli import entry
from gnmt.config.schema import ScoreConfig
from gnmt.decoding.translator import load_translator
from gnmt.translation.formats import short_digests
from gnmt.translation.score_files import Scorable, check_places_of, score_files


@entry("score")
def main(cfg: ScoreConfig) -> None:
    scorable = Scorable(cfg.source, cfg.target, cfg.input)
    checkpoint = resolve(cfg)["checkpoint"]
    checkpoints = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    check_places_of(scorable, cfg.output, checkpoints)
    translator, _ = load_translator(cfg)
    given = [name for name, value in resolve(cfg.decoding).items() if value is not None]
    kind = "tsv" if cfg.format == "tsv" else "jsonl"
    score_files(translator, scorable, cfg.output, kind, given, short_digests(checkpoints))


if __name__ == "__main__":
    main()
