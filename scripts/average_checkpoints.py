"""Average the weights of several checkpoints, which often translates better than any of them.

  python scripts/average_checkpoints.py run=runs/demo last=3 output=runs/demo/average.pt
  python scripts/average_checkpoints.py 'checkpoints=[a.pt,b.pt]' output=average.pt

The result is a checkpoint of weights alone, for evaluate.py, translate.py and initialize_from. The checkpoints must be
of the same model and the same subwords, such as the last ones of a run (trainer.keep_checkpoints says how many stay).
Whether it is better only an evaluation on dev can tell: evaluate.py checkpoint=average.pt test_set=dev

Main keys:
  checkpoints   the files, or instead
  run, last     a run's folder, and how many of its newest checkpoints
  output        the file to write, which must not exist yet
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from pathlib import Path

from gnmt.checkpoint.average import average_checkpoints
from gnmt.config.cli import entry
from gnmt.config.schema import AverageConfig
from gnmt.training.run_checkpoints import choose_checkpoints


@entry("average_checkpoints")
def main(cfg: AverageConfig) -> None:
    paths = choose_checkpoints(list(cfg.checkpoints), cfg.run, cfg.last)
    average_checkpoints(paths, Path(cfg.output))
    print(f"average of {len(paths)} checkpoints: {cfg.output}")


if __name__ == "__main__":
    main()
