"""NVIDIA's GNMT v2, implemented from its description, one sentence at a time, and a writer of its checkpoints.

The description: the first encoder layer is bidirectional, the others run forward; from the third on, the input of a
layer is added to its output. The decoder's first LSTM queries an additive attention with its current output. The
context is concatenated to the input of all further LSTMs; from the third layer on, the input without the context is
added to the output. The score of a query q and a key k is s v/|v| . tanh(Q q + K k + b).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SPECIAL = ["<pad>", "<unk>", "<s>", "<\\s>"]
SUBWORDS = [*SPECIAL, "the", "dog", "bar@@", "ks", "a", "c@@", "at", ".", "madeupword0000"]


class Parts(nn.Module):
    """Return modules by name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class NvidiaAttention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(size, size, bias=False)
        self.linear_k = nn.Linear(size, size, bias=False)
        self.linear_att = nn.Parameter(torch.randn(size))
        self.normalize_scalar = nn.Parameter(torch.rand(1) + 0.5)
        self.normalize_bias = nn.Parameter(torch.randn(size))

    def weights(self, query: Tensor, states: list[Tensor]) -> Tensor:
        vector = self.normalize_scalar * self.linear_att / (self.linear_att**2).sum() ** 0.5
        scores = [
            (vector * torch.tanh(self.linear_q(query) + self.linear_k(state) + self.normalize_bias)).sum()
            for state in states
        ]
        return torch.softmax(torch.stack(scores), dim=0)


class NvidiaGNMT(nn.Module):
    """NVIDIA's model in fp64 and eval mode; its state_dict has NVIDIA's names."""

    def __init__(self, num_layers: int = 4, size: int = 6, vocabulary_size: int = len(SUBWORDS), shared: bool = True):
        super().__init__()
        torch.manual_seed(7)
        embedder = nn.Embedding(vocabulary_size, size, padding_idx=0)
        nn.init.normal_(embedder.weight)  # the row of PAD too, which their initialization fills
        first = [nn.LSTM(size, size, bidirectional=True), nn.LSTM(2 * size, size)]
        further = [nn.LSTM(size, size) for _ in range(num_layers - 2)]
        self.encoder = Parts(rnn_layers=nn.ModuleList([*first, *further]), embedder=embedder)
        self.decoder = Parts(
            att_rnn=Parts(rnn=nn.LSTM(size, size), attn=NvidiaAttention(size)),
            rnn_layers=nn.ModuleList(nn.LSTM(2 * size, size) for _ in range(num_layers - 1)),
            embedder=embedder if shared else nn.Embedding(vocabulary_size, size, padding_idx=0),
            classifier=Parts(classifier=nn.Linear(size, vocabulary_size)),
        )
        for lstm in (module for module in self.modules() if isinstance(module, nn.LSTM)):
            for weight in lstm.parameters():
                nn.init.uniform_(weight, -0.8, 0.8)  # large, so that the gates are far from linear
        self.float().double().eval()  # through fp32, which the files hold

    @torch.no_grad()
    def logits(self, source: list[int], target: list[int]) -> Tensor:
        """Return the logits [T, V] after each target id. Both sides include BOS and EOS as the model reads them."""
        states = self.encoder.embedder(torch.tensor(source))
        for number, lstm in enumerate(self.encoder.rnn_layers, start=1):
            outputs, _ = lstm(states)
            states = outputs + states if number >= 3 else outputs
        outputs, _ = self.decoder.att_rnn.rnn(self.decoder.embedder(torch.tensor(target)))
        weights = [self.decoder.att_rnn.attn.weights(output, list(states)) for output in outputs]
        contexts = torch.stack([weight @ states for weight in weights])
        for number, lstm in enumerate(self.decoder.rnn_layers, start=2):
            below = outputs
            outputs, _ = lstm(torch.cat((below, contexts), dim=-1))
            outputs = outputs + below if number >= 3 else outputs
        return self.decoder.classifier.classifier(outputs)


def tokenizer_state(subwords: list[str] = SUBWORDS, separator: str = "@@") -> dict[str, Any]:
    """Return the state of NVIDIA's tokenizer after the look-up of an unknown word."""
    to_id: defaultdict[str, int] = defaultdict(partial(int, 1))
    for id, subword in enumerate(subwords):
        to_id[subword] = id
    to_subword = {id: subword for subword, id in to_id.items()}
    assert to_id["a word that is not there"] == 1
    return {
        "lang": {"src": "en", "tgt": "de"},
        "separator": separator,
        "vocab_size": len(subwords),
        "bpe": {"bpe_codes": {("t", "h"): 0, ("th", "e</w>"): 1}, "separator": separator, "cache": {}},
        "tok2idx": to_id,
        "idx2tok": to_subword,
    }


def checkpoint_of(model: NvidiaGNMT, **replaced: Any) -> dict[str, Any]:
    """Return what NVIDIA's trainer saves, without the BPE object, which `save` adds."""
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    return {
        "epoch": 5,
        "state_dict": weights,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "scheduler": {"last_epoch": 1234, "base_lrs": [0.002]},
        "loss": 1.5,
        "model_config": {"hidden_size": 6, "num_layers": 4, "dropout": 0.2, "share_embedding": True},
        "config": argparse.Namespace(lang={"src": "en"}, math="fp16", epochs=6),
        "tokenizer": tokenizer_state(),
    } | replaced


def save(contents: dict[str, Any], path: Path, legacy: bool = False) -> Path:
    """Write the file with torch.save, with `bpe` as an object of a module that exists only during the call."""
    package, module = ModuleType("subword_nmt"), ModuleType("subword_nmt.apply_bpe")
    bpe_class = type("BPE", (), {"__module__": "subword_nmt.apply_bpe"})
    module.BPE = bpe_class  # type: ignore[attr-defined]
    names = {"subword_nmt": package, "subword_nmt.apply_bpe": module}
    if isinstance(contents.get("tokenizer"), dict) and isinstance(contents["tokenizer"].get("bpe"), dict):
        bpe = bpe_class()
        bpe.__dict__.update(contents["tokenizer"]["bpe"])
        contents = contents | {"tokenizer": contents["tokenizer"] | {"bpe": bpe}}
    sys.modules.update(names)
    try:
        torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    finally:
        for name in names:
            del sys.modules[name]
    return path
