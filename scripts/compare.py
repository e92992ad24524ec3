"""A table of any set of runs: settings that differ, dev and test figures, mean and spread over seeds.

  python scripts/compare.py runs=runs
  python scripts/compare.py 'runs=[runs/a,runs/b]' format=tsv
  python scripts/compare.py runs=runs by_length=true figure=runs/by_length.png

Runs that differ in their seed alone share a row. Figures come from each run's TensorBoard events and best.pt, and from
what evaluate.py wrote into the run's translations/ folder. Damaged and unfinished runs are named below the table.

Main keys:
  runs        folders of runs, or folders that hold them at any depth
  by_length   instead, BLEU for each range of source lengths, of what evaluate.py wrote
  figure      with by_length, a picture of it to write: .png, .svg or .pdf
  format      markdown or tsv
"""

import gnmt.early_interrupt  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.comparison.records import find_runs, read_run
from gnmt.comparison.table import compare, compare_by_length, draw_by_length
from gnmt.config import CompareConfig, entry
from gnmt.reporting.figures import save
from gnmt.types import InputError


@entry("compare")
def main(cfg: CompareConfig) -> None:
    if cfg.figure is not None and not (cfg.by_length and cfg.figure.endswith((".png", ".svg", ".pdf"))):
        raise InputError(f"figure={cfg.figure} needs by_length=true and a name that ends in .png, .svg or .pdf")
    folders = find_runs([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    records = [read_run(folder) for folder in folders]
    table = compare_by_length(records) if cfg.by_length else compare(records)
    if cfg.figure is not None:
        save(draw_by_length(records), cfg.figure)
    print(table.as_tsv() if cfg.format == "tsv" else table.as_markdown())


if __name__ == "__main__":
    main()
