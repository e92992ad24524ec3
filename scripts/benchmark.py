"""Measures speed against a straightforward implementation, in the same run and in turns.

  python scripts/benchmark.py                                              the whole table, hours on two cores
  python scripts/benchmark.py beams=[5] batch_sizes=[32] lengths=[equal] precisions=[int8]   one cell
  python scripts/benchmark.py sizes=[multi30k] output=decoding.json
  python scripts/benchmark.py sizes=[] checkpoint=runs/demo/best.pt        that model's weights
  python scripts/benchmark.py device=cuda precisions=[bf16]
  python scripts/benchmark.py profile=true beams=[5] batch_sizes=[32]      where the time goes as well

The baseline (benchmarks/baseline.py) runs in fp32; `ratio` is its time divided by a system's. Translations have lengths
set beforehand, so that all take the same steps. The table goes to stdout, all figures as JSON to output=.

Main keys:
  task                      decoding
  sizes                     gnmt (4+4 layers of 1024, 32,000 pieces), multi30k (2+2 of 256, 6,000), tiny
  beams, batch_sizes, precisions, lengths   lists; every combination is measured
  repetitions               measurements of each, of which the median counts
"""

import gnmt.early_interrupt  # noqa: F401 (before all else: Ctrl-C while the others load)

# isort: split
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks.decoding import HEADER, LENGTHS, PRECISIONS, SIZES, line, measure, profile, workloads
from gnmt.config import BenchmarkConfig, entry
from gnmt.files import write_atomically
from gnmt.runtime import choose_device, choose_precision
from gnmt.types import InputError


@entry("benchmark")
def main(cfg: BenchmarkConfig) -> None:
    check_lists(cfg)
    device = choose_device(cfg.device)
    precisions = list(dict.fromkeys(choose_precision(name, device).name for name in cfg.precisions))
    sizes = [*cfg.sizes, *([] if cfg.checkpoint is None else [cfg.checkpoint])]
    figures, profiles = [], []
    print(HEADER)
    for workload in workloads(
        sizes,
        list(cfg.lengths),
        list(cfg.beams),
        list(cfg.batch_sizes),
        num_batches=cfg.num_batches,
        source_tokens=cfg.source_tokens,
        seed=cfg.seed,
        device=str(device),
        trusted_packages=tuple(cfg.trusted_packages),
    ):
        for figure in measure(workload, precisions, cfg.repetitions, cfg.memory):
            figures.append(asdict(figure))
            print(line(figure), flush=True)
        if cfg.profile:
            profiles += [profile(workload, name) for name in precisions]
            print(*profiles[-len(precisions) :], sep="\n")
    if cfg.output is not None:
        write(Path(cfg.output), {"setting": setting(cfg), "figures": figures}, profiles)


def check_lists(cfg: BenchmarkConfig) -> None:
    """What the schema cannot say of lists."""
    allowed = {"sizes": tuple(SIZES), "lengths": LENGTHS, "precisions": PRECISIONS}
    for key, choices in allowed.items():
        for value in getattr(cfg, key):
            if value not in choices:
                raise InputError(f"{key}: found {value}, allowed are {', '.join(choices)}, as in {key}=[{choices[0]}]")
    for key in ("beams", "batch_sizes"):
        for value in getattr(cfg, key):
            if value < 1:
                raise InputError(f"{key}: found {value}, allowed are numbers of at least 1")
    if not cfg.sizes and cfg.checkpoint is None:
        raise InputError(f"there is nothing to measure: give sizes= (of {', '.join(SIZES)}) or checkpoint=")
    for key in ("lengths", "precisions", "beams", "batch_sizes"):
        if not getattr(cfg, key):
            raise InputError(f"{key} is empty: name at least one")


def setting(cfg: BenchmarkConfig) -> dict[str, object]:
    """What the figures depend on besides the workload."""
    device = choose_device(cfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()["cpu_name"]
    return {
        "task": cfg.task,
        "device": str(device),
        "hardware": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repetitions": cfg.repetitions,
        "num_batches": cfg.num_batches,
        "source_tokens": cfg.source_tokens,
        "seed": cfg.seed,
    }


def write(output: Path, contents: dict[str, object], profiles: list[str]) -> None:
    """The figures as JSON, and the profiles beside them."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, (json.dumps(contents, indent=2) + "\n").encode())
        if profiles:
            write_atomically(output.with_suffix(".profile.txt"), "\n".join(profiles).encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    print(f"figures: {output}")


if __name__ == "__main__":
    main()
