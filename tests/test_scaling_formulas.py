"""The formulas of docs/scaling.md agree with the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from gnmt.config.build import build
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.batching import batch_of
from gnmt.data.store import Store, StoreWriter, encoded_side
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.objective import Objective

TEXT = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
TABLES = {"none": 3, "source_target": 2, "target_output": 2, "all": 1}


def parameters(layers: int, width: int, vocabulary_size: int, tied: str) -> int:
    """Return the number of parameters, P of docs/scaling.md."""
    inside = (20 * layers + 10) * width**2 + (16 * layers + 10) * width + 1
    return inside + TABLES[tied] * vocabulary_size * width + vocabulary_size


def config(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", list(overrides))


def model(layers: int, width: int, vocabulary_size: int, tied: str = "none") -> Seq2Seq:
    cfg = config(
        "model=gnmt",
        f"model.encoder.num_layers={layers}",
        f"model.embedding_size={width}",
        f"model.tie_embeddings={tied}",
    )
    built: Seq2Seq = build(cfg.model, source_vocabulary_size=vocabulary_size, target_vocabulary_size=vocabulary_size)
    return built


@pytest.mark.parametrize("tied", TABLES)
@pytest.mark.parametrize(("layers", "width"), [(2, 8), (3, 16), (5, 8)])
def test_numbers_of_parameters_and_optimizer_moments_are_exact(layers: int, width: int, tied: str) -> None:
    built = model(layers, width, 50, tied)
    count = parameters(layers, width, 50, tied)
    assert sum(parameter.numel() for parameter in built.parameters()) == count
    for kind, moments in ((torch.optim.Adam, 2), (torch.optim.SGD, 0)):
        optimizer = kind(built.parameters(), lr=0.1)
        for parameter in built.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        held = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        scalars = sum(parameter.dim() == 0 for parameter in built.parameters())  # attention's scale has moments too
        assert sum(tensor.numel() for tensor in held) == moments * (count - scalars)


@pytest.mark.parametrize("experiment", ["wmt16_en_de", "wmt14_en_fr_paper"])
def test_documented_sizes_of_recipes_are_right(experiment: str) -> None:
    cfg = config(f"experiment={experiment}")
    vocabulary_size = cfg.tokenizer.vocab_size
    with torch.device("meta"):
        built = build(cfg.model, source_vocabulary_size=vocabulary_size, target_vocabulary_size=vocabulary_size)
    count = sum(parameter.numel() for parameter in built.parameters())
    assert count == parameters(cfg.model.encoder.num_layers, 1024, 32_000, cfg.model.tie_embeddings)
    [row] = [line for line in TEXT.splitlines() if line.startswith(f"| `experiment={experiment}`")]
    assert f"{count:,}" in row


def test_number_of_multiplications_per_token_is_exact() -> None:
    """Each matrix element is multiplied once for each token of its side."""
    layers, width, vocabulary_size = 3, 16, 50
    built = model(layers, width, vocabulary_size)
    encoder = matrix_elements(built.encoder) + built.decoder.attention.key_projection.weight.numel()
    decoder = matrix_elements(built.decoder) - built.decoder.attention.key_projection.weight.numel()
    assert encoder == (8 * layers + 13) * width**2
    assert decoder == (12 * layers - 3) * width**2
    assert matrix_elements(built.output_layer) == vocabulary_size * width


def matrix_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize(("layers", "width"), [(2, 64), (4, 64), (2, 128)])
def test_memory_of_activations_is_near_the_formula(layers: int, width: int) -> None:
    """The formula is a fit to measurements, because kernels differ in the tensors that they save for backward."""
    vocabulary_size, rows, tokens = 60, 8, 20
    objective = Objective(
        model(layers, width, vocabulary_size),
        build(config().loss, vocabulary_size=vocabulary_size, never_produced=(0, 1, 2)),
    )
    ids = torch.randint(4, vocabulary_size, (rows, tokens - 1)).tolist()
    batch = batch_of(ids, ids, torch.arange(rows).numpy())
    sizes: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        objective(batch)
    weight_pointers = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    kept = sum(size for pointer, size in sizes.items() if pointer not in weight_pointers)
    expected = rows * tokens * 4 * width * (22 + 47.3 * layers)
    assert kept == pytest.approx(expected, rel=0.15)


def test_bytes_per_pair_in_the_store_are_exact(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, 32_000, 32_000) as writer:
        writer.append(encoded_side([[5, 6, 7]] * 100, ["abc"] * 100), encoded_side([[8]] * 100, ["ä"] * 100))
    size = sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".json")
    assert len(Store(tmp_path)) == 100
    assert size == 100 * (40 + 2 * 4 + 5) + 4 * 8  # each of the four tables has one more offset, its end


def finish_times(num_stages: int, num_microbatches: int) -> int:
    """Return the units of time in which all microbatches pass all stages; a stage takes one unit for each."""
    ends = [[0] * num_microbatches for _ in range(num_stages)]
    for stage in range(num_stages):
        for number in range(num_microbatches):
            arrived = ends[stage - 1][number] if stage else 0
            free = ends[stage][number - 1] if number else 0
            ends[stage][number] = max(arrived, free) + 1
    return ends[-1][-1]


@pytest.mark.parametrize(("microbatches", "busy", "steps", "rows"), [(8, "53%", 750, 128), (32, "82%", 1950, 32)])
def test_microbatches_leave_gpus_idle_and_add_recurrent_steps(
    microbatches: int, busy: str, steps: int, rows: int
) -> None:
    layers, tokens, stages, pairs = 8, 25, 8, 1024
    units = finish_times(stages, microbatches)
    assert units == microbatches + stages - 1
    assert f"{microbatches / units:.0%}" == busy
    assert units * tokens * 2 * layers // stages == steps
    assert pairs // microbatches == rows
    assert f"M = {microbatches} | 100% | {busy}" in TEXT
    assert f"M = {microbatches}: {steps:,} of {rows} pairs" in TEXT
    assert f"{units / stages:.1f} for M = {microbatches}" in TEXT
    assert f"{2 * layers * tokens} of {pairs // stages} pairs" in TEXT


def wavefront_steps(layers: int, tokens: int) -> int:
    """Return the steps of a sentence if every layer has a GPU and starts a step as soon as its input exists."""
    below = [tokens] * tokens  # a bidirectional layer has no output before its end
    for _ in range(layers - 1):
        below = following(below)
    attended = below[-1]
    bottom = [attended + step for step in range(1, tokens + 1)]
    below = bottom
    for _ in range(layers - 1):
        below = following(below)
    return below[-1]


def following(below: list[int]) -> list[int]:
    """Return the times at which a layer ends its steps, from those of the layer below."""
    ends: list[int] = []
    for arrived in below:
        ends.append(max(arrived, ends[-1] if ends else 0) + 1)
    return ends


@pytest.mark.parametrize(("layers", "tokens"), [(8, 25), (4, 7), (2, 1)])
def test_layers_one_behind_the_other_take_as_many_steps_as_documented(layers: int, tokens: int) -> None:
    assert wavefront_steps(layers, tokens) == 3 * tokens + 2 * layers - 3
    assert "`3 T + 2 L - 3` steps instead of `2 L T` (exact): 88 instead of 400" in TEXT
    assert f"at most {400 / 88:.1f}\n  times as fast as one, {400 / 88 / 8:.0%} of their number" in TEXT


def test_documented_shares_of_the_layers_are_right() -> None:
    layers, width, vocabulary_size = 8, 1024, 32_000
    encoder, decoder, output = 8 * layers + 13, 12 * layers - 3, vocabulary_size / width
    assert (encoder, decoder, output, encoder + decoder + output) == (77, 93, 31.25, 201.25)
    assert f"at most\n  {100 * (encoder + decoder + output) / 8 / output:.1f}% (exact)" in TEXT
    count = parameters(layers, width, vocabulary_size, "none")
    position = 6 * (encoder + decoder) * width**2 + 6 * vocabulary_size * width
    assert f"{16 * count / 1e9:.1f} GB | {2 * count / 1e9:.2f} GB" in TEXT
    assert f"{8 * count * 7 / 8 / 1e9:.1f} GB of gradients" in TEXT
    assert f"{25_600 / 8 * position / 1e12:.1f} TFLOP, {25_600 / 8 * position / (0.2 * 989e12) * 1e3:.0f} ms" in TEXT
    assert f"{parameters(8, 4096, vocabulary_size, 'none') / 1e9:.1f} billion parameters" in TEXT
