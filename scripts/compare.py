"""A table of any set of runs: settings that differ, dev and test figures, mean and spread over seeds.

  python scripts/compare.py runs=runs
  python scripts/compare.py 'runs=[runs/a,runs/b]' format=tsv
  python scripts/compare.py runs=runs by_length=true figure=runs/by_length.png
  python scripts/compare.py runs=runs plots=plots                          pictures beside the table

Runs that differ in their seed alone share a row. Figures come from each run's TensorBoard events and best.pt, and from
what evaluate.py wrote into the run's translations/ folder. Damaged and unfinished runs are named below the table.

Main keys:
  runs        folders of runs, or folders that hold them at any depth
  by_length   instead, BLEU for each range of source lengths, of what evaluate.py wrote
  figure      with by_length, a picture of it to write: .png, .svg or .pdf
  plots       folder for BLEU over length, dev loss and BLEU over updates, gradient norm by layer, as PNG
  format      markdown or tsv
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
import logging
from pathlib import Path

from gnmt.config.cli import entry
from gnmt.config.schema import CompareConfig
from gnmt.errors import InputError
from gnmt.evaluation.compare import compare, compare_by_length, draw_by_length, draw_plots, write_figure
from gnmt.evaluation.run_records import find_runs, read_runs
from gnmt.fileio import encodable

log = logging.getLogger(__name__)


@entry("compare")
def main(cfg: CompareConfig) -> None:
    if cfg.figure is not None and not (cfg.by_length and cfg.figure.endswith((".png", ".svg", ".pdf"))):
        raise InputError(f"figure={cfg.figure} needs by_length=true and a name that ends in .png, .svg or .pdf")
    folders = find_runs([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    records, left_out = read_runs(folders)
    table = compare_by_length(records) if cfg.by_length else compare(records)
    table.notes.extend(left_out)
    if cfg.figure is not None:
        write_figure(draw_by_length(records), Path(cfg.figure), "figure")
    if cfg.plots is not None:
        for path in draw_plots(records, Path(cfg.plots), cfg.gradient_updates):
            log.info("%s", path)
    print(encodable(table.as_tsv() if cfg.format == "tsv" else table.as_markdown()))


if __name__ == "__main__":
    main()
