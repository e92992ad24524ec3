"""A table of any set of runs: settings that differ, dev and test figures, mean and spread over seeds.

  python scripts/compare.py runs=runs
  python scripts/compare.py 'runs=[runs/a,runs/b]' format=tsv
  python scripts/compare.py runs=runs by_length=true

Runs that differ in their seed alone share a row. Figures come from each run's TensorBoard events and best.pt, and from
what evaluate.py wrote into the run's translations/ folder. Damaged and unfinished runs are named below the table.

Main keys:
  runs        folders of runs, or folders that hold them at any depth
  by_length   instead, BLEU for each range of source lengths, of what evaluate.py wrote
  format      markdown or tsv
"""

from gnmt.comparison.records import find_runs, read_run
from gnmt.comparison.table import compare, compare_by_length
from gnmt.config import CompareConfig, entry


@entry("compare")
def main(cfg: CompareConfig) -> None:
    folders = find_runs([cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs))
    records = [read_run(folder) for folder in folders]
    table = compare_by_length(records) if cfg.by_length else compare(records)
    print(table.as_tsv() if cfg.format == "tsv" else table.as_markdown())


if __name__ == "__main__":
    main()
