"""Make the oracle of this folder importable by name, and write small checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gnmt.checkpoint.file import write_checkpoint
from gnmt.checkpoint.load import build_model
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers

sys.path.insert(0, str(Path(__file__).parent))

WIDTHS = {"input_size": 4, "hidden_size": 4, "num_layers": 2}
ATTENTION = {"_target_": "gnmt.model.attention.AdditiveAttention", "query_size": 4, "memory_size": 4, "hidden_size": 3}
MODEL = {
    "_target_": "gnmt.model.seq2seq.Seq2Seq",
    "embedding_size": 4,
    "tie_embeddings": "all",
    "encoder": {"_target_": "gnmt.model.recurrent.encoder.LSTMEncoder", **WIDTHS},
    "decoder": {"_target_": "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder", **WIDTHS, "attention": ATTENTION},
}


CONFIG = {
    "model": MODEL,
    "name": "Größe",
    "decoding": {"_target_": "gnmt.decoding.options.SearchOptions"},
    "trainer": {"evaluation_batch_size": 8},
    "data": {"bleu_tokenize": "13a"},
}


@pytest.fixture(scope="session")
def tokenizers() -> Tokenizers:
    lines = ["a red house", "no tree sleeps", "the end"]
    return train_tokenizers(lines, lines, TokenizerOptions(vocab_size=280))


@pytest.fixture(scope="session")
def model_config() -> dict[str, Any]:
    """The config node of the model in `contents`."""
    return MODEL


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    """The config in `contents`."""
    return CONFIG


@pytest.fixture
def contents(tokenizers: Tokenizers) -> dict[str, Any]:
    """The contents of a small full checkpoint."""
    torch.manual_seed(1)
    model = build_model(MODEL, tokenizers, (), "the test")
    return {
        "config": json.dumps(CONFIG),
        "tokenizers": tokenizers.to_checkpoint(),
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.98), "lr": 1e-3}]},
        "step": 3,
        "best": {"dev/bleu": 12.5},
        "best_step": 2,
        "data_fingerprint": "0" * 64,
        "preprocessed_folder": "preprocessed/demo",
        "precision": "fp32",
        "unused_target_ids": [],
        "git_revision": None,
        "torch_version": str(torch.__version__),
        "versions": {"gnmt": "0"},
        "average": None,
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "tied": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def written(tmp_path: Path, contents: dict[str, Any]) -> Path:
    path = tmp_path / "best.pt"
    write_checkpoint(path, contents)
    return path
