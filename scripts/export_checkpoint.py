"""Export a checkpoint to files that other tools read: weights as safetensors, config and tokenizers as JSON.

  python scripts/export_checkpoint.py checkpoint=runs/demo/best.pt output=exported

This needs the package safetensors (the extra `interchange`). From a full checkpoint, the averaged weights are written
if it has them, and the training state is left out. import_checkpoint.py source=safetensors reads the folder back.

Main keys:
  checkpoint   the file
  output       the folder to write; it must not exist yet
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import ExportConfig


def main(cfg: ExportConfig) -> None:
    from gnmt.checkpoint.export import export_folder

    num_weights = export_folder(cfg.checkpoint, Path(cfg.output))
    print(f"{num_weights:,} weights of {cfg.checkpoint}: {cfg.output}")


if __name__ == "__main__":
    run_command(main, "export_checkpoint")
