"""Measure speed against a plain implementation, in the same process and by turns.

  python scripts/benchmark.py                                              translation: hours on two cores
  python scripts/benchmark.py beams=[5] batch_sizes=[32] lengths=[equal] precisions=[int8]   one cell
  python scripts/benchmark.py sizes=[multi30k] output=decoding.json
  python scripts/benchmark.py sizes=[] checkpoint=runs/demo/best.pt        the model of a checkpoint
  python scripts/benchmark.py device=cuda precisions=[bf16]
  python scripts/benchmark.py beams=[5] batch_sizes=[32] profile=traces    profiles besides the times
  python scripts/benchmark.py task=training                                training updates: minutes on two cores
  python scripts/benchmark.py task=training sizes=[middle] precisions=[bf16] profile=traces
  python scripts/benchmark.py task=length                                  training updates over sentence length
  python scripts/benchmark.py task=length sizes=[claims/gnmt,claims/transformer] sentence_tokens=[20,200]

The baselines (benchmarks/baseline.py, benchmarks/training_baseline.py) run in fp32, and `ratio` is their time divided
by that of this project. Each translation has a fixed length, so that both take the same number of steps. That both
compute the same is checked first. For training, `utilization` is the model's arithmetic per second, divided by that of
the fastest matrix product in the same precision and run; memory does not count weights, gradients and optimizer state.
Over sentence length, the systems are compared with each other and not with a baseline.
The table is printed to stdout; output= writes all figures as JSON.

Main keys:
  task                      decoding, training, length
  sizes                     decoding: gnmt (4+4 layers of 1024, 32,000 subwords), multi30k (2+2 of 256, 10,000), tiny
                            training: gnmt (64 sentences), gnmt_128, gnmt_256, gnmt_512 (as many sentences), gnmt_8
                            (8+8 layers, 128 sentences), middle (4+4 of 512, 8,000), small (2+2 of 256, 10,000), tiny
                            length: names of experiments, whose models start from random weights
  precisions, lengths       lists; every combination is measured, for decoding also with every one of
  beams, batch_sizes
  sentence_tokens           length: a list of tokens per sentence; batch_tokens of an update stays the same
  repetitions               number of measurements; the median is reported
"""

import gnmt.signals  # noqa: F401 (first: handles Ctrl-C while the others are imported)

# isort: split
import os
import sys
from pathlib import Path

from gnmt.config.cli import run_command
from gnmt.config.schema import BenchmarkConfig


def main(cfg: BenchmarkConfig) -> None:
    if not cfg.triton:
        os.environ["GNMT_TRITON"] = "0"  # also for the processes that measure memory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is not part of the package
    from benchmarks.tasks import run_benchmark

    run_benchmark(cfg)


if __name__ == "__main__":
    run_command(main, "benchmark")
