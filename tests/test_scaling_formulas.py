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
