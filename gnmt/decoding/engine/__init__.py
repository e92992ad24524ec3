"""A frozen copy of a model whose modules are made for search.

Search multiplies few rows by large matrices, thousands of times, and never trains. So in the copy

- every Linear keeps its weights in the order and the type that the product wants (engine/linear.py); weights that are
  normalised are so once and for all;
- a decoder's LSTM multiplies input and hidden state by one merged matrix; an encoder's multiplies the inputs of all
  times at once (engine/recurrence.py);
- what the context adds to GNMT's upper layers is multiplied once for each source position (engine/decoder.py);
- additive attention needs a sigmoid in place of a tanh (engine/attention.py).

Only modules are exchanged. The architecture, what it computes and the calls of search are those of the model, so
anything that is built of Linear and LSTM gains from it, and a module of unknown kind works as it is. Between all of
them flow fp32, bf16 or fp16 tensors as `precision` says; for int8 they are fp32, quantised inside the products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gnmt.decoding.engine.attention import FastAdditiveAttention
from gnmt.decoding.engine.decoder import with_shared_context
from gnmt.decoding.engine.linear import LinearMaker, linear_maker
from gnmt.decoding.engine.recurrence import SequenceLSTM, StepLSTM
from gnmt.model.attention import AdditiveAttention
from gnmt.model.convolution import NormalisedLinear
from gnmt.model.recurrence import LSTM
from gnmt.model.seq2seq import Seq2Seq
from gnmt.runtime import Precision

__all__ = ["fast_model"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Replacement = Callable[[Any], nn.Module]


@torch.no_grad()
def fast_model(model: Seq2Seq, precision: Precision) -> Seq2Seq:
    """A copy of the model for search (it is a SearchModel), in evaluation mode, with weights of that precision.

    The model is not touched and may train on; the copy does not follow it. The copy needs no autocast. It encodes,
    starts and steps; `decode` (teacher forcing) is the model's own matter.
    Scores in fp32 are those of the model within 1e-5 of a token's log-probability. In int8, quantised are
    the products of Linear and LSTM modules (the weights by output, the activations by row), not the embeddings: a row
    does not depend on its neighbours, as in the other precisions.
    """
    dtype = _DTYPES.get(precision.name, torch.float32)
    make = linear_maker(precision.name, precision.device, dtype)
    copies: dict[int, Any] = {}  # by identity, as copy.deepcopy looks for what it has copied already
    on_cuda = precision.device.type == "cuda"
    _replace(model.encoder, _replacements(make, SequenceLSTM, keep_lstm=on_cuda), copies)
    _replace(model, _replacements(make, StepLSTM, keep_lstm=False), copies, without=model.encoder)
    fast = copy.deepcopy(model, copies)
    fast.decoder = with_shared_context(model.decoder, fast.decoder, make)
    fast.eval().requires_grad_(False).to(dtype=dtype)
    for module in fast.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return fast


def _replacements(
    make: LinearMaker, lstm: type[SequenceLSTM] | type[StepLSTM], keep_lstm: bool
) -> dict[type[nn.Module], Replacement]:
    """What becomes of a module of each class; keep_lstm: cuDNN runs whole sequences better than any loop."""
    replacements: dict[type[nn.Module], Replacement] = {
        nn.Linear: lambda module: make(module.weight, module.bias),
        NormalisedLinear: lambda module: make(module.weight, module.bias),
        AdditiveAttention: lambda module: FastAdditiveAttention(module, make),
    }
    if not keep_lstm:
        replacements[LSTM] = lambda module: lstm(module, make)
    return replacements


def _replace(
    module: nn.Module,
    replacements: dict[type[nn.Module], Replacement],
    copies: dict[int, Any],
    without: nn.Module | None = None,
) -> None:
    """Notes for each module under this one, of exactly such a class, what stands in for it; nothing under `without`."""
    for child in module.children():
        if id(child) in copies or child is without:
            continue
        if type(child) in replacements:
            copies[id(child)] = replacements[type(child)](child)
        elif not _reads_weights_itself(child):
            _replace(child, replacements, copies)


def _reads_weights_itself(module: nn.Module) -> bool:
    """torch's composite modules, such as nn.TransformerEncoderLayer, use the weights of their parts directly."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, nn.ModuleList | nn.ModuleDict | nn.Sequential
    )
