"""Train a translator, or resume the run that the same command started.

  python scripts/train.py                                   the embedded English-German demo
  python scripts/train.py trainer.max_steps=2               a quick try: two updates, then evaluation
  python scripts/train.py experiment=multi30k_en_de data.folder=FOLDER
  python scripts/train.py data=files data.train.source=a.en data.train.target=a.de \\
      data.dev.source=b.en data.dev.target=b.de name=mine   your own files
  python scripts/train.py initialize_from=runs/demo/best.pt data=files data.train.pairs=a.tsv data.dev.pairs=b.tsv \\
      name=domain                                           fine-tune a trained model on them
  python scripts/train.py initialize_from=runs/demo/best.pt objective=expected_reward name=refined optimizer.lr=0.0005
                                                            refine it by the reward of its own translations
  python scripts/train.py -m model.encoder.dropout=0.1,0.3  a sweep: one run for each value
  torchrun --nproc-per-node=2 scripts/train.py              two processes; each takes half of every batch

Main keys:
  name, runs         the run is written to runs/<name>; the default name is made from the overrides
  device, precision  auto selects CUDA and bf16 if the hardware has them
  trainer.*          limits, batch size, intervals of logging, evaluation and saving; best_metric chooses best.pt
  resume             auto: resume the run in the folder; never: refuse a folder that holds a run
  from_run           the folder of a run to repeat with its overrides, then those of this command
  initialize_from    a checkpoint to start from, which brings weights, model and tokenizers; the optimizer is new
  deterministic      true: bitwise the same result each time on CUDA too

Ctrl-C, SIGTERM, SIGHUP (a closed terminal), SIGUSR1 and SIGUSR2 save after the current update and exit with code 130,
143, 129, 75 and 75; the same command resumes the run. A second signal exits at once, without saving. With several
processes, the signal may reach any of them; all stop after the same update.
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
import logging
import math

from gnmt.config.cli import run_command
from gnmt.config.schema import TrainConfig
from gnmt.errors import DivergedError

log = logging.getLogger(__name__)


def main(cfg: TrainConfig) -> float:
    """Return the value of trainer.best_metric at the best evaluation, for Hydra's sweepers.

    In a search, such as Optuna's, a run that diverges has the worst value: 0, or infinity for dev/loss.
    """
    from gnmt.config.run_folder import (
        changes_from_run,
        check_sweep_direction,
        current_overrides,
        current_run_folder,
        sweep_direction,
    )
    from gnmt.distributed import current_ranks
    from gnmt.logs import note_in_run_file
    from gnmt.training.train import train

    check_sweep_direction(cfg.trainer.best_metric)
    folder = current_run_folder(cfg)
    if cfg.from_run is not None:
        changes = changes_from_run(cfg, folder)
        if changes is None:
            log.info("%s holds no config.json, so the config is not compared with it", cfg.from_run)
        elif changes:
            log.info("the config differs from that of %s, besides what this command overrides:", cfg.from_run)
            log.info("  %s", "\n  ".join(changes))
        else:
            log.info("the config is that of %s, except for what this command overrides", cfg.from_run)
    try:
        result = train(cfg, folder, current_overrides())
    except DivergedError as error:
        if sweep_direction() is None:
            raise
        log.error("%s; in this search, the result of the run is the worst possible value", error)
        return math.inf if cfg.trainer.best_metric == "dev/loss" else 0.0
    best = "  ".join(f"{tag} {value:.2f}" for tag, value in result.best.items())
    if current_ranks().is_rank_0:
        for line in (
            f"best on dev, at update {result.best_step} of {result.steps}: {best}",
            f"checkpoint: {result.folder / 'best.pt'}",
            f"TensorBoard: tensorboard --logdir {result.folder.parent}",
        ):
            note_in_run_file(line)
            print(line)
    return result.best[cfg.trainer.best_metric]


if __name__ == "__main__":
    run_command(main, "train")
