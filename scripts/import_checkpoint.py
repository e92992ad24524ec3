"""Convert a model of another project to a checkpoint of this one. No code in the file is run.

  python scripts/import_checkpoint.py source=nvidia_gnmt checkpoint=model_best.pth output=nvidia.pt
  python scripts/import_checkpoint.py source=safetensors checkpoint=exported output=model.pt

The output works with translate.py, evaluate.py (with source= and target=), score.py and inspect_checkpoint.py.
docs/interchange.md describes the text that an imported model expects. An option that this project does not have is
refused by name.

Main keys:
  source       nvidia_gnmt: a file of NVIDIA's PyTorch GNMT v2; safetensors: a folder that export_checkpoint.py wrote
  checkpoint   the file or the folder
  output       the file to write; it must not exist yet
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import ImportConfig


def main(cfg: ImportConfig) -> None:
    from gnmt.checkpoint.import_checkpoint import import_checkpoint

    model = import_checkpoint(cfg.source, cfg.checkpoint, Path(cfg.output), tuple(cfg.trusted_packages))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters:,} parameters from {cfg.checkpoint}: {cfg.output}")


if __name__ == "__main__":
    run_command(main, "import_checkpoint")
