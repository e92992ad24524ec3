"""Write an HTML report about systems on one test set: scores, settings, curves, errors, and all sentences side by side.

  python scripts/report.py 'systems=[runs/a,runs/b]' output=report.html          runs that evaluate.py has evaluated
  python scripts/report.py 'systems=[a.txt,b.txt]' source=test.en target=test.de target_language=de
  python scripts/report.py 'systems=[runs/a,b.jsonl]' test_set=test              with the attention in b.jsonl

The report is one file: it needs no network, opens from disk, follows the browser's light or dark mode, and prints. Its
sentences can be sorted and searched. A .jsonl file is the output of translate.py or score.py with
format=jsonl; with word_attention=true the report shows the attention too, and that of score.py has the probability of
each word.

Main keys:
  systems         run folders, .tsv files of evaluate.py, .jsonl files of translate.py or score.py, or text files
  output          the file to write, .html
  test_set        the test set of the run folders, if they were evaluated on several
  source, target  the sentences and their references, for systems that are no evaluations
  scores          segment scores of another program: .json of comet-score, or a text file of numbers for each system
  training_text   target side of the training text, for F1 by word frequency; by default that of the first run
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
import logging
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import ReportConfig
from gnmt.errors import InputError

log = logging.getLogger(__name__)


def main(cfg: ReportConfig) -> None:
    from gnmt.evaluation.report import build_report, read_inputs
    from gnmt.fileio import check_output, write_atomically

    if not cfg.output.endswith(".html"):  # it might be one of the texts, which would be replaced
        raise InputError(f"output={cfg.output} must end in .html: give the report a name such as report.html")
    check_output("output", cfg.output, make_folder=True)
    html = build_report(cfg.title, read_inputs(cfg)).as_html()
    write_atomically(Path(cfg.output), html.encode())
    log.info("report: %s, %.1f MB", cfg.output, len(html.encode()) / 1e6)


if __name__ == "__main__":
    run_command(main, "report")
