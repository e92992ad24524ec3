"""Say what a checkpoint is: config, tokenizers, step, best scores, parameters by module, versions.

  python scripts/inspect_checkpoint.py checkpoint=runs/demo/best.pt
  python scripts/inspect_checkpoint.py checkpoint=runs/demo/best.pt format=json

Nothing in the file is run, and the model is not built.

Main keys:
  checkpoint   the file
  format       text for people, json for programs
"""

import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
from gnmt.checkpoint.inspect import as_json, as_text, describe_checkpoint
from gnmt.config.cli import entry
from gnmt.config.schema import InspectConfig


@entry("inspect_checkpoint")
def main(cfg: InspectConfig) -> None:
    description = describe_checkpoint(cfg.checkpoint)
    print(as_json(description) if cfg.format == "json" else as_text(description))


if __name__ == "__main__":
    main()
