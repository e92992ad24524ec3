"""Import of NVIDIA's PyTorch GNMT v2 (DeepLearningExamples, PyTorch/Translation/GNMT).

NVIDIA's model is this project's GNMT with `query: current`: a bidirectional first encoder layer, residual connections
from the third layer of both sides, and normalized additive attention whose context feeds every upper decoder layer.
Each of its tensors has a counterpart with another name. linear_q and linear_k have no bias; normalize_bias, which is
added to the sum of query and key, becomes the bias of the key projection. NVIDIA's encoder reads BOS, the subwords and
EOS.

The first half of the module converts a file (`read_nvidia_gnmt`). The second half reads the file without running any
code from it (`read_restricted`).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gnmt.checkpoint.file import nearby_checkpoints, software_versions
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.errors import InputError, first_line
from gnmt.fileio import encodable, sha256_of

_LSTM_TENSORS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
_ATTENTION_TENSORS = {
    "linear_q.weight": "query_projection.weight",
    "linear_k.weight": "key_projection.weight",
    "normalize_bias": "key_projection.bias",
    "linear_att": "direction",
    "normalize_scalar": "scale",
}
_EVALUATION_BATCH_SIZE = 64
_SPECIAL_SUBWORDS = ("<pad>", "<unk>", "<s>", "<\\s>")  # NVIDIA's names of PAD, UNK, BOS and EOS, ids 0 to 3
_PADDING_SUBWORD = re.compile(r"madeupword\d{4,}")  # fills the vocabulary up to a round size; no text contains it


# The checkpoint


def read_nvidia_gnmt(path: str | Path) -> dict[str, Any]:
    """Read NVIDIA's checkpoint, and return the contents of a checkpoint of gnmt whose model computes the same logits.

    Weights become fp32. The tokenizers expect text that is already split into subwords. The search options are the
    defaults, which are NVIDIA's too. Raises InputError, with the name of the value, if anything is missing, unknown or
    malformed.
    """
    contents = read_restricted(path)
    if not isinstance(contents, dict) or not {"state_dict", "tokenizer"} <= contents.keys():
        is_dict = isinstance(contents, dict)
        found = f"keys {', '.join(map(str, contents))}" if is_dict else f"a {type(contents).__name__}"
        raise InputError(
            f"{path} is not a checkpoint of NVIDIA's GNMT v2, which is a dictionary with state_dict and tokenizer: "
            f"found {found}"
        )
    origin = str(path)
    theirs = _read_weights(contents["state_dict"], origin)
    tokenizer, unused = _read_vocabulary(contents["tokenizer"], len(theirs["encoder.embedder.weight"]), origin)
    shared = torch.equal(theirs["encoder.embedder.weight"], theirs["decoder.embedder.weight"])
    if shared:
        theirs["decoder.embedder.weight"] = theirs["encoder.embedder.weight"]  # one tensor, saved once
    step = _read_num_updates(contents.get("scheduler"))
    config = {
        "model": _model_node(theirs, shared, _read_dropout(contents.get("model_config"))),
        "decoding": {"_target_": "gnmt.decoding.options.SearchOptions", **asdict(SearchOptions())},
        "trainer": {"evaluation_batch_size": _EVALUATION_BATCH_SIZE},
        "data": {"bleu_tokenize": "13a"},
    }
    return {
        "config": json.dumps(config),
        "tokenizers": Tokenizers(tokenizer, tokenizer, source_bos=True).to_checkpoint(),
        "model": {ours: theirs[name] for name, ours in _name_pairs(*_num_layers(theirs)).items()},
        "step": step,
        "best": {},
        "best_step": step,
        "data_fingerprint": "",
        "preprocessed_folder": "",
        "precision": "fp32",
        "git_revision": None,
        "torch_version": str(torch.__version__),
        "versions": software_versions(),
        "unused_target_ids": unused,
        "imported_from": {"source": "nvidia_gnmt", "file": encodable(Path(path).name), "sha256": sha256_of(path)},
    }


def _read_weights(state_dict: Any, origin: str) -> dict[str, Tensor]:
    """Return the weights in fp32 by NVIDIA's names, without the prefix `module.` of data-parallel training.

    The names decide the number of layers. Raises InputError unless the tensors are exactly those of such a model.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise InputError(f"{origin}: state_dict must hold tensors by name")
    theirs: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        plain = str(name).removeprefix("module.")
        if plain in theirs:
            raise InputError(f"{origin}: state_dict holds {plain} twice, with module. before it and without: keep one")
        theirs[plain] = tensor
    expected = _name_pairs(*_num_layers(theirs))
    if missing := [name for name in expected if name not in theirs]:
        raise InputError(f"{origin}: state_dict lacks {_first_names(missing)}")
    if unknown := [name for name in theirs if name not in expected]:
        raise InputError(
            f"{origin}: state_dict holds {_first_names(unknown)}, which the model of GNMT v2 does not have and which "
            "cannot be imported"
        )
    for name, tensor in theirs.items():
        num_axes = 2 if "weight" in name else 1
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise InputError(
                f"{origin}: state_dict.{name} is {tensor.layout} on {tensor.device}, allowed are dense tensors whose "
                "numbers are in the file (neither sparse ones nor those of torch's meta device)"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            # An expanded tensor: a small file may claim more numbers than fit into memory.
            raise InputError(
                f"{origin}: state_dict.{name} has the shape {list(tensor.shape)} but repeats the same numbers, "
                "allowed are tensors whose numbers are all in the file"
            )
        if not tensor.is_floating_point() or tensor.dim() != num_axes or not tensor.numel():
            raise InputError(
                f"{origin}: state_dict.{name} is {tensor.dtype} {list(tensor.shape)}, allowed are floating-point "
                f"numbers on {num_axes} axes"
            )
        theirs[name] = tensor.float().contiguous()
        if not theirs[name].isfinite().all():
            raise InputError(
                f"{origin}: state_dict.{name} holds numbers that are not finite in fp32, with which a model cannot "
                "translate: use a checkpoint from before its training diverged"
            )
    scale = "decoder.att_rnn.attn.normalize_scalar"
    if theirs[scale].numel() != 1:
        raise InputError(f"{origin}: state_dict.{scale} holds {theirs[scale].numel()} numbers, allowed is one")
    theirs[scale] = theirs[scale].reshape(())
    return theirs


def _first_names(names: Sequence[str]) -> str:
    """Return the first eight names and the number of further names as text."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _name_pairs(num_encoder_layers: int, num_decoder_layers: int) -> dict[str, str]:
    """Return a dictionary from NVIDIA's names of the tensors to the names in gnmt."""
    lstms = {f"encoder.rnn_layers.{layer}": f"encoder.layers.{layer}" for layer in range(1, num_encoder_layers)}
    lstms["decoder.att_rnn.rnn"] = "decoder.bottom"
    lstms |= {f"decoder.rnn_layers.{layer}": f"decoder.upper.{layer}" for layer in range(num_decoder_layers - 1)}
    names = {
        "encoder.embedder.weight": "source_embedding.weight",
        "decoder.embedder.weight": "target_embedding.weight",
        "decoder.classifier.classifier.weight": "output_layer.weight",
        "decoder.classifier.classifier.bias": "output_layer.bias",
    }
    for weight in _LSTM_TENSORS:
        names[f"encoder.rnn_layers.0.{weight}"] = f"encoder.layers.0.ahead.{weight}"
        names[f"encoder.rnn_layers.0.{weight}_reverse"] = f"encoder.layers.0.back.{weight}"
        names |= {f"{theirs}.{weight}": f"{ours}.{weight}" for theirs, ours in lstms.items()}
    return names | {
        f"decoder.att_rnn.attn.{theirs}": f"decoder.attention.{ours}" for theirs, ours in _ATTENTION_TENSORS.items()
    }


def _num_layers(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the numbers of encoder and decoder layers, at least two each, by the highest layer in the names."""

    def highest(side: str) -> int:
        found = (re.match(rf"{side}\.rnn_layers\.(\d{{1,3}})\.", name) for name in weights)
        return max((int(match[1]) for match in found if match), default=0)

    return max(2, highest("encoder") + 1), max(2, highest("decoder") + 2)


def _model_node(weights: Mapping[str, Tensor], shared_embeddings: bool, dropout: float) -> dict[str, Any]:
    """Return the config of the model, with the widths of the weights."""
    num_encoder_layers, num_decoder_layers = _num_layers(weights)
    embedding_size = weights["encoder.embedder.weight"].shape[-1]
    encoder_size = weights["encoder.rnn_layers.0.weight_hh_l0"].shape[-1]
    decoder_size = weights["decoder.att_rnn.rnn.weight_hh_l0"].shape[-1]
    common = {"residual_from": 3, "dropout": dropout, "variational_dropout": False}
    return {
        "_target_": "gnmt.model.seq2seq.Seq2Seq",
        "embedding_size": embedding_size,
        "tie_embeddings": "source_target" if shared_embeddings else "none",
        "init_range": 0.1,
        "embedding_init_range": None,
        "output_dropout": 0.0,
        "word_dropout": 0.0,
        "memory_dropout": 0.0,
        "encoder": {
            "_target_": "gnmt.model.recurrent.encoder.LSTMEncoder",
            "input_size": embedding_size,
            "hidden_size": encoder_size,
            "num_layers": num_encoder_layers,
            "num_bidirectional_layers": 1,
            **common,
        },
        "decoder": {
            "_target_": "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder",
            "input_size": embedding_size,
            "hidden_size": decoder_size,
            "num_layers": num_decoder_layers,
            "query": "current",
            **common,
            "attention": {
                "_target_": "gnmt.model.attention.AdditiveAttention",
                "query_size": decoder_size,
                "memory_size": encoder_size,
                "hidden_size": weights["decoder.att_rnn.attn.linear_att"].shape[0],
                "normalize": True,
                "initial_scale": 1.0,
            },
        },
    }


def _read_vocabulary(state: Any, num_rows: int, origin: str) -> tuple[PretokenizedTokenizer, list[int]]:
    """Return NVIDIA's vocabulary as a tokenizer, and the ids of its filler subwords, which no sentence contains.

    Subwords are read from idx2tok. tok2idx must agree with it, but may hold further words with the id of UNK: NVIDIA's
    lookup of an unknown word adds one.

    Args:
        state: The state of NVIDIA's tokenizer.
        num_rows: The number of rows of the embeddings, which must equal the size of the vocabulary.
        origin: The name of the checkpoint in errors.
    """
    needed = ("separator", "vocab_size", "tok2idx", "idx2tok")
    if not isinstance(state, Mapping) or any(name not in state for name in needed):
        raise InputError(f"{origin}: tokenizer must hold {', '.join(needed)}")
    separator, size, to_id, to_subword = (state[name] for name in needed)
    if not isinstance(size, int) or isinstance(size, bool):
        raise InputError(f"{origin}: tokenizer.vocab_size is {size!r}, allowed is a whole number")
    if size != num_rows:
        raise InputError(f"{origin}: tokenizer.vocab_size is {size!r}, but the embeddings have {num_rows} rows")
    if not isinstance(to_id, Mapping) or not isinstance(to_subword, Mapping):
        raise InputError(f"{origin}: tokenizer.tok2idx and idx2tok must be dictionaries")
    if not isinstance(separator, str):
        raise InputError(f"{origin}: tokenizer.separator is {separator!r}, allowed is text")
    for id, subword in to_subword.items():
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < size or not isinstance(subword, str):
            raise InputError(
                f"{origin}: tokenizer.idx2tok gives {id!r} the subword {subword!r}, allowed are ids of 0 to {size - 1}"
            )
        if to_id.get(subword) != id:
            raise InputError(
                f"{origin}: tokenizer.idx2tok gives id {id} the subword {subword!r}, but tok2idx gives it id "
                f"{to_id.get(subword)!r}"
            )
    special = [to_subword.get(id) for id in range(len(_SPECIAL_SUBWORDS))]
    if special != list(_SPECIAL_SUBWORDS):
        raise InputError(
            f"{origin}: tokenizer.idx2tok begins with {', '.join(map(repr, special))}, allowed is "
            f"{', '.join(map(repr, _SPECIAL_SUBWORDS))}, the ids of padding, unknown, begin and end of GNMT v2"
        )
    # Of a subword that the vocabulary lists twice, NVIDIA keeps the last id. The first id has no subword then.
    tokenizer = PretokenizedTokenizer(tuple(to_subword.get(id) for id in range(size)), separator)
    unused = [id for id, subword in to_subword.items() if _PADDING_SUBWORD.fullmatch(subword)]
    return tokenizer, sorted(unused)


def _read_dropout(model_config: Any) -> float:
    """Return the dropout of training, or 0 if the file records none. Translation does not use it."""
    dropout = model_config.get("dropout") if isinstance(model_config, Mapping) else None
    return float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0


def _read_num_updates(scheduler: Any) -> int:
    """Return the number of updates in the state of the learning-rate scheduler, or 0 if it has none."""
    count = scheduler.get("last_epoch") if isinstance(scheduler, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else 0


# The restricted reader


def read_restricted(path: str | Path) -> Any:
    """Read a file of torch.save, in its zip or its older format, without running any code from the file.

    Tensors are on the CPU. Foreign objects are replaced as in `REPLACEMENTS`; torch's weights-only reader refuses every
    other class or function. Raises InputError if the file is missing or damaged, or names a refused class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        with torch.serialization.safe_globals(list[Any](REPLACEMENTS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"checkpoint {path} was refused, and no code from it ran: {error}; {_allowed()}") from None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} was refused, and no code from it ran: {_refusal_reason(str(error))}; {_allowed()}"
        ) from None
    except Exception as error:  # damaged bytes make torch's reader raise errors of any type
        raise InputError(
            f"checkpoint {path} is damaged or was not written by torch.save "
            f"({type(error).__name__}: {first_line(error).partition('. ')[0]}): use another file"
        ) from None


def _refusal_reason(message: str) -> str:
    """Return torch's reason for a refusal, without its advice to load the file without protection."""
    if found := re.search(r"GLOBAL (\S+) (?:was|whose)", message):
        return f"it names {found[1]}"
    if found := re.search(r"WeightsUnpickler error: (.+)", message):
        return found[1]
    return "it is damaged, or holds objects that only code from the file could rebuild"


def _allowed() -> str:
    """Return the end of a refusal's message, which lists what a file may hold."""
    return f"allowed are tensors, plain values and, as inert data, {', '.join(name for _, name in REPLACEMENTS)}"


class Inert:
    """Replace an object of a foreign class by its pickled state, without behavior.

    state: the attributes of the object, in a dictionary unless its class pickles another kind of state.
    """

    state: Any = None

    def __new__(cls, *arguments: Any) -> Self:
        """Ignore the arguments that the foreign constructor would get."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Namespace(Inert):
    """Replace argparse.Namespace: the options of a command line."""


class BytePairEncoding(Inert):
    """Replace subword_nmt.apply_bpe.BPE: merge operations."""


def whole_number(*arguments: Any) -> int:
    """Replace the type int; a file may refer to it but not call it."""
    raise InputError("it calls builtins.int, which is allowed only as the factory of a dictionary")


class ConstantOne(Inert):
    """Replace functools.partial(int, 1); another partial is refused."""

    def __new__(cls, *arguments: Any) -> Self:
        _require_constant_one(arguments[:1] == (whole_number,) and arguments[1:] in ((), (1,)))
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        function, arguments, keywords, _ = state
        _require_constant_one(function is whole_number and arguments == (1,) and not keywords)
        self.state = 1


def _require_constant_one(is_constant_one: bool) -> None:
    if not is_constant_one:
        raise InputError("it holds a functools.partial that is not functools.partial(int, 1)")


def plain_dictionary(*arguments: Any) -> dict[Any, Any]:
    """Replace collections.defaultdict by a dictionary with the same entries and no factory."""
    if not all(isinstance(argument, ConstantOne) for argument in arguments):
        raise InputError("it holds a collections.defaultdict whose factory is not functools.partial(int, 1)")
    return {}


REPLACEMENTS = [
    (Namespace, "argparse.Namespace"),
    (BytePairEncoding, "subword_nmt.apply_bpe.BPE"),
    (whole_number, "builtins.int"),
    (ConstantOne, "functools.partial"),
    (plain_dictionary, "collections.defaultdict"),
]
"""The foreign classes and functions that a file may name, besides tensors and plain containers and values."""
