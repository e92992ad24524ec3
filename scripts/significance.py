"""Test whether systems differ by more than chance on one test set: scores, confidence intervals and p-values.

  python scripts/significance.py 'systems=[runs/a,runs/b]'                   runs that evaluate.py has evaluated
  python scripts/significance.py 'systems=[a.txt,b.txt]' target=test.de      translations of any program
  python scripts/significance.py 'systems=[runs/a,b.txt]' test_set=test test=randomization
  python scripts/significance.py 'systems=[runs/a,runs/b]' scores=comet.json   with scores of another program
  python scripts/significance.py 'systems=[runs/a1,runs/a2,runs/b1,runs/b2]'

The first system is the baseline. The test is paired bootstrap or paired approximate randomization by sacreBLEU.
It estimates how probable such a difference is by the choice of test sentences alone. If runs differ only in their seed,
a second table has mean, standard deviation and t-interval over the seeds.

Main keys:
  systems      run folders, .tsv files of evaluate.py, .jsonl files of translate.py or score.py, or text files
  test_set     the test set of the run folders, if they were evaluated on several
  target       references of text files; target=[a.de,b.de] for several references
  metrics      such as [bleu,chrf]; by default also chrfpp (chrF++), ter and gleu
  scores       segment scores of another program: .json of comet-score, or a text file of numbers for each system
  test         bootstrap or randomization
  num_samples  by default 1,000 resampled test sets, or 10,000 random exchanges
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from gnmt.config.cli import run_command
from gnmt.config.schema import SignificanceConfig


def main(cfg: SignificanceConfig) -> None:
    from gnmt.evaluation.segment_scores import read_score_files
    from gnmt.evaluation.significance import compare_seeds, compare_systems
    from gnmt.evaluation.systems import choose_references, choose_scoring, read_systems, with_segment_scores
    from gnmt.fileio import check_stdout, path_list

    check_stdout()
    targets = path_list(cfg.target or [])
    score_files = read_score_files(cfg.scores)
    systems = with_segment_scores(read_systems(path_list(cfg.systems), targets, cfg.test_set), score_files)
    references = choose_references(systems, targets)
    scoring = choose_scoring(systems, cfg.metrics, cfg.bleu_tokenize, cfg.lowercase)
    tables = [
        compare_systems(systems, references, scoring, test=cfg.test, num_samples=cfg.num_samples, seed=cfg.seed),
        compare_seeds(systems, references, scoring),
    ]
    texts = [table.as_tsv() if cfg.format == "tsv" else table.as_markdown() for table in tables if table is not None]
    print("\n\n".join(texts))


if __name__ == "__main__":
    run_command(main, "significance")
