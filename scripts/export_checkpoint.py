"""Write a checkpoint as files that other tools read: safetensors for the weights, JSON for config and tokenizers.

  python scripts/export_checkpoint.py checkpoint=runs/demo/best.pt output=exported

Needs the package safetensors (the extra `interchange`). Of a whole checkpoint the averaged weights are written
where it has them, and the training's state is left out. import_checkpoint.py source=safetensors reads the folder back.

Main keys:
  checkpoint   the file
  output       the folder to write, which must not exist yet
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from pathlib import Path

from gnmt.checkpoint.export import export_folder
from gnmt.config.cli import entry
from gnmt.config.schema import ExportConfig
from gnmt.fileio import encodable


@entry("export_checkpoint")
def main(cfg: ExportConfig) -> None:
    num_weights = export_folder(cfg.checkpoint, Path(cfg.output))
    print(encodable(f"{num_weights:,} weights of {cfg.checkpoint}: {cfg.output}"))


if __name__ == "__main__":
    main()
