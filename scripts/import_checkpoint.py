"""Make a checkpoint of this project out of a model of another one; nothing in the file is run.

  python scripts/import_checkpoint.py source=nvidia_gnmt checkpoint=model_best.pth output=nvidia.pt
  python scripts/import_checkpoint.py source=safetensors checkpoint=exported output=model.pt

The result is for translate.py, evaluate.py (with source= and target=), score.py and inspect_checkpoint.py. What text an imported
model reads stands in docs/interchange.md. What cannot be represented is refused by name.

Main keys:
  source       nvidia_gnmt: a file of NVIDIA's PyTorch GNMT v2; safetensors: a folder that export_checkpoint.py wrote
  checkpoint   the file, or the folder
  output       the file to write, which must not exist yet
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from pathlib import Path

from gnmt.checkpoint.import_checkpoint import import_checkpoint
from gnmt.config.cli import entry
from gnmt.config.schema import ImportConfig
from gnmt.fileio import encodable


@entry("import_checkpoint")
def main(cfg: ImportConfig) -> None:
    model = import_checkpoint(cfg.source, cfg.checkpoint, Path(cfg.output), tuple(cfg.trusted_packages))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(encodable(f"{num_parameters:,} parameters from {cfg.checkpoint}: {cfg.output}"))


if __name__ == "__main__":
    main()
