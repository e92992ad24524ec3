"""The recommended settings: rows by the number of pairs, updates by the number of tokens, and the line in the log."""

import logging
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from gnmt.config.build import resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.validate import check_config
from gnmt.training.recommendation import RECOMMENDATIONS, recommended_overrides

CONFIG = {
    "model": {"embedding_size": 256},
    "optimizer": {"lr": 0.007},
    "tokenizer": {"vocab_size": 4000},
    "trainer": {"batch_tokens": 2048, "max_steps": 4500},
}


def as_dict(overrides: list[str]) -> dict[str, str]:
    return dict(override.split("=") for override in overrides)


@pytest.mark.parametrize(("num_pairs", "row"), [(1, 0), (9_999, 0), (10_000, 1), (29_000, 1), (10**5, 2), (10**8, 3)])
def test_the_row_of_a_number_of_pairs(num_pairs: int, row: int) -> None:
    overrides = as_dict(recommended_overrides(num_pairs, 20 * num_pairs, CONFIG))
    assert overrides.get("model", "gnmt_readout") == RECOMMENDATIONS[row].model
    assert overrides["tokenizer.vocab_size"] == str(RECOMMENDATIONS[row].vocabulary_size)


def test_the_number_of_updates_is_that_of_the_epochs() -> None:
    row = RECOMMENDATIONS[1]
    overrides = as_dict(recommended_overrides(30_000, 900_000, CONFIG))
    assert int(overrides["schedule.total_steps"]) == pytest.approx(row.epochs * 900_000 / row.batch_tokens, abs=50)
    assert as_dict(recommended_overrides(10, 100, CONFIG))["schedule.total_steps"] == "100"


def test_a_config_that_follows_it_gets_none() -> None:
    recommended = as_dict(recommended_overrides(30_000, 900_000, CONFIG))
    config = CONFIG | {
        "tokenizer": {"vocab_size": int(recommended["tokenizer.vocab_size"])},
        "trainer": {
            "batch_tokens": int(recommended["trainer.batch_tokens"]),
            "max_steps": int(recommended["schedule.total_steps"]),
        },
    }
    assert recommended_overrides(30_000, 900_000, config) == []
    assert recommended_overrides(300_000, 9_000_000, config) != []
    assert recommended_overrides(30_000, 900_000, {**config, "tokenizer": {}}) != []  # tokenizer=existing
    for wrong in ({"model": {"embedding_size": 128}}, {"optimizer": {"lr": 0.1}}, {"optimizer": {}}):
        assert recommended_overrides(30_000, 900_000, config | wrong) != [], "only the vocabulary was compared once"


@pytest.mark.parametrize("num_pairs", [row.fewest_pairs for row in RECOMMENDATIONS])
def test_a_config_with_the_recommended_overrides_follows_them(num_pairs: int) -> None:
    overrides = recommended_overrides(num_pairs, 20 * num_pairs, CONFIG)
    files = [f"data.{split}.{side}=a" for split in ("train", "dev") for side in ("source", "target")]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", [*overrides, *files])
    check_config(cfg)
    assert recommended_overrides(num_pairs, 20 * num_pairs, resolve(cfg)) == []


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    text = Path("docs/choosing-a-size.md").read_text(encoding="utf-8")
    for row in RECOMMENDATIONS:
        line = f"| {row.fewest_pairs:,} | `{row.model}` | {row.vocabulary_size:,} | {row.batch_tokens:,} |"
        assert f"{line} {row.epochs:g} | {row.learning_rate:g} |" in text


def test_a_run_from_scratch_logs_it_and_a_resumed_one_does_not(run, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", "trainer.max_steps=1")
    (line,) = [message for message in caplog.messages if message.startswith("recommended for 40 pairs")]
    assert "experiment=own_text tokenizer.vocab_size=2000 trainer.batch_tokens=1024" in line
    assert "schedule.total_steps=100" in line
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", "trainer.max_steps=2")
    assert "recommended" not in caplog.text
