"""Run one task of scripts/benchmark.py: check its lists, measure its workloads, print the table, write the figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoding, length, training
from benchmarks.measuring import header, row
from benchmarks.profiling import profile_workload
from gnmt.config.schema import BenchmarkConfig
from gnmt.decoding.beam import search_kernels_run
from gnmt.device import choose_device, choose_precision, device_name
from gnmt.errors import InputError
from gnmt.fileio import check_output, check_output_folder, check_stdout, write_atomically
from gnmt.model.attention import kernels_run

TASKS = {"decoding": decoding, "training": training, "length": length}
ALLOWED = {
    "decoding": {"sizes": tuple(decoding.SIZES), "lengths": decoding.LENGTHS, "precisions": decoding.PRECISIONS},
    "training": {"sizes": tuple(training.SIZES), "lengths": training.LENGTHS, "precisions": training.PRECISIONS},
    "length": {"lengths": length.LENGTHS, "precisions": training.PRECISIONS},
}

# Further keys that the figures of a task depend on.
SETTINGS = {"decoding": ["source_tokens"], "training": ["dropout"], "length": ["batch_tokens"]}


def run_benchmark(cfg: BenchmarkConfig) -> None:
    """Measure the workloads of the config and print the table."""
    check_lists(cfg)
    check_outputs(cfg)
    device = choose_device(cfg.device)
    precisions = list(dict.fromkeys(choose_precision(name, device).name for name in cfg.precisions))
    task: Any = TASKS[cfg.task]
    makers = {"decoding": decoding_workloads, "training": training_workloads, "length": length_workloads}
    workloads: Sequence[Any] = makers[cfg.task](cfg)
    print(header(task.COLUMNS))
    figures, profiles = [], []
    for workload in workloads:
        for figure in task.measure(workload, precisions, cfg.repetitions, cfg.memory):
            print(row(task.COLUMNS, figure), flush=True)
            figures.append(asdict(figure))
        for name in precisions if cfg.profile is not None else []:
            profiles.append(profile_workload(workload, name, Path(cfg.profile)))
            print(profiles[-1], flush=True)
        if cfg.output is not None:  # after each workload, so that a run that is stopped keeps its figures
            write(Path(cfg.output), {"setting": setting(cfg), "figures": figures}, profiles)
    if cfg.output is not None:
        print(f"figures: {cfg.output}")


def decoding_workloads(cfg: BenchmarkConfig) -> list[decoding.Workload]:
    """Return a workload for each combination of size or checkpoint, lengths, beam and batch size."""
    return decoding.workloads(
        [*cfg.sizes, *([] if cfg.checkpoint is None else [cfg.checkpoint])],
        list(cfg.lengths),
        list(cfg.beams),
        list(cfg.batch_sizes),
        num_batches=cfg.num_batches,
        source_tokens=cfg.source_tokens,
        seed=cfg.seed,
        device=str(choose_device(cfg.device)),
        trusted_packages=tuple(cfg.trusted_packages),
    )


def training_workloads(cfg: BenchmarkConfig) -> list[training.TrainingWorkload]:
    """Return the workloads, after comparing each size with the baseline and printing the result."""
    device = str(choose_device(cfg.device))
    workloads = [
        training.TrainingWorkload(size, lengths, cfg.dropout, cfg.num_batches, cfg.seed, device)
        for size in cfg.sizes
        for lengths in cfg.lengths
    ]
    for workload in {workload.size: workload for workload in workloads}.values():
        print(training.check_equality(workload), flush=True)
    return workloads


def length_workloads(cfg: BenchmarkConfig) -> list[length.LengthWorkload]:
    """Return a workload for each combination of experiment and sentence length."""
    return length.workloads(
        list(cfg.sizes),
        list(cfg.sentence_tokens),
        batch_tokens=cfg.batch_tokens,
        num_batches=cfg.num_batches,
        seed=cfg.seed,
        device=str(choose_device(cfg.device)),
    )


def check_lists(cfg: BenchmarkConfig) -> None:
    """Check the choices of the lists, which depend on the task."""
    for key, choices in ALLOWED[cfg.task].items():
        for value in getattr(cfg, key):
            if value not in choices:
                raise InputError(f"{key}: found {value}, allowed are {', '.join(choices)}, as in {key}=[{choices[0]}]")
    if not cfg.sizes and (cfg.checkpoint is None or cfg.task != "decoding"):
        alternative = " or checkpoint=" if cfg.task == "decoding" else ""
        known = ALLOWED[cfg.task].get("sizes")
        names = "names of experiments" if known is None else f"of {', '.join(known)}"
        raise InputError(f"there is nothing to measure: give sizes= ({names}){alternative}")
    if cfg.checkpoint is not None and cfg.task != "decoding":
        raise InputError(f"checkpoint={cfg.checkpoint} is for task=decoding; training is measured from random weights")
    for key in ("lengths", "precisions", "beams", "batch_sizes", "sentence_tokens"):
        if not getattr(cfg, key):
            raise InputError(f"{key}: found [], allowed is a list of at least one")


def check_outputs(cfg: BenchmarkConfig) -> None:
    """Raise InputError if the file of the figures, the folder of profiles or standard output cannot be written."""
    if cfg.output is None:
        check_stdout(", or name a file with output=")
    else:
        check_output("output", cfg.output, make_folder=True)
    if cfg.profile is not None:
        check_output_folder("profile", cfg.profile)


def setting(cfg: BenchmarkConfig) -> dict[str, object]:
    """Return the settings, besides the workload, that the figures depend on."""
    device = choose_device(cfg.device)
    return {
        "task": cfg.task,
        "device": str(device),
        "hardware": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton_kernels": {"attention": kernels_run(device), "search": search_kernels_run(device)},
        "repetitions": cfg.repetitions,
        "num_batches": cfg.num_batches,
        **{key: getattr(cfg, key) for key in SETTINGS[cfg.task]},
        "seed": cfg.seed,
    }


def write(output: Path, contents: dict[str, object], profiles: list[str]) -> None:
    """Write the figures as JSON, and the profiles beside them."""
    try:
        write_atomically(output, (json.dumps(contents, indent=2) + "\n").encode())
        if profiles:
            write_atomically(output.with_suffix(".profile.txt"), "\n".join(profiles).encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
