"""Train a translator, or continue the run that the same command began.

  python scripts/train.py                                   the embedded English-German demo
  python scripts/train.py trainer.max_steps=2               a quick try: two updates, then evaluation
  python scripts/train.py experiment=multi30k_en_de data.folder=FOLDER
  python scripts/train.py data=files data.train.source=a.en data.train.target=a.de \\
      data.dev.source=b.en data.dev.target=b.de name=mine  your own files
  python scripts/train.py -m model.encoder.dropout=0.1,0.3 a sweep, a run for each value
  torchrun --nproc-per-node=2 scripts/train.py             two processes, each on its share of every batch

Main keys:
  name, runs         the run lives in runs/<name>; by default the name says what was overridden
  device, precision  auto takes CUDA and bf16 where the hardware has them
  trainer.*          limits, batch size, intervals of logging, evaluation and saving
  resume             auto continues what the folder holds; never refuses to
  initialize_from    another run's checkpoint to take the weights from, with a fresh optimizer
  deterministic      true: the same bits each time on CUDA too

Ctrl-C, SIGTERM and SIGUSR1 save after the update at hand and end with exit code 130, 143 and 75; the same command goes
on. A second one ends at once. Of several processes any may get the signal; all stop after the same update.
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.config.cli import entry
from gnmt.config.run_folder import current_run_folder
from gnmt.config.schema import TrainConfig
from gnmt.distributed import current_ranks
from gnmt.logs import note_in_run_file
from gnmt.training.train import train


@entry("train")
def main(cfg: TrainConfig) -> None:
    result = train(cfg, current_run_folder(cfg))
    if not current_ranks().is_rank_0:
        return
    best = "  ".join(f"{tag} {value:.2f}" for tag, value in result.best.items())
    for line in (
        f"best on dev, at update {result.best_step} of {result.steps}: {best}",
        f"checkpoint: {result.folder / 'best.pt'}",
        f"TensorBoard: tensorboard --logdir {result.folder.parent}",
    ):
        note_in_run_file(line)
        print(line)


if __name__ == "__main__":
    main()
