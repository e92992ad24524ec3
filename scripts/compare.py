"""Compare training runs in tables: scores on dev and test sets, settings that differ, mean and spread over seeds.

  python scripts/compare.py runs=runs
  python scripts/compare.py runs=runs 'sort="dev BLEU"' 'columns=["*BLEU",dropout]' 'filter=["run=multi30k*"]'
  python scripts/compare.py 'runs=[runs/a,runs/b]' format=tsv
  python scripts/compare.py runs=runs by_length=true figure=runs/by_length.png
  python scripts/compare.py runs=runs plots=plots                          plots besides the table
  python scripts/compare.py 'runs=[runs/a,runs/b]' scores=comet.json       with scores of another program

Each corpus has a table for dev, one for each test set, one for settings, and one for size and speed. With columns=,
format=tsv or by_length=true, all columns are in one table. Runs that differ only in their seed share a row. The scores
come from the TensorBoard events and the best.pt of each run, and from the files that evaluate.py wrote into the run's
translations/ folder. Damaged and unfinished runs are listed below the tables.

Main keys:
  runs        folders of runs, or folders that contain runs at any depth
  sort        column by which the rows are sorted, the best first, with its test set: "dev BLEU", "test BLEU"
  columns     patterns of the columns to show, or names of settings
  filter      conditions that a run must meet: run=PATTERN or SETTING=PATTERN
  scores      segment scores of another program: .json of comet-score, or a text file of numbers for each run of runs=
  by_length   true: BLEU for each range of source lengths instead, from the files of evaluate.py
  figure      with by_length=true: the figure to write, .png, .svg or .pdf
  plots       folder for plots as PNG: BLEU over length, dev loss and BLEU over updates, gradient norm by layer
  format      markdown or tsv
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
import logging
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import CompareConfig
from gnmt.errors import InputError

log = logging.getLogger(__name__)


def main(cfg: CompareConfig) -> None:
    from gnmt.evaluation.compare import (
        TableOptions,
        compare,
        compare_by_length,
        draw_by_length,
        draw_plots,
        filter_runs,
        with_segment_scores,
    )
    from gnmt.evaluation.run_records import find_runs, read_runs
    from gnmt.evaluation.segment_scores import read_score_files
    from gnmt.fileio import check_output, check_output_folder, check_stdout, write_atomically
    from gnmt.reporting.figures import image_bytes

    if cfg.scores is not None and cfg.by_length:
        raise InputError("scores: the table of by_length=true holds BLEU alone: leave one of them out")
    if cfg.figure is not None and not (cfg.by_length and cfg.figure.endswith((".png", ".svg", ".pdf"))):
        raise InputError(f"figure={cfg.figure} needs by_length=true and a name that ends in .png, .svg or .pdf")
    check_stdout()
    folders = find_runs([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    score_files = read_score_files(cfg.scores)
    records, left_out = read_runs(folders)
    records = filter_runs(with_segment_scores(records, score_files), cfg.filter)
    options = TableOptions(cfg.sort, cfg.columns)
    tables = [compare_by_length(records, options)] if cfg.by_length else compare(records, options)
    tables[-1].notes.extend(left_out)
    if cfg.columns is None and cfg.format == "markdown":
        tables = [block for table in tables for block in table.in_blocks()]
    if cfg.figure is not None:
        check_output("figure", cfg.figure, make_folder=True)
        write_atomically(Path(cfg.figure), image_bytes(draw_by_length(records), cfg.figure))
    if cfg.plots is not None:
        check_output_folder("plots", cfg.plots)
        for path in draw_plots(records, Path(cfg.plots), cfg.gradient_updates):
            log.info("%s", path)
    print("\n\n".join(table.as_tsv() if cfg.format == "tsv" else table.as_markdown() for table in tables))


if __name__ == "__main__":
    run_command(main, "compare")
