"""The systems that docs/results/comparison.md compares differ only in what is compared."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from gnmt.config.build import build, resolve
from gnmt.config.cli import CONFIG_FOLDER

SYSTEMS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment/claims").glob("*.yaml"))
NUM_SUBWORDS = 4000
LARGEST_DIFFERENCE = 0.03


@cache
def config_of(system: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return resolve(compose("train", [f"experiment=claims/{system}", *overrides]))


def num_parameters(config: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = build(config["model"], source_vocabulary_size=NUM_SUBWORDS, target_vocabulary_size=NUM_SUBWORDS)
    return sum(parameter.numel() for parameter in model.parameters())


def test_numbers_of_parameters_differ_by_at_most_three_percent():
    assert len(SYSTEMS) == 19
    counts = {system: num_parameters(config_of(system)) for system in SYSTEMS}
    assert max(counts.values()) <= (1 + LARGEST_DIFFERENCE) * min(counts.values()), counts
    assert config_of("gnmt")["tokenizer"]["vocab_size"] == NUM_SUBWORDS


@pytest.mark.parametrize("data", ["demo", "multi30k"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_all_have_the_same_training_recipe(system, data):
    """Only claims/clipping has another optimizer and bound, which it compares."""
    bound = ("trainer.clip_norm=0.5",) if system == "clipping" else ()
    config, common = config_of(system, f"data={data}"), config_of("recipe", f"data={data}", *bound)
    apart = {"model", "name", *(("optimizer",) if system == "clipping" else ())}
    assert {key: config[key] for key in config.keys() - apart} == {key: common[key] for key in common.keys() - apart}
    assert config["data"]["name"] == data
    assert config["model"]["encoder"]["dropout"] == config["model"]["decoder"]["dropout"] == 0.1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_same_depth_with_and_without_skip_connections(depth):
    with_them, without = (config_of(f"depth_{depth}", f"model.encoder.residual_from={at}") for at in ("2", "null"))
    for part in ("encoder", "decoder"):
        assert with_them["model"][part]["num_layers"] == without["model"][part]["num_layers"] == depth
        assert with_them["model"][part]["residual_from"] == 2
        assert without["model"][part]["residual_from"] is None
    assert num_parameters(with_them) == num_parameters(without)


def test_attention_is_the_one_difference_between_two_systems():
    with_it, without = config_of("attention")["model"], config_of("no_attention")["model"]
    widths = {"input_size", "hidden_size"}
    assert {key: with_it["encoder"][key] for key in with_it["encoder"].keys() - widths} == {
        key: without["encoder"][key] for key in without["encoder"].keys() - widths
    }
    assert (with_it["decoder"]["bridge"], with_it["decoder"]["input_feeding"]) == ("final", False)
    assert "attention" not in without["decoder"]
