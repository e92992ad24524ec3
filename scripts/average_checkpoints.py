"""Average the weights of several checkpoints, which often translates better than each of them.

  python scripts/average_checkpoints.py run=runs/demo last=3 output=runs/demo/average.pt
  python scripts/average_checkpoints.py 'checkpoints=[a.pt,b.pt]' output=average.pt

The output is a weights-only checkpoint for evaluate.py, translate.py and initialize_from. The checkpoints must have the
same model and the same subwords, as the last ones of a run have (trainer.keep_checkpoints is their number). Evaluate
the average on dev to see if it is better: evaluate.py checkpoint=average.pt test_set=dev

Main keys:
  checkpoints   the files to average
  run, last     instead of checkpoints: the folder of a run, and the number of its newest checkpoints
  output        the file to write; it must not exist yet
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import AverageConfig


def main(cfg: AverageConfig) -> None:
    from gnmt.checkpoint.average import average_checkpoints
    from gnmt.training.run_checkpoints import choose_checkpoints

    paths = choose_checkpoints(list(cfg.checkpoints), cfg.run, cfg.last)
    average_checkpoints(paths, Path(cfg.output))
    print(f"average of {len(paths)} checkpoints: {cfg.output}")


if __name__ == "__main__":
    run_command(main, "average_checkpoints")
