"""Say what a checkpoint is: config, tokenizers, step, best scores, parameters by module, versions.

  python scripts/inspect.py checkpoint=runs/demo/best.pt
  python scripts/inspect.py checkpoint=runs/demo/best.pt format=json

Nothing in the file is run, and the model is not built.

Main keys:
  checkpoint   the file
  format       text for people, json for programs
"""

import sys

if __name__ == "inspect":
    # Python puts a script's folder first on the path, so the standard library's `import inspect` finds this file,
    # from every script here. It then gets the module that it meant.
    import importlib.util
    import os

    spec = importlib.util.spec_from_file_location("inspect", os.path.join(os.path.dirname(os.__file__), "inspect.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules["inspect"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])
else:
    import gnmt.signals  # noqa: F401 (before all else: Ctrl-C while the others load)

    # isort: split
    from gnmt.checkpoint.inspect import as_json, as_text, describe_checkpoint
    from gnmt.config.cli import entry
    from gnmt.config.schema import InspectConfig

    @entry("inspect")
    def main(cfg: InspectConfig) -> None:
        description = describe_checkpoint(cfg.checkpoint)
        print(as_json(description) if cfg.format == "json" else as_text(description))

    if __name__ == "__main__":
        main()
