"""Describe a checkpoint: config, tokenizers, step, best scores, parameters by module, versions.

  python scripts/inspect_checkpoint.py checkpoint=runs/demo/best.pt
  python scripts/inspect_checkpoint.py checkpoint=runs/demo/best.pt format=json

No code in the file is run, and the model is not built.

Main keys:
  checkpoint   the file
  format       text for people, json for programs
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
from gnmt.config.cli import run_command
from gnmt.config.schema import InspectConfig


def main(cfg: InspectConfig) -> None:
    from gnmt.checkpoint.inspect import as_json, as_text, describe_checkpoint
    from gnmt.fileio import check_stdout

    check_stdout()
    description = describe_checkpoint(cfg.checkpoint)
    print(as_json(description) if cfg.format == "json" else as_text(description))


if __name__ == "__main__":
    run_command(main, "inspect_checkpoint")
